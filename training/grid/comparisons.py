"""Families of differences between systems, each with Holm's correction over what its recipe asked for.

The family is fixed before anything is run: a comparison that did not finish counts as one with a p of 1, so that what
failed cannot make the others look better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from training.grid import statistics
from training.grid.fits import Grid
from training.grid.slices import WEIGHTED, Slice
from training.grid.statistics import Estimate, PairedAccuracy, Sample
from training.grid.systems import SYSTEMS
from training.multiplicity import holm
from training.recipe import Recipe

Pairs = Sequence[tuple[str, str]]
PRIMARY = "macro_f1"
COMPARED = (PRIMARY, WEIGHTED, "accuracy", "ndcg_10", "auc_exact", "auc_irrelevant")
BASE = "bert"
UNGUIDED = "lrkd_no_guidance"
UNGUIDED_SAME = "lrkd_no_guidance_same"
"""At the learning rates of `grid.ours`, as its controls are."""
LEXICAL = "lexical"
PRESET = (
    ("lrkd_gat_paper", "bert_paper"),
    ("lrkd_no_guidance_paper", "bert_paper"),
    ("lrkd_gat_paper", "lrkd_no_guidance_paper"),
    ("bert", "bert_paper"),
)
"""What the paper's own learning rates make of the same comparison."""
LEVEL = 0.05
NOT_RUN = "not run"
NOT_ASKED = "not in this recipe"
_PRESET_ENDING = "_paper"
_MEMBERS = tuple(member for system in SYSTEMS.values() if system.group == "ensemble" for member in system.members)


@dataclass(frozen=True, slots=True)
class Judged:
    """What comparisons on one slice are made of: the grid, the slice, and each finished system's figures on it."""

    grid: Grid
    part: Slice
    samples: Mapping[str, Sample]
    seed: int


def differences(judged: Judged, recipe: Recipe) -> dict[str, list[dict[str, Any]]]:
    """Give the differences of each family of comparisons, by family its rows."""
    return {name: compare(pairs, judged) for name, pairs in families(judged.grid, recipe).items() if pairs}


def families(grid: Grid, recipe: Recipe) -> dict[str, list[tuple[str, str]]]:
    """Give the families of comparisons: (left, right) of each difference left - right, whatever came out.

    Controls, ablations and the paper's preset are listed in full, those that the recipe does not ask for too. Controls
    also stand against λ = 0, at their own rates where the recipe has that: being ahead of a target that only does harm
    would show nothing. Trained students stand against the logistic regression on word overlap where there is one.
    """
    ours, rivals = recipe.grid.ours, recipe.grid.rivals
    groups = {s.name: s.group for s in grid.systems}
    controls = [name for name in _of_group("control", groups) if not name.endswith(_PRESET_ENDING)]
    ablations = [name for name in _of_group("ablation", groups) if name != ours and not _is_label_teacher(name)]
    of_bert = [n for n, group in groups.items() if (group == "rival" or n in rivals) and n != BASE]
    further = [
        name
        for name, group in groups.items()
        if (group in {"ours", "rival", "ensemble"} or _is_label_teacher(name)) and name not in {ours, *rivals}
    ]
    unguided = UNGUIDED_SAME if UNGUIDED_SAME in groups else UNGUIDED
    trained = [name for name in (BASE, *rivals, ours) if name in groups and name != LEXICAL]
    return {
        "rivals": [(ours, name) for name in rivals],
        "controls": [(ours, name) for name in controls],
        "controls_unguided": [(name, unguided) for name in controls if {name, unguided} <= set(groups)],
        "ablations": [(ours, name) for name in ablations],
        "preset": list(PRESET),
        "rivals_and_bert": [(name, BASE) for name in of_bert],
        "others": [(ours, name) for name in further],
        "over_lexical": [(name, LEXICAL) for name in dict.fromkeys(trained) if LEXICAL in groups],
    }


