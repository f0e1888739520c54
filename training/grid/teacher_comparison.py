"""Teachers × seeds: figures of each after SFT and after DPO, and their paired differences, from judged predictions.

The statistics are those of a grid (`training.grid.statistics`): seeds and queries are drawn apart, both sides of a
difference see the same draw, and p-values are corrected by Holm within a family that was fixed before anything ran. An
answer that named no class is wrong. Suffixes: N pairs, S seeds, Q queries, K classes, D draws.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relevance.errors import InputError, RunError
from relevance.labels import LabelScheme
from training.grid import statistics
from training.grid.comparisons import LEVEL, NOT_RUN, figure, verdict
from training.grid.results import SYNTHETIC
from training.grid.slices import Slice, commonest_class, slices_of
from training.grid.statistics import Sample
from training.grid.teacher_results import BASES, COMPARED, PHASES, PRIMARY, read_results
from training.grid.teacher_systems import EQUAL_TOKENS, MPCOT, SINGLE, TITLES, teachers_of
from training.grid.teacher_table import teacher_table
from training.multiplicity import holm
from training.predictions import Predictions
from training.runs import Run, commit, log
from training.teacher.judge_measures import UNANSWERED, classes_named
from training.teacher.judge_report import plain

Row = dict[str, Any]
Runs = Mapping[int, Predictions]
"""A teacher's predictions of the same pairs by seed."""
Families = Mapping[str, Sequence[tuple[str, str]]]
"""Comparisons that are corrected together: name → (left, right) of each difference left − right."""
Gates = Mapping[str, Sequence[Row]]
"""By teacher, the gates of its finished seeds: phase → figures on dev pairs."""
RESULTS, TABLE = "comparison.json", "comparison.md"
CHOSEN = {SINGLE: "best single perspective", EQUAL_TOKENS: "best single perspective of equal tokens"}
"""Groups of which the best teacher is chosen on dev pairs, by how their names begin, and what it is called."""
_SAME = ("pair_id", "query_id", "label", "exact_only", "source")


def write_comparison(run: Run, folder: Path) -> None:
    """Compare the teachers of a run whose jobs lie in a folder; writes comparison.json and comparison.md there.

    Raises: RunError: if no job has finished; InputError: if two judged other pairs.
    """
    found = read_results(run, folder)
    if not any(found.predictions.values()):
        raise RunError(f"{folder}: expected at least one finished and judged teacher, found none")
    groups = [group for group in CHOSEN if any(s.name.startswith(group) for s in teachers_of(run.recipe))]
    best = {group: {phase: best_of(found.gates, phase, group) for phase in PHASES} for group in groups}
    results = {
        "recipe": run.recipe.name,
        "commit": commit(),
        "wording": SYNTHETIC if run.recipe.data.source == "marketplace" else None,
        "titles": _titles(run),
        "best": best,
        "without_dev_figures": without_dev_figures(found.gates, groups, len(run.recipe.grid.seeds)),
        "gates": found.gates,
        "learned": found.learned,
        **compare_teachers(
            found.predictions,
            families_of(found.predictions, best),
            run.recipe.label_scheme,
            draws=run.recipe.grid.draws,
            seed=run.recipe.seed,
        ),
    }
    results = plain(results)
    (folder / RESULTS).write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (folder / TABLE).write_text(teacher_table(results), encoding="utf-8")
    log.info("teachers: compared %d of them → %s", len(results["teachers"]), folder / TABLE)


def best_of(gates: Gates, phase: str, group: str = SINGLE) -> str | None:
    """Give a group's teacher with the highest mean macro-F1 on the dev pairs of DPO's gate, never on test.

    Args: group: how the names of its teachers begin.
    Returns: None where none of them has such figures.
    """
    figures = {
        name: [gate[phase][PRIMARY] for gate in own if phase in gate]
        for name, own in gates.items()
        if name.startswith(group)
    }
    means = {name: float(np.mean(own)) for name, own in figures.items() if own}
    return max(means, key=means.__getitem__) if means else None


