"""The process of one job: options, threads, a lock on its folder, and a status written last, whatever happened.

A missing status therefore means a killed process.
"""

from __future__ import annotations

import argparse
import fcntl
import logging
import os
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch

from relevance.errors import CollapseError, RelevanceError
from training.grid.status import write_status
from training.recipe import Recipe
from training.runs import Run

log = logging.getLogger("relevance.training")


def run_as_job(
    argv: Sequence[str] | None,
    description: str | None,
    systems: Collection[str],
    work: Callable[[Run, str], dict[str, Any]],
) -> int:
    """Do a job's work and write how it ended.

    Args: systems: names that may be asked for; work: run and system's name → figures for the status.
    Returns: 0 also for a diverged training, whose status says so; 1 for one that failed.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", required=True, type=Path, help="folder of the job, with recipe.json in it")
    parser.add_argument("--shared", required=True, type=Path, help="directory of the comparison")
    parser.add_argument("--system", required=True, choices=sorted(systems))
    parser.add_argument("--seed", required=True, type=int)
    parser.add_argument("--config-hash", required=True)
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    recipe = Recipe.model_validate_json((arguments.out / "recipe.json").read_bytes())
    run = Run(recipe, arguments.out, shared=arguments.shared)
    status: dict[str, Any] = {"system": arguments.system, "seed": arguments.seed, "config_hash": arguments.config_hash}
    started = time.monotonic()
    with (arguments.out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.error("%s: expected no other process at work here, found one", arguments.out)
            return 1
        try:
            status |= {"state": "done", "error": None, **work(run, arguments.system)}
        except CollapseError as error:
            status |= {"state": "diverged", "error": str(error)}
        except RelevanceError as error:
            status |= {"state": "failed", "error": str(error)}
        status.setdefault("seconds", round(time.monotonic() - started, 1))
        write_status(arguments.out, status)
    if status["error"]:
        log.error("%s, seed %d: %s", arguments.system, arguments.seed, status["error"])
    return int(status["state"] == "failed")