def compare(pairs: Pairs, judged: Judged) -> list[dict[str, Any]]:
    """Give one row a comparison of a family, with Holm's correction on macro-F1.

    Returns: `p_holm` is None where nothing can be tested; comparisons with a system that the recipe does not ask for
        are no members of the family. `detectable` of macro-F1 is at the level of Holm's first step, 0.05 over the
        family's size, of other figures at 0.05.
    """
    samples = judged.samples
    known = {s.name: s.title for s in judged.grid.systems}
    found: dict[tuple[str, str], Estimate] = {}
    for ours, theirs in pairs:
        if ours in samples and theirs in samples:
            main = statistics.difference(samples[ours], samples[theirs], PRIMARY, judged.seed)
            if main is not None:
                found[ours, theirs] = main
    tested = {pair: e.p for pair, e in found.items() if not math.isnan(e.p)}
    asked = sum(ours in known and theirs in known for ours, theirs in pairs)
    adjusted = dict(zip(tested, holm([*tested.values(), *[1.0] * (asked - len(tested))]), strict=False))
    level = LEVEL / max(1, asked)
    rows: list[dict[str, Any]] = []
    for ours, theirs in pairs:
        row = {"ours": ours, "theirs": theirs}
        row |= {f"{side}_title": _title(name, known) for side, name in (("ours", ours), ("theirs", theirs))}
        main, p_holm = found.get((ours, theirs)), adjusted.get((ours, theirs))
        if main is None:
            outcome = NOT_RUN if ours in known and theirs in known else NOT_ASKED
            rows.append({**row, "verdict": outcome, "figures": {}, "p_holm": None, "paired": None})
            continue
        paired = asdict(_median_pair(judged, ours, theirs))
        figures = _each(samples[ours], samples[theirs], judged.seed) | {PRIMARY: figure(main, level)}
        outcome = verdict(main, p_holm, level)
        rows.append({**row, "verdict": outcome, "figures": figures, "p_holm": p_holm, "paired": paired})
    return rows


def verdict(difference: Estimate, p_holm: float | None, level: float = LEVEL) -> str:
    """Say in plain words which side is ahead, or how large a difference would have had to be.

    Args: p_holm: None for one seed of a trained system: it tells nothing of the spread between seeds; level: of the
        detectable difference.
    """
    if p_holm is None:
        return "undecided (one seed)"
    if p_holm < LEVEL:
        return "ahead" if difference.value > 0 else "behind"
    return f"undecided (MDD {difference.detectable(level):.3f})"


def figure(e: Estimate, level: float = LEVEL) -> dict[str, float]:
    """Give an estimate as plain data, with what a test at `level` would find in 80 of 100 tries."""
    return {**asdict(e), "detectable": e.detectable(level)}


def _of_group(group: str, groups: Mapping[str, str]) -> list[str]:
    """Give every system of a group, the recipe's and all that it might have asked for."""
    further = [name for name, system in SYSTEMS.items() if system.group == group and name not in groups]
    return [*(name for name, own in groups.items() if own == group), *further]


def _is_label_teacher(name: str) -> bool:
    """Say whether it is a label distillation that an ensemble averages: no part of LRKD is taken away in it."""
    return name in _MEMBERS and SYSTEMS[name].tuned_as == "label_kd"


def _title(name: str, known: Mapping[str, str]) -> str:
    return known.get(name) or (SYSTEMS[name].title if name in SYSTEMS else name)


def _each(ours: Sample, theirs: Sample, seed: int) -> dict[str, dict[str, float]]:
    names = [name for name in COMPARED if name in ours.drawn and name in theirs.drawn]
    each = {name: statistics.difference(ours, theirs, name, seed) for name in names}
    return {name: figure(e) for name, e in each.items() if e is not None}


def _median_pair(judged: Judged, ours: str, theirs: str) -> PairedAccuracy:
    """Compare the hits of the seed whose difference in accuracy is the median one."""
    part = judged.part
    sides = [(judged.samples[name], judged.grid.system(name)) for name in (ours, theirs)]
    seeds = statistics.common_seeds(*(s for s, _ in sides))
    columns = [[statistics.column(s, seed) for seed in seeds] for s, _ in sides]
    accuracy = [s.value["accuracy"][c] for (s, _), c in zip(sides, columns, strict=True)]
    median = statistics.median_seed(accuracy[0] - accuracy[1])
    hits = [
        system.logits_SNK[c[median], part.rows].argmax(axis=1) == part.label_N
        for (_, system), c in zip(sides, columns, strict=True)
        if system is not None
    ]
    return statistics.paired_accuracy(hits[0], hits[1], part.query_N)