def without_dev_figures(gates: Gates, groups: Sequence[str], seeds: int) -> list[Row]:
    """Name the teachers that a choice was made without, or with fewer than all seeds of.

    Returns: rows of group, phase, teacher and how many of the seeds have figures.
    """
    rows = []
    for group in groups:
        for phase in PHASES:
            for name in (name for name in gates if name.startswith(group)):
                told = sum(phase in gate for gate in gates[name])
                if told < seeds:
                    rows.append({"group": group, "phase": phase, "name": name, "seeds": told, "of": seeds})
    return rows


def families_of(
    names: Mapping[str, Any], best: Mapping[str, Mapping[str, str | None]]
) -> dict[str, list[tuple[str, str]]]:
    """Give the families of comparisons, those that were not run included.

    Args: names: of teachers with their phase, and `BASES`; best: by group and phase, its best teacher; None stands in a
        comparison under a name that nothing has, which is then not run.
    """

    def chosen(group: str, phase: str, own: str) -> str:
        """Name the best of a group in one phase, as it is after another."""
        return f"{best[group][phase] or f'{group}best'}_{own}"

    main = [(f"{MPCOT}_dpo", f"{MPCOT}_sft")]
    equal: list[tuple[str, str]] = []
    if SINGLE in best:
        main += [(f"{MPCOT}_{phase}", chosen(SINGLE, phase, phase)) for phase in PHASES]
        main.append((chosen(SINGLE, "sft", "dpo"), chosen(SINGLE, "sft", "sft")))
    if EQUAL_TOKENS in best:
        equal = [(f"{MPCOT}_{phase}", chosen(EQUAL_TOKENS, phase, phase)) for phase in PHASES]
    known = {*main, *equal}
    others = [
        (f"{MPCOT}_{phase}", name)
        for phase in PHASES
        for name in names
        if name.endswith(f"_{phase}") and not name.startswith(f"{MPCOT}_")
    ]
    others += [(f"{MPCOT}_sft", name) for name in BASES if name in names]
    return {"main": main, "equal_tokens": equal, "others": [pair for pair in others if pair not in known]}


def _titles(run: Run) -> dict[str, str]:
    titles = {
        f"{s.name}_{phase}": f"{s.title}, {words}" for s in teachers_of(run.recipe) for phase, words in PHASES.items()
    }
    titles |= {
        f"{group}best_{phase}": f"{CHOSEN[group]}, {words}" for group in CHOSEN for phase, words in PHASES.items()
    }
    shots = "few-shot" if run.recipe.teacher.prompt.shots else "without examples"
    asked = {name: name.partition("_")[2] for name in BASES}
    return titles | {name: f"base model, {shots}{', ' + TITLES[own] if own else ''}" for name, own in asked.items()}


def compare_teachers(
    predictions: Mapping[str, Runs], families: Families, scheme: LabelScheme, *, draws: int = 10_000, seed: int = 0
) -> dict[str, Any]:
    """Give every teacher's figures and the differences of each family.

    Args: predictions: of stage `judge` by teacher and seed, no seeds for a teacher that was not run; the one run of
        a base stands beside any seed of another; seed: of the draws.
    Returns: of the primary slice (`training.grid.slices`) `slice`, its name, `n_pairs`, `n_queries`, `commonest`
        (naming the commonest class), `teachers`: rows of name, seeds and figures, and `differences`: by family rows of
        ours, theirs, figures, Holm's p of macro-F1 and a verdict; `slices`: by name of each further slice the same but
        `differences`.
    Raises: InputError: if two runs judged other pairs, or fewer than two queries.
    """
    parts = slices_of(_checked(predictions))
    if not parts or parts[0].kind != "primary":
        raise InputError("expected teachers that judged at least two queries of the main slice, found fewer")
    first, *further = parts
    samples = _samples(predictions, first, scheme, draws=draws, seed=seed)
    return {
        "slice": first.name,
        **_figures_of(predictions, samples, first, scheme, seed),
        "differences": {name: _differences(pairs_of, samples, seed) for name, pairs_of in families.items()},
        "slices": {
            part.name: _figures_of(
                predictions, _samples(predictions, part, scheme, draws=draws, seed=seed), part, scheme, seed
            )
            for part in further
        },
    }


