"""One teacher and seed of a comparison, in a process of its own: SFT, preferences, DPO, and both policies judged.

Each stage resumes by itself.
"""

from __future__ import annotations

import json
from typing import Any

from training.grid.job_process import run_as_job
from training.grid.teacher_systems import TEACHERS
from training.runs import Run
from training.teacher.dpo import optimise_policy
from training.teacher.judge import judge_policy
from training.teacher.preferences import build_preferences
from training.teacher.sft import fit_policy


def main(argv: list[str] | None = None) -> int:
    """Run one job.

    Returns: as `run_as_job`.
    """
    return run_as_job(argv, __doc__, TEACHERS, _teach)


def _teach(run: Run, _: str) -> dict[str, Any]:
    """Run the stages of one teacher, finished ones not again; give DPO's decision and what was learned from."""
    fit_policy(run)
    build_preferences(run)
    optimise_policy(run)
    judge_policy(run, policy="sft")
    if (run.path / "dpo" / "policy").is_dir():
        judge_policy(run, policy="dpo")
    gate = json.loads((run.require("dpo") / "report.json").read_text(encoding="utf-8"))
    return {"gate": gate, "learned": _learned(run, gate)}


def _learned(run: Run, gate: dict[str, Any]) -> dict[str, int]:
    """Give how much a teacher learned from: tokens that SFT read, over all phases and epochs, and DPO's preferences."""
    phases = json.loads((run.require("sft") / "report.json").read_text(encoding="utf-8"))["phases"]
    rows = 0 if gate["training"] is None else gate["training"]["preferences"]
    return {"sft_tokens": sum(phase["tokens_seen"] for phase in phases.values()), "dpo_rows": rows}


if __name__ == "__main__":
    raise SystemExit(main())
