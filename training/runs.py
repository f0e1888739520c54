"""Run directories: one folder a run, one sub-folder a stage, a DONE marker written last.

A stage folder is complete when it holds DONE, which records the hash of everything the stage read. A stage that is
started again with the same inputs returns at once; with other inputs it starts over; a killed one has no DONE.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relevance.errors import RunError
from training.recipe import Recipe, load_recipe

log = logging.getLogger("relevance.training")
DONE = "DONE.json"
INPUTS = "inputs.json"
LEDGER = "ledger.jsonl"
OF_A_FOLD = frozenset({"sft", "preference_answers", "preferences", "dpo"})
"""Stages of which every fold's teacher has its own: another one's saw the pairs that are held out."""


@dataclass(frozen=True, slots=True)
class Run:
    """A recipe and the directory its stages write to.

    Args: shared: a second directory that earlier stages are looked up in, as the fits of a grid share their data; with
        `teacher.folds` above 1, those of `OF_A_FOLD` are not.
    """

    recipe: Recipe
    path: Path
    shared: Path | None = None

    def folder(self, stage: str) -> Path:
        """Give the folder of an earlier stage, finished or not: the run's own, or the shared one where it has none."""
        own = self.path / stage
        if self.shared is None or (own / DONE).is_file():
            return own
        return own if stage in OF_A_FOLD and self.recipe.teacher.folds > 1 else self.shared / stage

    def require(self, stage: str) -> Path:
        """Give the folder of an earlier stage.

        Raises: RunError: if that stage has not finished.
        """
        folder = self.folder(stage)
        if not (folder / DONE).is_file():
            raise RunError(f"{folder}: expected a finished stage; run `relevance {stage}` with this --out first")
        return folder

    def finished(self, stage: str) -> bool:
        """Say whether an earlier (possibly optional) stage has finished."""
        return (self.folder(stage) / DONE).is_file()

    def check_read(self, stage: str, files: Mapping[str, tuple[str | None, Path]]) -> None:
        """Refuse what an earlier stage made of files that have changed since, as by training another student.

        Args: files: name → the hash of it that the stage's inputs told, None where they do not, and where it lies.
        Raises: RunError: naming the stage that is to be run again.
        """
        told_of = {name: (told, path) for name, (told, path) in files.items() if told is not None}
        changed = [n for n, (told, path) in told_of.items() if not path.is_file() or told != hash_file(path)]
        if changed:
            raise RunError(
                f"{self.folder(stage)}: expected what was made of the present {', '.join(changed)}, found that of "
                f"others; run `relevance {stage}` with this --out again"
            )

    def inputs_of(self, stage: str) -> dict[str, Any]:
        """Give what a stage noted that it read, {} where it noted nothing."""
        path = self.folder(stage) / INPUTS
        noted: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["inputs"] if path.is_file() else {}
        return noted

    @contextmanager
    def stage(self, name: str, inputs: Mapping[str, Any], *, resumable: bool = False) -> Iterator[Path | None]:
        """Open a stage's folder; yields None when the stage already finished with the same inputs.

        Args: inputs: all that decides the result (recipe sections, file hashes), as plain JSON data; resumable: keep
            what a killed run left when its inputs were the same, otherwise the folder is emptied first.
        Of several processes (torchrun, accelerate launch) the first one prepares the folder and marks it; the stage
        itself must make the others wait for that.
        """
        folder = self.path / name
        fingerprint = hash_json(inputs)
        first = os.environ.get("RANK", "0") == "0"
        done = folder / DONE
        if done.is_file() and json.loads(done.read_text())["inputs"] == fingerprint:
            log.info("%s: nothing to do, finished with the same inputs", name)
            yield None
            return
        if not first:
            yield folder
            return
        kept = folder / INPUTS
        same = resumable and kept.is_file() and json.loads(kept.read_text())["hash"] == fingerprint
        if folder.exists() and not same:
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        done.unlink(missing_ok=True)
        kept.write_text(json.dumps({"hash": fingerprint, "inputs": dict(inputs)}, indent=2, sort_keys=True) + "\n")
        started = time.monotonic()
        yield folder
        record = {"inputs": fingerprint, "seconds": round(time.monotonic() - started, 1), "commit": commit()}
        done.write_text(json.dumps(record) + "\n")
        self.note(name, **record)
        log.info("%s: done in %.0f s → %s", name, record["seconds"], folder)

    def note(self, stage: str, **figures: Any) -> None:  # noqa: ANN401 - any JSON value
        """Append one line to the run's ledger."""
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "stage": stage, **figures}
        with (self.path / LEDGER).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def stage_arguments(
    argv: list[str], name: str, description: str | None, options: argparse.ArgumentParser | None = None
) -> Run:
    """Parse the options every stage takes: `--recipe`, `--out`, `--set a.b=value`, `--shared`.

    Args: options: a stage's own options, a parser without help, which the stage itself reads by `parse_known_args`.
    Raises: RecipeError: if the recipe or an override is wrong.
    """
    parents = [] if options is None else [options]
    parser = argparse.ArgumentParser(prog=f"relevance {name}", description=description, parents=parents)
    parser.add_argument("--recipe", required=True, help="name of a shipped recipe, or a TOML file")
    parser.add_argument("--out", required=True, type=Path, help="run directory, shared by all stages of a run")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=value", help="override one recipe key")
    parser.add_argument("--shared", type=Path, help="a run directory with the earlier stages that --out lacks")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("accelerate").setLevel(logging.WARNING)
    recipe = load_recipe(arguments.recipe, arguments.set)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "recipe.json").write_text(recipe.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return Run(recipe, arguments.out, arguments.shared)


def hash_file(path: Path) -> str:
    """Give the SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_json(data: Any) -> str:  # noqa: ANN401 - any JSON value
    """Give the SHA-256 of plain data, independent of key order, in hex."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()


def commit() -> str:
    """Give the commit of the checkout this runs from, `unknown` outside of one."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
