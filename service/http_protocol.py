"""Connections that do not stay open for nothing: uvicorn's protocol with a time limit on receiving a request."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

REQUEST_TIMEOUT_S = 20.0
"""Seconds from a connection's start, later from a request's first byte, to the request's last byte."""

MOST_HEAD_BYTES = 64 * 1024
"""Of request line and headers together; a read of the socket may bring some more before it is counted."""

_LAST_CALL_S = 0.2
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class TimedProtocol(HttpToolsProtocol):
    """Closes a connection whose request does not arrive: silent, a header or a body that trickles in, read or not; and
    one whose headers do not end.

    Uvicorn's own time limit counts only between requests. How long an answer takes is not counted here.
    """

    _timer: asyncio.TimerHandle | None = None
    _in_head = True
    _head_bytes = 0

    def data_received(self, data: bytes) -> None:
        """Read on, unless a head grows beyond what any client sends: nobody has been asked for a key yet."""
        self._head_bytes += len(data) if self._in_head else 0
        super().data_received(data)
        if self._in_head and self._head_bytes > MOST_HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(_TOO_LARGE)
            self.transport.close()

    def on_headers_complete(self) -> None:
        """Stop counting."""
        self._in_head, self._head_bytes = False, 0
        super().on_headers_complete()

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
        """Stop timing, and count the next head."""
        self._stop_timer()
        self._in_head = True
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
