"""One training or scoring of a grid, in a process of its own: a system and a seed, or a tuning trial.

It writes status.json last, whatever happened, so that a missing one means a killed process.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from relevance.errors import CollapseError, RelevanceError
from relevance.pairs import read_labelled_pairs
from training.grid.status import read_status, write_status
from training.grid.systems import SYSTEMS, System
from training.predictions import predictions_of, read_predictions, write_predictions
from training.recipe import SPLITS, Recipe
from training.runs import LEDGER, Run
from training.student.model import WEIGHTS
from training.student.predict import selection_figure
from training.student.train import train

log = logging.getLogger("relevance.training")
_LAST_NOTES = 5


def main(argv: list[str] | None = None) -> int:
    """Run one job.

    Returns: 0 also for a diverged training, whose status says so; 1 for one that failed.
    """
    parser = argparse.ArgumentParser(prog="python -m training.grid.job", description=__doc__)
    parser.add_argument("--out", required=True, type=Path, help="folder of the job, with recipe.json in it")
    parser.add_argument("--shared", required=True, type=Path, help="directory of the grid")
    parser.add_argument("--system", required=True, choices=sorted(SYSTEMS))
    parser.add_argument("--seed", required=True, type=int)
    parser.add_argument("--config-hash", required=True)
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    recipe = Recipe.model_validate_json((arguments.out / "recipe.json").read_bytes())
    run = Run(recipe, arguments.out, shared=arguments.shared)
    status: dict[str, Any] = {
        "system": arguments.system,
        "seed": arguments.seed,
        "config_hash": arguments.config_hash,
    }
    started = time.monotonic()
    lock = (arguments.out / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _make_predictions(run, SYSTEMS[arguments.system])
        status |= {"state": "done", "error": None, **_figures(run)}
    except BlockingIOError:
        log.error("%s: expected no other process at work here, found one", arguments.out)
        return 1
    except CollapseError as error:
        status |= {"state": "diverged", "error": str(error)}
    except RelevanceError as error:
        status |= {"state": "failed", "error": str(error)}
    status.setdefault("seconds", round(time.monotonic() - started, 1))
    write_status(arguments.out, status)
    if status["error"]:
        log.error("%s, seed %d: %s", arguments.system, arguments.seed, status["error"])
    return int(status["state"] == "failed")


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
        seed = run.path.name
        folders = [run.path.parents[1] / member / seed for member in system.members]
        unfinished = [f.parent.name for f in folders if (read_status(f) or {}).get("state") != "done"]
        if unfinished:
            raise CollapseError(f"expected members that are done, found {', '.join(unfinished)} that did not finish")
        logits = average([member / "student" for member in folders])
    else:
        logits = predict_baseline(system.name, run)
    for split in SPLITS[1:]:
        pairs = read_labelled_pairs(run.require("data") / f"pairs.{split}.parquet", scheme)
        write_predictions(folder / f"predictions.{split}.parquet", predictions_of(pairs, logits[split], scheme))


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
        "guidance_explained": _explained(notes),
        "seconds": round(sum(note.get("seconds", 0.0) for note in notes if "pairs_per_second" in note), 1),
    }


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
