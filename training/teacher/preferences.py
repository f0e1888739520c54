"""Stage `preferences`: pairs of answers, one preferred to the other, that DPO learns from (arXiv:2601.21611, eq. 4).

The SFT policy answers the reserved pairs (`training.teacher.parts`), which it never saw: on pairs it was fitted on it
is hardly ever wrong. It is asked under each perspective's prompt, `samples` times; the answers are kept apart
(`training.teacher.preference_answers`), so that other rules of choosing ask nothing again. A pair with a wrong readable
answer is in conflict; one of its wrong answers is rejected, and a right one is chosen among all that were drawn under
any perspective (`training.teacher.pairing` says which). Both are set under the prompt the policy is used with: the
unified one, or the one perspective's of a single-perspective teacher. A pair without a right answer is dropped and
counted.

`teacher.preferences.same_size_as` makes a size-matched control (the paper's appendix D.1): as many preferences at most
as the run it names, and as many answers a pair, so that one perspective is asked 15 times where three were asked 5.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from relevance.errors import InputError, RunError
from relevance.labels import LabelScheme
from relevance.pairs import LabelledPair
from training.rationale_rows import Rationale
from training.recipe import View
from training.runs import DONE, Run, log, stage_arguments
from training.teacher.judge_measures import pass_at_k
from training.teacher.pairing import (
    DROPPED,
    Answer,
    MatchRule,
    balanced_quotas,
    in_seeded_order,
    match_answers,
    seeded_hash,
)
from training.teacher.parts import preference_pairs
from training.teacher.policy import POLICY, load_tokenizer
from training.teacher.preference_answers import answer_inputs, ask_policy
from training.teacher.preference_rows import FILE, Preference
from training.teacher.prompts import PromptBook
from training.teacher.reward import reward_answer
from training.teacher.samples import Sample, read_samples
from training.teacher.sft_rows import asked_view
from training.teacher_recipe import PreferencesRecipe

REPORT = "report.json"
CountTokens = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class Builder:
    """What turns the answers about a pair into a preference.

    Args: count_tokens: of an assistant's text; view: whose prompt the policy is trained under; fields: item fields
        that prompts show, for the reward.
    """

    recipe: PreferencesRecipe
    scheme: LabelScheme
    book: PromptBook
    count_tokens: CountTokens
    view: View
    fields: tuple[str, ...]
    seed: int

    @property
    def rule(self) -> MatchRule:
        """How a chosen and a rejected answer must match; a wrong label is 1 worse than a right one."""
        margin = 1.0 if self.recipe.builder == "conflict" else self.recipe.margin
        return MatchRule(margin, self.recipe.length_ratio, self.recipe.max_jaccard, self.seed)

    def answers(self, labelled: LabelledPair, samples: Iterable[Sample]) -> list[Answer]:
        """Score the readable samples of one pair; a text that was drawn twice counts once."""
        distinct: dict[str, Answer] = {}
        for sample in samples:
            if sample.readable:
                text = self.text(sample)
                distinct.setdefault(text, self._scored(labelled, sample, self.count_tokens(text)))
        return list(distinct.values())

    def text(self, sample: Sample) -> str:
        """Give the text that stands for a readable sample, written as SFT's targets are."""
        rationale = Rationale(
            pair_id=sample.pair_id,
            perspective=sample.view,
            evidence=sample.evidence,
            rationale=sample.rationale,
            verdict=sample.label,
            generator=sample.generator,
            annotator_seen_pair=False,
        )
        return self.book.response(rationale, sample.label or "")

    def preference(self, labelled: LabelledPair, chosen: Answer, rejected: Answer) -> Preference:
        """Give the row of a chosen and a rejected answer."""
        return Preference(
            pair_id=labelled.pair.pair_id,
            label=labelled.label,
            view=self.view,
            prompt=tuple(self.book.messages(labelled.pair, self.view)),
            chosen=self.text(chosen.sample),
            rejected=self.text(rejected.sample),
            chosen_label=chosen.sample.label or "",
            rejected_label=rejected.sample.label or "",
            chosen_view=chosen.sample.view,
            rejected_view=rejected.sample.view,
            chosen_tokens=chosen.tokens,
            rejected_tokens=rejected.tokens,
            chosen_score=chosen.score,
            rejected_score=rejected.score,
        )

    def _scored(self, labelled: LabelledPair, sample: Sample, tokens: int) -> Answer:
        right = sample.label == labelled.label
        score = float(right)
        if self.recipe.builder == "reward":
            score = reward_answer(sample, labelled, self.scheme, self.fields).total
        return Answer(sample, tokens, score, right)


def main(argv: list[str]) -> int:
    """Run the stage; see the module."""
    build_preferences(stage_arguments(argv, "preferences", __doc__))
    return 0


