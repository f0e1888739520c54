"""One training or scoring of a grid, in a process of its own: a system and a seed, or a tuning trial."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from relevance.errors import CollapseError, RunError
from relevance.pairs import read_labelled_pairs
from training.grid.job_process import run_as_job
from training.grid.status import read_status
from training.grid.systems import SYSTEMS, System
from training.predictions import predictions_of, read_predictions, write_predictions
from training.recipe import SPLITS
from training.runs import LEDGER, Run
from training.student.model import WEIGHTS
from training.student.predict import selection_figure
from training.student.train import train

_LAST_NOTES = 5


def main(argv: list[str] | None = None) -> int:
    """Run one job.

    Returns: as `run_as_job`.
    """
    return run_as_job(argv, __doc__, SYSTEMS, _work)


def _work(run: Run, system: str) -> dict[str, Any]:
    _make_predictions(run, SYSTEMS[system])
    return _figures(run)


def _make_predictions(run: Run, system: System) -> None:
    """Train, or score, and write the predictions of dev, cal and test into the run's student folder."""
    if system.kind == "student":
        train(run)
        return
    # Imported here because a student's job needs neither scikit-learn nor a sentence encoder, seconds each.
    from training.baselines import average, predict_baseline

    folder = run.path / "student"
    folder.mkdir(exist_ok=True)
    scheme = run.recipe.label_scheme
    if system.kind == "annotated":
        name = "predictions" if system.name == "teacher" else system.name
        source = run.require("annotate")
        for split in SPLITS[1:]:
            write_predictions(
                folder / f"predictions.{split}.parquet", read_predictions(source / f"{name}.{split}.parquet")
            )
        return
    if system.kind == "average":
        logits = average([member / "student" for member in _members(run, system)], run.recipe.student.predicted)
    else:
        logits = predict_baseline(system.name, run)
    for split, logits_NK in logits.items():
        pairs = read_labelled_pairs(run.require("data") / f"pairs.{split}.parquet", scheme)
        write_predictions(folder / f"predictions.{split}.parquet", predictions_of(pairs, logits_NK, scheme))


def _members(run: Run, system: System) -> list[Path]:
    """Give the folders of the fits that an average is of.

    Raises: CollapseError: if some diverged and so will the average for good; RunError: if others have not finished, or
        are of another configuration than the grid's.
    """
    seed = run.path.name
    record = (run.shared or run.path) / "grid.json"
    wanted = json.loads(record.read_text(encoding="utf-8"))["config_hashes"] if record.is_file() else {}
    folders, diverged, unfinished = [], [], []
    for member in system.members:
        folders.append(run.path.parents[1] / member / seed)
        status = read_status(folders[-1]) or {}
        own = wanted.get(f"{member}/{seed}") in (None, status.get("config_hash"))
        if status.get("state") == "diverged" and own:
            diverged.append(member)
        elif status.get("state") != "done" or not own:
            unfinished.append(member)
    if unfinished:
        raise RunError(f"{system.name}, {seed}: expected members that are done, found {', '.join(unfinished)} not so")
    if diverged:
        raise CollapseError(
            f"{system.name}, {seed}: expected members that are done, found {', '.join(diverged)} diverged"
        )
    return folders


def _figures(run: Run) -> dict[str, float | int | None]:
    """Give the dev figure, and of a student its number of parameters, training speed and seconds of training.

    The seconds are those of all processes that trained it, and of training alone.
    """
    dev = read_predictions(run.path / "student" / "predictions.dev.parquet")
    dev = dev.rows(~dev.exact_only)
    figure = selection_figure(dev.label, dev.logits_NK, run.recipe.label_scheme)
    weights = run.path / "student" / WEIGHTS
    if not weights.is_file():
        return {"dev": round(figure, 5), "pairs_per_second": None, "parameters": None}
    with safe_open(weights, framework="np") as file:
        parameters = sum(int(torch.Size(file.get_slice(name).get_shape()).numel()) for name in file.keys())  # noqa: SIM118
    notes = [json.loads(line) for line in (run.path / LEDGER).read_text(encoding="utf-8").splitlines()]
    speeds = sorted(note["pairs_per_second"] for note in notes if "pairs_per_second" in note)
    return {
        "dev": round(figure, 5),
        "pairs_per_second": speeds[len(speeds) // 2] if speeds else None,
        "parameters": parameters,
        "guidance_explained": _explained(notes) if run.recipe.student.guidance.loss == "mse" else None,
        "guidance_reachable": _last(notes, "guidance_reachable"),
        "rationale_tokens_read": _last(notes, "rationale_tokens_read"),
        "seconds": round(sum(note.get("seconds", 0.0) for note in notes if "pairs_per_second" in note), 1),
    }


def _last(notes: list[dict[str, Any]], key: str) -> float | None:
    """Give the last figure of a name in the ledger, None without any."""
    return next((float(note[key]) for note in reversed(notes) if key in note), None)


def _explained(notes: list[dict[str, Any]]) -> float | None:
    """Give the share of the targets' mean square that the latent explains at the end of training, None unguided.

    Of centred targets this is R² over the mean predictor, on training batches.
    """
    nothing = [note["guidance_of_nothing"] for note in notes if "guidance_of_nothing" in note]
    losses = [note["guidance"] for note in notes if "guidance" in note]
    if not nothing or not losses or not nothing[-1]:
        return None
    last = losses[-_LAST_NOTES:]
    return round(1 - float(sum(last)) / len(last) / float(nothing[-1]), 4)


if __name__ == "__main__":
    raise SystemExit(main())
