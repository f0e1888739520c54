"""Stage `annotate` with `annotate.teacher = "policy"`: an LLM teacher gives pairs labels, probabilities and rationales.

The pairs are those of a file (`teacher.label.pairs`, a log without labels), or the training pairs; those are annotated
by the teacher that left them out, when cross-fitting, and the teacher's own predictions of the other splits are written
beside them. Files: `labels.jsonl`, one row a pair, in order; `rationales.jsonl`, as the teacher wrote them;
`soft_labels.parquet`, of the pairs with a readable answer, what a student learns from; `predictions.SPLIT.parquet`,
uniform where the answer cannot be read; `report.json`. Suffixes: N pairs, K classes.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy.special import softmax

from relevance.errors import RecipeError
from relevance.labels import LabelScheme
from relevance.pairs import BadRows, Pair, read_labelled_pairs, read_pairs
from training.predictions import predictions_of, write_predictions
from training.rationale_rows import Evidence, Rationale, rationale_line
from training.recipe import SPLITS, View
from training.runs import Run, hash_file, log
from training.soft_labels import FILE, SoftLabels, write_soft_labels
from training.teacher.folds import Annotator, annotator_of, annotators
from training.teacher.forced_labels import WHOLE, ForcedJob, LabelScorer, read_forced, reasoning_of, write_forced
from training.teacher.judge import note_test_read
from training.teacher.prompts import PromptBook
from training.teacher.samples import Sample, read_samples
from training.teacher.seen import with_equal_texts
from training.teacher.sft_rows import asked_view
from training.teacher.teacher_rationales import annotating_generator, answer_once, ask_pairs, teacher_inputs

STAGE = "annotate"
LABELS, RATIONALES, REPORT = "labels.jsonl", "rationales.jsonl", "report.json"
_LEAST = 1e-9
"""Probability below which a logit falls no further."""

Source = Literal["label_tokens", "votes"]


class PolicyLabel(BaseModel):
    """What the teacher says of one pair.

    Args: label: the answers' commonest, among equals the more probable, None if none can be read; probabilities: of
        the scheme's classes, None without a label; source: of the probabilities, `votes` also where label tokens were
        asked for and are not known; vote_share: of all answers that name the label; rationale: the
        shortest that concludes it, as written; problems: what the parser found wrong with all answers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pair_id: str
    label: str | None
    probabilities: tuple[float, ...] | None
    source: Source | None
    vote_share: float
    rationale: str
    evidence: tuple[Evidence, ...]
    problems: tuple[str, ...]
    generator: str
    annotator_seen_pair: bool


