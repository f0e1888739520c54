"""Stage `calibrate`: fit the calibrator on the `cal` predictions, choose the cut points, certify the filter edge.

Cut points are chosen on cross-fitted probabilities: each pair's score comes from a calibrator that saw no pair of its
query, since a bound shown on the pairs that the calibrator was fitted on is too good (0.042 for 0.071 in a trial). The
pooled ones are chosen on scores of the pooled fit, as requests without a known locale get them. Pairs are of one query
where its text is the same, whatever their ids, as in the split.
Suffixes: N pairs, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from relevance.calibration import Calibrator, expected_gain, softmax
from relevance.errors import InputError, RecipeError
from relevance.labels import LabelScheme
from relevance.metrics.classification import macro_f1
from relevance.metrics.reliability import brier, classwise_ece, top_label_ece
from relevance.policy import POOLED, CutPoints, TierPolicy, fold_locale
from training import cut_points
from training.calibrator_fit import cross_fitted, fit_locales
from training.cut_points import CalRows, FalseFilterRule
from training.policy_toml import render_policy
from training.predictions import Predictions, read_predictions
from training.recipe import CalibrateRecipe, Recipe
from training.runs import Run, hash_file, hash_json, log, stage_arguments
from training.words import normalise_query

Floats = NDArray[np.float64]
CALIBRATION = "calibration.json"
POLICY = "policy.toml"
FIGURES = "calibrate.json"
FOLDS = 5
LABEL_EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""0 names the most probable class, 1 the one that is most probable against its share."""


@dataclass(frozen=True, slots=True)
class ChosenLocale:
    """Cut points of one locale and how they came about.

    Args: own_cut: False where the pooled cuts were taken; merged: names of cuts whose precision was unreachable.
    """

    cuts: CutPoints
    own_cut: bool
    merged: tuple[str, ...]
    n_pairs: int

    @property
    def note(self) -> str:
        """One line for policy.toml."""
        where = "cuts of its own" if self.own_cut else "too few Exact queries of its own: the pooled cuts"
        parts = [f"{self.n_pairs} calibration pairs", where]
        if self.merged:
            parts.append(
                f"precision not reached, so the tier above is merged into the one below: {', '.join(self.merged)}"
            )
        if self.cuts.values[0] == self.cuts.values[1]:
            parts.append("0|1 may not lie above the edge, so tiers 0 and 1 are merged")
        return "; ".join(parts)


def main(argv: list[str]) -> int:
    """Run the stage.

    Raises: RunError: if the student has not been trained; RecipeError: if the policy of the recipe is impossible.
    """
    run = stage_arguments(argv, "calibrate", __doc__)
    recipe, source = run.recipe, run.require("student") / "predictions.cal.parquet"
    inputs = {
        "recipe": recipe.calibrate.model_dump(mode="json"),
        "seed": recipe.seed,
        "scheme": recipe.label_scheme.to_dict(),
        "template": recipe.template.model_dump(mode="json"),
        "predictions": hash_file(source),
    }
    with run.stage("calibrate", inputs) as folder:
        if folder is not None:
            figures = calibrate(recipe, read_predictions(source), folder)
            log.info("calibrate: ECE %(before).3f → %(after).3f (cross-validated)", figures["ece"])
    return 0


def check_calibrated(run: Run) -> None:
    """Refuse a calibrator that was fitted to another student's predictions than those that lie there.

    Raises: RunError: naming the stage that is to be run again.
    """
    told = run.inputs_of("calibrate").get("predictions")
    run.check_read("calibrate", {"student": (told, run.folder("student") / "predictions.cal.parquet")})


