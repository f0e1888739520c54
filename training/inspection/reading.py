"""Reading a scored file beside the pairs that were scored, row by row, into `Rows`."""

from __future__ import annotations

import math
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from relevance.errors import InputError, LabelError, RowError
from relevance.labels import N_TIERS, LabelScheme
from relevance.pairs import BadRows, Pair, parse_exact_only, parse_pair, plain_rows
from relevance.policy import TierPolicy
from relevance.text import TextTemplate
from training.inspection.rows import UNLABELLED, Rows
from training.words import stems

SCORED_COLUMNS = ("query_id", "item_id", "score", "tier", "label", "kept", "policy_locale")
"""What a scored file must have; `probabilities` and `reason` may be missing."""
CATEGORY = "category"
BAD_LABEL = -2
"""Of a pair that was scored, because scoring reads no labels, and is left out here."""


@dataclass(frozen=True, slots=True)
class Judge:
    """Who scored: the scheme of its classes, its policy, and the template that cleans queries for the policy."""

    scheme: LabelScheme
    policy: TierPolicy
    template: TextTemplate


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """One row of a scored file; `reason` says why there is no score, and then nothing else counts."""

    number: int
    query_id: str
    item_id: str
    score: float
    tier: int
    predicted: int
    kept: bool
    policy_locale: str
    probabilities: tuple[float, ...] | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class PairRow:
    """One row of a pairs file; label is a class index, UNLABELLED without one, or BAD_LABEL; category may be None."""

    number: int
    pair: Pair
    label: int
    category: str | None
    exact_only: bool


@dataclass(slots=True)
class Left:
    """Rows that take no part, and why: without a score (by reason), of sources that hold only Exact pairs, and pairs
    that the scored file has no row of.
    """

    unscored: Counter[str] = field(default_factory=Counter)
    exact_only: int = 0
    not_scored: int = 0


def read_scored(path: Path, scheme: LabelScheme) -> Iterator[ScoredRow]:
    """Read what `relevance score` wrote, one row at a time.

    Raises: InputError: if the file is missing, of another kind, or lacks a column; RowError: at the first bad row.
    """
    for number, row in plain_rows(path, SCORED_COLUMNS, BadRows()):
        yield _scored_row(row, number, path.name, scheme)


def read_judged(path: Path, scheme: LabelScheme, *, category: str | None, bad_rows: BadRows) -> Iterator[PairRow]:
    """Read pairs with the labels and categories they may have, one at a time.

    Args: category: the column, or the name among the attributes; None looks for `category`.
    Raises: InputError: if the file is missing, of another kind, or lacks a column; RowError: as `bad_rows` says.
    """
    for number, row in plain_rows(path, ("query", "title"), bad_rows):
        try:
            pair, exact_only = parse_pair(row, number, path.name), parse_exact_only(row, number, path.name)
        except RowError as error:
            bad_rows.add(error)
            continue
        try:
            label = _label(row.get("label"), scheme, number, path.name)
        except RowError as error:
            bad_rows.add(error)
            label = BAD_LABEL
        named = row.get(category or CATEGORY) or pair.item.attributes.get(category or CATEGORY)
        yield PairRow(number, pair, label, str(named) if named else None, exact_only)


def collect(scored: Iterable[ScoredRow], pairs: Iterator[PairRow] | None, judge: Judge) -> tuple[Rows, Left]:
    """Join scored rows with their pairs and keep what an inspection computes on.

    Args: pairs: in the order in which they were scored; rows that were not scored are passed over; None without any.
    Raises: InputError: if a scored row has no pair, or no row with a score is left; RowError: as the readers.
    """
    columns, left = _Columns(judge), Left()
    for row, judged in _joined(scored, pairs, left):
        if judged is not None and judged.label == BAD_LABEL:
            continue
        if judged is not None and judged.exact_only:
            left.exact_only += 1
        elif row.reason is not None:
            left.unscored[row.reason] += 1
        else:
            columns.add(row, judged)
    if not len(columns.score):
        raise InputError(
            f"expected at least one row with a score, found none ({sum(left.unscored.values())} without a score, "
            f"{left.exact_only} of sources that hold only the most relevant class)"
        )
    return columns.rows(), left


