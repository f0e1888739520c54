"""Stage `rationales` with `rationales.generator = "teacher"`: one rationale a pair by the run's fine-tuned teacher.

The teacher is asked once, greedily, under the prompt it was fitted with; where the answer cannot be read it is asked
again, at the recipe's temperature. A pair without a readable answer gets no row, is counted, and the student goes
without guidance there. Rationales are written without class names and without a concluding verdict, as those of the
programmatic annotator are; the answers as they came are in `samples.SPLIT.*.jsonl`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from relevance.pairs import Pair, read_labelled_pairs
from training.rationale_rows import Rationale, rationale_line
from training.recipe import Split, View
from training.runs import Run, hash_file, log
from training.teacher.folds import Annotator, annotators
from training.teacher.forecast import tell_requests
from training.teacher.generator import TextGenerator
from training.teacher.label_words import strip_verdict
from training.teacher.policy import base_policy, final_policy
from training.teacher.prompts import PromptBook
from training.teacher.rationale_teacher import rationale_teacher
from training.teacher.samples import Sample, read_samples, sample_pairs, write_samples
from training.teacher.sft_rows import asked_view
from training.teacher.text_generators import answers_path, make_text_generator, noted
from training.teacher_recipe import ASIDE
from training.words import chunks

STAGE = "rationales"
REPORT = "report.json"


def write_teacher_rationales(run: Run) -> None:
    """Write the rationales of the recipe's splits and `report.json`.

    Raises: RunError: if the teacher has not been trained, or `rationales.teacher` names none.
    """
    run = rationale_teacher(run)
    groups = {split: annotators(run, split) for split in dict.fromkeys(run.recipe.rationales.splits)}
    inputs = {
        # Where a named teacher lies decides nothing: its weights do, by `teacher_inputs`.
        "rationales": run.recipe.rationales.model_dump(mode="json", exclude={"teacher"}),
        **teacher_inputs(run, [one for own in groups.values() for one in own]),
        "samples": run.recipe.teacher.generate.samples,
        "files": {f"pairs.{s}": hash_file(run.require("data") / f"pairs.{s}.parquet") for s in groups},
    }
    with run.stage(STAGE, inputs, resumable=True) as folder:
        if folder is None:
            return
        report = {split: _write_split(run, folder, split, own) for split, own in groups.items()}
        (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        run.note(STAGE, **report)


def teacher_inputs(run: Run, annotating: Sequence[Annotator]) -> dict[str, Any]:
    """Give what decides a teacher's answers, as plain data to be hashed."""
    recipe, scheme = run.recipe.teacher, run.recipe.label_scheme
    return {
        "teachers": {one.name: one.identity() for one in annotating},
        "sampling": recipe.sampling.model_dump(mode="json", exclude=ASIDE),
        "prompt": PromptBook.load(recipe.prompt, scheme).fingerprint,
        "view": asked_view(recipe),
        "seed": run.recipe.seed,
        "scheme": scheme.to_dict(),
    }


def answer_once(annotator: Annotator, path: Path) -> dict[str, Sample]:
    """Ask about each pair, greedily, and again at the recipe's temperature where the answer is unreadable or cut off.

    Args: path: of the first answers' file; those of the second asking lie beside it.
    Returns: pair id → its first whole readable answer, else its first readable one, else its first one.
    """
    tries = annotator.run.recipe.teacher.generate.samples
    ask_pairs(annotator, annotator.pairs, path, samples=1, greedy=True)
    answers = {sample.pair_id: sample for sample in read_samples(path)}
    again = [pair for pair in annotator.pairs if _use(answers[pair.pair_id]) < 2 and pair.item.title.strip()]
    if again and tries > 1:
        second = path.with_name(f"{path.stem}.again.jsonl")
        ask_pairs(annotator, again, second, samples=tries - 1, greedy=False)
        for sample in read_samples(second):
            if _use(sample) > _use(answers[sample.pair_id]):
                answers[sample.pair_id] = sample
    return answers


