"""Study `disparity`: who is wrongly filtered and what leaks, by brand tier, locale and kind of item.

A brand is frequent with at least 10 training pairs, rare with fewer, unknown with none. An item is an accessory where
its record says what it is compatible with, or files it under accessories. Suffix: N pairs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relevance.errors import RunError
from relevance.labels import LabelScheme
from relevance.metrics.intervals import query_bootstrap_many, with_rare_events
from relevance.pairs import Item, read_labelled_pairs
from training.evaluate import score_rows
from training.measures import Bootstrap, Scored
from training.runs import Run, hash_file, log
from training.studies.robustness import NAME as ROBUSTNESS
from training.studies.study_run import (
    RESULT,
    bootstrap_of,
    fair_predictions,
    markdown_table,
    of_this_student,
    pairs_of,
    served,
    shown,
    study_folder,
    study_parser,
    study_run,
    write_study,
)

Strings = NDArray[np.str_]
FREQUENT = 10
"""Training pairs from which on a brand is frequent."""
LEAST_PAIRS = 20
"""A group takes part in ratios from so many Exact (Irrelevant) pairs on."""
RATES = ("false_filter_rate", "leak_rate", "false_filter_rate_everywhere", "leak_rate_everywhere")
"""As served, where an uncertified locale filters nothing, and as if every locale filtered."""
SWAP_SUITE = "brand of the title swapped, not asked for"


def main(argv: list[str]) -> int:
    """Run the study.

    Raises: RunError: if the student has not been trained, or again since its robustness was studied; InputError: if
        predictions or data are missing.
    """
    run = study_run(study_parser("disparity", __doc__).parse_args(argv))
    swaps = run.path / "studies" / ROBUSTNESS / RESULT
    if swaps.is_file() and not of_this_student(run, ROBUSTNESS):
        raise RunError(f"{swaps}: expected the study of this student; run `relevance study robustness` again")
    settings = {"swaps": hash_file(swaps) if swaps.is_file() else None}
    with study_folder(run, "disparity", settings) as folder:
        if folder is not None:
            result = study_disparity(run, folder) | {"brand_swap": brand_swap_flips(swaps)}
            write_study(folder, result, render(result))
            log.info("study disparity: %s", folder)
    return 0


def study_disparity(run: Run, folder: Path) -> dict[str, Any]:
    """Give the rates of each group of each dimension, and how far apart the groups are.

    Raises: RunError, InputError, RecipeError: if the run cannot be read or calibrated.
    """
    recipe, split = run.recipe, run.recipe.evaluate.split
    calibrator, policy = served(run, folder)
    test = fair_predictions(run, split)
    scored = score_rows(recipe, test, policy, calibrator)
    items = [p.pair.item for p in pairs_of(run, test, split)]
    train = read_labelled_pairs(run.require("data") / "pairs.train.parquet", recipe.label_scheme)
    counts = Counter(brand_key(p.pair.item) for p in train)
    dimensions = {
        "brand": np.array([brand_tier(item, counts) for item in items], dtype=np.str_),
        "locale": scored.policy_locale,
        "kind of item": np.array([item_kind(item) for item in items], dtype=np.str_),
    }
    return {
        "name": recipe.name,
        "split": split,
        "n_pairs": len(scored),
        "confidence": recipe.evaluate.confidence,
        "dimensions": {
            name: disparity(scored, group_N, recipe.label_scheme, bootstrap=bootstrap_of(run), edge=policy.filter_tier)
            for name, group_N in dimensions.items()
        },
    }


def brand_key(item: Item) -> str:
    """Give the name that brands are counted by, "" where the record names none."""
    return (item.brand or "").strip().casefold()


def brand_tier(item: Item, counts: Mapping[str, int]) -> str:
    """Give `frequent`, `rare`, `unknown` or, without a brand, `none named`."""
    brand = brand_key(item)
    if not brand:
        return "none named"
    n = counts.get(brand, 0)
    return "frequent" if n >= FREQUENT else "rare" if n else "unknown"


def item_kind(item: Item) -> str:
    """Give `accessory` or `product` as the record tells, else `not told`."""
    if (item.field("attributes.compatible_with") or "").strip():
        return "accessory"
    category = (item.field("attributes.category") or "").casefold()
    if not category.strip():
        return "not told"
    return "accessory" if "accessor" in category else "product"


def disparity(
    scored: Scored, group_N: Strings, scheme: LabelScheme, *, bootstrap: Bootstrap, edge: int
) -> dict[str, Any]:
    """Give the rates of each group with intervals, and the largest ratio and gap between groups.

    Args: group_N: group of each pair; edge: pairs of a lower tier are filtered where a locale filters.
    Returns: groups: name → n_exact, n_irrelevant and the rates; apart: rate → ratio and gap, nan unless two groups have
        `LEAST_PAIRS`. In ratios a rate is (events + 1/2) / (pairs + 1), so that a group without events has one too.
    """
    exact, irrelevant = scored.label == scheme.exact, scored.label == scheme.irrelevant
    below = scored.tier < edge
    events = {
        "false_filter_rate": (exact, ~scored.kept),
        "leak_rate": (irrelevant, scored.kept),
        "false_filter_rate_everywhere": (exact, below),
        "leak_rate_everywhere": (irrelevant, ~below),
    }
    names, group = np.unique(group_N, return_inverse=True)

    def measures(rows: NDArray[np.int64]) -> dict[str, float]:
        """Give each group's rates among the rows, and how far apart they are."""
        figures: dict[str, float] = {}
        for rate, (among_N, event_N) in events.items():
            own = rows[among_N[rows]]
            pairs_G = np.bincount(group[own], minlength=len(names))
            events_G = np.bincount(group[own[event_N[own]]], minlength=len(names))
            for g, name in enumerate(names):
                figures[f"{rate}\t{name}"] = events_G[g] / pairs_G[g] if pairs_G[g] else float("nan")
            figures |= {f"{rate}\t\t{key}": value for key, value in _apart(events_G, pairs_G).items()}
        return figures

    intervals = query_bootstrap_many(
        scored.query_id, measures, confidence=bootstrap.confidence, draws=bootstrap.draws, seed=bootstrap.seed
    )
    for rate, (among_N, _) in events.items():
        for g, name in enumerate(names):
            n_queries = len(np.unique(scored.query_id[among_N & (group == g)]))
            own = f"{rate}\t{name}"
            intervals[own] = with_rare_events(intervals[own], n_queries, confidence=bootstrap.confidence)
    return {
        "groups": {
            str(name): {
                "n_exact": int((exact & (group == g)).sum()),
                "n_irrelevant": int((irrelevant & (group == g)).sum()),
                **{rate: asdict(intervals[f"{rate}\t{name}"]) for rate in RATES},
            }
            for g, name in enumerate(names)
        },
        "apart": {rate: {key: asdict(intervals[f"{rate}\t\t{key}"]) for key in ("ratio", "gap")} for rate in RATES},
    }


