"""Jobs of a grid: one process each, as many at a time as there are devices; what has finished is not run again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from relevance.errors import RunError
from training.grid.status import STATUS, read_status, write_status
from training.grid.systems import System
from training.recipe import Recipe
from training.runs import Run, log

LOG = "job.log"
CONFIG = "config_hash"
"""File in a job's folder that says which configuration its work is of."""
_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class Job:
    """One system with one seed; config_hash: of all that decides its result."""

    system: System
    seed: int
    recipe: Recipe
    folder: Path
    config_hash: str

    def status(self) -> dict[str, Any] | None:
        """Give what the job's process wrote last, None without one or with one of another configuration."""
        status = read_status(self.folder)
        return status if status is not None and status.get("config_hash") == self.config_hash else None


def run_jobs(run: Run, jobs: Sequence[Job]) -> int:
    """Run the jobs that have not ended as done or diverged, those with members after all others.

    A job whose configuration changed starts from an empty folder; a killed one goes on from its last checkpoint, also
    when a key has changed that decides no result, such as `grid.jobs`.

    Returns: 1 if one failed, else 0.
    """
    ended = [job for job in jobs if (status := job.status()) is not None and status["state"] != "failed"]
    todo = [job for job in jobs if job not in ended]
    devices = torch.cuda.device_count()
    width = devices or run.recipe.grid.jobs
    log.info("grid: %d jobs, %d ended before, %d at a time", len(jobs), len(ended), width)
    with tqdm(total=len(jobs), initial=len(ended), unit="fit", desc="grid", smoothing=0) as bar:
        for wave in ([j for j in todo if not j.system.members], [j for j in todo if j.system.members]):
            _run_wave(run, wave, width, devices, bar)
    states = [status["state"] if (status := job.status()) is not None else "failed" for job in jobs]
    log.info("grid: %s", ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states))))
    return int("failed" in states)


def _run_wave(run: Run, jobs: Sequence[Job], width: int, devices: int, bar: Any) -> None:  # noqa: ANN401 - tqdm is generic
    waiting, free = list(jobs), list(range(width))
    running: dict[int, tuple[Job, subprocess.Popen[bytes]]] = {}
    try:
        while waiting or running:
            while waiting and free:
                slot = free.pop(0)
                job = waiting.pop(0)
                running[slot] = (job, _start(run, job, slot, width, on_gpu=devices > 0))
            for slot, (job, process) in list(running.items()):
                if process.poll() is not None:
                    del running[slot]
                    free.append(slot)
                    _note_end(run, job, process.returncode)
                    bar.update(1)
            time.sleep(_POLL_S)
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.wait()


def prepare_folder(job: Job) -> None:
    """Write a job's recipe and configuration into its folder, emptied first if it holds the work of another one.

    Raises: RunError: if the folder's stages were called by hand.
    """
    if job.folder.is_symlink() or "by_hand" in (read_status(job.folder) or {}):
        raise RunError(
            f"{job.folder}: expected a folder of this command, found one whose stages were called by hand; compare it "
            "with --compare-only, or move it away"
        )
    recipe = job.recipe.model_dump_json(indent=2) + "\n"
    kept, config = job.folder / "recipe.json", job.folder / CONFIG
    if config.is_file():
        stale = config.read_text(encoding="utf-8") != job.config_hash
    else:
        stale = kept.is_file() and kept.read_text(encoding="utf-8") != recipe
    if stale:
        shutil.rmtree(job.folder)
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / STATUS).unlink(missing_ok=True)
    kept.write_text(recipe, encoding="utf-8")
    config.write_text(job.config_hash, encoding="utf-8")


def _start(run: Run, job: Job, slot: int, width: int, *, on_gpu: bool) -> subprocess.Popen[bytes]:
    prepare_folder(job)
    environment = dict(os.environ)
    if on_gpu:
        visible = environment.get("CUDA_VISIBLE_DEVICES", "")
        environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[slot] if visible else str(slot)
    else:
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // width))
    module = "training.grid.teacher_job" if job.system.kind == "teacher" else "training.grid.job"
    command = [sys.executable, "-m", module, "--out", str(job.folder), "--shared", str(run.path)]
    command += ["--system", job.system.name, "--seed", str(job.seed), "--config-hash", job.config_hash]
    with (job.folder / LOG).open("ab") as output:
        return subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)


def _note_end(run: Run, job: Job, returncode: int) -> None:
    """Put a job's end into the ledger; a process that wrote no status failed, and its log says why."""
    status = job.status()
    if status is None:
        error = f"process ended with status {returncode} and no result; see {LOG} in its folder"
        status = {"system": job.system.name, "seed": job.seed, "config_hash": job.config_hash}
        status |= {"state": "failed", "error": error, "seconds": None}
        write_status(job.folder, status)
        log.error("grid: %s, seed %d: %s", job.system.name, job.seed, error)
    run.note("grid", **status)
