"""Stage `generate`: the base model answers labelled pairs under each perspective's prompt, and right answers are kept.

This is the self-enhancing step of arXiv:2601.21611, section 3.2 (eq. 1). Files: `samples.train.jsonl`, every answer,
good or bad; `kept.train.jsonl`, those that SFT learns from; `report.json`, what was asked, what came, what was kept.

Asking and keeping are two steps: answers lie in `generate_shards/`, so that other rules of keeping ask nothing again.
What a server answered is in `answers/` too, which no stage empties and every shard of any set looks into.
`--shard i/n` answers one of n ranges of the pairs, in any order and on any machine that sees the run's folder; the call
without it joins them when all are there. `--ray ADDRESS|local` spreads the same work over a Ray cluster.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from relevance.errors import RunError
from relevance.pairs import LabelledPair, Pair
from training.runs import DONE, INPUTS, Run, hash_file, hash_json, log, stage_arguments
from training.soft_labels import FILE
from training.teacher.forecast import check_room, tell_requests
from training.teacher.generator import TextGenerator
from training.teacher.keep import KEPT, STAGE, Keeper
from training.teacher.parts import asked_pairs
from training.teacher.policy import base_policy, base_policy_identity
from training.teacher.prompts import PromptBook
from training.teacher.samples import Sample, read_samples, sample_line, sample_pairs, sample_until_right, write_samples
from training.teacher.shards import LOCAL, Ask, Shard, ask_over_ray
from training.teacher.text_generators import answers_path, make_text_generator, noted
from training.teacher_recipe import ASIDE

SAMPLES = "samples.train.jsonl"
REPORT = "report.json"
SHARDS = "generate_shards"
OPTIONS = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
OPTIONS.add_argument("--shard", type=Shard.parse, metavar="i/n", help="answer only the i-th of n ranges of the pairs")
OPTIONS.add_argument("--ray", metavar=f"ADDRESS|{LOCAL}", help="spread the work over a Ray cluster")
MakeGenerator = Callable[[Run, Path], TextGenerator]


def main(argv: list[str]) -> int:
    """Run the stage; see the module."""
    run = stage_arguments(argv, STAGE, __doc__, OPTIONS)
    options = OPTIONS.parse_known_args(argv)[0]
    if options.shard is not None:
        answer_shard(run, options.shard, ray=options.ray)
    else:
        generate(run, ray=options.ray)
    return 0


def base_generator(run: Run, store: Path) -> TextGenerator:
    """Give the model that a run's teacher starts from as a generator.

    Args: store: file in which a server's answers are kept, so that none is paid twice; those of other shards lie
        beside it and are looked into.
    """
    local = run.recipe.teacher.sampling.kind == "local"
    known = sorted(store.parent.glob(f"{STAGE}.*{store.suffix}"))
    return make_text_generator(run, base_policy(run) if local else None, store=store, known=known)


def asker(run: Run, store: Path, make: MakeGenerator) -> Ask:
    """Give the recipe's way of asking a generator about labelled pairs."""
    recipe, scheme = run.recipe.teacher, run.recipe.label_scheme
    book = PromptBook.load(recipe.prompt, scheme)
    generator = make(run, store)

    def ask(labelled: Sequence[LabelledPair]) -> Iterator[Sample]:
        """Ask under every perspective's prompt, and note what a server charged."""
        views, samples = recipe.perspectives, recipe.generate.samples
        with noted(run, STAGE, generator):
            if recipe.generate.resample:
                yield from sample_until_right(generator, book, scheme, labelled, views, samples=samples)
            else:
                yield from sample_pairs(generator, book, scheme, [one.pair for one in labelled], views, samples=samples)

    return ask