def build_preferences(run: Run) -> None:
    """Run the stage for a run, unless it has finished with the same inputs.

    Raises: RunError: if SFT has not finished, or no training pair is reserved.
    """
    teacher, recipe = run.recipe.teacher, run.recipe.teacher.preferences
    size = None if recipe.same_size_as is None else size_of(Path(recipe.same_size_as))
    samples = samples_per_view(recipe, size)
    inputs = {
        "answers": answer_inputs(run, samples),
        "preferences": recipe.model_dump(mode="json"),
        "view": asked_view(teacher),
        "fields": teacher.prompt.fields,
        "size": None if size is None else asdict(size),
    }
    with run.stage("preferences", inputs, resumable=True) as folder:
        if folder is not None:
            report = _build(run, folder, samples, size)
            figures = ("pairs", "answers", "dropped", "preferences")
            run.note("preferences", **{name: report[name] for name in figures})


@dataclass(frozen=True, slots=True)
class Size:
    """How large a run's preference set is: its rows, and the answers it drew of a pair."""

    rows: int
    answers: int


def size_of(other: Path) -> Size:
    """Read the size of another run's preference set, the cap of a size-matched control.

    Raises: RunError: if that run's stage `preferences` has not finished.
    """
    folder = other / "preferences"
    if not (folder / DONE).is_file():
        raise RunError(f"{folder}: expected the finished stage of teacher.preferences.same_size_as, found none")
    report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    return Size(report["preferences"], report["answers_per_pair"])


