"""Request bodies: content type checked, inflated and counted while they stream in, never more held than the limit."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterator
from contextlib import aclosing

from starlette.requests import Request

from relevance.errors import BodyTimeoutError, MalformedBodyError, MediaTypeError, TooLargeError

BODY_TIMEOUT_S = 10.0
"""Seconds from the first look at a body to its last byte."""
CODINGS = {"identity": None, "gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""Accepted content codings, and zlib's window bits for each."""
_DISCARD_FACTOR = 4
_PIECE_BYTES = 256 * 1024


async def read_json_body(request: Request, *, max_bytes: int) -> bytes:
    """Give the bytes of a JSON body, inflated where it came compressed.

    A body over the limit is still received, up to four times the limit and without being kept, so that the client gets
    to read the answer instead of a closed connection.

    Args: max_bytes: of the body as sent, and again after inflating.
    Raises: MediaTypeError: another content type, or another content coding than CODINGS; MalformedBodyError: compressed
        data that is damaged or cut off; TooLargeError: naming the limit; BodyTimeoutError: not all here after
        BODY_TIMEOUT_S; starlette's ClientDisconnect: the client has gone.
    """
    body = _Body(_window_bits(request), max_bytes)
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        body.refuse(declared)
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S), aclosing(request.stream()) as chunks:
            async for chunk in chunks:
                for _ in body.take(chunk):
                    # Inflating is work without an await: others get their turn after every piece.
                    await asyncio.sleep(0)
                if body.received > _DISCARD_FACTOR * max_bytes:
                    break
    except TimeoutError:
        if body.too_large is None:
            raise BodyTimeoutError(
                f"body: expected all of it within {BODY_TIMEOUT_S:g} s, found {body.received} bytes"
            ) from None
    return body.whole()


class _Body:
    """A body on its way in.

    Args: window_bits: zlib's, None for a body that is not compressed.
    """

    def __init__(self, window_bits: int | None, max_bytes: int) -> None:
        self._inflater = None if window_bits is None else zlib.decompressobj(window_bits)
        self._max_bytes = max_bytes
        self._pieces: list[bytes] = []
        self._size = 0
        self.received = 0
        self.too_large: str | None = None

    def refuse(self, found: str) -> None:
        """Keep nothing of what came and nothing of what comes."""
        self.too_large = found
        self._pieces.clear()

    def take(self, chunk: bytes) -> Iterator[None]:
        """Take in one chunk; yields after each inflated piece.

        Raises: MalformedBodyError: compressed data that is damaged.
        """
        self.received += len(chunk)
        if self.received > self._max_bytes and self.too_large is None:
            self.refuse(f"at least {self.received}")
        if self._inflater is None:
            self._keep(chunk)
            return
        while chunk and self.too_large is None:
            if self._inflater.eof:
                raise MalformedBodyError("body: expected compressed data and nothing after its end, found more bytes")
            try:
                piece = self._inflater.decompress(chunk, _PIECE_BYTES)
            except zlib.error as error:
                raise MalformedBodyError(f"body: expected compressed data as content-encoding says: {error}") from None
            self._keep(piece)
            chunk = self._inflater.unconsumed_tail or self._inflater.unused_data
            yield

    def whole(self) -> bytes:
        """Give the body.

        Raises: TooLargeError: over the limit; MalformedBodyError: compressed data that was cut off.
        """
        if self.too_large is not None:
            raise TooLargeError(f"body: expected at most {self._max_bytes} bytes, found {self.too_large}")
        if self._inflater is not None and not self._inflater.eof:
            raise MalformedBodyError(f"body: expected whole compressed data, found it cut off at {self.received} bytes")
        return b"".join(self._pieces)

    def _keep(self, piece: bytes) -> None:
        if self.too_large is not None:
            return
        self._size += len(piece)
        if self._size > self._max_bytes:
            self.refuse(f"at least {self._size}")
        else:
            self._pieces.append(piece)


def _window_bits(request: Request) -> int | None:
    """Give zlib's window bits for a request's content coding, None if there is none.

    Raises: MediaTypeError: another content type or coding.
    """
    media_type = request.headers.get("content-type", "")
    kind, _, parameters = media_type.partition(";")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    if kind.strip().lower() != "application/json" or charset not in {"", "utf-8", "utf8"}:
        raise MediaTypeError(f"expected content-type application/json in utf-8, found {media_type[:80]!r}")
    coding = ", ".join(request.headers.getlist("content-encoding")).strip().lower() or "identity"
    if coding not in CODINGS:
        raise MediaTypeError(
            f"expected one content-encoding of {', '.join(CODINGS)}, found {coding[:40]!r}; stacked ones are not read"
        )
    return CODINGS[coding]