def generate(run: Run, *, ray: str | None = None, make: MakeGenerator = base_generator) -> None:
    """Ask about all pairs, or join the shards that have been, and keep what SFT learns from.

    Args: ray: address of a cluster, or `local`; make: builds the generator that is asked.
    Raises: RunError: if some shards of a set are there and others are not.
    """
    labelled = asked_pairs(run)
    recipe = run.recipe.teacher
    answers = answer_inputs(run)
    inputs = {"answers": answers, "generate": recipe.generate.model_dump(mode="json")}
    with run.stage(STAGE, inputs, resumable=True) as folder:
        if folder is None:
            return
        shards = _finished_shards(run, answers)
        if not shards:
            shards = [answer_shard(run, Shard(1, 1), ray=ray, make=make)]
        with (folder / SAMPLES).open("wb") as joined:
            for shard in shards:
                with (shard / SAMPLES).open("rb") as part:
                    shutil.copyfileobj(part, joined)
        keeper = Keeper(recipe.generate, run.recipe.label_scheme, {one.pair.pair_id: one.label for one in labelled})
        kept = keeper.keep(read_samples(folder / SAMPLES))
        with (folder / KEPT).open("w", encoding="utf-8") as file:
            file.writelines(map(sample_line, kept))
        report = {"pairs_hash": hash_json(sorted(one.pair.pair_id for one in labelled))}
        report |= keeper.report(kept, recipe.sampling)
        (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        _tell(run, report)


def answer_shard(run: Run, shard: Shard, *, ray: str | None = None, make: MakeGenerator = base_generator) -> Path:
    """Ask about one shard's pairs; a finished shard is not asked again, a killed one goes on.

    Returns: the shard's folder.
    """
    recipe = run.recipe.teacher
    labelled = shard.of(asked_pairs(run))
    of_pair = {one.pair.pair_id: one for one in labelled}
    name = f"{SHARDS}/{shard.name}"
    with run.stage(name, {**answer_inputs(run), "shard": shard.name}, resumable=True) as folder:
        if folder is not None:
            ready = partial(asker, run, answers_path(run, f"{STAGE}.{shard.name}"), make)

            def ask(pairs: Sequence[Pair]) -> Iterable[Sample]:
                """Ask here or over Ray."""
                rest = [of_pair[pair.pair_id] for pair in pairs]
                if not rest:
                    return []
                check_room(run, pairs)
                tell_requests(run, STAGE, pairs, recipe.perspectives, samples=recipe.generate.samples)
                if ray is None:
                    return ready()(rest)
                one = 1 if recipe.sampling.kind == "openai" else None
                return ask_over_ray(ready, rest, ray, workers=one)

            written = write_samples(folder / SAMPLES, [one.pair for one in labelled], ask)
            log.info("generate: %s: %d pairs, %d answers written now", shard.name, len(labelled), written)
    return run.path / name


def answer_inputs(run: Run) -> dict[str, Any]:
    """Give all that decides the answers, as plain data to be hashed."""
    recipe, data = run.recipe.teacher, run.require("data")
    guesses = sorted(run.folder("annotate").glob(FILE.replace(".", ".*."))) if _programmatic(run) else []
    return {
        "policy": policy_identity(run),
        "sampling": recipe.sampling.model_dump(mode="json", exclude=ASIDE),
        "draw": recipe.generate.model_dump(mode="json", include={"samples", "resample", "max_pairs"}),
        "perspectives": recipe.perspectives,
        "reserved": recipe.preferences.reserved,
        "prompt": PromptBook.load(recipe.prompt, run.recipe.label_scheme).fingerprint,
        "seed": run.recipe.seed,
        "scheme": run.recipe.label_scheme.to_dict(),
        "files": {path.name: hash_file(path) for path in (data / "pairs.train.parquet", *guesses)},
    }


def policy_identity(run: Run) -> str:
    """Name the base model by its weights, or by hub name and revision; "" where no model answers."""
    return "" if _programmatic(run) else base_policy_identity(run)


def _programmatic(run: Run) -> bool:
    return run.recipe.teacher.sampling.kind == "programmatic"


def _finished_shards(run: Run, answers: dict[str, Any]) -> list[Path]:
    """Give the shards of the largest complete set with the same inputs, in order.

    Raises: RunError: if no set is complete but one was begun.
    """
    begun: dict[int, list[Shard]] = {}
    for manifest in (run.path / SHARDS).glob(f"shard-*/{INPUTS}"):
        shard = Shard.parse(manifest.parent.name.removeprefix("shard-").replace("-of-", "/"))
        if json.loads(manifest.read_text())["hash"] != hash_json({**answers, "shard": shard.name}):
            log.warning("generate: %s has other inputs and is left aside", shard.name)
        elif shard.count > 1 or (manifest.parent / DONE).is_file():
            begun.setdefault(shard.count, []).append(shard)
    missing: dict[int, list[str]] = {}
    for shards in sorted(begun, reverse=True):
        wanted = [Shard(number, shards) for number in range(1, shards + 1)]
        folders = [run.path / SHARDS / shard.name for shard in wanted]
        missing[shards] = [
            f"{s.number}/{shards}" for s, f in zip(wanted, folders, strict=True) if not (f / DONE).is_file()
        ]
        if not missing[shards]:
            return folders
    if missing:
        first = next(iter(missing.values()))
        raise RunError(
            f"{run.path / SHARDS}: expected all shards of a set, found these unfinished: {', '.join(first)}; run "
            f"`relevance generate --shard` for them, or remove this folder to ask about all pairs in one process "
            f"(a server's answers are kept in {answers_path(run, STAGE).parent} and not asked for again)"
        )
    return []


def _tell(run: Run, report: dict[str, Any]) -> None:
    figures = {name: report[name] for name in ("pairs", "asked", "answered", "kept", "tokens", "cost")}
    run.note(STAGE, **figures, warnings=len(report["warnings"]))
    log.info("generate: %(kept)d rationales kept of %(answered)d answers about %(pairs)d pairs", report)
    for warning in report["warnings"]:
        log.warning("generate: %s", warning)
