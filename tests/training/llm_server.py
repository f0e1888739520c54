"""An OpenAI-compatible server that misbehaves on demand: run as a script, it obeys the text of the last message.

`ok TEXT`, as any text that begins with no action, is answered with a text made of TEXT and the request's seed.
`ACTION TIMES TEXT` does the action for the first
TIMES requests with this body and answers the rest. Every request is written to the log before anything is done about
it, with its time, its body's hash and seed, and how many were being answered.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

HTML = "<html><body><h1>502 Bad Gateway</h1></body></html>"


def answer_to(text: str, seed: int) -> str:
    """Give what the server answers to a text."""
    return json.dumps({"rationale": f"about {text} by {seed}", "label": "E"})


def completion(text: str, seed: int) -> dict[str, Any]:
    """Give a whole chat completion."""
    message = {"role": "assistant", "content": answer_to(text, seed)}
    return {
        "id": "x",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }


def make_app(log: Path, *, key: str | None, delay_s: float) -> FastAPI:
    """Build the server.

    Args: log: JSONL file to append to; key: that requests must carry; delay_s: of every answer.
    """
    app = FastAPI()
    seen: Counter[str] = Counter()
    now: Counter[str] = Counter()

    @app.get("/health")
    async def health() -> Response:
        """Be there."""
        return Response("ok")

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        """Do what the last message says."""
        body = await request.body()
        name = hashlib.sha256(body).hexdigest()
        seen[name] += 1
        now["answering"] += 1
        asked = json.loads(body)
        row = {"at": time.time(), "body": name, "seed": asked["seed"], "at_once": now["answering"]}
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row | {"asked": asked}) + "\n")
        try:
            if key is not None and request.headers.get("authorization") != f"Bearer {key}":
                return JSONResponse({"error": {"message": "no such key"}}, status_code=401)
            await asyncio.sleep(delay_s)
            return await _obey(asked, seen[name])
        finally:
            now["answering"] -= 1

    return app


async def _obey(asked: dict[str, Any], time_seen: int) -> Response:
    action, _, text = asked["messages"][-1]["content"].partition(" ")
    if action not in FAULTS:
        return JSONResponse(completion(text, asked["seed"]))
    times, _, text = text.partition(" ")
    whole = completion(text, asked["seed"])
    if time_seen > int(times):
        return JSONResponse(whole)
    if action == "slow":
        await asyncio.sleep(30)
    return FAULTS[action](whole, text)


def _refusal(status: int, message: str, **headers: str) -> Response:
    return JSONResponse({"error": {"message": message}}, status_code=status, headers=headers)


def _json(content: bytes, **headers: str) -> Response:
    return Response(content, headers=headers, media_type="application/json")


def _bytes(whole: dict[str, Any]) -> bytes:
    return json.dumps(whole).encode()


def _stream(whole: dict[str, Any], *, ended: bool) -> Response:
    return StreamingResponse(_pieces(whole, ended=ended), media_type="text/event-stream")


def _reasoning(whole: dict[str, Any], text: str) -> Response:
    message = {"role": "assistant", "content": None, "reasoning_content": text}
    return JSONResponse({"choices": [whole["choices"][0] | {"message": message}], "usage": None})


FAULTS: dict[str, Callable[[dict[str, Any], str], Response]] = {
    "slow": lambda whole, _: JSONResponse(whole),
    "busy": lambda *_: _refusal(429, "busy", **{"Retry-After": "1"}),
    "refuse": lambda *_: _refusal(400, "too many tokens: 99999"),
    "broken": lambda *_: Response(HTML, status_code=500, media_type="text/html"),
    "page": lambda *_: Response(HTML, media_type="text/html"),
    "half": lambda whole, _: _json(_bytes(whole)[:60]),
    "schema": lambda *_: JSONResponse({"choices": [{"message": {"content": ["no", "text"]}}]}),
    "cut": lambda whole, _: _json(_bytes(whole)[:60], **{"content-length": str(len(_bytes(whole)))}),
    "reasoning": _reasoning,
    "stream": lambda whole, _: _stream(whole, ended=True),
    "streamcut": lambda whole, _: _stream(whole, ended=False),
}


async def _pieces(whole: dict[str, Any], *, ended: bool) -> AsyncIterator[str]:
    text = whole["choices"][0]["message"]["content"]
    yield ": a comment\n\n"
    yield 'data: {"choices": [{"index": 0, "delta": {"role": "assistant"}}]}\n\n'
    for start in range(0, len(text), 7):
        piece = {"choices": [{"index": 0, "delta": {"content": text[start : start + 7]}}]}
        yield f"data: {json.dumps(piece)}\n\n"
        await asyncio.sleep(0.001)
    if ended:
        yield 'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n'
        yield f"data: {json.dumps({'choices': [], 'usage': whole['usage']})}\n\ndata: [DONE]\n\n"


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--key")
    parser.add_argument("--delay", type=float, default=0.0)
    arguments = parser.parse_args()
    app = make_app(arguments.log, key=arguments.key, delay_s=arguments.delay)
    uvicorn.run(app, host="127.0.0.1", port=arguments.port, log_level="critical", lifespan="off")


if __name__ == "__main__":
    main()
