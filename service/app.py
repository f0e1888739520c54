"""The application: routes, error handlers and the lifespan that owns the service's resources."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

from relevance import __version__
from relevance.errors import RelevanceError
from service.admin_routes import admin_router
from service.api_keys import ApiKeys
from service.lifecycle import OnEnd, Service
from service.middleware import RequestBoundary
from service.playground_page import playground_router
from service.problems import on_error
from service.rerank import rerank_router
from service.rerank_dialects import RerankRequest
from service.routes import router
from service.schemas import ModeRequest, Problem, ReloadRequest, ScoreRequest
from service.settings import Settings
from service.telemetry import Telemetry

_LAG_PERIOD_S = 0.02


def create_app(settings: Settings, *, on_end: OnEnd = lambda status, reason: None) -> FastAPI:
    """Build the app; nothing is loaded before its lifespan starts.

    Args: on_end: called with an exit status and a reason when the bundle cannot be served or the engines are lost; the
        app itself stays up, not ready.
    Raises: SettingsError: API keys that cannot be read, tracing without its packages.
    """
    telemetry = Telemetry()
    service = Service(settings, telemetry, on_end)
    keys = ApiKeys(settings.api_keys) if settings.api_keys is not None else None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        """Start the service beside the server, and stop it after."""
        starting = asyncio.create_task(service.start())
        lag = asyncio.create_task(_measure_lag(telemetry))
        try:
            yield
        finally:
            lag.cancel()
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
    app.include_router(rerank_router)
    app.include_router(admin_router)
    if settings.playground:
        app.include_router(playground_router())
    for kind in (RelevanceError, HTTPException):
        app.add_exception_handler(kind, on_error)
    app.add_middleware(
        RequestBoundary,
        telemetry=telemetry,
        keys=keys,
        admin_port=settings.admin_port,
        tracing=service.tracing,
        draining=lambda: service.phase in {"draining", "failed"},
    )
    _add_schemas(app)
    return app


async def _measure_lag(telemetry: Telemetry) -> None:
    """Observe how late the event loop wakes this task up."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + _LAG_PERIOD_S
        await asyncio.sleep(_LAG_PERIOD_S)
        telemetry.loop_lag.observe(max(0.0, loop.time() - due))


def _add_schemas(app: FastAPI) -> None:
    """Put the schemas of bodies that routes read and write by hand into the OpenAPI document."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        """Give FastAPI's document with the hand-written bodies' schemas."""
        document = plain()
        known = document.setdefault("components", {}).setdefault("schemas", {})
        if "ScoreRequest" not in known:
            _, definitions = models_json_schema(
                [
                    (ScoreRequest, "validation"),
                    (RerankRequest, "validation"),
                    (ReloadRequest, "validation"),
                    (ModeRequest, "validation"),
                    (Problem, "serialization"),
                ],
                ref_template="#/components/schemas/{model}",
            )
            known.update(definitions["$defs"])
            document["components"]["schemas"] = dict(sorted(known.items()))
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI documents this as the way to extend it
