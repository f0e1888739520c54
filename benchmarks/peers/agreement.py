"""Whether a server gives the scores that the weights give, or those that they give without token types."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.arms import Arm, Running
from benchmarks.peers.workloads import Texts
from relevance.bundle import open_bundle
from relevance.pairs import Item
from service.session import OnnxSession

PARITY = 1e-4
_ITEMS = 50


@dataclass(frozen=True, slots=True)
class Agreement:
    """The largest differences over some pairs, long ones among them.

    Args: difference: from the scores of ours fp32; without_types: from what the graph gives if every token type is 0.
    """

    difference: float
    without_types: float


class Reference:
    """Pairs with the scores that ours gives them, and the scores of their token ids with all token types 0.

    Args: texts: the pairs are from its outliers; bundle: ours.
    """

    def __init__(self, texts: Texts, bundle: Path) -> None:
        self._query, titles = texts.outliers[0]
        self._titles = titles[:_ITEMS]
        self._expected: NDArray[np.float64] | None = None
        self._untyped = self._without_types(bundle)

    def compare(self, arm: Arm, running: Running) -> Agreement:
        """Ask a server for the scores; the first one asked is the reference."""
        found = arm.scores(running.process.port, self._query, self._titles)
        if self._expected is None:
            self._expected = found
        return Agreement(*(float(np.abs(found - other).max()) for other in (self._expected, self._untyped)))

    def _without_types(self, path: Path) -> NDArray[np.float64]:
        bundle = open_bundle(path)
        session = OnnxSession(bundle, precision="fp32", provider="cpu", threads=1)
        tokenizer, template = bundle.tokenizer, bundle.template
        query = tokenizer.encode_query(template.query_text(self._query))
        items = tokenizer.encode_items([template.item_text(Item(title)) for title in self._titles])
        batch = tokenizer.collate([query] * len(items), items)
        batch.token_type_ids_BL[:] = 0
        return bundle.calibrator.probabilities(session.run(batch))[:, 0]
