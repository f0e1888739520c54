"""Teachers × seeds: figures of each after SFT and after DPO, and their paired differences, from judged predictions.

The statistics are those of a grid (`training.grid.statistics`): seeds and queries are drawn apart, both sides of a
difference see the same draw, and p-values are corrected by Holm within a family that was fixed before anything ran. An
answer that named no class is wrong. Suffixes: N pairs, S seeds, Q queries, K classes, D draws.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relevance.errors import InputError, RunError
from relevance.labels import LabelScheme
from training.grid import statistics
from training.grid.comparisons import NOT_RUN, figure, verdict
from training.grid.results import SYNTHETIC
from training.grid.slices import commonest_class
from training.grid.statistics import Counts, Sample
from training.grid.status import STATUS
from training.grid.table import p_value, signed
from training.grid.teacher_systems import MPCOT, teachers_of
from training.multiplicity import holm
from training.predictions import Predictions, read_predictions
from training.runs import Run, commit, log
from training.studies.study_run import markdown_table
from training.teacher.judge_measures import UNANSWERED, classes_named
from training.teacher.judge_report import plain

Row = dict[str, Any]
Runs = Mapping[int, Predictions]
"""A teacher's predictions of the same pairs by seed."""
Families = Mapping[str, Sequence[tuple[str, str]]]
"""Comparisons that are corrected together: name → (left, right) of each difference left − right."""
PHASES = {"sft": "SFT", "dpo": "SFT+DPO"}
RESULTS, TABLE = "comparison.json", "comparison.md"
PRIMARY = "macro_f1"
COMPARED = (PRIMARY, "accuracy")
FAMILIES = {
    "main": "MPCoT against the best single perspective, and what DPO adds",
    "others": "MPCoT against further teachers",
}
BASE = "base"
_SINGLE = "single_"
_SAME = ("pair_id", "query_id", "label", "exact_only")


def write_comparison(run: Run, folder: Path) -> None:
    """Compare the teachers of a run whose jobs lie in a folder; writes comparison.json and comparison.md there.

    Raises: RunError: if no job has finished; InputError: if two judged other pairs.
    """
    predictions, gates = _read_jobs(run, folder)
    learned = _learned(run, folder)
    if not any(predictions.values()):
        raise RunError(f"{folder}: expected at least one finished and judged teacher, found none")
    best = {phase: best_single(gates, phase) for phase in PHASES}
    titles = {
        f"{s.name}_{phase}": f"{s.title}, {words}" for s in teachers_of(run.recipe) for phase, words in PHASES.items()
    }
    titles[BASE] = "base model, few-shot"
    results = compare_teachers(
        predictions,
        families_of(predictions, best),
        run.recipe.label_scheme,
        draws=run.recipe.grid.draws,
        seed=run.recipe.seed,
    )
    results = {
        "recipe": run.recipe.name,
        "commit": commit(),
        "wording": SYNTHETIC if run.recipe.data.source == "marketplace" else None,
        "titles": titles,
        "best_single": best,
        "gates": gates,
        "learned": learned,
        **results,
    }
    results = plain(results)
    (folder / RESULTS).write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (folder / TABLE).write_text(teacher_table(results), encoding="utf-8")
    log.info("teachers: compared %d of them → %s", len(results["teachers"]), folder / TABLE)


def best_single(gates: Mapping[str, Sequence[Row]], phase: str) -> str | None:
    """Give the single-perspective teacher with the highest mean macro-F1 on the dev pairs of DPO's gate, never on test.

    Args: gates: by teacher, the gates of its finished seeds: phase → figures.
    Returns: None where no such teacher has a gate.
    """
    means = {
        name: float(np.mean([gate[phase][PRIMARY] for gate in own]))
        for name, own in gates.items()
        if name.startswith(_SINGLE) and own
    }
    return max(means, key=means.__getitem__) if means else None


def families_of(names: Mapping[str, Any], best: Mapping[str, str | None]) -> dict[str, list[tuple[str, str]]]:
    """Give the comparisons of two families, those that were not run included.

    Args: names: of teachers with their phase, and `base`; best: by phase, the best single-perspective teacher.
    """
    main = [(f"{MPCOT}_dpo", f"{MPCOT}_sft")]
    main += [(f"{MPCOT}_{phase}", f"{own}_{phase}") for phase, own in best.items() if own is not None]
    known = {right for _, right in main}
    others = [
        (f"{MPCOT}_{phase}", name)
        for phase in PHASES
        for name in names
        if name.endswith(f"_{phase}") and not name.startswith(f"{MPCOT}_") and name not in known
    ]
    if BASE in names:
        others.append((f"{MPCOT}_sft", BASE))
    return {"main": main, "others": others}


