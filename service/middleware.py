"""The one middleware, pure ASGI: who may ask what where, ids and headers, durations, log line, last line of defence."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from relevance.errors import ClientGoneError, RequestError, UnauthorisedError
from service.api_keys import ApiKeys
from service.problems import problem_response
from service.request_headers import deadline_ms, request_id, trace_id
from service.telemetry import ADMIN_ROUTES, ROUTES, SCORING_ROUTES, UNMATCHED, Telemetry, outcome, size_class
from service.tracing import NoTracing, Tracing

log = logging.getLogger("relevance.service")
HEALTH_ROUTES = frozenset({"/livez", "/readyz", "/startupz"})
OPEN_ROUTES = HEALTH_ROUTES | {"/metrics", "/", "/playground"}
"""Routes that need no API key: probes, scrapers and a browser on its way to the playground have none."""
CLIENT_GONE = 499
_ALWAYS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))


class RequestBoundary:
    """Wraps every HTTP request; an exception that no handler knew becomes a 500 here, and the service lives on.

    Routes find `request_id`, `trace_id` (None without a valid traceparent), `span` (None unless traced) and
    `deadline_ms` (None without the header) in `request.state`, and may leave `n_items`, `partial`, `log` (more log
    fields) and `server_timing` (stage → milliseconds) there. A route whose client has gone raises ClientGoneError or
    lets ClientDisconnect through: nothing is sent, status 499 is recorded.

    Args: keys: who may ask, None for everyone; admin_port: where alone `/metrics` and `/admin/…` are answered, while
        only they, health and `/info` are answered there; None for everything everywhere; draining: whether clients
        are told to keep no connection, so that none loses its next request when the process ends.
    """

    def __init__(
        self,
        app: ASGIApp,
        telemetry: Telemetry,
        *,
        keys: ApiKeys | None = None,
        admin_port: int | None = None,
        tracing: Tracing | None = None,
        draining: Callable[[], bool] = lambda: False,
    ) -> None:
        self._app = app
        self._telemetry = telemetry
        self._keys = keys
        self._admin_port = admin_port
        self._tracing = tracing or NoTracing()
        self._draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = perf_counter()
        state = scope.setdefault("state", {})
        state["request_id"] = request_id(scope["headers"])
        state["trace_id"] = trace_id(scope["headers"])
        state["span"] = None
        if scope["path"] in SCORING_ROUTES:
            state["span"] = span = self._tracing.start_request(
                scope["headers"], request_id=state["request_id"], start_s=started
            )
            state["trace_id"] = span.trace_id if span is not None else state["trace_id"]
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = _with_own_headers(message, state, closes=self._draining())
            await send(message)

        self._telemetry.inflight.inc()
        try:
            await self._answer(scope, receive, send_with_headers)
        except (ClientDisconnect, ClientGoneError):
            status = CLIENT_GONE
        except Exception as error:
            log.exception("unexpected failure", extra={"fields": {"request_id": state["request_id"]}})
            if status:
                raise
            await _problem(error, scope)(scope, receive, send_with_headers)
        finally:
            self._telemetry.inflight.dec()
            self._record(scope, status or CLIENT_GONE, perf_counter() - started)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if not self._belongs_here(scope):
                raise HTTPException(404)
            if (
                self._keys is not None
                and _route(scope["path"]) not in OPEN_ROUTES
                and not self._keys.allows(scope["headers"])
            ):
                raise UnauthorisedError("expected an API key as Authorization: Bearer or X-API-Key, found no valid one")
            scope["state"]["deadline_ms"] = deadline_ms(scope["headers"])
        except (RequestError, HTTPException) as error:
            await _problem(error, scope)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _belongs_here(self, scope: Scope) -> bool:
        path: str = scope["path"]
        if self._admin_port is None or path in HEALTH_ROUTES or path == "/info":
            return True
        on_admin_port = scope["server"] is not None and scope["server"][1] == self._admin_port
        return on_admin_port == (path == "/metrics" or path.startswith("/admin/"))

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        state = scope["state"]
        route = _route(scope["path"])
        route = route if route in ROUTES and status not in {404, 405} else UNMATCHED
        kind = "cancelled" if status == CLIENT_GONE else outcome(status, partial=state.get("partial", False))
        self._telemetry.requests.labels(route, str(status), kind).inc()
        size = size_class(state.get("n_items"))
        self._telemetry.duration.labels(route, size).observe(seconds)
        self._tracing.end_request(state["span"], method=scope["method"], route=route, status=status)
        fields = {
            "request_id": state["request_id"],
            **({"trace_id": state["trace_id"]} if state["trace_id"] else {}),
            "method": scope["method"],
            "route": route,
            "status": status,
            "outcome": kind,
            "ms": round(seconds * 1000, 2),
            **state.get("log", {}),
        }
        quiet = route not in (*SCORING_ROUTES, *ADMIN_ROUTES) and status < 500
        log.log(logging.DEBUG if quiet else logging.INFO, "request", extra={"fields": fields})


def _route(path: str) -> str:
    """Give the name that a path is known by: the playground's assets share one."""
    return "/playground" if path.startswith("/playground/") else path


def _problem(error: Exception, scope: Scope) -> Response:
    return problem_response(error, request_id=scope["state"]["request_id"], instance=scope["path"])


def _with_own_headers(message: Message, state: Mapping[str, Any], *, closes: bool) -> list[tuple[bytes, bytes]]:
    headers = list(message.get("headers", []))
    names = {name.lower() for name, _ in headers}
    headers.extend((name, value) for name, value in _ALWAYS if name not in names)
    headers.append((b"x-request-id", state["request_id"].encode()))
    if message["status"] == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if closes or message["status"] == 408:
        headers.append((b"connection", b"close"))
    if timing := state.get("server_timing"):
        headers.append((b"server-timing", ", ".join(f"{stage};dur={ms:g}" for stage, ms in timing.items()).encode()))
    return headers
