"""One teacher and seed of a comparison, in a process of its own: SFT, preferences, DPO, and both policies judged.

It writes status.json last, whatever happened, so that a missing one means a killed process. Each stage resumes by
itself.
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

from relevance.errors import CollapseError, RelevanceError
from training.grid.status import write_status
from training.grid.teacher_systems import TEACHERS
from training.recipe import Recipe
from training.runs import Run
from training.teacher.dpo import optimise_policy
from training.teacher.judge import judge_policy
from training.teacher.preferences import build_preferences
from training.teacher.sft import fit_policy

log = logging.getLogger("relevance.training")


def main(argv: list[str] | None = None) -> int:
    """Run one job.

    Returns: 0 also for a diverged training, whose status says so; 1 for one that failed.
    """
    parser = argparse.ArgumentParser(prog="python -m training.grid.teacher_job", description=__doc__)
    parser.add_argument("--out", required=True, type=Path, help="folder of the job, with recipe.json in it")
    parser.add_argument("--shared", required=True, type=Path, help="directory of the comparison")
    parser.add_argument("--system", required=True, choices=sorted(TEACHERS))
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
            _teach(run)
            gate = json.loads((run.require("dpo") / "report.json").read_text(encoding="utf-8"))
            status |= {"state": "done", "error": None, "gate": gate, "learned": _learned(run, gate)}
        except CollapseError as error:
            status |= {"state": "diverged", "error": str(error)}
        except RelevanceError as error:
            status |= {"state": "failed", "error": str(error)}
        status["seconds"] = round(time.monotonic() - started, 1)
        write_status(arguments.out, status)
    if status["error"]:
        log.error("%s, seed %d: %s", arguments.system, arguments.seed, status["error"])
    return int(status["state"] == "failed")


def _teach(run: Run) -> None:
    """Run the stages of one teacher; what has finished is not run again."""
    fit_policy(run)
    build_preferences(run)
    optimise_policy(run)
    judge_policy(run, policy="sft")
    if (run.path / "dpo" / "policy").is_dir():
        judge_policy(run, policy="dpo")


def _learned(run: Run, gate: dict[str, Any]) -> dict[str, int]:
    """Give how much a teacher learned from: tokens that SFT read, over all phases and epochs, and DPO's preferences."""
    phases = json.loads((run.require("sft") / "report.json").read_text(encoding="utf-8"))["phases"]
    rows = 0 if gate["training"] is None else gate["training"]["preferences"]
    return {"sft_tokens": sum(phase["tokens_seen"] for phase in phases.values()), "dpo_rows": rows}


if __name__ == "__main__":
    raise SystemExit(main())
