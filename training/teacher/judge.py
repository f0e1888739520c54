"""Stage `judge`: a policy answers pairs of a split, and its answers become figures, predictions and a teacher card.

Answers are written as they come and a killed run goes on with the missing ones. Figures are made from the files alone:
the command on a finished stage makes report, card and predictions anew and asks nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from relevance.errors import InputError, RecipeError, RunError
from relevance.pairs import LabelledPair, Pair, read_labelled_pairs
from training.evaluate import TEST_READS
from training.predictions import write_predictions
from training.recipe import PERSPECTIVES, Perspective, View
from training.runs import Run, commit, hash_file, log, stage_arguments
from training.teacher.faithfulness import chosen_answers, early_jobs, swap_facts
from training.teacher.forced_labels import (
    WHOLE,
    ForcedJob,
    LabelScorer,
    read_forced,
    reasoning_of,
    write_forced,
)
from training.teacher.forecast import tell_requests
from training.teacher.gate import gate_pairs
from training.teacher.generator import TextGenerator
from training.teacher.judge_report import Judged, report_of
from training.teacher.local_generator import LocalGenerator
from training.teacher.policy import POLICY, base_policy, final_policy, policy_identity
from training.teacher.prompts import PromptBook
from training.teacher.samples import Sample, read_samples, sample_pairs, write_samples
from training.teacher.sft_rows import asked_view
from training.teacher.teacher_card import teacher_card
from training.teacher.text_generators import make_text_generator, noted
from training.teacher_recipe import ASIDE, TeacherRecipe

PolicyName = Literal["base", "sft", "dpo"]
JudgeSplit = Literal["dev", "test"]
POLICIES: tuple[PolicyName, ...] = ("base", "sft", "dpo")
OPTIONS = argparse.ArgumentParser(add_help=False)
OPTIONS.add_argument("--policy", choices=POLICIES, help="judge this policy instead of the one that is shipped")
OPTIONS.add_argument(
    "--perspective", choices=PERSPECTIVES, help="of --policy base: ask under this perspective's prompt alone"
)
REPORT, CARD = "report.json", "card.md"
_SECONDS = "seconds.jsonl"
_FORCED = "forced.jsonl"
_SWAPPED = "swapped.jsonl"


@dataclass(frozen=True, slots=True)
class _Asking:
    """Who is asked, how and about what: `greedy` answers once a pair, `drawn` several times from each perspective."""

    run: Run
    folder: Path
    book: PromptBook
    view: View
    greedy: TextGenerator
    drawn: TextGenerator


def main(argv: list[str]) -> int:
    """Run the stage; see the module."""
    run = stage_arguments(argv, "judge", __doc__, OPTIONS)
    options = OPTIONS.parse_known_args(argv)[0]
    judge_policy(run, options.policy, perspective=options.perspective)
    return 0


def judge_policy(
    run: Run,
    policy: PolicyName | None = None,
    split: JudgeSplit | None = None,
    perspective: Perspective | None = None,
) -> Path:
    """Judge a policy of a run.

    Args: policy: None for the one that is shipped; split: None for `teacher.judge.split`; perspective: whose prompt
        alone the base model is asked with, None for the run's own.
    Returns: the folder of report, card and predictions: judge, with _base, _sft or _dpo for a policy that was named, a
        perspective that was, and _dev for that split.
    Raises: RunError: if the policy is not there; InputError: if the split has no pairs to judge; RecipeError: if a
        server is to answer for a policy that it does not serve, or another than the base for one perspective.
    """
    if split is not None:
        run = _with_teacher(run, {"judge": run.recipe.teacher.judge.model_copy(update={"split": split})})
    if perspective is not None:
        if policy != "base":
            raise RecipeError(
                f"--perspective {perspective}: expected --policy base, found {policy or 'the shipped one'}, which is "
                "asked as it has learned to be"
            )
        run = _with_teacher(run, {"perspectives": (perspective,)})
    section, teacher = run.recipe.teacher.judge, run.recipe.teacher
    named = [part for part in (policy, perspective, "dev" if section.split == "dev" else None) if part is not None]
    name = "_".join(["judge", *named])
    labelled = judged_pairs(run, section.split, section.pairs)
    book = PromptBook.load(teacher.prompt, run.recipe.label_scheme)
    where = _policy_folder(run, policy)
    data = run.require("data")
    files = {part: hash_file(data / f"pairs.{part}.parquet") for part in dict.fromkeys(("dev", section.split))}
    inputs = {
        # Left out where it is the default: a key that is younger than a judgement does not ask for another one.
        "judge": section.model_dump(mode="json", exclude={"draw_pairs"} if section.draw_pairs is None else None),
        "prompt": teacher.prompt.model_dump(mode="json"),
        "sampling": teacher.sampling.model_dump(mode="json", exclude=ASIDE),
        "view": asked_view(teacher),
        "perspectives": teacher.perspectives,
        "prompts": book.fingerprint,
        "policy": policy_identity(where, teacher.revision),
        "seed": run.recipe.seed,
        "scheme": run.recipe.label_scheme.to_dict(),
        "files": files,
    }
    with run.stage(name, inputs, resumable=True) as folder:
        if folder is not None:
            if section.split == "test":
                note_test_read(run, name, files)
            answer_pairs(run, folder, labelled, *_generators(run, None if _server_of_base(run, policy) else where))
            _write_report(run, folder, labelled, policy)
    if folder is None:
        _write_report(run, run.path / name, labelled, policy)
    return run.path / name


def judged_pairs(run: Run, split: JudgeSplit, most: int | None) -> list[LabelledPair]:
    """Choose the pairs of a split that a teacher is asked about: whole queries, without Exact-only sources.

    Args: most: queries are added until there are so many pairs, None for all.
    Raises: InputError: if there are none.
    """
    path = run.require("data") / f"pairs.{split}.parquet"
    fair = [one for one in read_labelled_pairs(path, run.recipe.label_scheme) if not one.exact_only]
    if not fair:
        raise InputError(f"{path}: expected pairs from more than Exact-only sources, found none")
    return fair if most is None else gate_pairs(fair, most)


def drawn_pairs(run: Run, labelled: Sequence[LabelledPair]) -> list[LabelledPair]:
    """Choose those of the judged pairs that are answered several times: whole queries, all without a bound.

    Args: labelled: as `judged_pairs` gives them.
    """
    most = run.recipe.teacher.judge.draw_pairs
    return list(labelled) if most is None else gate_pairs(labelled, most)


def read_judged(run: Run, folder: Path, labelled: Sequence[LabelledPair]) -> Judged:
    """Read what a judge's answers are in a folder.

    Raises: InputError: if a file is missing.
    """
    section = run.recipe.teacher.judge
    choice = folder / "samples.dev.jsonl"
    forced, swapped = folder / _FORCED, folder / _SWAPPED
    asked = None
    if needs_choice(run.recipe.teacher):
        asked = (tuple(judged_pairs(run, "dev", section.choice_pairs)), tuple(read_samples(choice)))
    return Judged(
        labelled=tuple(labelled),
        drawn=tuple(drawn_pairs(run, labelled)),
        greedy=tuple(read_samples(folder / "greedy.jsonl")),
        draws=tuple(read_samples(folder / "samples.jsonl")),
        choice=asked,
        forced=tuple(read_forced(forced)) if forced.is_file() else None,
        swapped=tuple(read_samples(swapped)) if swapped.is_file() else None,
        seconds=_read_seconds(folder / _SECONDS),
    )


def answer_pairs(
    run: Run, folder: Path, labelled: Sequence[LabelledPair], greedy: TextGenerator, drawn: TextGenerator
) -> None:
    """Write every answer that the figures need, going on where a killed run stopped.

    Args: greedy: gives the most probable answer, and forces labels if it is a `LabelScorer`; drawn: samples.
    """
    teacher = run.recipe.teacher
    book = PromptBook.load(teacher.prompt, run.recipe.label_scheme)
    asking = _Asking(run, folder, book, asked_view(teacher), greedy, drawn)
    pairs = [one.pair for one in labelled]
    _ask(asking, "greedy", pairs)
    _ask(asking, "samples", [one.pair for one in drawn_pairs(run, labelled)])
    if needs_choice(run.recipe.teacher):
        _ask(asking, "samples.dev", [one.pair for one in judged_pairs(run, "dev", teacher.judge.choice_pairs)])
    answers = list(read_samples(folder / "greedy.jsonl"))
    by_id = {pair.pair_id: pair for pair in pairs}
    tested = chosen_answers(answers, teacher.judge.faithfulness_pairs)
    if isinstance(greedy, LabelScorer):
        jobs = [ForcedJob(by_id[a.pair_id], a.view, WHOLE, reasoning_of(a)) for a in answers if a.label is not None]
        if teacher.prompt.reasoning_order == "think_first":
            jobs += [job for job in early_jobs(tested, by_id) if job.cut != WHOLE]
        write_forced(folder / _FORCED, jobs, greedy, book)
    swaps = swap_facts(tested, by_id, teacher.prompt.fields, seed=run.recipe.seed)
    _ask(asking, "swapped", [swap.pair for swap in swaps])


def _ask(asking: _Asking, part: str, pairs: Sequence[Pair]) -> None:
    """Write the answers of one part and note how long they took."""
    teacher, scheme = asking.run.recipe.teacher, asking.run.recipe.label_scheme
    views: tuple[View, ...] = (asking.view,)
    generator, samples = asking.greedy, 1
    if part.startswith("samples"):
        views, generator = teacher.perspectives, asking.drawn
        samples = teacher.judge.samples if part == "samples" else 1

    def ask(rest: Sequence[Pair]) -> Iterator[Sample]:
        """Ask about the pairs that are left."""
        stage = asking.folder.name
        if rest:
            tell_requests(asking.run, stage, rest, views, samples=samples)
            with noted(asking.run, stage, generator):
                yield from sample_pairs(generator, asking.book, scheme, rest, views, samples=samples)

    started = time.monotonic()
    written = write_samples(asking.folder / f"{part}.jsonl", pairs, ask)
    if written:
        line = {"part": part, "answers": written, "seconds": round(time.monotonic() - started, 3)}
        with (asking.folder / _SECONDS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _generators(run: Run, where: str | Path | None) -> tuple[TextGenerator, TextGenerator]:
    """Give who answers greedily and who draws; a local policy is loaded once for both.

    Args: where: folder or hub name of the policy, None for the base model where a server answers for it.
    """
    sampling = run.recipe.teacher.sampling
    if sampling.kind != "openai":
        sampling = sampling.model_copy(update={"kind": "local"})
    certain = sampling.model_copy(update={"temperature": 0.0})
    teacher = run.recipe.teacher.model_copy(update={"sampling": certain})
    asked_once = replace(run, recipe=run.recipe.model_copy(update={"teacher": teacher}))
    greedy = make_text_generator(asked_once, where, label_logprobs=True)
    if isinstance(greedy, LocalGenerator):
        return greedy, LocalGenerator(greedy.policy, sampling, seed=run.recipe.seed)
    return greedy, make_text_generator(run, where)


def _server_of_base(run: Run, policy: PolicyName | None) -> bool:
    return policy == "base" and run.recipe.teacher.sampling.kind == "openai"


def _policy_folder(run: Run, policy: PolicyName | None) -> str | Path:
    """Give folder or hub name of the judged policy; a server serves the base model and the shipped policy alone.

    The programmatic generator stands in for a base model where rationales are written; no policy comes of it.
    """
    served = run.recipe.teacher.sampling.kind == "openai"
    if served and policy in ("sft", "dpo") and final_policy(run).parent.name != policy:
        raise RecipeError(
            f"--policy {policy}: expected the policy that is shipped, which teacher.sampling.policy_model names, found "
            f"that {final_policy(run).parent.name} is; judge the other one with teacher.sampling.kind=local"
        )
    if policy is None:
        return final_policy(run)
    if policy == "base":
        return base_policy(run)
    folder = run.require(policy) / POLICY
    if not folder.is_dir():
        raise RunError(f"{folder}: expected a policy to judge, found none; {policy}/report.json says why")
    return folder


def needs_choice(teacher: TeacherRecipe) -> bool:
    """Say whether the best perspective must be chosen on other pairs than the judged ones."""
    return teacher.judge.split != "dev" and 1 < len(teacher.perspectives) <= teacher.judge.samples


def _with_teacher(run: Run, update: dict[str, Any]) -> Run:
    teacher = run.recipe.teacher.model_copy(update=update)
    return replace(run, recipe=run.recipe.model_copy(update={"teacher": teacher}))


def _write_report(run: Run, folder: Path, labelled: Sequence[LabelledPair], policy: PolicyName | None) -> None:
    split = run.recipe.teacher.judge.split
    report, predictions = report_of(run, read_judged(run, folder, labelled), asked_view(run.recipe.teacher))
    report = {"policy": policy or "shipped", "commit": commit(), **report}
    write_predictions(folder / f"predictions.{split}.parquet", predictions)
    _replace(folder / CARD, teacher_card(report))
    _replace(folder / REPORT, json.dumps(report, indent=1, allow_nan=False) + "\n")
    figures = {name: report["figures"][name]["value"] for name in ("accuracy", "macro_f1", "answered")}
    run.note(folder.name, split=split, n_pairs=len(labelled), **figures)
    log.info("%s: %s split, %d pairs, macro-F1 %.3f", folder.name, split, len(labelled), figures["macro_f1"])


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _read_seconds(path: Path) -> dict[str, tuple[int, float]]:
    """Add up the sessions that measured each part."""
    found: dict[str, tuple[int, float]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.is_file() else (), start=1):
        try:
            row = json.loads(line)
            part, answers, seconds = str(row["part"]), int(row["answers"]), float(row["seconds"])
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path}, line {number}: expected part, answers and seconds, found {line:.60}") from error
        before = found.get(part, (0, 0.0))
        found[part] = (before[0] + answers, before[1] + seconds)
    return found


def note_test_read(run: Run, name: str, files: Mapping[JudgeSplit, str]) -> None:
    """Append a line to a run's list of the times that test labels were read.

    Args: name: of the stage; files: hashes of the splits' files.
    """
    line: dict[str, Any] = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "commit": commit()}
    with (run.path / TEST_READS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line | {"stage": name, "files": dict(files)}) + "\n")