def calibrate(recipe: Recipe, predictions: Predictions, folder: Path) -> dict[str, Any]:
    """Write calibration.json, policy.toml and calibrate.json; gives the content of the last.

    Raises: InputError: if too few pairs are left without the Exact-only sources; RecipeError: as `choose_policy`.
    """
    rows = by_query_text(predictions.rows(~predictions.exact_only))
    if not len(rows):
        raise InputError(
            f"calibrate: expected pairs from more than Exact-only sources, found none of {len(predictions)}"
        )
    scheme, section = recipe.label_scheme, recipe.calibrate
    calibrator = fit_calibrator(section, rows, scheme)
    locale_N, pooled_N = policy_locales(rows, section), pooled_locales(rows)
    fit_folds = partial(_cross_validated, section, rows, scheme, recipe.seed)
    held_out_NK, pooled_NK = fit_folds(locale_N), fit_folds(pooled_N)
    in_sample = [apply_calibrator(calibrator, rows.logits_NK, names_N) for names_N in (locale_N, pooled_N)]
    policy, chosen = choose_policy(recipe, rows, held_out_NK, pooled_NK)
    n_classes = scheme.n_classes
    notes = {name: c.note for name, c in chosen.items()}
    (folder / CALIBRATION).write_text(calibrator.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (folder / POLICY).write_bytes(render_policy(policy, notes))
    figures = {
        "method": section.method,
        "n_pairs": len(rows),
        "n_queries": len(np.unique(rows.query_id)),
        "n_exact_only_dropped": int(predictions.exact_only.sum()),
        "ece": {
            "before": top_label_ece(softmax(rows.logits_NK), rows.label),
            "after": top_label_ece(held_out_NK, rows.label),
        },
        "classwise_ece": {
            "before": classwise_ece(softmax(rows.logits_NK), rows.label),
            "after": classwise_ece(held_out_NK, rows.label),
        },
        "brier": {"before": brier(softmax(rows.logits_NK), rows.label), "after": brier(held_out_NK, rows.label)},
        "cross_validation": f"{FOLDS} folds by query text; 'after' is measured on queries the fit did not see",
        "in_sample_edges": _edges_again(recipe, rows, in_sample, policy),
        "policy": {name: asdict(c) | {"cuts": c.cuts.model_dump()} for name, c in chosen.items()},
        "macro_f1": {
            "most_probable": macro_f1(rows.label, held_out_NK.argmax(axis=1), n_classes),
            "label_weights": macro_f1(rows.label, policy.labels(held_out_NK, scheme), n_classes),
        },
        "calibration_version": calibrator.version,
        "policy_version": policy.version,
    }
    (folder / FIGURES).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


def fit_calibrator(section: CalibrateRecipe, rows: Predictions, scheme: LabelScheme) -> Calibrator:
    """Fit the pooled calibrator and those of the locales; the version is a hash of the parameters."""
    pooled, locales = fit_locales(
        section.method,
        rows.logits_NK,
        rows.label,
        locale_N=policy_locales(rows, section),
        shrinkage=section.shrinkage,
    )
    calibrator = Calibrator(version="", n_classes=scheme.n_classes, pooled=pooled, locales=locales)
    return calibrator.model_copy(update={"version": hash_json(calibrator.model_dump(mode="json"))[:12]})


def apply_calibrator(calibrator: Calibrator, logits_NK: Floats, locale_N: NDArray[np.str_]) -> Floats:
    """Give calibrated probabilities of shape (N, K), each pair by the fit of its policy locale."""
    probabilities_NK = np.zeros_like(logits_NK)
    for locale in np.unique(locale_N):
        own = locale_N == locale
        probabilities_NK[own] = calibrator.probabilities(logits_NK[own], str(locale))
    return probabilities_NK


def policy_locales(rows: Predictions, section: CalibrateRecipe) -> NDArray[np.str_]:
    """Give the locale of each pair as policy and calibrator name it, an alias by its target, "" where unknown."""
    aliases = _folded_aliases(section)
    folded = [fold_locale(locale) for locale in rows.locale.tolist()]
    return np.array([aliases.get(locale, locale) for locale in folded], dtype=np.str_)


def pooled_locales(rows: Predictions) -> NDArray[np.str_]:
    """Give `pooled` for each pair: what a request without a known locale is resolved to."""
    return np.full(len(rows), POOLED)


def by_query_text(rows: Predictions) -> Predictions:
    """Give rows whose query id is the query's text, as splits are by text: ids may be of sessions."""
    texts = [normalise_query(query) for query in rows.query.tolist()]
    return replace(rows, query_id=np.array(texts, dtype=np.str_))


def _folded_aliases(section: CalibrateRecipe) -> dict[str, str]:
    return {fold_locale(alias): fold_locale(target) for alias, target in section.aliases.items()}


def choose_policy(
    recipe: Recipe, rows: Predictions, probabilities_NK: Floats, pooled_NK: Floats
) -> tuple[TierPolicy, dict[str, ChosenLocale]]:
    """Choose the cut points of each locale on calibrated `cal` rows.

    Args: probabilities_NK: each pair by its own locale's fit, pooled_NK: by the pooled one; both of calibrators that
        did not see the pair.
    Returns: the policy, and how each locale's cuts came about, `pooled` first.
    Raises: RecipeError: if a rule is malformed, or pairs above the certified edge 1|2 are to be filtered.
    """
    section = recipe.calibrate
    if section.filter_tier > cut_points.EDGE_TIER:
        raise RecipeError(
            f"calibrate.filter_tier: expected at most {cut_points.EDGE_TIER}, since the edge 1|2 is the certified one; "
            f"found {section.filter_tier}"
        )
    locale_N = policy_locales(rows, section)
    cal_rows = cal_rows_of(recipe, rows, probabilities_NK, locale_N)
    rule = FalseFilterRule(section.epsilon, section.confidence, recipe.seed)
    chosen = {POOLED: _own_cuts(section, cal_rows_of(recipe, rows, pooled_NK, pooled_locales(rows)), rule)}
    for locale in sorted(set(locale_N.tolist()) - {""}):
        own = cal_rows.rows(locale_N == locale)
        if own.n_exact_queries >= section.min_exact_queries:
            chosen[locale] = _own_cuts(section, own, rule)
        else:
            chosen[locale] = _pooled_cuts(chosen[POOLED], own, rule)
    aliases = _folded_aliases(section)
    unknown = sorted(alias for alias, target in aliases.items() if target not in chosen)
    if unknown:
        log.warning("calibrate: no pairs of the locales that %s stand for; these aliases are left out", unknown)
    label_weights = (
        balanced_label_weights(rows, probabilities_NK, recipe.label_scheme) if section.balanced_labels else {}
    )
    content = {
        "filter_tier": section.filter_tier,
        "label_weights": label_weights,
        "pooled": chosen[POOLED].cuts.model_dump(),
        "locales": {name: c.cuts.model_dump() for name, c in chosen.items() if name != POOLED},
        "aliases": {alias: target for alias, target in aliases.items() if target in chosen},
        "rules": section.rules,
    }
    return _policy(hash_json(content)[:12], content, recipe.label_scheme), chosen


def balanced_label_weights(rows: Predictions, probabilities_NK: Floats, scheme: LabelScheme) -> dict[str, float]:
    """Choose label weights share^-a for the exponent a of `LABEL_EXPONENTS` with the best macro-F1, smallest on a tie.

    One number is chosen, whatever K; the shares are mean probabilities.
    """
    share_K = np.maximum(probabilities_NK.mean(axis=0), 1e-3)
    weights = [(share_K / share_K[scheme.exact]) ** -exponent for exponent in LABEL_EXPONENTS]
    figures = [macro_f1(rows.label, (probabilities_NK * w).argmax(axis=1), scheme.n_classes) for w in weights]
    best = weights[int(np.argmax(figures))]
    return {code: round(float(weight), 4) for code, weight in zip(scheme.classes, best, strict=True)}


def cal_rows_of(recipe: Recipe, rows: Predictions, probabilities_NK: Floats, locale_N: NDArray[np.str_]) -> CalRows:
    """Give what the choice of cut points reads of each pair.

    Args: locale_N: policy locale of each pair, for business rules.
    Raises: RecipeError: if a business rule is malformed, or is for a locale that no pair has.
    """
    scheme = recipe.label_scheme
    known = sorted(set(policy_locales(rows, recipe.calibrate).tolist()) - {""})
    content = {"pooled": _open_cuts(), "locales": dict.fromkeys(known, _open_cuts()), "rules": recipe.calibrate.rules}
    probe = _policy("probe", content, scheme)
    kept_at_worst, kept_at_best = cut_points.rule_outcomes(
        probe,
        probabilities_NK,
        scheme,
        queries=np.array([recipe.template.query_text(q) for q in rows.query.tolist()], dtype=np.str_),
        policy_locales=locale_N,
    )
    return CalRows(
        query_id=rows.query_id,
        exact=rows.label == scheme.exact,
        score=expected_gain(probabilities_NK, scheme),
        irrelevant_likely=probabilities_NK[:, scheme.irrelevant] >= 0.5,
        kept_at_worst=kept_at_worst,
        kept_at_best=kept_at_best,
    )


def _own_cuts(section: CalibrateRecipe, rows: CalRows, rule: FalseFilterRule) -> ChosenLocale:
    cuts, merged = cut_points.all_cut_points(
        rows,
        cut_points.certify_edge(rows, rule),
        upper_precision=section.upper_precision,
        exact_precision=section.exact_precision,
        epsilon=section.epsilon,
    )
    return ChosenLocale(cuts, True, merged, len(rows))


def _pooled_cuts(pooled: ChosenLocale, rows: CalRows, rule: FalseFilterRule) -> ChosenLocale:
    edge = cut_points.edge_at(rows, pooled.cuts.values[1], rule)
    return ChosenLocale(cut_points.with_edge(pooled.cuts.values, edge, rule.epsilon), False, pooled.merged, len(rows))


def _policy(version: str, content: dict[str, Any], scheme: LabelScheme) -> TierPolicy:
    try:
        policy = TierPolicy.model_validate({"version": version, **content})
    except ValidationError as error:
        raise RecipeError(f"calibrate: {error}") from error
    return TierPolicy.from_toml(render_policy(policy), scheme)


def _open_cuts() -> dict[str, Any]:
    return {"values": (0.0, 0.0, 0.0, 0.0), "certified": False}


def _cross_validated(
    section: CalibrateRecipe, rows: Predictions, scheme: LabelScheme, seed: int, locale_N: NDArray[np.str_]
) -> Floats:
    def apply_fit(fit_on: NDArray[np.bool_], apply_to: NDArray[np.bool_]) -> Floats:
        calibrator = fit_calibrator(section, rows.rows(fit_on), scheme)
        return apply_calibrator(calibrator, rows.logits_NK[apply_to], locale_N[apply_to])

    return cross_fitted(apply_fit, rows.query_id, folds=FOLDS, seed=seed)


def _edges_again(
    recipe: Recipe, rows: Predictions, probabilities: Sequence[Floats], policy: TierPolicy
) -> dict[str, dict[str, Any]]:
    """Bound the false-filter rate of the chosen edges on other probabilities of the same pairs.

    Args: probabilities: by each pair's own locale's fit, and by the pooled one.
    """
    section, locale_N = recipe.calibrate, policy_locales(rows, recipe.calibrate)
    rule = FalseFilterRule(section.epsilon, section.confidence, recipe.seed)
    cal_rows, pooled_rows = (
        cal_rows_of(recipe, rows, own_NK, names_N)
        for own_NK, names_N in zip(probabilities, (locale_N, pooled_locales(rows)), strict=True)
    )
    edges = {POOLED: cut_points.edge_at(pooled_rows, policy.pooled.values[1], rule)}
    for locale, cuts in policy.locales.items():
        edges[locale] = cut_points.edge_at(cal_rows.rows(locale_N == locale), cuts.values[1], rule)
    return {name: asdict(edge) for name, edge in edges.items()}
