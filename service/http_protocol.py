"""Connections that do not stay open for nothing: uvicorn's protocol with a time limit on receiving a request."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

REQUEST_TIMEOUT_S = 20.0
"""Seconds from a connection's start, later from a request's first byte, to the request's last byte."""

_LAST_CALL_S = 0.2


class TimedProtocol(HttpToolsProtocol):
    """Closes a connection whose request does not arrive: silent, a header or a body that trickles in, read or not.

    Uvicorn's own time limit counts only between requests. How long an answer takes is not counted here.
    """

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn's
        """Wait for the first request."""
        super().connection_made(transport)
        self._start_timer()

    def on_message_begin(self) -> None:
        """Time a further request of the connection; the first one is timed already."""
        if self._timer is None:
            self._start_timer()
        super().on_message_begin()

    def on_message_complete(self) -> None:
        """Stop timing."""
        self._stop_timer()
        super().on_message_complete()

    def shutdown(self) -> None:
        """End with the request in hand; an idle connection a little later, for a request may be on its way to it."""
        self.loop.call_later(_LAST_CALL_S, super().shutdown)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop timing."""
        self._stop_timer()
        super().connection_lost(exc)

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(REQUEST_TIMEOUT_S, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
