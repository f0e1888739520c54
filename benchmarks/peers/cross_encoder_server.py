"""The server many write first: FastAPI around sentence-transformers' CrossEncoder, as both their pages show it.

It runs in an environment of its own and imports nothing of the project. A plain `def` route runs on FastAPI's thread
pool, which is held to as many calls at once as there are cores: forty at once would only share them.
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio.to_thread
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import CrossEncoder

BATCH_SIZE = 32


class Rerank(BaseModel):
    """A query and the texts to score against it; the route is named and shaped like that of other servers."""

    query: str
    documents: list[str]
    return_documents: bool = False


def create_app(model: CrossEncoder, calls_at_once: int) -> FastAPI:
    """Build the app around a loaded model."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        """Hold the thread pool to so many calls."""
        anyio.to_thread.current_default_thread_limiter().total_tokens = calls_at_once
        yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/health")
    def health() -> dict[str, str]:
        """Say that the model is loaded."""
        return {"status": "ok"}

    @app.post("/rerank")
    def rerank(asked: Rerank) -> dict[str, Any]:
        """Score every text, in the order given."""
        scores = model.predict([(asked.query, text) for text in asked.documents], batch_size=BATCH_SIZE)
        return {"results": [{"index": i, "relevance_score": score} for i, score in enumerate(scores.tolist())]}

    return app


def main() -> None:
    """Load the model and serve it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--calls-at-once", type=int, required=True)
    arguments = parser.parse_args()
    app = create_app(CrossEncoder(arguments.model, device="cpu"), arguments.calls_at_once)
    uvicorn.run(app, host="127.0.0.1", port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
