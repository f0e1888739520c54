"""The one middleware, pure ASGI: request id, in-flight count, duration, log line, and the last line of defence."""

from __future__ import annotations

import logging
import re
import uuid
from time import perf_counter
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.problems import problem_response
from service.telemetry import ROUTES, UNMATCHED, Telemetry, outcome, size_class

log = logging.getLogger("relevance.service")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")


class RequestBoundary:
    """Wraps every HTTP request; an exception that no handler knew becomes a 500 here, and the service lives on.

    Routes find `request_id` and may leave `n_items`, `partial` and `log` (more log fields) in `request.state`.
    """

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self._app = app
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = perf_counter()
        request_id = _request_id(scope)
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
            await send(message)

        self._telemetry.inflight.inc()
        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            log.exception("unexpected failure", extra={"fields": {"request_id": request_id}})
            if status:
                raise
            response = problem_response(error, request_id=request_id, instance=scope["path"])
            await response(scope, receive, send_with_id)
        finally:
            self._telemetry.inflight.dec()
            self._record(scope, state, status or 499, perf_counter() - started)

    def _record(self, scope: Scope, state: dict[str, Any], status: int, seconds: float) -> None:
        route = scope["path"] if scope["path"] in ROUTES and status not in {404, 405} else UNMATCHED
        kind = outcome(status, partial=state.get("partial", False))
        self._telemetry.requests.labels(route, str(status), kind).inc()
        size = size_class(state.get("n_items"))
        self._telemetry.duration.labels(route, size).observe(seconds)
        fields = {
            "request_id": state["request_id"],
            "method": scope["method"],
            "route": route,
            "status": status,
            "outcome": kind,
            "ms": round(seconds * 1000, 2),
            **state.get("log", {}),
        }
        quiet = route not in {"/score", "/admin/drain"} and status < 500
        log.log(logging.DEBUG if quiet else logging.INFO, "request", extra={"fields": fields})


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value.decode())
    return uuid.uuid4().hex
