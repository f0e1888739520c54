"""Command `teachers`: teachers × seeds on the same pairs and the same answers of the base model, then the comparison.

The recipe's stages are shared; each teacher and seed then has a folder teachers/NAME/seed_S, with SFT, preferences, DPO
and the judgement of both policies.
"""

from __future__ import annotations

import argparse
import json
import signal
from pathlib import Path
from typing import Any

from relevance.errors import RecipeError, RunError
from training.grid.jobs import CONFIG, Job, run_jobs
from training.grid.stage import comma_separated, config_hash, interrupt, machine, run_stage
from training.grid.status import write_status
from training.grid.systems import System, overridden
from training.grid.teacher_budget import budget_lines
from training.grid.teacher_comparison import write_comparison
from training.grid.teacher_job import outcome
from training.grid.teacher_systems import SAME_SIZE, TEACHERS, teachers_of
from training.runs import DONE, INPUTS, Run, commit, hash_json, log, stage_arguments
from training.teacher.policy import POLICY, policy_identity

FOLDER = "teachers"
_DEFINING = ("base", "method", "perspectives", "equal_tokens_with", "prompt", "generate")
"""Keys of the teacher's section by which a folder that was made by hand is known."""


def main(argv: list[str]) -> int:
    """Run the comparison, or a part of it.

    Returns: 0 when every asked-for teacher is done or diverged, 1 when one failed.
    Raises: RecipeError: as `teachers_of`, or if a server is to answer for all teachers; RunError: if a shared stage
        failed, or a folder holds another teacher than its name says.
    """
    parser = argparse.ArgumentParser(prog="relevance teachers", description=__doc__)
    parser.add_argument("name", metavar="RECIPE", help="name of a shipped recipe, or a TOML file")
    parser.add_argument("--out", required=True, type=Path, help="directory of the comparison")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=value", help="override one recipe key")
    parser.add_argument("--systems", type=comma_separated, default=(), help="only these, comma-separated")
    parser.add_argument("--seeds", type=comma_separated, default=(), help="only these, comma-separated")
    parser.add_argument(
        "--compare-only", action="store_true", help="run nothing: compare the folders that are there, by hand made too"
    )
    arguments = parser.parse_args(argv)
    common = ["--recipe", arguments.name, "--out", str(arguments.out)]
    common += [part for override in arguments.set for part in ("--set", override)]
    run = stage_arguments(common, "teachers", __doc__)
    if run.recipe.teacher.sampling.kind == "openai" and not arguments.compare_only:
        raise RecipeError(
            "teacher.sampling.kind: expected 'local' or 'programmatic', so that every teacher answers for itself, "
            "found 'openai', which serves one model for all"
        )
    chosen = teachers_of(run.recipe, arguments.systems)
    seeds = tuple(seed for seed in run.recipe.grid.seeds if not arguments.seeds or str(seed) in arguments.seeds)
    if len(seeds) != len(arguments.seeds or seeds):
        raise RecipeError(f"--seeds: expected some of {run.recipe.grid.seeds}, found {', '.join(arguments.seeds)}")
    if arguments.compare_only:
        jobs = _record(run)
        for job in jobs:
            adopt(run, job)
        write_comparison(run, run.path / FOLDER)
        return 0
    signal.signal(signal.SIGTERM, interrupt)
    for line in budget_lines(run.recipe, chosen, len(seeds)):
        log.info("teachers, about: %s", line)
    for stage in run.recipe.stages:
        run_stage([stage, *common])
    jobs = _record(run)
    failed = run_jobs(run, [job for job in jobs if job.system in chosen and job.seed in seeds])
    write_comparison(run, run.path / FOLDER)
    return failed


