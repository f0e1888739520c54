"""What writes rationales: anything that reads a pair. A label is no part of a pair, so none can be looked at."""

from __future__ import annotations

from typing import Protocol

from relevance.pairs import Pair
from training.rationale_rows import Rationale
from training.recipe import Perspective


class RationaleGenerator(Protocol):
    """A writer of rationales, the same text for the same pair."""

    @property
    def name(self) -> str:
        """Name and version, written into every rationale."""
        ...

    def generate(self, pair: Pair, perspective: Perspective) -> Rationale:
        """Write the rationale of one pair from one perspective."""
        ...
