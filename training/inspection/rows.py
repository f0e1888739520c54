"""The columns that an inspection computes on, and how business rules decide beside the cut points.

Texts are not among them: the few that the page shows are read again at the end, so that a file of a million rows fits
in memory. Suffixes: N rows, K classes, R rules, S situations (sets of rules whose conditions on the request hold).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from relevance.errors import InputError
from relevance.labels import N_TIERS, LabelScheme
from relevance.policy import TierPolicy

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

UNLABELLED = -1
_ROUNDING = 1e-6
"""Scores and probabilities in a scored file have six decimals."""


@dataclass(frozen=True, slots=True)
class Rows:
    """N scored rows.

    Args: place_N: 1-based row in the file that holds the texts; query_N: number of the query; locale_N, category_N:
        indices into `locales` (policy locales) and `categories` ("" = none); score_N: float64 in [0, 1]; tier_N: 0–4;
        predicted_N: class index; label_N: class index, UNLABELLED without one; kept_N: as served;
        probabilities_NK: float32, None where unknown; situation_N: index into applies_SR; word_M, word_start_N: the
        hashed words of all titles, one title after the other, and where each begins (with the end behind the last).
    """

    place_N: Ints
    query_N: Ints
    locale_N: Ints
    category_N: Ints
    score_N: Floats
    tier_N: Ints
    predicted_N: Ints
    label_N: Ints
    kept_N: Bools
    situation_N: Ints
    probabilities_NK: NDArray[np.float32] | None
    applies_SR: Bools
    word_M: NDArray[np.uint32]
    word_start_N: Ints
    locales: tuple[str, ...]
    categories: tuple[str, ...]
    rules_known: bool

    def __len__(self) -> int:
        return len(self.score_N)

    @property
    def labelled_N(self) -> Bools:
        """Whether each row has a label."""
        labelled_N: Bools = self.label_N != UNLABELLED
        return labelled_N


@dataclass(frozen=True, slots=True)
class RuleOutcomes:
    """What business rules alone decide: whether a row is kept even at score 0, and whether at score 1."""

    kept_at_worst_N: Bools
    kept_at_best_N: Bools

    def filtered(self, score_N: Floats, edge: float) -> Bools:
        """Say which rows a policy with its filter edge at this score filters, business rules included."""
        return np.where(score_N < edge, ~self.kept_at_worst_N, ~self.kept_at_best_N)


def rule_outcomes(rows: Rows, policy: TierPolicy, scheme: LabelScheme) -> RuleOutcomes:
    """Find where the business rules alone decide; where probabilities or queries are unknown, by the tiers they moved.

    Raises: InputError: if the rows' tiers are not those of this policy.
    """
    base_N = _tiers_by_cut_points(rows, policy)
    if rows.rules_known:
        _check(rows, policy, _ruled(rows, policy, scheme, base_N) == rows.tier_N, scheme)
        worst_N = _ruled(rows, policy, scheme, np.zeros_like(base_N))
        best_N = _ruled(rows, policy, scheme, np.full_like(base_N, N_TIERS - 1))
        return RuleOutcomes(worst_N >= policy.filter_tier, best_N >= policy.filter_tier)
    capped_N, raised_N = rows.tier_N < base_N, rows.tier_N > base_N
    caps = [rule.cap_tier for rule in policy.rules if rule.cap_tier is not None]
    floors = [rule.floor_tier for rule in policy.rules if rule.floor_tier is not None]
    explained_N = (capped_N & np.isin(rows.tier_N, caps)) | (raised_N & np.isin(rows.tier_N, floors))
    _check(rows, policy, explained_N | ~(capped_N | raised_N), scheme)
    kept_N = rows.tier_N >= policy.filter_tier
    everything = policy.filter_tier == 0
    return RuleOutcomes((raised_N & kept_N) | everything, ~(capped_N & ~kept_N))


def edge_of(policy: TierPolicy, locale: str) -> float:
    """Give the score below which a policy locale's pairs fall under the filter tier; 0 where no score does."""
    return policy.cut_points(locale).values[policy.filter_tier - 1] if policy.filter_tier else 0.0


def _tiers_by_cut_points(rows: Rows, policy: TierPolicy) -> Ints:
    tier_N = np.zeros(len(rows), dtype=np.int64)
    for code, locale in enumerate(rows.locales):
        own_N = rows.locale_N == code
        tier_N[own_N] = np.searchsorted(policy.cut_points(locale).values, rows.score_N[own_N], side="right")
    return tier_N


def _ruled(rows: Rows, policy: TierPolicy, scheme: LabelScheme, tier_N: Ints) -> Ints:
    """Apply the rules to tiers, in their order."""
    for number, rule in enumerate(policy.rules):
        fires_N = rows.applies_SR[rows.situation_N, number]
        if rule.class_at_least and rows.probabilities_NK is not None:
            fires_N = fires_N & rule.fires(rows.probabilities_NK.astype(np.float64), scheme)
        if rule.cap_tier is not None:
            tier_N = np.where(fires_N, np.minimum(tier_N, rule.cap_tier), tier_N)
        if rule.floor_tier is not None:
            tier_N = np.where(fires_N, np.maximum(tier_N, rule.floor_tier), tier_N)
    return tier_N


def _check(rows: Rows, policy: TierPolicy, agrees_N: Bools, scheme: LabelScheme) -> None:
    """Refuse tiers of another policy; a row on a boundary may fall either way, because the file is rounded."""
    close_N = np.zeros(len(rows), dtype=bool)
    for code, locale in enumerate(rows.locales):
        for cut in policy.cut_points(locale).values:
            close_N |= (rows.locale_N == code) & (np.abs(rows.score_N - cut) <= _ROUNDING)
    if rows.probabilities_NK is not None:
        for name, least in (bound for rule in policy.rules for bound in rule.class_at_least.items()):
            close_N |= np.abs(rows.probabilities_NK[:, scheme.classes.index(name)] - least) <= _ROUNDING
    wrong = np.flatnonzero(~(agrees_N | close_N))
    if len(wrong):
        first = wrong[0]
        raise InputError(
            f"row {rows.place_N[first]}: expected the tier that policy {policy.version} gives to score "
            f"{rows.score_N[first]:g} in locale {rows.locales[rows.locale_N[first]]!r}, found tier "
            f"{rows.tier_N[first]} ({len(wrong)} of {len(rows)} rows differ); name the bundle, and the policy, that "
            "scored this file by --bundle and --policy"
        )