def adopt(run: Run, job: Job) -> None:
    """Give a teacher whose stages were called one by one the status of a finished job, so that it is compared.

    A folder that this command began, or that lacks a finished DPO or a judgement of a policy that is there, is left
    alone.

    Raises: RunError: if the folder holds another teacher or seed than its name says, or a policy that was trained again
        after it was judged.
    """
    policies = ["sft", *(["dpo"] if (job.folder / "dpo" / "policy").is_dir() else [])]
    needed = [job.folder / stage / DONE for stage in ("dpo", *(f"judge_{policy}" for policy in policies))]
    if (job.folder / CONFIG).is_file() or not all(path.is_file() for path in needed):
        return
    judged = job.folder / "judge_sft" / "report.json"
    found = _defining(json.loads(judged.read_text(encoding="utf-8"))["teacher"])
    for key, expected in _defining(job.recipe.teacher.model_dump(mode="json")).items():
        if found[key] != expected:
            raise RunError(f"{judged}: expected teacher.{key} = {expected}, found {found[key]}")
    seed = json.loads((job.folder / "judge_sft" / INPUTS).read_text(encoding="utf-8"))["inputs"].get("seed")
    if seed != job.seed:
        raise RunError(f"{judged}: expected seed = {job.seed}, found {seed}; give --set seed={job.seed} to each stage")
    for policy in policies:
        _check_judged(job.folder, policy)
    made = Run(job.recipe, job.folder, shared=run.path)
    status = {"system": job.system.name, "seed": job.seed, "config_hash": job.config_hash, "by_hand": True}
    write_status(job.folder, {**status, "state": "done", "error": None, "seconds": None, **outcome(made)})
    log.info("teachers: %s, seed %d was made by hand and is compared as it is", job.system.name, job.seed)


def _check_judged(folder: Path, policy: str) -> None:
    """Refuse a judgement of other weights than lie there; weights that were deleted since cannot be compared."""
    weights, inputs = folder / policy / POLICY, folder / f"judge_{policy}" / INPUTS
    if not any(weights.glob("*.safetensors")):
        return
    judged = json.loads(inputs.read_text(encoding="utf-8"))["inputs"].get("policy")
    found = policy_identity(weights)
    if judged != found:
        raise RunError(
            f"{inputs}: expected a judgement of the policy that is there ({found}), found {judged}; judge it again"
        )


def _defining(teacher: dict[str, Any]) -> dict[str, Any]:
    """Give what makes a teacher of the teacher's section of a recipe, the paths in it left out."""
    found = {key: teacher.get(key) for key in _DEFINING}
    preferences = teacher.get("preferences") or {}
    found |= {f"preferences.{key}": preferences.get(key) for key in ("perspectives", "builder")}
    return found | {"preferences.same_size_as is set": preferences.get("same_size_as") is not None}


def _record(run: Run) -> list[Job]:
    """Give all jobs of a run's recipe and write down what they are of."""
    jobs = [job_of(run, system, seed) for system in teachers_of(run.recipe) for seed in run.recipe.grid.seeds]
    content: dict[str, Any] = {
        "recipe": run.recipe.name,
        "config_hash": hash_json(run.recipe.model_dump(mode="json")),
        "commit": commit(),
        "machine": machine(),
        "systems": [{k: getattr(s, k) for k in ("name", "title", "group", "paper")} for s in teachers_of(run.recipe)],
        "config_hashes": {f"{job.system.name}/{job.folder.name}": job.config_hash for job in jobs},
    }
    (run.path / "teachers.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return jobs


def job_of(run: Run, system: System, seed: int) -> Job:
    """Give the job of one teacher and seed; a size-matched one is sized after the same seed of its original."""
    overrides: dict[str, Any] = {**system.overrides, "seed": seed}
    if SAME_SIZE in overrides:
        overrides[SAME_SIZE] = str((run.path / FOLDER / overrides[SAME_SIZE] / f"seed_{seed}").resolve())
    recipe = overridden(run.recipe, overrides)
    originals = [overridden(run.recipe, {**TEACHERS[name].overrides, "seed": seed}) for name in system.members]
    members = [config_hash(run, original, []) for original in originals]
    own = hash_json([config_hash(run, recipe, members), recipe.teacher.model_dump(mode="json", exclude_defaults=True)])
    return Job(system, seed, recipe, run.path / FOLDER / system.name / f"seed_{seed}", own)
