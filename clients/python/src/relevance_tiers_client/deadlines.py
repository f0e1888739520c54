"""The time that a call has: one clock over all its requests, repeated ones included."""

from __future__ import annotations

from time import monotonic

from relevance_tiers_client.errors import DeadlineError
from relevance_tiers_client.models import MAX_DEADLINE_MS

GRACE_S = 0.5
"""Seconds beyond the deadline in which an answer is still read: at the deadline the service sends what it has."""


class Deadline:
    """When a call must be over.

    Args: seconds: from now.
    """

    def __init__(self, seconds: float) -> None:
        self.began = monotonic()
        self._ends = self.began + seconds

    @property
    def left_s(self) -> float:
        """Seconds until then; negative afterwards."""
        return self._ends - monotonic()

    @property
    def patience_s(self) -> float:
        """Seconds for which an answer is still read."""
        return self.left_s + GRACE_S

    @property
    def passed_ms(self) -> float:
        """Milliseconds since the call began."""
        return round((monotonic() - self.began) * 1000, 3)

    def header_ms(self) -> str:
        """Give what a request tells the service.

        Raises: DeadlineError: nothing is left to send a request in.
        """
        left_ms = int(self.left_s * 1000)
        if left_ms < 1:
            raise self.missed()
        return str(min(left_ms, MAX_DEADLINE_MS))

    def missed(self) -> DeadlineError:
        """Give the error of a call that is late."""
        return DeadlineError(None, "deadline", f"expected an answer within {self._ends - self.began:g} s, found none")
