"""The application: routes, error handlers and the lifespan that owns the service's resources."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

from relevance import __version__
from relevance.errors import RelevanceError
from service.lifecycle import Service
from service.middleware import RequestBoundary
from service.problems import on_error
from service.routes import router
from service.schemas import Problem, ScoreRequest
from service.settings import Settings
from service.telemetry import Telemetry


def create_app(settings: Settings, *, on_failure: Callable[[RelevanceError], None] | None = None) -> FastAPI:
    """Build the app; nothing is loaded before its lifespan starts.

    Args: on_failure: called with the error when the bundle cannot be served; the app itself stays up, not ready.
    """
    telemetry = Telemetry()
    service = Service(settings, telemetry, on_failure)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        starting = asyncio.create_task(service.start())
        try:
            yield
        finally:
            await starting
            await asyncio.to_thread(service.stop)

    app = FastAPI(
        title="relevance-tiers",
        version=__version__,
        description="Calibrated relevance tiers for search ads: one query, many items, one score and tier each.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.service = service
    app.include_router(router)
    for kind in (RelevanceError, HTTPException):
        app.add_exception_handler(kind, on_error)
    app.add_middleware(RequestBoundary, telemetry=telemetry)
    _add_schemas(app)
    return app


def _add_schemas(app: FastAPI) -> None:
    """Put the schemas of bodies that routes read and write by hand into the OpenAPI document."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        """Give FastAPI's document with the hand-written bodies' schemas."""
        document = plain()
        known = document.setdefault("components", {}).setdefault("schemas", {})
        if "ScoreRequest" not in known:
            _, definitions = models_json_schema(
                [(ScoreRequest, "validation"), (Problem, "serialization")],
                ref_template="#/components/schemas/{model}",
            )
            known.update(definitions["$defs"])
            document["components"]["schemas"] = dict(sorted(known.items()))
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI documents this as the way to extend it