def compare_teachers(
    predictions: Mapping[str, Runs], families: Families, scheme: LabelScheme, *, draws: int = 10_000, seed: int = 0
) -> dict[str, Any]:
    """Give every teacher's figures and the differences of each family.

    Args: predictions: of stage `judge` by teacher and seed, no seeds for a teacher that was not run; the one run of
        `base` stands beside any seed of another; seed: of the draws.
    Returns: `n_pairs`, `n_queries`, `commonest` (naming the commonest class), `teachers`: rows of name, seeds and
        figures, and `differences`: by family rows of ours, theirs, figures, Holm's p of macro-F1 and a verdict.
    Raises: InputError: if two runs judged other pairs.
    """
    pairs = _checked(predictions)
    fair = ~pairs.exact_only
    label_N = pairs.label[fair]
    queries, query_N = np.unique(pairs.query_id[fair], return_inverse=True)
    count_DQ = statistics.draw_queries(len(queries), draws, seed)
    samples = {}
    for name, runs in predictions.items():
        if runs:
            named_SN = np.array([classes_named(runs[one])[fair] for one in sorted(runs)])
            count_SQKK = _confusions(label_N, named_SN, query_N.astype(np.int64), scheme)
            samples[name] = _sample(tuple(sorted(runs)), count_SQKK, scheme, count_DQ, constant=name == BASE)
    return {
        "n_pairs": len(label_N),
        "n_queries": len(queries),
        "commonest": commonest_class(label_N, scheme),
        "teachers": [_teacher_row(name, samples.get(name), seed) for name in predictions],
        "differences": {name: _differences(pairs_of, samples, seed) for name, pairs_of in families.items()},
    }


def teacher_table(results: Mapping[str, Any]) -> str:
    """Give the comparison in Markdown, those not run included, below the row of the commonest class.

    Beside the figures stands what each teacher learned from: a teacher of three perspectives has three times the rows.

    Args: results: as comparison.json holds them.
    """
    titles, commonest = results["titles"], results["commonest"]
    always = [f"always {commonest['title']}", "–", f"{commonest['macro_f1']:.3f}", f"{commonest['accuracy']:.3f}"]
    rows = [[*always, "–", "–", "–"]]
    for row in results["teachers"]:
        own = row["figures"]
        figures = [_with_interval(own[name]) for name in (*COMPARED, "answered")] if own else [NOT_RUN, "–", "–"]
        system, _, phase = row["name"].rpartition("_")
        amounts = results["learned"].get(system, {}) if own else {}
        counts = [
            _thousands(amounts.get("sft_tokens")),
            _thousands(amounts.get("dpo_rows") if phase == "dpo" else None),
        ]
        rows.append([titles.get(row["name"], row["name"]), str(len(row["seeds"])), *figures, *counts])
    parts = [f"**{results['wording']}**"] if results["wording"] else []
    parts += [
        f"{results['n_pairs']} pairs of {results['n_queries']} queries; 95 % intervals over seeds and queries.",
        markdown_table(
            ["teacher", "seeds", "macro-F1", "accuracy", "answered", "SFT tokens", "DPO pairs"], rows
        ).rstrip(),
    ]
    chosen = [f"{titles[f'{name}_{phase}']}" for phase, name in results["best_single"].items() if name is not None]
    if chosen:
        parts.append(f"Best single-perspective teachers, chosen on dev pairs: {'; '.join(chosen)}.")
    for family, differences in results["differences"].items():
        if differences:
            parts += [f"### {FAMILIES[family]}", _difference_table(differences, titles)]
    return "\n\n".join(parts) + "\n"


def _difference_table(differences: Sequence[Row], titles: Mapping[str, str]) -> str:
    head = ["comparison", "seeds", "Δ macro-F1", "MDD", "p (Holm)", "Δ accuracy", "MDD", "verdict"]
    rows = []
    for row in differences:
        name = " − ".join(titles.get(row[side], row[side]) for side in ("ours", "theirs"))
        cells = ["–"] * 6
        if row["figures"]:
            main, accuracy = (row["figures"][one] for one in COMPARED)
            cells = [str(main["seeds"]), signed(main), _plain(main["detectable"]), p_value(row["p_holm"])]
            cells += [signed(accuracy), _plain(accuracy["detectable"])]
        rows.append([name, *cells, row["verdict"]])
    return markdown_table(head, rows).rstrip()


