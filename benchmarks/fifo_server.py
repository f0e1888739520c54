"""The service with a first-in first-out queue in place of the fair one, for contrast; all else is the same."""

from __future__ import annotations

import sys

import service.batcher
from service.__main__ import main
from service.flow import Flow
from service.queueing import FairQueue


class FifoQueue(FairQueue):
    """A queue in which the oldest flow has every turn until its last row, and the next fill what is left of a batch."""

    def submit(self, flow: Flow) -> None:
        """Take a flow in with a turn that never ends."""
        flow.deficit = float("inf")
        super().submit(flow)

    def _turn_order(self) -> list[Flow]:
        return [*self._old, *self._new]


if __name__ == "__main__":
    service.batcher.FairQueue = FifoQueue
    sys.exit(main(sys.argv[1:]))
