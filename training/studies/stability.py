"""How firm the cut points are: calibrate again on calibration queries drawn with replacement, compare tiers.

Suffixes: N pairs, K classes, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from relevance.calibration import Calibrator
from relevance.policy import POOLED, TierPolicy, fold_locale
from training.calibrate import (
    FOLDS,
    apply_calibrator,
    choose_policy,
    fit_calibrator,
    policy_locales,
    pooled_locales,
)
from training.calibrator_fit import cross_fitted
from training.evaluate import score_rows
from training.predictions import Predictions
from training.recipe import CalibrateRecipe, Recipe

Floats = NDArray[np.float64]
CUTS = ("0|1", "1|2", "2|3", "3|4")
RANGE = (0.05, 0.95)
"""The quantiles of a range over resamples."""


@dataclass(frozen=True, slots=True)
class Resample:
    """Rows of queries drawn with replacement.

    Args: rows: each drawn copy of a query counts as a query of its own; original_N: the id of the query it copies,
        so that cross-fitting never has two copies on both sides.
    """

    rows: Predictions
    original_N: NDArray[np.str_]


def resample_queries(rows: Predictions, rng: np.random.Generator, n_queries: int | None = None) -> Resample:
    """Draw queries with replacement, as many as there are unless told."""
    names, inverse, sizes = np.unique(rows.query_id, return_inverse=True, return_counts=True)
    groups = np.split(np.argsort(inverse, kind="stable"), np.cumsum(sizes)[:-1])
    drawn = rng.integers(0, len(names), n_queries or len(names))
    sample = rows.rows(np.concatenate([groups[q] for q in drawn]))
    copy_N = np.repeat(np.arange(len(drawn)), sizes[drawn]).astype(np.str_)
    return Resample(replace(sample, query_id=copy_N), sample.query_id)


def held_out_probabilities(
    section: CalibrateRecipe, sample: Resample, recipe: Recipe, *, pooled: bool = False
) -> Floats:
    """Give each pair calibrated probabilities of a fit that saw no copy of its query; shape (N, K).

    Args: pooled: by the pooled fit, not by that of the pair's locale.
    """
    rows = sample.rows
    locale_N = pooled_locales(rows) if pooled else policy_locales(rows, section)

    def apply_fit(fit_on: NDArray[np.bool_], apply_to: NDArray[np.bool_]) -> Floats:
        calibrator = fit_calibrator(section, rows.rows(fit_on), recipe.label_scheme)
        return apply_calibrator(calibrator, rows.logits_NK[apply_to], locale_N[apply_to])

    return cross_fitted(apply_fit, sample.original_N, folds=FOLDS, seed=recipe.seed)


def calibrated_again(recipe: Recipe, sample: Resample) -> tuple[Calibrator, TierPolicy]:
    """Fit calibrator and cut points on a resample the way the stage `calibrate` does."""
    recipe = with_rules_that_hold(recipe, sample.rows)
    calibrator = fit_calibrator(recipe.calibrate, sample.rows, recipe.label_scheme)
    own_NK, pooled_NK = (
        held_out_probabilities(recipe.calibrate, sample, recipe, pooled=pooled) for pooled in (False, True)
    )
    policy, _ = choose_policy(recipe, sample.rows, own_NK, pooled_NK)
    return calibrator, policy


def with_rules_that_hold(recipe: Recipe, rows: Predictions) -> Recipe:
    """Give a recipe without rules for locales of which there are no rows: a policy of these rows refuses them."""
    section = recipe.calibrate
    known = set(policy_locales(rows, section).tolist())
    rules = []
    for rule in section.rules:
        locales = [name for name in rule.get("locales", ()) if fold_locale(name) in known]
        if locales or not rule.get("locales"):
            rules.append(rule | ({"locales": locales} if locales else {}))
    return recipe.model_copy(update={"calibrate": section.model_copy(update={"rules": tuple(rules)})})


def study_stability(
    recipe: Recipe,
    cal: Predictions,
    test: Predictions,
    *,
    shipped: tuple[Calibrator, TierPolicy],
    resamples: int,
) -> dict[str, Any]:
    """Give how often and how far each cut moves over resamples of the calibration queries, and which tiers flip.

    Args: shipped: what tiers and cuts are compared with.
    Returns: by locale and cut: reference, moved (share of resamples), shift (median distance), low, high; flips per
        1,000 judged pairs of tier and of kept: mean, low, high.
    """
    rng = np.random.default_rng(recipe.seed)
    calibrator, policy = shipped
    reference = score_rows(recipe, test, policy, calibrator)
    scopes = {POOLED: policy.pooled, **policy.locales}
    cuts_R: dict[str, list[tuple[float, ...]]] = {scope: [] for scope in scopes}
    certified_R: dict[str, list[bool]] = {scope: [] for scope in scopes}
    flips: dict[str, list[float]] = {"tier": [], "kept": []}
    for _ in tqdm(range(resamples), desc="stability", disable=None):
        again, redrawn = calibrated_again(recipe, resample_queries(cal, rng))
        for scope in scopes:
            cuts = redrawn.cut_points(scope)
            cuts_R[scope].append(cuts.values)
            certified_R[scope].append(cuts.certified)
        scored = score_rows(recipe, test, redrawn, again)
        flips["tier"].append(1000 * float(np.mean(scored.tier != reference.tier)))
        flips["kept"].append(1000 * float(np.mean(scored.kept != reference.kept)))
    return {
        "resamples": resamples,
        "cuts": {
            scope: {
                "certified": cuts.certified,
                "certified_share": float(np.mean(certified_R[scope])),
                **_movements(np.array(cuts_R[scope]), cuts.values),
            }
            for scope, cuts in scopes.items()
        },
        "flips_per_1000": {
            name: dict(zip(("mean", "low", "high"), (float(np.mean(v)), *_range(np.array(v))), strict=True))
            for name, v in flips.items()
        },
    }


def _movements(cuts_R4: Floats, reference: tuple[float, ...]) -> dict[str, dict[str, float]]:
    figures = {}
    for i, name in enumerate(CUTS):
        distance_R = np.abs(cuts_R4[:, i] - reference[i])
        low, high = _range(cuts_R4[:, i])
        figures[name] = {
            "reference": reference[i],
            "moved": float(np.mean(distance_R > 1e-9)),
            "shift": float(np.median(distance_R)),
            "low": low,
            "high": high,
        }
    return figures


def _range(values_R: Floats) -> tuple[float, float]:
    low, high = np.quantile(values_R, RANGE)
    return float(low), float(high)
