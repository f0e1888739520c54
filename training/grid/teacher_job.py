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

_REWARDS = {"accuracy": "rewards/accuracies", "margin": "rewards/margins"}


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
    return outcome(run)


def outcome(run: Run) -> dict[str, Any]:
    """Give DPO's decision and what a teacher learned from, of a run whose stage `dpo` has finished.

    Raises: RunError: if an earlier stage has not.
    """
    gate = _report(run, "dpo")
    return {"gate": gate, "learned": _learned(run, gate)}


def _learned(run: Run, gate: dict[str, Any]) -> dict[str, float]:
    """Give what a teacher learned from: tokens that SFT read, over all phases and epochs, and DPO's preferences.

    Of the preferences also the share that crosses perspectives, and the rewards of DPO's last steps; none of these
    where DPO has not trained, or before its report told them.
    """
    phases, preferences = (_report(run, stage) for stage in ("sft", "preferences"))
    training = gate["training"]
    told: dict[str, float] = {"sft_tokens": sum(phase["tokens_seen"] for phase in phases["phases"].values())}
    if training is not None:
        told["dpo_rows"] = training["preferences"]
    if training is not None and "last_steps" in training and "crossing" in preferences:
        told |= {"crossing": preferences["crossing"]}
        told |= {f"reward_{one}": training["last_steps"][key] for one, key in _REWARDS.items()}
    return told


def _report(run: Run, stage: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((run.require(stage) / "report.json").read_text(encoding="utf-8"))
    return report


if __name__ == "__main__":
    raise SystemExit(main())