def ask_pairs(annotator: Annotator, pairs: Sequence[Pair], path: Path, *, samples: int, greedy: bool) -> None:
    """Write a teacher's answers about pairs, under the prompt it was fitted with; a finished file is left alone."""
    recipe, scheme = annotator.run.recipe.teacher, annotator.run.recipe.label_scheme
    book = PromptBook.load(recipe.prompt, scheme)
    views: tuple[View, ...] = (asked_view(recipe),)
    stage = path.parent.name

    def ask(rest: Sequence[Pair]) -> Iterator[Sample]:
        """Load the teacher only if there is something to ask."""
        if rest:
            generator = annotating_generator(annotator.run, greedy=greedy, name=f"{stage}.{path.stem}")
            tell_requests(annotator.run, stage, rest, views, samples=samples)
            with noted(annotator.run, stage, generator):
                yield from sample_pairs(generator, book, scheme, rest, views, samples=samples)

    write_samples(path, pairs, ask)


def annotating_generator(run: Run, *, greedy: bool, name: str) -> TextGenerator:
    """Give a run's teacher as a generator: its own policy, here or under `teacher.sampling.policy_model` on a server.

    With `teacher.annotated_by = "base"` it is the base model, here or under `teacher.sampling.model`.

    Where `teacher.sampling.kind` is `programmatic`, that stood in for the base model alone.

    Args: name: of the file below `answers/` in which a server's answers are kept, so that none is paid twice.
    """
    recipe = run.recipe.teacher
    served = recipe.sampling.kind == "openai"
    changes = {"kind": recipe.sampling.kind if served else "local"} | ({"temperature": 0.0} if greedy else {})
    sampling = recipe.sampling.model_copy(update=changes)
    asked = Run(
        run.recipe.model_copy(update={"teacher": recipe.model_copy(update={"sampling": sampling})}),
        run.path,
        run.shared,
    )
    answers: str | Path | None = final_policy(run) if recipe.annotated_by == "policy" else base_policy(run)
    if served and recipe.annotated_by == "base":
        answers = None
    return make_text_generator(asked, answers, store=answers_path(run, name), label_logprobs=True)


def _write_split(run: Run, folder: Path, split: Split, annotating: Sequence[Annotator]) -> dict[str, Any]:
    labelled = read_labelled_pairs(run.require("data") / f"pairs.{split}.parquet", run.recipe.label_scheme)
    answers: dict[str, Sample] = {}
    seen: set[str] = set()
    for one in annotating:
        answers |= answer_once(one, folder / f"samples.{split}.{one.name}.jsonl")
        seen |= one.seen & {pair.pair_id for pair in one.pairs}
    rows = list(_rationales(run, [answers[one.pair.pair_id] for one in labelled], seen))
    path = folder / f"{STAGE}.{split}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        file.writelines(map(rationale_line, rows))
    label_of = {one.pair.pair_id: one.label for one in labelled}
    missing = len(labelled) - len(rows)
    log.info("rationales: %s: %d pairs, %d of them without a readable answer", split, len(labelled), missing)
    return {
        "pairs": len(labelled),
        "rationales": len(rows),
        "missing": missing,
        "verdict_accuracy": _accuracy(rows, label_of),
        "annotator_seen_pair": sum(row.annotator_seen_pair for row in rows),
        "verdict_accuracy_seen": _accuracy([row for row in rows if row.annotator_seen_pair], label_of),
        "verdict_accuracy_unseen": _accuracy([row for row in rows if not row.annotator_seen_pair], label_of),
    }


def _use(sample: Sample) -> int:
    """Rank an answer: 2 whole and readable, 1 readable but cut off, 0 of no use."""
    return 0 if not sample.readable else 1 + sample.whole


def _accuracy(rows: Sequence[Rationale], label_of: Mapping[str, str]) -> float | None:
    """Give the share of verdicts that are the pair's label, None without any."""
    right = sum(row.verdict == label_of[row.pair_id] for row in rows)
    return round(right / len(rows), 4) if rows else None


def _rationales(run: Run, answers: Iterable[Sample], seen: set[str]) -> Iterator[Rationale]:
    """Give the rationales of readable answers that say something beside the verdict."""
    scheme = run.recipe.label_scheme
    fingerprint = PromptBook.load(run.recipe.teacher.prompt, scheme).fingerprint[:12]
    for sample in answers:
        text = strip_verdict(sample.rationale, scheme)
        if sample.readable and chunks(text):
            yield Rationale(
                pair_id=sample.pair_id,
                perspective=sample.view,
                evidence=sample.evidence,
                rationale=text,
                verdict=sample.label,
                generator=f"{sample.generator}#{fingerprint}",
                annotator_seen_pair=sample.pair_id in seen,
            )
