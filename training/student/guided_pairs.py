"""Which rationales may guide a student: those whose verdict is the label, or whose writer did not see the pair."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Literal

from relevance.errors import RunError
from training.cot_store import CotStore
from training.rationale_rows import COMBINED, Rationale


def guided_pairs(
    store: CotStore, rationales: Iterable[Rationale], chosen: Literal["agree", "unseen"], label_of: Mapping[str, str]
) -> CotStore:
    """Give a store without the embeddings of other rationales; those of joined texts stay where every part does.

    Args: rationales: that were embedded, of the training pairs at least; chosen: `agree` keeps those whose verdict is
        the pair's label, `unseen` those whose writer was not fitted on the pair; label_of: pair id → class code of
        every labelled pair.
    Raises: RunError: if none is left.
    """
    fits: dict[tuple[str, str], bool] = {}
    for one in rationales:
        agrees = one.verdict is not None and one.verdict == label_of.get(one.pair_id)
        fits[one.pair_id, one.perspective] = agrees if chosen == "agree" else not one.annotator_seen_pair
    whole = {pair_id for pair_id, _ in fits} - {pair_id for (pair_id, _), kept in fits.items() if not kept}
    row_of = {
        (pair_id, perspective): row
        for (pair_id, perspective), row in store.row_of.items()
        if (pair_id in whole if perspective == COMBINED else fits.get((pair_id, perspective), False))
    }
    if not any(pair_id in label_of for pair_id, _ in row_of):
        wanted = "with their label as verdict" if chosen == "agree" else "whose writer did not see them"
        raise RunError(
            f"student.guidance.pairs = {chosen!r}: expected rationales of training pairs {wanted}, found none among "
            f"{len(fits)}"
        )
    return replace(store, row_of=row_of)
