"""Pairs of a run that have rationales, with the texts and the evidence that a probe may look for.

Suffixes: N pairs, E kinds of evidence.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from relevance.errors import InputError
from relevance.pairs import LabelledPair, read_labelled_pairs
from training.rationale_rows import read_rationales
from training.runs import Run
from training.teacher.label_words import strip_verdict


def pairs_with_rationales(run: Run) -> tuple[list[LabelledPair], list[str], NDArray[np.float64]]:
    """Give the split's pairs that have rationales, each one's rationales joined, and its counts of evidence (N, E).

    A kind of evidence is a dimension with its verdict. Pairs of exact-only sources are left out.
    """
    split, scheme = run.recipe.evaluate.split, run.recipe.label_scheme
    path = run.require("rationales") / f"rationales.{split}.jsonl"
    text_of: dict[str, list[str]] = {}
    counts_of: dict[str, Counter[tuple[str, str]]] = {}
    for rationale in read_rationales(path):
        text = rationale.rationale
        if run.recipe.embed.strip_label_words:
            text = strip_verdict(text, scheme)
        text_of.setdefault(rationale.pair_id, []).append(text)
        counts_of.setdefault(rationale.pair_id, Counter()).update((e.dim, e.verdict) for e in rationale.evidence)
    rows = read_labelled_pairs(run.require("data") / f"pairs.{split}.parquet", scheme)
    labelled = [p for p in rows if not p.exact_only and p.pair.pair_id in text_of]
    if not labelled:
        raise InputError(f"{path}: expected rationales of the {len(rows)} pairs of split {split!r}, found none")
    kinds = sorted({kind for counts in counts_of.values() for kind in counts})
    evidence_NE = np.array([[counts_of[p.pair.pair_id][kind] for kind in kinds] for p in labelled], dtype=np.float64)
    return labelled, ["\n".join(text_of[p.pair.pair_id]) for p in labelled], evidence_NE