def annotate_by_policy(run: Run) -> None:
    """Annotate; see the module.

    Raises: RunError: if the teacher has not been trained; InputError: if the file of pairs is missing; RowError: if one
        of its rows is wrong and `data.on_bad_row` is `fail`.
    """
    log_path = run.recipe.teacher.label.pairs
    bad = BadRows(run.recipe.data.on_bad_row)
    if log_path is None:
        groups, files = annotators(run, "train"), sorted(run.require("data").glob("pairs.*.parquet"))
    else:
        pairs = _unique(read_pairs(Path(log_path), bad))
        teacher = annotator_of(run, tuple(pairs), "all")
        groups = [replace(teacher, seen=with_equal_texts(teacher.run, teacher.seen, pairs))]
        files = [Path(log_path), *([run.require("data") / "pairs.train.parquet"] if teacher.seen else [])]
    inputs = {
        "label": run.recipe.teacher.label.model_dump(mode="json", exclude={"pairs"}),
        **teacher_inputs(run, groups),
        "samples": run.recipe.teacher.generate.samples,
        "files": {path.name: hash_file(path) for path in files},
    }
    with run.stage(STAGE, inputs, resumable=True) as folder:
        if folder is None:
            return
        report = _write(run, folder, groups)
        report["bad_rows"] = {"count": bad.count, "first": [str(error) for error in bad.first]}
        if log_path is None:
            report["predictions"] = _predict_others(run, folder)
        (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        run.note(STAGE, pairs=report["pairs"], unreadable=report["unreadable"], bad_rows=bad.count)
        log.info("annotate: %d pairs, %d of them without a readable answer", report["pairs"], report["unreadable"])


def label_pairs(annotator: Annotator, folder: Path, name: str) -> Iterator[PolicyLabel]:
    """Ask a teacher about its pairs and say what it concludes, one row a pair, in order.

    One answer a pair is greedy, and asked for again where it cannot be read; several are drawn, for a vote.

    Args: folder, name: of the files of answers, which a killed run leaves and the next one goes on with.
    """
    recipe, scheme = annotator.run.recipe.teacher, annotator.run.recipe.label_scheme
    path = folder / f"samples.{name}.jsonl"
    answers: defaultdict[str, list[Sample]] = defaultdict(list)
    if recipe.label.samples == 1:
        answers.update({pair_id: [sample] for pair_id, sample in answer_once(annotator, path).items()})
    else:
        ask_pairs(annotator, annotator.pairs, path, samples=recipe.label.samples, greedy=False)
        for sample in read_samples(path):
            answers[sample.pair_id].append(sample)
    probabilities = _probabilities(annotator, answers, folder / f"label_tokens.{name}.jsonl")
    for pair in annotator.pairs:
        own = answers[pair.pair_id]
        yield conclude(own, probabilities.get(pair.pair_id), scheme, seen=pair.pair_id in annotator.seen)


def conclude(
    answers: Sequence[Sample], told_K: NDArray[np.float64] | None, scheme: LabelScheme, *, seen: bool
) -> PolicyLabel:
    """Give what a teacher's answers about one pair come to.

    Args: told_K: probabilities by label tokens; None where they are not known, or none were asked for.
    """
    votes = Counter(sample.label for sample in answers if sample.readable)
    probability_K = vote_shares(answers, scheme) if votes and told_K is None else told_K
    label = None
    if votes and probability_K is not None:
        chances = dict(zip(scheme.classes, probability_K.tolist(), strict=True))
        label = max((c for c in scheme.classes if c in votes), key=lambda c: (votes[c], chances[c]))
    backing = [sample for sample in answers if sample.readable and sample.label == label]
    chosen = min(backing, key=lambda sample: (not sample.whole, len(sample.rationale), sample.sample), default=None)
    return PolicyLabel(
        pair_id=answers[0].pair_id,
        label=label,
        probabilities=None if probability_K is None else tuple(probability_K.tolist()),
        source=None if probability_K is None else "votes" if told_K is None else "label_tokens",
        vote_share=round(len(backing) / len(answers), 4),
        rationale="" if chosen is None else chosen.rationale,
        evidence=() if chosen is None else chosen.evidence,
        problems=tuple(sorted({problem for sample in answers for problem in sample.problems})),
        generator=answers[0].generator,
        annotator_seen_pair=seen,
    )


def vote_shares(answers: Iterable[Sample], scheme: LabelScheme) -> NDArray[np.float64]:
    """Give the share of readable answers that name each class, float64 of shape (K,)."""
    count_K = np.zeros(scheme.n_classes)
    for sample in answers:
        if sample.readable and sample.label is not None:
            count_K[scheme.index(sample.label)] += 1
    share_K: NDArray[np.float64] = count_K / count_K.sum()
    return share_K


def _probabilities(
    annotator: Annotator, answers: Mapping[str, list[Sample]], path: Path
) -> dict[str, NDArray[np.float64]]:
    """Give the class probabilities by label tokens of each pair that has them, averaged over its readable answers."""
    recipe, scheme = annotator.run.recipe.teacher, annotator.run.recipe.label_scheme
    readable = {pair_id: kept for pair_id, own in answers.items() if (kept := [s for s in own if s.readable])}
    if recipe.label.probabilities == "votes":
        return {}
    if recipe.sampling.kind == "openai":
        return _from_logprobs(readable, scheme)
    generator = annotating_generator(annotator.run, greedy=True, name=path.stem)
    if not isinstance(generator, LabelScorer):
        raise RecipeError(f"{generator.name}: expected a policy of this process, which tells label tokens apart")
    jobs = [
        ForcedJob(pair, sample.view, f"{WHOLE}/{sample.sample}", reasoning_of(sample))
        for pair in annotator.pairs
        for sample in readable.get(pair.pair_id, ())
    ]
    write_forced(path, jobs, generator, PromptBook.load(recipe.prompt, scheme))
    rows: defaultdict[str, list[tuple[float, ...]]] = defaultdict(list)
    for row in read_forced(path):
        rows[row.pair_id].append(row.probabilities)
    return {pair_id: np.mean(own, axis=0) for pair_id, own in rows.items()}


def _from_logprobs(answers: Mapping[str, list[Sample]], scheme: LabelScheme) -> dict[str, NDArray[np.float64]]:
    """Give the softmax over the label names that a server told the log-probabilities of, of pairs where it told any.

    Raises: RecipeError: if it told none of any pair.
    """
    rows: defaultdict[str, list[NDArray[np.float64]]] = defaultdict(list)
    for pair_id, own in answers.items():
        for told in (sample.label_logprobs for sample in own if sample.label_logprobs):
            rows[pair_id].append(softmax([told.get(name, -np.inf) for name in scheme.classes]))
    if answers and not rows:
        raise RecipeError(
            f"teacher.label.probabilities: expected a server that gives logprobs, found none in the answers about "
            f"{len(answers)} pairs; set it to 'votes', with teacher.label.samples above 1"
        )
    return {pair_id: np.mean(own, axis=0) for pair_id, own in rows.items()}


def _write(run: Run, folder: Path, groups: Sequence[Annotator]) -> dict[str, Any]:
    """Write labels, rationales and soft labels of the pairs, in the order of their file."""
    pair_of = {pair.pair_id: pair for group in groups for pair in group.pairs}
    by_pair = {row.pair_id: row for group in groups for row in label_pairs(group, folder, group.name)}
    if len(groups) > 1:
        pair_of = {pair.pair_id: pair for pair in read_pairs(run.require("data") / "pairs.train.parquet")}
    rows = [by_pair[pair_id] for pair_id in pair_of]
    readable = [row for row in rows if row.label is not None]
    view = asked_view(run.recipe.teacher)
    with (folder / LABELS).open("w", encoding="utf-8") as file:
        file.writelines(row.model_dump_json() + "\n" for row in rows)
    with (folder / RATIONALES).open("w", encoding="utf-8") as file:
        file.writelines(rationale_line(_rationale(row, view)) for row in readable)
    shape = (len(readable), run.recipe.label_scheme.n_classes)
    soft = SoftLabels(
        [pair_of[row.pair_id] for row in readable],
        np.array([row.probabilities for row in readable], dtype=np.float32).reshape(shape),
        np.zeros((len(readable), 0), dtype=np.float32),
    )
    write_soft_labels(folder / FILE, soft)
    return {
        "pairs": len(rows),
        "unreadable": len(rows) - len(readable),
        "annotator_seen_pair": sum(row.annotator_seen_pair for row in rows),
        "labels": dict(sorted(Counter(row.label or "none" for row in rows).items())),
        "probabilities": dict(sorted(Counter(row.source or "none" for row in rows).items())),
        "problems": dict(sorted(Counter(problem for row in rows for problem in row.problems).items())),
    }


def _rationale(row: PolicyLabel, view: View) -> Rationale:
    return Rationale(
        pair_id=row.pair_id,
        perspective=view,
        evidence=row.evidence,
        rationale=row.rationale,
        verdict=row.label,
        generator=row.generator,
        annotator_seen_pair=row.annotator_seen_pair,
    )


def _predict_others(run: Run, folder: Path) -> dict[str, dict[str, int]]:
    """Write the teacher's predictions of dev, cal and test, which bound what its rationales may tell a probe."""
    scheme = run.recipe.label_scheme
    figures: dict[str, dict[str, int]] = {}
    note_test_read(run, STAGE, {"test": hash_file(run.require("data") / "pairs.test.parquet")})
    for split in SPLITS[1:]:
        labelled = read_labelled_pairs(run.require("data") / f"pairs.{split}.parquet", scheme)
        rows = [row for one in annotators(run, split) for row in label_pairs(one, folder, f"{split}.{one.name}")]
        uniform_K = np.full(scheme.n_classes, 1 / scheme.n_classes)
        probabilities_NK = [uniform_K if row.probabilities is None else np.array(row.probabilities) for row in rows]
        if rows:
            logits_NK = np.log(np.maximum(np.stack(probabilities_NK), _LEAST))
            write_predictions(folder / f"predictions.{split}.parquet", predictions_of(labelled, logits_NK, scheme))
        figures[split] = {"pairs": len(rows), "unreadable": sum(row.label is None for row in rows)}
    return figures


def _unique(pairs: Iterable[Pair]) -> list[Pair]:
    """Give each pair of a log once, where it first stands."""
    first: dict[str, Pair] = {}
    for pair in pairs:
        first.setdefault(pair.pair_id, pair)
    return list(first.values())
