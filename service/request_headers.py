"""What the service reads from a request's headers: id, trace and deadline."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable

from relevance.errors import RequestError

Headers = Iterable[tuple[bytes, bytes]]
"""Raw headers as ASGI gives them, names in lower case."""
MAX_DEADLINE_MS = 600_000
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
_TRACEPARENT = re.compile(
    rb"(?!ff)(?P<version>[0-9a-f]{2})-(?!0{32})(?P<trace>[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?P<more>-.*)?"
)
_DEADLINE = re.compile(rb"[0-9]{1,9}")


def request_id(headers: Headers) -> str:
    """Give the caller's `X-Request-ID` if it is short and plain, else a new one."""
    for name, value in headers:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return value.decode()
    return uuid.uuid4().hex


def trace_id(headers: Headers) -> str | None:
    """Give the trace id of a valid `traceparent` (W3C Trace Context), None where there is none or more than one."""
    values = [value for name, value in headers if name == b"traceparent"]
    found = _TRACEPARENT.fullmatch(values[0]) if len(values) == 1 else None
    if found is None or (found["version"] == b"00" and found["more"]):
        return None
    return found["trace"].decode()


def deadline_ms(headers: Headers) -> int | None:
    """Give the milliseconds of `X-Request-Deadline-Ms`, None where there is none.

    Raises: RequestError: not one whole number from 1 to MAX_DEADLINE_MS.
    """
    values = [value for name, value in headers if name == b"x-request-deadline-ms"]
    if not values:
        return None
    if len(values) == 1 and _DEADLINE.fullmatch(values[0]) and 1 <= int(values[0]) <= MAX_DEADLINE_MS:
        return int(values[0])
    found = b", ".join(values)[:40].decode("latin-1")
    raise RequestError(
        f"header X-Request-Deadline-Ms: expected a whole number from 1 to {MAX_DEADLINE_MS}, found {found!r}"
    )
