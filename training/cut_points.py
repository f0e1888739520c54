"""Choosing cut points: pure functions of scores, labels and queries; no file is read here.

A filter edge is certified by fixed-sequence testing: the candidates are fixed before any label is seen, tested from
the lowest upward at full level, and the first failure stops the test, so the family-wise error stays 1 - confidence.
Suffix: N pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from relevance.labels import LabelScheme
from relevance.metrics.intervals import query_bootstrap
from relevance.policy import CutPoints, TierPolicy

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Strings = NDArray[np.str_]

GRID: Floats = np.round(np.linspace(0.0, 1.0, 101), 2)
"""Candidate cut points, the same for every model, locale and label."""
EDGE_TIER = 2
"""The certified edge 1|2: pairs of lower tiers may be filtered."""
MIN_ABOVE = 20
"""Pairs that must lie above an upper cut before its precision is believed."""


@dataclass(frozen=True)
class CalRows:
    """What the choice of cut points reads of N pairs.

    Args: query_id: str; exact: bool; score: float64 in [0, 1]; irrelevant_likely: bool, P(Irrelevant) ≥ 0.5;
        kept_at_worst: bool, business rules keep the pair even at score 0; kept_at_best: bool, False where they filter
        it even at score 1.
    """

    query_id: Strings
    exact: Bools
    score: Floats
    irrelevant_likely: Bools
    kept_at_worst: Bools
    kept_at_best: Bools

    def __len__(self) -> int:
        return len(self.score)

    def rows(self, chosen: Bools | NDArray[np.int64]) -> CalRows:
        """Give some of the rows, by mask or by index."""
        return CalRows(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))

    def filtered(self, cut: float) -> Bools:
        """Say which pairs a policy with the edge at this cut filters, business rules included; grows with the cut."""
        return np.where(self.score < cut, ~self.kept_at_worst, ~self.kept_at_best)

    @cached_property
    def n_exact_queries(self) -> int:
        """Number of queries with at least one Exact pair."""
        return len(np.unique(self.query_id[self.exact]))


@dataclass(frozen=True, slots=True)
class Edge:
    """An edge and what was shown of it.

    Args: cut: the score; certified: whether the upper bound of P(filtered | Exact) is at most epsilon; n_exact:
        Exact queries, one pair of each; bound: Clopper–Pearson; bootstrap_bound: by query, on all Exact pairs.
    """

    cut: float
    certified: bool
    n_exact: int
    bound: float
    bootstrap_bound: float


@dataclass(frozen=True, slots=True)
class FalseFilterRule:
    """P(filtered | Exact) ≤ epsilon at a confidence.

    Args: seed: of the draw of one Exact pair per query and of the bootstrap.
    """

    epsilon: float = 0.05
    confidence: float = 0.95
    seed: int = 0


def clopper_pearson_upper(events: int, n: int, confidence: float) -> float:
    """Give the one-sided upper bound of a binomial rate; 1 without trials.

    Source: Clopper and Pearson, Biometrika 26 (1934).
    """
    if n == 0 or events == n:
        return 1.0
    return float(stats.beta.ppf(confidence, events + 1, n - events))


def one_exact_per_query(rows: CalRows, seed: int) -> NDArray[np.int64]:
    """Draw one Exact pair of each query that has one: independent trials; indices by query id."""
    exact = np.flatnonzero(rows.exact)
    shuffled = np.random.default_rng(seed).permutation(exact)
    _, first = np.unique(rows.query_id[shuffled], return_index=True)
    drawn: NDArray[np.int64] = shuffled[first]
    return drawn


def certify_edge(rows: CalRows, rule: FalseFilterRule) -> Edge:
    """Choose the highest cut that fixed-sequence testing reaches from the lowest candidate upward.

    Returns: an uncertified edge at the lowest candidate when even that fails.
    """
    drawn = rows.rows(one_exact_per_query(rows, rule.seed))
    best = 0
    for i, cut in enumerate(GRID):
        if _bound(drawn, float(cut), rule) > rule.epsilon:
            break
        best = i
    return edge_at(rows, float(GRID[best]), rule)


def edge_at(rows: CalRows, cut: float, rule: FalseFilterRule) -> Edge:
    """Bound P(filtered | Exact) at one given cut."""
    drawn = rows.rows(one_exact_per_query(rows, rule.seed))
    bound = _bound(drawn, cut, rule)
    return Edge(cut, bound <= rule.epsilon, len(drawn), bound, _bootstrap_bound(rows, cut, rule))


def irrelevant_cut(rows: CalRows, highest: float) -> float:
    """Choose the cut 0|1: the candidate up to `highest` that agrees best with P(Irrelevant) ≥ 0.5, lowest on a tie."""
    candidates = GRID[highest >= GRID]
    agreement = [float(np.mean((rows.score < cut) == rows.irrelevant_likely)) for cut in candidates]
    return float(candidates[int(np.argmax(agreement))])


def precision_cut(rows: CalRows, precision: float, lowest: float) -> float | None:
    """Choose the lowest candidate from `lowest` up with enough Exact above it, among pairs that no rule filters.

    Returns: None where no candidate with at least `MIN_ABOVE` pairs above it reaches the precision.
    """
    free = rows.rows(rows.kept_at_best)
    for cut in GRID[lowest <= GRID]:
        above = free.score >= cut
        if above.sum() >= MIN_ABOVE and free.exact[above].mean() >= precision:
            return float(cut)
    return None


def all_cut_points(
    rows: CalRows, edge: Edge, *, upper_precision: float, exact_precision: float, epsilon: float
) -> tuple[CutPoints, tuple[str, ...]]:
    """Put the other three cuts around an edge.

    Returns: the cut points, and the names of upper cuts whose precision is unreachable. These lie at score 1, so that
        the tier above is merged into the one below rather than given without its precision.
    """
    upper = precision_cut(rows, upper_precision, edge.cut)
    exact = None if upper is None else precision_cut(rows, exact_precision, upper)
    merged = tuple(name for name, cut in (("2|3", upper), ("3|4", exact)) if cut is None)
    values = (
        irrelevant_cut(rows, edge.cut),
        edge.cut,
        1.0 if upper is None else upper,
        1.0 if exact is None else exact,
    )
    return with_edge(values, edge, epsilon), merged


def with_edge(values: tuple[float, float, float, float], edge: Edge, epsilon: float) -> CutPoints:
    """Join cut points with what was shown of their edge."""
    return CutPoints(
        values=values,
        certified=edge.certified,
        epsilon=epsilon,
        n_exact=edge.n_exact,
        bound=round(edge.bound, 6),
        bootstrap_bound=round(edge.bootstrap_bound, 6),
    )


def rule_outcomes(
    policy: TierPolicy, probabilities_NK: Floats, scheme: LabelScheme, *, queries: Strings, policy_locales: Strings
) -> tuple[Bools, Bools]:
    """Find where the business rules alone decide whether a pair is filtered.

    Args: policy: its rules are used, its cut points are not; queries: cleaned texts of shape (N,).
    Returns: kept at score 0, kept at score 1; bool of shape (N,).
    """
    halves = CutPoints(values=(0.5, 0.5, 0.5, 0.5), certified=True)
    probe = policy.model_copy(update={"pooled": halves, "locales": {}, "filter_tier": EDGE_TIER})
    kept_at_worst, kept_at_best = np.zeros((2, len(queries)), dtype=bool)
    keys, inverse = np.unique(np.stack([queries, policy_locales]), axis=1, return_inverse=True)
    for i, (query, locale) in enumerate(keys.T):
        rows = np.flatnonzero(inverse.ravel() == i)
        for score, kept in ((0.0, kept_at_worst), (1.0, kept_at_best)):
            decision = probe.decide(
                np.full(len(rows), score), probabilities_NK[rows], scheme, policy_locale=str(locale), query=str(query)
            )
            kept[rows] = decision.kept_B
    return kept_at_worst, kept_at_best


def _bound(drawn: CalRows, cut: float, rule: FalseFilterRule) -> float:
    return clopper_pearson_upper(int(drawn.filtered(cut).sum()), len(drawn), rule.confidence)


def _bootstrap_bound(rows: CalRows, cut: float, rule: FalseFilterRule) -> float:
    if not rows.exact.any():
        return 1.0
    filtered = rows.filtered(cut)[rows.exact].astype(np.float64)
    two_sided = 2 * rule.confidence - 1
    if two_sided <= 0:
        return 1.0
    interval = query_bootstrap(
        rows.query_id[rows.exact], lambda i: float(filtered[i].mean()), confidence=two_sided, seed=rule.seed
    )
    return interval.high