def brand_swap_flips(path: Path) -> dict[str, Any] | None:
    """Give what the robustness study found of titles whose brand was swapped; None where it has not run.

    Raises: RunError: if its result is of another version.
    """
    if not path.is_file():
        return None
    try:
        row: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["suites"][SWAP_SUITE]
    except (json.JSONDecodeError, KeyError) as error:
        raise RunError(f"{path}: expected the result of `relevance study robustness`: {error}") from error
    return row


def render(result: dict[str, Any]) -> str:
    """Give the study as Markdown tables."""
    header = ["group", "Exact pairs", "false-filter rate", "if all filtered"]
    header += ["Irrelevant pairs", "leak rate", "if all filtered"]
    text = f"{result['n_pairs']:,} pairs of `{result['split']}`; {100 * result['confidence']:g} % intervals by query. "
    text += "The largest ratio is ≥ 1 and the largest gap ≥ 0 by definition: judge by the groups' intervals.\n"
    for dimension, part in result["dimensions"].items():
        rows = []
        for name, g in part["groups"].items():
            filtered = [shown(g[rate]) for rate in ("false_filter_rate", "false_filter_rate_everywhere")]
            leaked = [shown(g[rate]) for rate in ("leak_rate", "leak_rate_everywhere")]
            rows.append([name, f"{g['n_exact']:,}", *filtered, f"{g['n_irrelevant']:,}", *leaked])
        apart = part["apart"]
        for key in ("ratio", "gap"):
            filtered = [shown(apart[rate][key]) for rate in ("false_filter_rate", "false_filter_rate_everywhere")]
            leaked = [shown(apart[rate][key]) for rate in ("leak_rate", "leak_rate_everywhere")]
            rows.append([f"largest {key}", "", *filtered, "", *leaked])
        text += f"\nBy {dimension}:\n\n" + markdown_table(header, rows)
    swap = result["brand_swap"]
    if swap is not None and swap["n_pairs"]:
        text += f"\nBrand swapped in {swap['n_pairs']:,} titles whose query names none: tier flips "
        text += f"{shown(swap['tier_flips'])}, kept flips {shown(swap['kept_flips'])}.\n"
    return text


def _apart(events_G: NDArray[np.int64], pairs_G: NDArray[np.int64]) -> dict[str, float]:
    enough = pairs_G >= LEAST_PAIRS
    if enough.sum() < 2:
        return {"ratio": float("nan"), "gap": float("nan")}
    rate_G, smooth_G = events_G[enough] / pairs_G[enough], (events_G[enough] + 0.5) / (pairs_G[enough] + 1)
    return {"ratio": float(smooth_G.max() / smooth_G.min()), "gap": float(rate_G.max() - rate_G.min())}
