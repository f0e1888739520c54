"""Request bodies: content type checked, bytes counted while they stream in, never more held than the limit."""

from __future__ import annotations

from starlette.requests import Request

from relevance.errors import MediaTypeError, TooLargeError

_DISCARD_FACTOR = 4


async def read_json_body(request: Request, *, max_bytes: int) -> bytes:
    """Give the bytes of a JSON body.

    A body over the limit is still received, up to four times the limit and without being kept, so that the client gets
    to read the answer instead of a closed connection.

    Raises: MediaTypeError: another content type or encoding; TooLargeError: naming the limit.
    """
    media_type = request.headers.get("content-type", "")
    kind, _, parameters = media_type.partition(";")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    if kind.strip().lower() != "application/json" or charset not in {"", "utf-8", "utf8"}:
        raise MediaTypeError(f"expected content-type application/json in utf-8, found {media_type[:80]!r}")
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise MediaTypeError(f"expected no content-encoding, found {encoding[:40]!r}")
    declared = request.headers.get("content-length", "")
    too_large = declared.isdigit() and int(declared) > max_bytes
    chunks: list[bytes] = []
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > max_bytes:
            too_large = True
            chunks.clear()
        if received > _DISCARD_FACTOR * max_bytes:
            break
        if not too_large:
            chunks.append(chunk)
    if too_large:
        raise TooLargeError(f"body: expected at most {max_bytes} bytes, found {declared or f'at least {received}'}")
    return b"".join(chunks)