def _build(run: Run, folder: Path, samples: int, size: Size | None) -> dict[str, Any]:
    """Ask the policy about the reserved pairs, where that has not been done, and write preferences and report."""
    teacher, scheme = run.recipe.teacher, run.recipe.label_scheme
    pairs = preference_pairs(run)
    if not pairs:
        wanted = teacher.preferences.model_dump(include={"reserved", "asked_pairs"})
        raise RunError(f"{run.path}: expected reserved training pairs in whole queries, found none of {wanted}")
    answers = ask_policy(run, pairs, samples)
    builder = Builder(
        recipe=teacher.preferences,
        scheme=scheme,
        book=PromptBook.load(teacher.prompt, scheme),
        count_tokens=_token_counter(run.require("sft") / POLICY),
        view=asked_view(teacher),
        fields=teacher.prompt.fields,
        seed=run.recipe.seed,
    )
    rows, report = choose_preferences(builder, pairs, read_samples(answers), samples, size)
    partial = folder / f"{FILE}.partial"
    partial.write_text("".join(row.model_dump_json() + "\n" for row in rows), encoding="utf-8")
    os.replace(partial, folder / FILE)
    (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    log.info("preferences: %d of %d pairs; dropped %s", len(rows), len(pairs), report["dropped"])
    return report


def samples_per_view(recipe: PreferencesRecipe, size: Size | None) -> int:
    """Give how often each perspective is asked: `samples`, or so often that a pair gets as many answers as in `size`.

    Raises: InputError: if the perspectives cannot share that number equally.
    """
    if size is None:
        return recipe.samples
    samples, rest = divmod(size.answers, len(recipe.perspectives))
    if rest or not samples:
        raise InputError(
            f"teacher.preferences.same_size_as: expected {size.answers} answers a pair to be a multiple of "
            f"{len(recipe.perspectives)} perspectives"
        )
    return samples


def choose_preferences(
    builder: Builder, labelled: Sequence[LabelledPair], samples: Iterable[Sample], per_view: int, size: Size | None
) -> tuple[list[Preference], dict[str, Any]]:
    """Choose at most one preference a pair, cut the set to its cap and say what was found.

    Args: labelled: the pairs asked about; per_view: answers a pair and perspective.
    Returns: rows in the order of the pairs, and the report.
    """
    drawn: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        drawn[sample.pair_id].append(sample)
    rows: list[Preference] = []
    unmatched: list[tuple[int, int]] = []
    dropped: Counter[str] = Counter(dict.fromkeys(DROPPED, 0))
    for one in labelled:
        answers = builder.answers(one, drawn[one.pair.pair_id])
        found = match_answers(answers, builder.rule)
        unmatched += _first_lengths(answers, builder.rule)
        if isinstance(found, tuple):
            rows.append(builder.preference(one, *found))
        else:
            dropped[found] += 1
    caps = [cap for cap in (builder.recipe.max_pairs, None if size is None else size.rows) if cap is not None]
    kept = cap_balanced(rows, min(caps), builder.seed) if caps else rows
    report = {
        "builder": builder.recipe.builder,
        "view": builder.view,
        "perspectives": list(builder.recipe.perspectives),
        "pairs": len(labelled),
        "answers_per_pair": per_view * len(builder.recipe.perspectives),
        **_answer_figures(labelled, drawn, builder, per_view),
        "dropped": dict(dropped),
        "matched": len(rows),
        "preferences": len(kept),
        "tokens": {"unmatched": _mean_lengths(unmatched), "matched": _mean_lengths(_lengths(kept))},
        "labels": _counts([row.label for row in kept], builder.scheme.classes),
        "rejected_labels": _counts([row.rejected_label for row in kept], builder.scheme.classes),
        "chosen_views": _counts([row.chosen_view for row in kept], builder.recipe.perspectives),
        "rejected_views": _counts([row.rejected_view for row in kept], builder.recipe.perspectives),
        **_crossings(kept, builder.recipe.perspectives),
    }
    return kept, report


def cap_balanced(rows: Sequence[Preference], most: int, seed: int) -> list[Preference]:
    """Keep so many rows at most, drawn by seed, as many of each class as there are; in their order."""
    by_label: dict[str, list[Preference]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: seeded_hash(seed, row.pair_id)):
        by_label[row.label].append(row)
    quotas = balanced_quotas({label: len(own) for label, own in sorted(by_label.items())}, most)
    kept = {row.pair_id for label, quota in quotas.items() for row in by_label[label][:quota]}
    return [row for row in rows if row.pair_id in kept]


def _answer_figures(
    labelled: Sequence[LabelledPair], drawn: Mapping[str, Sequence[Sample]], builder: Builder, per_view: int
) -> dict[str, Any]:
    """Say how many answers were read and right: pass@k of each perspective and of all, conflicts of each class."""
    right: Counter[tuple[str, str]] = Counter()
    conflicts: Counter[str] = Counter()
    of_class = Counter(one.label for one in labelled)
    for one in labelled:
        own = drawn[one.pair.pair_id]
        right.update((sample.pair_id, sample.view) for sample in own if sample.label == one.label)
        conflicts[one.label] += any(sample.readable and sample.label != one.label for sample in own)
    views = builder.recipe.perspectives
    right_NV = np.array([[right[one.pair.pair_id, view] for view in views] for one in labelled])
    passed_KNV = np.array([pass_at_k(right_NV, per_view, k) for k in range(1, per_view + 1)])
    curves = dict(zip(views, passed_KNV.mean(axis=1).T, strict=True))
    curves_all = (1.0 - np.prod(1.0 - passed_KNV, axis=2)).mean(axis=1)
    every = [sample for own in drawn.values() for sample in own]
    return {
        "answers": sum(sample.error is None for sample in every),
        "unreadable": sum(sample.error is None and not sample.readable for sample in every),
        "errors": sum(sample.error is not None for sample in every),
        "pass_at_k": {
            name: [round(float(value), 4) for value in curve] for name, curve in {**curves, "all": curves_all}.items()
        },
        "conflicts": {
            label: {
                "pairs": of_class[label],
                "conflicts": conflicts[label],
                "rate": round(conflicts[label] / of_class[label], 4),
            }
            for label in builder.scheme.classes
            if of_class[label]
        },
    }


def _first_lengths(answers: Sequence[Answer], rule: MatchRule) -> list[tuple[int, int]]:
    """Give the tokens of the right and wrong answer that a choice without regard to length would take, if any."""
    ordered = in_seeded_order(answers, rule.seed)
    best = next((a for a in ordered if a.right and a.score == max(b.score for b in answers)), None)
    worse = [] if best is None else [a for a in ordered if best.score - a.score >= rule.margin]
    return [(best.tokens, worse[0].tokens)] if best is not None and worse else []


def _lengths(rows: Iterable[Preference]) -> list[tuple[int, int]]:
    return [(row.chosen_tokens, row.rejected_tokens) for row in rows]


def _mean_lengths(lengths: Sequence[tuple[int, int]]) -> dict[str, float | int | None]:
    if not lengths:
        return {"pairs": 0, "chosen": None, "rejected": None}
    chosen, rejected = np.mean(lengths, axis=0)
    return {"pairs": len(lengths), "chosen": round(float(chosen), 2), "rejected": round(float(rejected), 2)}


def _crossings(rows: Sequence[Preference], views: Sequence[View]) -> dict[str, Any]:
    """Count preferences by the perspective of the chosen answer and that of the rejected one.

    Returns: `chosen_rejected_views`: chosen → rejected → rows, and `crossing`: the share of rows whose two answers are
        of unlike perspectives, None without rows.
    """
    counts = Counter((row.chosen_view, row.rejected_view) for row in rows)
    crossing = sum(row.chosen_view != row.rejected_view for row in rows)
    return {
        "chosen_rejected_views": {chosen: {other: counts[chosen, other] for other in views} for chosen in views},
        "crossing": round(crossing / len(rows), 4) if rows else None,
    }


def _counts(values: Sequence[str], names: Sequence[str]) -> dict[str, int]:
    counts = Counter(values)
    return {name: counts[name] for name in names}


def _token_counter(policy: Path) -> CountTokens:
    tokenizer = load_tokenizer(policy)
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])
