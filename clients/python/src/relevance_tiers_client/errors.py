"""Everything that a call can raise: one tree, told apart by what the caller can do about it.

RelevanceApiError
├── InvalidRequestError   the request is wrong, here or by the service's word: change it
├── UnauthorisedError     no valid API key
├── OverloadedError       refused, nothing was computed: `retry_after_s` says when to come back
├── NotReadyError         the service is starting or going
├── DeadlineError         no item was scored in time
├── ServerFailureError    the service failed, or its answer cannot be read
└── NoConnectionError     nobody answered, or the connection broke
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict


class ProblemError(BaseModel):
    """One fault of a request: a JSON pointer and what was expected there."""

    model_config = ConfigDict(frozen=True)

    pointer: str
    message: str


class RelevanceApiError(Exception):
    """A call that gave no answer.

    Args: status: of the HTTP answer, None where there was none; code: the service's word for it, stable; detail: for
        people; request_id: under which the service logged it; errors: what is wrong where; retry_after_s: how long the
        service asked to wait, None where it did not.
    """

    def __init__(
        self,
        status: int | None,
        code: str,
        detail: str,
        request_id: str = "",
        errors: Sequence[ProblemError] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(status, code, detail, request_id, tuple(errors), retry_after_s)
        self.status = status
        self.code = code
        self.detail = detail
        self.request_id = request_id
        self.errors = tuple(errors)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        status = "" if self.status is None else f"{self.status} "
        faults = [f"{e.pointer}: {e.message}" for e in self.errors if e.message != self.detail]
        request = f" (request {self.request_id})" if self.request_id else ""
        return f"{status}{self.code}: {'; '.join([self.detail, *faults])}{request}"


class InvalidRequestError(RelevanceApiError):
    """The request is wrong; without a status it was refused before it was sent."""


class UnauthorisedError(RelevanceApiError):
    """The service asks for an API key and found no valid one."""


class OverloadedError(RelevanceApiError):
    """The service refused so as not to be late; nothing was computed."""


class NotReadyError(RelevanceApiError):
    """The service is starting, going, or behind something that says so."""


class DeadlineError(RelevanceApiError):
    """No item was scored in time."""


class ServerFailureError(RelevanceApiError):
    """The service failed, or what it answered cannot be read."""


class NoConnectionError(RelevanceApiError):
    """Nobody answered, or the connection broke before the answer's end."""
