"""The service with one admission permit a text, as text-embeddings-inference has it, for contrast.

A request takes permits one text at a time and does not wait for any. What got permits is computed, also when a later
text of the same request got none and the whole request is answered 429. Permits come back when
a request is answered. All else is our service: deadlines are honoured and the queue is fair.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import service.batcher
import service.lifecycle
from relevance.errors import OverloadError
from service.__main__ import main
from service.admission import Admission, Ticket
from service.batcher import Answer, Batcher, Work

PERMITS = 512


class OpenAdmission(Admission):
    """Admission that refuses nothing."""

    def _excess_s(self, new: Ticket, now: float, speed: float) -> float:
        return 0.0


class PermitBatcher(Batcher):
    """A batcher behind permits; only the event loop takes and gives them."""

    free = PERMITS

    async def score(self, work: Work) -> Answer:
        """Score the pairs that get permits, then refuse the request if some got none.

        Raises: OverloadError: a pair got no permit; else as the batcher.
        """
        n = len(work.items)
        taken = min(n, self.free)
        refusal = OverloadError(f"expected {n} permits, found {taken} free of {PERMITS}", 1)
        if not taken:
            raise refusal
        self.free -= taken
        try:
            answer = await super().score(replace(work, items=work.items[:taken]))
        finally:
            self.free += taken
        if taken < n:
            raise refusal
        return answer


if __name__ == "__main__":
    service.batcher.Admission = OpenAdmission
    service.lifecycle.Batcher = PermitBatcher
    sys.exit(main(sys.argv[1:]))
