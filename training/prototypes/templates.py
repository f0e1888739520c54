"""Rationales rendered from templates: what the evidence concludes, without a word of the query or the item.

Many pairs share one such text, so a few of them can stand for all. Clauses: phrases.toml.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relevance.errors import InputError
from training.rationale_rows import Evidence
from training.teacher.lexicon import load_lexicon
from training.words import chunks

PHRASES = Path(__file__).with_name("phrases.toml")
TERMS, ACCESSORY, ATTRIBUTE = "terms", "accessory", "attribute"
_WORST_FIRST = ("mismatch", "missing", "match")
_COVERAGE = ((1.0, "all"), (0.65, "most"), (0.4, "half"))
"""Least share of the query's words that an item has for each outcome; a smaller share is `few`, or `none`."""

Clause = tuple[str, str]
"""A dimension and its outcome."""
Verdicts = tuple[Clause, ...]
"""What a rationale concludes, in the order of its evidence."""


def verdicts_of(evidence: Iterable[Evidence]) -> Verdicts:
    """Give one outcome for each dimension: the worst of its rows, for terms how many of the words the item has."""
    rows: dict[str, list[Evidence]] = {}
    for row in evidence:
        rows.setdefault(row.dim, []).append(row)
    return tuple((dim, _outcome(dim, own)) for dim, own in rows.items())


def render(perspective: str, verdicts: Verdicts) -> str:
    """Give the text of a rationale of one perspective; dimensions that its phrases do not know are left out.

    Raises: InputError: if there are no phrases for the perspective.
    """
    phrases, names = _load_phrases(), _load_phrases()["attributes"]
    own = phrases.get(perspective)
    if own is None or perspective == "attributes":
        known = [name for name in phrases if name != "attributes"]
        raise InputError(f"{PHRASES.name}: expected rationales of {known}, found {perspective!r}")
    clauses = []
    for dim, outcome in verdicts:
        table: Mapping[str, str] = own.get(dim, own[ATTRIBUTE] if dim in names else {})
        if outcome in table:
            clauses.append(table[outcome].format(name=names.get(dim, dim)))
    text = "; ".join(clauses or [own["nothing"]])
    return f"{text[:1].upper()}{text[1:]}."


def agreement(first: Verdicts, second: Verdicts) -> float:
    """Give the share of dimensions, of those either speaks of, with the same outcome; 1 where neither speaks of any."""
    one, other = dict(first), dict(second)
    dims = one.keys() | other.keys()
    return sum(one.get(dim) == other.get(dim) for dim in dims) / len(dims) if dims else 1.0


def said(verdicts: Sequence[Verdicts], clauses: Sequence[Clause]) -> NDArray[np.bool_]:
    """Give which of the clauses each rationale holds, of shape (rationales, clauses)."""
    return np.array([[clause in own for clause in clauses] for own in verdicts], dtype=bool).reshape(-1, len(clauses))


@cache
def _load_phrases() -> dict[str, Any]:
    return tomllib.loads(PHRASES.read_text(encoding="utf-8"))


def _outcome(dim: str, rows: list[Evidence]) -> str:
    if dim == TERMS:
        counts = {True: 0, False: 0}
        for row in rows:
            counts[row.verdict == "match"] += len(row.query_span.split())
        share = counts[True] / max(1, counts[True] + counts[False])
        return next((name for least, name in _COVERAGE if share >= least), "few" if share > 0 else "none")
    worst = next(verdict for verdict in _WORST_FIRST if any(row.verdict == verdict for row in rows))
    if dim == ACCESSORY:
        asked = any(load_lexicon().accessory_words(chunks(row.query_span)) for row in rows)
        return "wanted" if worst == "match" else "absent" if asked else "unwanted"
    return worst