def _joined(
    scored: Iterable[ScoredRow], pairs: Iterator[PairRow] | None, left: Left
) -> Iterator[tuple[ScoredRow, PairRow | None]]:
    last = 0
    for row in scored:
        if pairs is None:
            yield row, None
            continue
        for judged in pairs:
            last = judged.number
            if (judged.pair.query.id, str(judged.pair.item.id)) == (row.query_id, row.item_id):
                yield row, judged
                break
            left.not_scored += 1
        else:
            raise InputError(
                f"expected the pairs that were scored, in their order; found no pair for row {row.number} of the "
                f"scored file (query_id {row.query_id!r:.80}, item_id {row.item_id!r:.40}) up to row {last}, the last"
            )
    left.not_scored += sum(1 for _ in pairs or ())


class _Columns:
    """Columns that grow row by row."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._rules = judge.policy.rules
        self.place, self.query = array("q"), array("q")
        self.locale, self.category, self.situation = array("q"), array("q"), array("q")
        self.score, self.probabilities = array("d"), array("f")
        self.tier, self.predicted, self.label, self.kept = array("b"), array("b"), array("b"), array("b")
        self.words, self.word_start = array("I"), array("q", [0])
        self._queries: dict[str, int] = {}
        self._locales: dict[str, int] = {}
        self._categories: dict[str, int] = {"": 0}
        self._situations: dict[tuple[bool, ...], int] = {}
        self._situation_of: tuple[str | None, str, int] = ("", "", -1)

    def add(self, row: ScoredRow, judged: PairRow | None) -> None:
        """Take in one row."""
        self.place.append(row.number if judged is None else judged.number)
        self.query.append(_code(self._queries, row.query_id))
        self.locale.append(_code(self._locales, row.policy_locale))
        self.category.append(_code(self._categories, (judged.category if judged is not None else None) or ""))
        self.score.append(row.score)
        self.tier.append(row.tier)
        self.predicted.append(row.predicted)
        self.label.append(UNLABELLED if judged is None else judged.label)
        self.kept.append(row.kept)
        self.situation.append(self._situation(None if judged is None else judged.pair.query.text, row.policy_locale))
        if row.probabilities is not None:
            self.probabilities.extend(row.probabilities)
        if judged is not None and judged.label != UNLABELLED:
            self.words.extend({_word_hash(word) for word in stems(judged.pair.item.title)})
        self.word_start.append(len(self.words))

    def _situation(self, query: str | None, policy_locale: str) -> int:
        """Give the number of the set of rules whose conditions on the request hold; rows of a query stand together."""
        if self._situation_of[:2] != (query, policy_locale) or self._situation_of[2] < 0:
            cleaned = None if query is None else self._judge.template.query_text(query)
            applies = tuple(
                (cleaned is not None or rule.query_matches is None) and rule.applies(cleaned or "", policy_locale)
                for rule in self._rules
            )
            self._situation_of = (query, policy_locale, self._situations.setdefault(applies, len(self._situations)))
        return self._situation_of[2]

    def rows(self) -> Rows:
        """Give the columns.

        Raises: InputError: if some rows have probabilities and others have none.
        """
        n, n_classes = len(self.score), self._judge.scheme.n_classes
        if len(self.probabilities) not in {0, n * n_classes}:
            raise InputError("expected probabilities in all scored rows or in none, found them in some")
        probabilities_NK = (
            np.frombuffer(self.probabilities, dtype=np.float32).reshape(n, n_classes)
            if len(self.probabilities)
            else None
        )
        by_class = any(rule.class_at_least for rule in self._rules)
        by_query = any(rule.query_matches is not None for rule in self._rules)
        has_queries = self._situation_of[0] is not None
        return Rows(
            place_N=np.array(self.place, dtype=np.int64),
            query_N=np.array(self.query, dtype=np.int64),
            locale_N=np.array(self.locale, dtype=np.int64),
            category_N=np.array(self.category, dtype=np.int64),
            score_N=np.array(self.score, dtype=np.float64),
            tier_N=np.array(self.tier, dtype=np.int64),
            predicted_N=np.array(self.predicted, dtype=np.int64),
            label_N=np.array(self.label, dtype=np.int64),
            kept_N=np.array(self.kept, dtype=bool),
            situation_N=np.array(self.situation, dtype=np.int64),
            probabilities_NK=probabilities_NK,
            applies_SR=np.array(list(self._situations), dtype=bool).reshape(len(self._situations), len(self._rules)),
            word_M=np.array(self.words, dtype=np.uint32),
            word_start_N=np.array(self.word_start, dtype=np.int64),
            locales=tuple(self._locales),
            categories=tuple(self._categories),
            rules_known=(probabilities_NK is not None or not by_class) and (has_queries or not by_query),
        )


def _code(codes: dict[str, int], name: str) -> int:
    return codes.setdefault(name, len(codes))


@lru_cache(maxsize=1 << 18)
def _word_hash(word: str) -> int:
    return zlib.crc32(word.encode("utf-8", "replace"))


def _label(value: object, scheme: LabelScheme, number: int, where: str) -> int:
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return UNLABELLED
    if not isinstance(value, str):
        raise RowError(where, number, "label", f"expected one of {', '.join(scheme.classes)}, found {value!r:.60}")
    try:
        return scheme.index(value)
    except LabelError as error:
        raise RowError(where, number, "label", str(error)) from error


def _scored_row(row: Mapping[str, Any], number: int, where: str, scheme: LabelScheme) -> ScoredRow:
    query_id, item_id = row.get("query_id"), row.get("item_id")
    for column, value in (("query_id", query_id), ("item_id", item_id)):
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise RowError(where, number, column, f"expected an id, found {value!r:.60}")
    ids = (str(query_id), str(item_id))
    score, reason = row.get("score"), row.get("reason")
    if score is None and isinstance(reason, str):
        return ScoredRow(number, *ids, 0.0, 0, 0, bool(row.get("kept")), str(row.get("policy_locale")), reason=reason)
    if isinstance(score, bool) or not isinstance(score, float | int) or not 0 <= score <= 1:
        raise RowError(where, number, "score", f"expected a number in [0, 1], found {score!r:.60}")
    tier, kept, locale = row.get("tier"), row.get("kept"), row.get("policy_locale")
    if isinstance(tier, bool) or not isinstance(tier, int) or not 0 <= tier < N_TIERS:
        raise RowError(where, number, "tier", f"expected a tier of 0–{N_TIERS - 1}, found {tier!r:.60}")
    if not isinstance(kept, bool):
        raise RowError(where, number, "kept", f"expected true or false, found {kept!r:.60}")
    if not isinstance(locale, str):
        raise RowError(where, number, "policy_locale", f"expected a policy locale, found {locale!r:.60}")
    predicted = _label(row.get("label"), scheme, number, where)
    if predicted == UNLABELLED:
        raise RowError(where, number, "label", f"expected the class that was predicted, found {row.get('label')!r:.60}")
    chances = _chances(row.get("probabilities"), scheme, number, where)
    return ScoredRow(number, *ids, float(score), tier, predicted, kept, locale, chances)


def _chances(value: object, scheme: LabelScheme, number: int, where: str) -> tuple[float, ...] | None:
    if value is None:
        return None
    sound = isinstance(value, list) and len(value) == scheme.n_classes
    if sound and isinstance(value, list) and all(isinstance(p, float | int) and 0 <= p <= 1 for p in value):
        return tuple(float(p) for p in value)
    expected = f"expected {scheme.n_classes} numbers in [0, 1] (scheme {scheme.name!r})"
    raise RowError(where, number, "probabilities", f"{expected}, found {value!r:.80}")
