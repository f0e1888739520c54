"""Results of a grid in one file, without weights: to share a table that others can recompute, to join what several
machines trained, and to keep what hours of training gave.

The file holds each job's status and its logits, by folder; nothing of the pairs but a digest of their ids. Loading
writes them back beside the same data: a job whose configuration is the same counts as ended, and its differences to
any other system can be taken as if it had been trained here.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relevance.errors import RunError
from relevance.pairs import LabelledPair, read_labelled_pairs
from training.grid.jobs import Job, prepare_folder
from training.grid.status import write_status
from training.predictions import predictions_of, read_predictions, write_predictions
from training.recipe import SPLITS
from training.runs import Run, log

_JOBS, _PAIRS = "jobs", "pairs"
_ENDED = ("done", "diverged")


def save_results(run: Run, jobs: Sequence[Job], path: Path) -> int:
    """Write the jobs that have ended into one file, beside those of it that are not among them.

    Args: path: made anew or added to; jobs of other configurations in it are dropped for the jobs' own.
    Returns: how many of the jobs were written.
    Raises: RunError: if the file is of other pairs or no such file.
    """
    told, arrays = _read(path) if path.is_file() else ({_JOBS: {}, _PAIRS: {}}, {})
    _check_pairs(run, told, path)
    written = 0
    for job in jobs:
        status = job.status()
        if status is None or status["state"] not in _ENDED:
            continue
        name = _name(run, job)
        told[_JOBS][name] = status
        arrays = {key: value for key, value in arrays.items() if not key.startswith(f"{name}/")}
        for split in SPLITS[1:]:
            file = job.folder / "student" / f"predictions.{split}.parquet"
            if file.is_file():
                predictions = read_predictions(file)
                told[_PAIRS][split] = _digest(predictions.pair_id.tolist())
                arrays[f"{name}/{split}"] = _smallest(predictions.logits_NK)
        written += 1
    buffer = io.BytesIO()
    # numpy's stub takes each keyword of a mapping for `allow_pickle`.
    np.savez_compressed(buffer, told=np.array(json.dumps(told)), **arrays)  # type: ignore[arg-type]
    new = path.with_name(f"{path.name}.new")
    path.parent.mkdir(parents=True, exist_ok=True)
    new.write_bytes(buffer.getvalue())
    os.replace(new, path)
    log.info("grid: results of %d jobs → %s", written, path)
    return written


def load_results(run: Run, jobs: Sequence[Job], path: Path) -> int:
    """Write results of a file into the folders of those jobs that have not ended here and have its configuration.

    Returns: how many were taken.
    Raises: RunError: if the file is of other pairs or no such file.
    """
    told, arrays = _read(path)
    _check_pairs(run, told, path)
    pairs: dict[str, list[LabelledPair]] = {}
    taken = 0
    for job in jobs:
        name = _name(run, job)
        status = told[_JOBS].get(name)
        if status is None or status.get("config_hash") != job.config_hash or job.status() is not None:
            continue
        prepare_folder(job)
        for split in SPLITS[1:]:
            logits_NK = arrays.get(f"{name}/{split}")
            if logits_NK is not None:
                if split not in pairs:
                    pairs[split] = _pairs(run, split)
                predictions = predictions_of(pairs[split], logits_NK, run.recipe.label_scheme)
                (job.folder / "student").mkdir(exist_ok=True)
                write_predictions(job.folder / "student" / f"predictions.{split}.parquet", predictions)
        write_status(job.folder, status)
        taken += 1
    log.info("grid: took the results of %d of %d jobs from %s", taken, len(jobs), path)
    return taken


def _name(run: Run, job: Job) -> str:
    return job.folder.relative_to(run.path).as_posix()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[np.floating]]]:
    try:
        with np.load(path) as file:
            told = json.loads(str(file["told"]))
            arrays = {name: file[name] for name in file.files if name != "told"}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise RunError(f"{path}: expected results that `relevance grid --save` wrote: {error}") from error
    if not isinstance(told, dict) or not isinstance(told.get(_JOBS), dict) or not isinstance(told.get(_PAIRS), dict):
        raise RunError(f"{path}: expected results that `relevance grid --save` wrote, found no list of jobs in it")
    return told, arrays


def _check_pairs(run: Run, told: dict[str, Any], path: Path) -> None:
    for split, digest in told[_PAIRS].items():
        found = _digest([p.pair.pair_id for p in _pairs(run, split)])
        if found != digest:
            raise RunError(f"{path}: expected results of this grid's {split} pairs ({found}), found others' ({digest})")


def _pairs(run: Run, split: str) -> list[LabelledPair]:
    return read_labelled_pairs(run.require("data") / f"pairs.{split}.parquet", run.recipe.label_scheme)


def _digest(pair_ids: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(pair_ids).encode()).hexdigest()[:16]


def _smallest(logits_NK: NDArray[np.float64]) -> NDArray[np.floating]:
    """Give logits as float32 where that loses nothing."""
    small = logits_NK.astype(np.float32)
    return small if np.array_equal(small.astype(np.float64), logits_NK, equal_nan=True) else logits_NK
