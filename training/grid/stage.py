"""Command `grid`: systems × seeds on shared pairs, one process a device, resumable, with a ledger and an ETA.

OUT/{data,rationales,embed,annotate,visible,programmatic} are made once; OUT/fits/SYSTEM/seed_S/ is a run of its own;
OUT/tuning/SYSTEM/trial_T/ are the trials of `--tune`. A second call goes on where a killed one stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from relevance import cli
from relevance.errors import RecipeError, RunError
from training.grid.archive import load_results, save_results
from training.grid.equal_budget import Allowance, check_budget, choose_tuned
from training.grid.jobs import Job, run_jobs
from training.grid.systems import (
    LSA,
    PAPER_SCHEDULE,
    PROGRAMMATIC,
    SYSTEMS,
    System,
    check_common,
    overridden,
    systems_of,
)
from training.leakage import check_embeddings, check_rationales, told_of_data
from training.recipe import RECIPES, Recipe
from training.runs import DONE, Run, commit, hash_json, log, stage_arguments

TUNING_SEED = 1000
"""Seed of every trial, none of a grid's own."""
VISIBLE = "visible"
_LAMBDA = "student.guidance_weight"
"""A system that borrows another's trials keeps a λ of its own, as λ = 0 at LRKD's learning rates does."""
LSA_WIDTH = 384
_BESIDE_A_FIT: Mapping[str, bool | Mapping[str, bool]] = {
    **dict.fromkeys(("grid", "stages", "name", "teacher", "evaluate", "calibrate", "export", "prototypes"), True),
    "student": {"checkpoint_steps": True},
}
"""Recipe keys that decide no fit by themselves; what the teacher's stages made, the shared stages' hashes tell."""
ALLOWANCES = {
    "privileged_input": {
        "template": "reads the hidden fields: what a shop that has them would ship",
        "max_pair_tokens": "room for the hidden fields",
    },
    **{
        name: dict.fromkeys(PAPER_SCHEDULE, "the paper's own schedule, beside the tuned one")
        for name in ("bert_paper", "lrkd_gat_paper", "lrkd_no_guidance_paper")
    },
}