def _read_jobs(run: Run, folder: Path) -> tuple[dict[str, dict[int, Predictions]], dict[str, list[Row]]]:
    """Give predictions by teacher and phase, and the gates of finished jobs by teacher.

    A job without a gate had too few preferences to train on, so that whatever lies there of DPO is not its own.
    """
    split = run.recipe.teacher.judge.split
    predictions: dict[str, dict[int, Predictions]] = {}
    gates: dict[str, list[Row]] = {}
    for system in teachers_of(run.recipe):
        gates[system.name] = []
        predictions |= {f"{system.name}_{phase}": {} for phase in PHASES}
    for system_name, seed, job, status in _finished_jobs(run, folder):
        gate = status["gate"]["gate"]
        if gate is not None:
            gates[system_name].append({phase: gate[phase] for phase in PHASES})
        for phase in PHASES if gate is not None else ("sft",):
            path = job / f"judge_{phase}" / f"predictions.{split}.parquet"
            if path.is_file():
                predictions[f"{system_name}_{phase}"][seed] = read_predictions(path)
    base = run.path / "judge_base" / f"predictions.{split}.parquet"
    if base.is_file():
        predictions[BASE] = {run.recipe.seed: read_predictions(base)}
    return predictions, gates


def _learned(run: Run, folder: Path) -> dict[str, dict[str, float]]:
    """Give what the teachers learned from, as means over their finished seeds; none of jobs that did not say."""
    told: dict[str, list[dict[str, int]]] = {}
    for name, _, _, status in _finished_jobs(run, folder):
        if "learned" in status:
            told.setdefault(name, []).append(status["learned"])
    return {name: {key: float(np.mean([one[key] for one in own])) for key in own[0]} for name, own in told.items()}


def _finished_jobs(run: Run, folder: Path) -> Iterator[tuple[str, int, Path, Row]]:
    """Give name, seed, folder and status of the finished jobs of a run's present configuration."""
    record = run.path / "teachers.json"
    hashes = json.loads(record.read_text(encoding="utf-8")).get("config_hashes", {}) if record.is_file() else {}
    for system in teachers_of(run.recipe):
        for seed in run.recipe.grid.seeds:
            job = folder / system.name / f"seed_{seed}"
            status = _status(job / STATUS)
            if status is not None and status["config_hash"] == hashes.get(
                f"{system.name}/seed_{seed}", status["config_hash"]
            ):
                yield system.name, seed, job, status


def _status(path: Path) -> Row | None:
    """Give the status of a finished job; None for any other, and for one that was killed."""
    if not path.is_file():
        return None
    status: Row = json.loads(path.read_text(encoding="utf-8"))
    return status if status["state"] == "done" else None


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


def _confusions(
    label_N: NDArray[np.int64], named_SN: NDArray[np.int64], query_N: NDArray[np.int64], scheme: LabelScheme
) -> NDArray[np.float64]:
    """Count by seed and query, with one more class for pairs without an answer."""
    predicted_SN = np.where(named_SN == UNANSWERED, scheme.n_classes, named_SN)
    return statistics.confusion_by_query(label_N, predicted_SN, query_N, n_classes=scheme.n_classes + 1)


def _sample(
    seeds: tuple[int, ...], count_SQKK: NDArray[np.float64], scheme: LabelScheme, count_DQ: Counts, *, constant: bool
) -> Sample:
    value = _figures(count_SQKK.sum(axis=1), scheme)
    drawn = _figures(statistics.draw_confusions(count_SQKK, count_DQ), scheme)
    queries = dict.fromkeys(value, int(count_SQKK.shape[1]))
    return Sample(seeds, constant, value, drawn, queries)


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
    rows = []
    for pair in pairs:
        own, p_holm = found.get(pair), adjusted.get(pair)
        outcome = verdict(own[PRIMARY], p_holm) if own else NOT_RUN
        figures = {one: figure(gap) for one, gap in (own or {}).items()}
        rows.append({"ours": pair[0], "theirs": pair[1], "figures": figures, "p_holm": p_holm, "verdict": outcome})
    return rows


def _with_interval(own: Mapping[str, float | None]) -> str:
    if own["low"] is None or own["high"] is None:
        return f"{own['value']:.3f}"
    return f"{own['value']:.3f} ({own['low']:.3f} to {own['high']:.3f})"


def _plain(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _thousands(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"
