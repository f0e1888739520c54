"""What the jobs of a comparison of teachers left on disk.

OUT/teachers/NAME/seed_S/ holds status.json and the judgement of each policy, judge_sft and judge_dpo.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from relevance.errors import InputError, RunError
from relevance.labels import LabelScheme
from training.grid.status import STATUS
from training.grid.teacher_systems import teachers_of
from training.predictions import Predictions, read_predictions
from training.recipe import PERSPECTIVES
from training.runs import Run
from training.teacher.policy import base_policy_identity
from training.teacher.prompts import PromptBook
from training.teacher.samples import read_samples

Row = dict[str, Any]
PHASES = {"sft": "SFT", "dpo": "SFT+DPO"}
BASES = ("base", *(f"base_{perspective}" for perspective in PERSPECTIVES))
"""The base model as it is, asked under the run's own prompt and under one perspective's alone."""
PRIMARY = "macro_f1"
COMPARED = (PRIMARY, "accuracy")


@dataclass(frozen=True, slots=True)
class TeacherResults:
    """The finished jobs of a comparison.

    Args: predictions: by teacher and phase (`mpcot_sft`), and of `BASES`: seed → the classes that its answers name;
        gates: by teacher, a gate a finished seed: phase → figures on dev pairs; learned: by teacher, what it learned
        from, as means over its finished seeds.
    """

    predictions: Mapping[str, dict[int, Predictions]]
    gates: Mapping[str, list[Row]]
    learned: Mapping[str, dict[str, float]]


def read_results(run: Run, folder: Path) -> TeacherResults:
    """Read the jobs of a run that lie in a folder, those of its present configuration alone.

    A job whose gate has no figures of DPO had too few preferences to train on, so that whatever lies there of DPO is
    not its own.

    Raises: InputError: if predictions lie there without the answers that they were made from; RunError: if those of
        the base model are of another model or of other prompts than the run's.
    """
    split, scheme = run.recipe.teacher.judge.split, run.recipe.label_scheme
    predictions: dict[str, dict[int, Predictions]] = {}
    gates: dict[str, list[Row]] = {}
    told: dict[str, list[dict[str, float]]] = {}
    for system in teachers_of(run.recipe):
        gates[system.name] = []
        predictions |= {f"{system.name}_{phase}": {} for phase in PHASES}
    for name, seed, job, status in _finished_jobs(run, folder):
        gate = status["gate"]["gate"] or {}
        gates[name].append({phase: gate[phase] for phase in PHASES if phase in gate})
        told.setdefault(name, []).append(status.get("learned", {}))
        for phase in ("sft", *(phase for phase in PHASES if phase != "sft" and phase in gate)):
            if (job / f"judge_{phase}" / _file(split)).is_file():
                predictions[f"{name}_{phase}"][seed] = named_predictions(job / f"judge_{phase}", split, scheme)
    for name in BASES:
        if (run.path / f"judge_{name}" / _file(split)).is_file():
            _check_base(run, f"judge_{name}")
            predictions[name] = {run.recipe.seed: named_predictions(run.path / f"judge_{name}", split, scheme)}
    return TeacherResults(predictions, gates, {name: _means(own) for name, own in told.items() if any(own)})


def _check_base(run: Run, stage: str) -> None:
    """Refuse a judgement of the base model from before that model, or its prompts, changed."""
    told = run.inputs_of(stage)
    if "policy" not in told:
        return
    book = PromptBook.load(run.recipe.teacher.prompt, run.recipe.label_scheme)
    for name, expected in {"policy": base_policy_identity(run), "prompts": book.fingerprint}.items():
        if told[name] != expected:
            raise RunError(
                f"{run.path / stage}: expected a judgement of the run's own base model ({name} {expected:.40}), found "
                f"one of {told[name]:.40}; run `relevance judge --policy base` again, or remove the folder"
            )


def named_predictions(folder: Path, split: str, scheme: LabelScheme) -> Predictions:
    """Read a judge's predictions as the classes that its answers name: a row of zeros where an answer names none.

    What a judge stores are the probabilities of label tokens, whose arg-max may be another class than the one named.

    Raises: InputError: if the answers are missing, or are of other pairs.
    """
    found = read_predictions(folder / _file(split))
    label_of = {one.pair_id: one.label for one in read_samples(folder / "greedy.jsonl")}
    pair_ids = found.pair_id.tolist()
    missing = [pair_id for pair_id in pair_ids if pair_id not in label_of]
    if missing:
        raise InputError(f"{folder / 'greedy.jsonl'}: expected an answer to pair {missing[0]!r:.80}, found none")
    logits_NK = [[float(code == label_of[pair_id]) for code in scheme.classes] for pair_id in pair_ids]
    return replace(found, logits_NK=np.array(logits_NK).reshape(len(pair_ids), scheme.n_classes))


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


def _means(told: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Give the mean of each figure over the seeds that told it."""
    names = dict.fromkeys(name for one in told for name in one)
    return {name: float(np.mean([one[name] for one in told if name in one])) for name in names}


def _file(split: str) -> str:
    return f"predictions.{split}.parquet"