def main(argv: list[str]) -> int:
    """Run the grid, or its tuning.

    Returns: 0 when every asked-for fit is done or diverged, 1 when one failed.
    Raises: RecipeError: as `systems_of`, `check_budget` and `choose_tuned`.
    """
    parser = argparse.ArgumentParser(prog="relevance grid", description=__doc__)
    parser.add_argument("name", metavar="RECIPE", help="name of a shipped recipe, or a TOML file")
    parser.add_argument("--out", required=True, type=Path, help="directory of the grid")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=value", help="override one recipe key")
    parser.add_argument("--systems", type=comma_separated, default=(), help="only these, comma-separated")
    parser.add_argument("--seeds", type=comma_separated, default=(), help="only these, comma-separated")
    parser.add_argument("--load", action="append", default=[], type=Path, metavar="FILE", help="take results from it")
    parser.add_argument("--save", type=Path, metavar="FILE", help="at the end, write what results there are into it")
    parser.add_argument("--tune", action="store_true", help="run the tuning trials and write OUT/tuning.jsonl")
    arguments = parser.parse_args(argv)
    common = ["--recipe", arguments.name, "--out", str(arguments.out)]
    common += [part for override in arguments.set for part in ("--set", override)]
    run = stage_arguments(common, "grid", __doc__)
    systems = systems_of(run.recipe, arguments.systems)
    seeds = tuple(seed for seed in run.recipe.grid.seeds if not arguments.seeds or str(seed) in arguments.seeds)
    if len(seeds) != len(arguments.seeds or seeds):
        raise RecipeError(f"--seeds: expected some of {run.recipe.grid.seeds}, found {', '.join(arguments.seeds)}")
    signal.signal(signal.SIGTERM, interrupt)
    everything = systems_of(run.recipe)
    check_common(run.recipe)
    tuned = {} if arguments.tune else _tuned(run.recipe, everything)
    allowances = _check_budget(everything, tuned)
    checks = _shared_stages(run, common, everything)
    if arguments.tune:
        return _tune(run, systems, arguments)
    jobs = [job for s in everything for job in _jobs_of(run, s, run.recipe.grid.seeds, tuned)]
    chosen = [job for s in systems for job in _jobs_of(run, s, seeds, tuned)]
    content = {
        "recipe": run.recipe.name,
        "config_hash": hash_json(run.recipe.model_dump(mode="json")),
        "commit": commit(),
        "machine": machine(),
        "systems": [{k: getattr(s, k) for k in ("name", "title", "group", "paper")} for s in everything],
        "tuning": tuned,
        "checks": checks,
        "allowances": {f"{a.system}: {a.key} = {a.value}": a.reason for a in allowances},
        "config_hashes": {f"{job.system.name}/{job.folder.name}": job.config_hash for job in jobs},
    }
    (run.path / "grid.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return _run(run, jobs, chosen, arguments)


def _run(run: Run, jobs: list[Job], chosen: list[Job], arguments: argparse.Namespace) -> int:
    """Run the chosen jobs, between taking results from files and writing what has ended of all into one."""
    for path in arguments.load:
        load_results(run, jobs, path)
    try:
        return run_jobs(run, chosen)
    finally:
        if arguments.save is not None:
            save_results(run, jobs, arguments.save)


def interrupt(*_: object) -> None:
    """End as Ctrl-C would, so that no training is left behind."""
    raise KeyboardInterrupt


def machine() -> dict[str, object]:
    """Name what this runs on."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.is_file() else ""
    model = next((line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")), "")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": model or platform.machine(),
        "cores": os.cpu_count(),
        "gpu": ", ".join(gpus) or "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def comma_separated(text: str) -> tuple[str, ...]:
    """Give the parts of an option such as `a,b`."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _tuned(recipe: Recipe, systems: list[System]) -> dict[str, dict[str, object]]:
    """Give each system the best trial of the committed ledger: its own, or that of the system it is held against."""
    if recipe.grid.tuning is None:
        return {}
    sources = [system.name if system.search else system.tuned_as for system in systems]
    searches = {name: SYSTEMS[name].search[: recipe.grid.trials] for name in sources if name is not None}
    best = choose_tuned(RECIPES / recipe.grid.tuning, searches, common_hash(recipe))
    tuned = {}
    for system, source in zip(systems, sources, strict=True):
        if source is not None:
            own = set(system.overrides) if system.group == "sweep" else {_LAMBDA} & set(system.overrides)
            kept = set() if system.search else own
            tuned[system.name] = {key: value for key, value in best[source].items() if key not in kept}
    return tuned


def _check_budget(systems: list[System], tuned: dict[str, dict[str, object]]) -> tuple[Allowance, ...]:
    """Refuse a system with another budget or input than the others; give the differences that have a reason."""
    students = [system for system in systems if system.kind == "student"]
    overrides = {system.name: {**system.overrides, **tuned.get(system.name, {})} for system in students}
    return check_budget(overrides, _allowances(students))


def _allowances(systems: list[System]) -> dict[str, dict[str, str]]:
    names = {system.name for system in systems}
    lengths = {
        system.name: {"max_pair_tokens": "the point of the sweep"}
        for system in systems
        if system.group == "sweep" and "max_pair_tokens" in system.overrides
    }
    return {name: reasons for name, reasons in (ALLOWANCES | lengths).items() if name in names}


def _shared_stages(run: Run, common: list[str], systems: list[System]) -> dict[str, Any]:
    """Run the stages that all fits share, and check them for leaks.

    Returns: the figures of the checks.
    Raises: RunError: if a stage fails.
    """
    for stage in run.recipe.stages:
        run_stage([stage, *common])
    checks: dict[str, Any] = {"data": told} if (told := told_of_data(run)) else {}
    if run.finished("rationales"):
        checks["rationales"] = check_rationales(run)
    if run.finished("embed"):
        checks["embeddings"] = check_embeddings(run)
    names = {system.name for system in systems}
    if "lrkd_visible" in names:
        checks[VISIBLE] = _other_rationales(run, common, VISIBLE)
    if names & {"lrkd_programmatic", "lrkd_programmatic_combined"}:
        checks[PROGRAMMATIC] = _other_rationales(run, common, PROGRAMMATIC, "embed.combined=true")
    if f"sweep_encoder_{LSA}" in names:
        _other_embeddings(run, common, LSA, ["embed"], f"embed.model=lsa:{LSA_WIDTH}")
    return checks


def _other_rationales(run: Run, common: list[str], name: str, *overrides: str) -> dict[str, Any]:
    """Make and embed rationales of train by another annotator than the recipe's, and check them for leaks.

    Such rationales are checked like the others: ones that hold the label would prove nothing.

    Args: name: of their folder, `VISIBLE` or `PROGRAMMATIC`; overrides: of the recipe, for them alone.
    Returns: the figures of the checks.
    """
    world = run.recipe.data.source == "marketplace" and run.recipe.rationales.generator != "programmatic"
    generator = {VISIBLE: "marketplace-visible", PROGRAMMATIC: "marketplace"}[name] if world else name
    train = {"splits": ("train",)}
    sections: dict[str, Any] = {
        "rationales": run.recipe.rationales.model_copy(update={**train, "generator": generator}),
        "embed": run.recipe.embed.model_copy(update=train),
    }
    _other_embeddings(run, common, name, ["rationales", "embed"], f"rationales.generator={generator}", *overrides)
    other = Run(run.recipe.model_copy(update=sections), run.path / name, shared=run.path)
    return {"rationales": check_rationales(other), "embeddings": check_embeddings(other, train_only=True)}


def _other_embeddings(run: Run, common: list[str], name: str, stages: list[str], *overrides: str) -> None:
    """Make embeddings of another kind from the same pairs, in a folder beside the shared stages."""
    folder = run.path / name
    folder.mkdir(exist_ok=True)
    for stage in {"data", "rationales"} - set(stages):
        if not (folder / stage).is_symlink():
            (folder / stage).symlink_to(Path("..") / stage, target_is_directory=True)
    cache = (run.path / run.recipe.embed.cache).resolve()
    options = [part for override in overrides for part in ("--set", override)]
    options += ["--set", "embed.splits=['train']", "--set", f"embed.cache={cache}"]
    if "rationales" in stages:
        options += ["--set", "rationales.splits=['train']"]
    for stage in stages:
        run_stage([stage, *common[:2], "--out", str(folder), *common[4:], *options])


def run_stage(arguments: list[str]) -> None:
    """Run a stage as the command line would.

    Raises: RunError: if it fails.
    """
    if cli.main(arguments) != 0:
        raise RunError(f"grid: expected stage {arguments[0]!r} to finish; it failed, see above")


def _jobs_of(run: Run, system: System, seeds: tuple[int, ...], tuned: dict[str, dict[str, object]]) -> list[Job]:
    """Give a system's jobs: one a seed, or a single one where nothing is random."""
    if system.kind in {"baseline", "annotated"}:
        seeds = (0,)
    jobs = []
    for seed in seeds:
        own = tuned.get(system.name, {})
        recipe = overridden(run.recipe, {**system.overrides, **own, "student.seeds": [seed], "seed": seed})
        members = [job.config_hash for name in system.members for job in _jobs_of(run, SYSTEMS[name], (seed,), tuned)]
        folder = run.path / "fits" / system.name / f"seed_{seed}"
        jobs.append(Job(system, seed, recipe, folder, config_hash(run, recipe, members)))
    return jobs


def config_hash(run: Run, recipe: Recipe, members: list[str]) -> str:
    """Hash all that decides a job's result: its recipe, what the shared stages read, and the members of an average."""
    content = _told(recipe)
    shared = {
        stage: json.loads((run.path / stage / DONE).read_text())["inputs"]
        for stage in dict.fromkeys((*run.recipe.stages, recipe.student.guidance.store))
        if (run.path / stage / DONE).is_file()
    }
    return hash_json([content, shared, members])


def _told(recipe: Recipe) -> dict[str, Any]:
    """Give what a recipe says of its fits, without defaults: a new key with a default makes no other recipe."""
    return recipe.model_dump(mode="json", exclude=_BESIDE_A_FIT, exclude_defaults=True)


def common_hash(recipe: Recipe) -> str:
    """Hash what tuning trials share: the common recipe, how many queries each trains on, the hidden fields."""
    grid = recipe.grid
    return hash_json([_told(recipe), grid.tuning_queries, grid.privileged_fields, grid.privileged_tokens])


def _tune(run: Run, systems: list[System], arguments: argparse.Namespace) -> int:
    """Run trials of the chosen systems, all on the same queries and seed; write the ledger of all that have ended."""
    jobs = {system.name: _trials_of(run, system) for system in systems_of(run.recipe) if system.search}
    chosen = [job for system in systems for job in jobs.get(system.name, [])]
    failed = _run(run, [job for own in jobs.values() for job in own], chosen, arguments)
    lines = []
    for name, own in jobs.items():
        for number, (job, trial) in enumerate(zip(own, SYSTEMS[name].search, strict=False)):
            status = job.status()
            if status is not None and status["state"] in {"done", "diverged"}:
                row = {"system": name, "trial": number, "overrides": dict(trial), "dev": status.get("dev")}
                lines.append(json.dumps({**row, "common": common_hash(run.recipe)}) + "\n")
    (run.path / "tuning.jsonl").write_text("".join(lines), encoding="utf-8")
    log.info("grid: %d of %d trials → %s", len(lines), sum(map(len, jobs.values())), run.path / "tuning.jsonl")
    return failed


def _trials_of(run: Run, system: System) -> list[Job]:
    jobs = []
    for number, trial in enumerate(system.search[: run.recipe.grid.trials]):
        common = {"student.seeds": [TUNING_SEED], "seed": TUNING_SEED, "student.predicted": ["dev"]}
        common["student.max_queries"] = run.recipe.grid.tuning_queries
        recipe = overridden(run.recipe, {**system.overrides, **trial, **common})
        folder = run.path / "tuning" / system.name / f"trial_{number}"
        jobs.append(Job(system, TUNING_SEED, recipe, folder, config_hash(run, recipe, [])))
    return jobs