def _samples(
    predictions: Mapping[str, Runs], part: Slice, scheme: LabelScheme, *, draws: int, seed: int
) -> dict[str, Sample]:
    """Give the figures of every teacher with a finished run on a slice, on all its queries and on each draw of them."""
    count_DQ = statistics.draw_queries(part.n_queries, draws, seed)
    samples = {}
    for name, runs in predictions.items():
        if runs:
            seeds = tuple(sorted(runs))
            named_SN = np.array([classes_named(runs[one])[part.rows] for one in seeds])
            predicted_SN = np.where(named_SN == UNANSWERED, scheme.n_classes, named_SN)
            # One more class, for pairs without an answer.
            count_SQKK = statistics.confusion_by_query(
                part.label_N, predicted_SN, part.query_N, n_classes=scheme.n_classes + 1
            )
            value = _figures(count_SQKK.sum(axis=1), scheme)
            drawn = _figures(statistics.draw_confusions(count_SQKK, count_DQ), scheme)
            samples[name] = Sample(seeds, name in BASES, value, drawn, dict.fromkeys(value, part.n_queries))
    return samples


def _figures_of(
    names: Mapping[str, Any], samples: Mapping[str, Sample], part: Slice, scheme: LabelScheme, seed: int
) -> Row:
    return {
        "n_pairs": len(part.rows),
        "n_queries": part.n_queries,
        "commonest": commonest_class(part.label_N, scheme),
        "teachers": [_teacher_row(name, samples.get(name), seed) for name in names],
    }


def _checked(predictions: Mapping[str, Runs]) -> Predictions:
    """Give the pairs that all runs judged."""
    every = [(name, seed, own) for name, runs in predictions.items() for seed, own in runs.items()]
    first_name, _, first = every[0]
    for name, seed, own in every[1:]:
        if any(not np.array_equal(getattr(first, column), getattr(own, column)) for column in _SAME):
            raise InputError(
                f"teacher {name!r}, seed {seed}: expected the {len(first)} pairs that {first_name!r} judged, in that "
                f"order, found {len(own)} that differ; judge all teachers with the same teacher.judge"
            )
    return first


def _figures(count_KK: NDArray[np.float64], scheme: LabelScheme) -> dict[str, NDArray[np.float64]]:
    figures = statistics.confusion_figures(count_KK, (*scheme.classes, ""))
    f1_K = [figures[f"f1_{code}"] for code in scheme.classes]
    return {
        PRIMARY: np.mean(f1_K, axis=0),
        "accuracy": figures["accuracy"],
        "answered": 1 - count_KK[..., -1].sum(axis=-1) / count_KK.sum(axis=(-2, -1)),
        **{f"f1_{code}": own for code, own in zip(scheme.classes, f1_K, strict=True)},
    }


def _teacher_row(name: str, own: Sample | None, seed: int) -> Row:
    if own is None:
        return {"name": name, "seeds": [], "figures": {}}
    figures = {one: figure(statistics.estimate(own, one, seed)) for one in own.value}
    return {"name": name, "seeds": list(own.seeds), "figures": figures}


def _differences(pairs: Sequence[tuple[str, str]], samples: Mapping[str, Sample], seed: int) -> list[Row]:
    """Give the rows of a family; a comparison that was not run counts as one with a p of 1."""
    found: dict[tuple[str, str], dict[str, statistics.Estimate]] = {}
    for ours, theirs in pairs:
        if ours in samples and theirs in samples:
            each = {one: statistics.difference(samples[ours], samples[theirs], one, seed) for one in COMPARED}
            found[ours, theirs] = {one: gap for one, gap in each.items() if gap is not None}
    tested = {pair: own[PRIMARY].p for pair, own in found.items() if own and not math.isnan(own[PRIMARY].p)}
    adjusted = dict(zip(tested, holm([*tested.values(), *[1.0] * (len(pairs) - len(tested))]), strict=False))
    level = LEVEL / max(1, len(pairs))
    rows = []
    for pair in pairs:
        own, p_holm = found.get(pair), adjusted.get(pair)
        outcome = verdict(own[PRIMARY], p_holm, level) if own else NOT_RUN
        figures = {one: figure(gap, level if one == PRIMARY else LEVEL) for one, gap in (own or {}).items()}
        rows.append({"ours": pair[0], "theirs": pair[1], "figures": figures, "p_holm": p_holm, "verdict": outcome})
    return rows
