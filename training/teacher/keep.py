"""Which samples SFT learns from: eq. 1 of arXiv:2601.21611 keeps an answer if its label is the pair's label.

The filter keeps easy pairs and so skews the classes; what it did is counted by class and perspective. Ours: of the
consistent samples of a pair and perspective the shortest are kept, equal texts once, and classes may be capped.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from scipy.stats import chi2_contingency

from relevance.labels import LabelScheme
from relevance.pairs import LabelledPair
from training.runs import Run
from training.teacher.judge_measures import kappa
from training.teacher.parts import split_parts
from training.teacher.samples import EMPTY_TITLE, Sample, read_samples
from training.teacher_recipe import GenerateRecipe, SamplingRecipe
from training.words import chunks, query_unit, stems

STAGE = "generate"
KEPT = "kept.train.jsonl"
_MILLION = 1_000_000
_CHANCE, _ENOUGH = 0.01, 200
"""p above which so many first answers or more are said to have nothing to do with their pairs."""


def kept_rows(run: Run) -> list[tuple[LabelledPair, Sample]]:
    """Give what a run's SFT may learn from: kept samples of its own perspectives and of pairs in its own `fit` part.

    Raises: RunError: if stage `generate` has not finished.
    """
    fit = {one.pair.pair_id: one for one in split_parts(run).fit}
    rows = read_samples(run.require(STAGE) / KEPT)
    return [
        (fit[row.pair_id], row) for row in rows if row.view in run.recipe.teacher.perspectives and row.pair_id in fit
    ]


class Keeper:
    """Chooses from a stream of samples, and counts what came and what went.

    Args: label_of: pair id → class code of every pair that was asked about.
    """

    def __init__(self, recipe: GenerateRecipe, scheme: LabelScheme, label_of: Mapping[str, str]) -> None:
        self._recipe, self._scheme, self._label_of = recipe, scheme, label_of
        self._counts: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._problems: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._given: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._of_class: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        self._first: defaultdict[str, Counter[tuple[str, str]]] = defaultdict(Counter)

    def keep(self, samples: Iterable[Sample]) -> list[Sample]:
        """Give the kept samples, in order.

        Args: samples: all those of a pair and view one after the other.
        """
        kept: list[Sample] = []
        for (pair_id, view), group in groupby(samples, key=lambda sample: (sample.pair_id, sample.view)):
            own, label = list(group), self._label_of[pair_id]
            for sample in own:
                self._count(sample, label)
            right = [sample for sample in own if sample.readable and sample.label == label]
            whole = [sample for sample in right if sample.whole]
            self._counts["dropped_cut_off"] += len(right) - len(whole)
            chosen = self._chosen(whole)
            cell = self._of_class[view, label]
            cell["pairs"] += own[0].error != EMPTY_TITLE
            cell["pairs_kept"] += bool(chosen)
            cell["kept"] += len(chosen)
            kept += chosen
        balanced = self._balanced(kept)
        self._counts["dropped_balance"] += len(kept) - len(balanced)
        return balanced

    def _count(self, sample: Sample, label: str) -> None:
        if sample.error == EMPTY_TITLE:
            self._counts["empty_titles"] += 1
            return
        self._counts["asked"] += 1
        self._counts["prompt_tokens"] += sample.prompt_tokens or 0
        self._counts["completion_tokens"] += sample.completion_tokens or 0
        self._counts["without_token_counts"] += sample.completion_tokens is None
        if sample.error is not None:
            self._errors[sample.error[:80]] += 1
            return
        self._counts["answered"] += 1
        self._counts["unreadable"] += not sample.readable
        self._problems[sample.view].update(sample.problems)
        self._given[sample.view][sample.label or "none"] += 1
        if sample.sample == 0 and sample.label is not None:
            self._first[sample.view][label, sample.label] += 1
        cell = self._of_class[sample.view, label]
        cell["answers"] += 1
        cell["right"] += sample.readable and sample.label == label

    def _chosen(self, consistent: Sequence[Sample]) -> list[Sample]:
        """Give the shortest samples of a length within bounds, equal texts once."""
        by_text: dict[tuple[str, ...], Sample] = {}
        for sample in sorted(consistent, key=lambda s: (words(s.rationale), len(s.rationale), s.sample)):
            if words(sample.rationale) < self._recipe.min_words:
                self._counts["dropped_short"] += 1
            elif words(sample.rationale) > self._recipe.max_words:
                self._counts["dropped_long"] += 1
            elif (key := tuple(chunks(sample.rationale))) in by_text:
                self._counts["dropped_duplicate"] += 1
            else:
                by_text[key] = sample
        chosen = list(by_text.values())[: self._recipe.kept_per_view]
        self._counts["dropped_surplus"] += len(by_text) - len(chosen)
        return chosen

    def _balanced(self, kept: list[Sample]) -> list[Sample]:
        """Cap classes view by view, so that the cap also holds for any choice of views.

        The same pairs go under every view, in an order that depends on the pair alone.
        """
        if self._recipe.balance is None:
            return kept
        dropped: set[int] = set()
        for view in {sample.view for sample in kept}:
            rows_of: defaultdict[str, list[int]] = defaultdict(list)
            for number, sample in enumerate(kept):
                if sample.view == view:
                    rows_of[self._label_of[sample.pair_id]].append(number)
            cap = int(self._recipe.balance * min(map(len, rows_of.values())))
            for rows in rows_of.values():
                rows.sort(key=lambda number: query_unit(kept[number].pair_id, "balance:"))
                dropped.update(rows[cap:])
        return [sample for number, sample in enumerate(kept) if number not in dropped]

    def report(self, kept: Sequence[Sample], sampling: SamplingRecipe) -> dict[str, Any]:
        """Give the figures of what was asked, answered, right and kept.

        Args: kept: what `keep` gave.
        """
        classes = self._scheme.classes
        before = Counter(self._label_of.values())
        after = Counter(self._label_of[sample.pair_id] for sample in kept)
        counts = self._counts
        price = (
            sampling.prompt_price * counts["prompt_tokens"] + sampling.completion_price * counts["completion_tokens"]
        )
        dropped = ("cut_off", "short", "long", "duplicate", "surplus", "balance")
        first = {view: self._agreement(view) for view in sorted(self._first)}
        return {
            "pairs": len(self._label_of),
            **{name: counts[name] for name in ("asked", "answered", "empty_titles", "unreadable")},
            "errors": dict(sorted(self._errors.items())),
            "problems": {view: dict(sorted(own.items())) for view, own in sorted(self._problems.items())},
            "labels_given": {view: dict(sorted(own.items())) for view, own in sorted(self._given.items())},
            "first_answers": first,
            "classes": {f"{view}/{label}": self._cell(view, label) for view, label in sorted(self._of_class)},
            "dropped": {name: counts[f"dropped_{name}"] for name in dropped},
            "kept": len(kept),
            "distinct_texts": len({tuple(chunks(sample.rationale)) for sample in kept}),
            "class_balance": {"before": {c: before[c] for c in classes}, "after": {c: after[c] for c in classes}},
            "label_count_variation": {
                "before": variation([before[c] for c in classes]),
                "after": variation([after[c] for c in classes]),
            },
            "tokens": {
                "prompt": counts["prompt_tokens"],
                "completion": counts["completion_tokens"],
                "answers_without_count": counts["without_token_counts"],
            },
            "cost": round(price / _MILLION, 4),
            "warnings": self._warnings(first),
        }

    def _warnings(self, first: Mapping[str, Mapping[str, Any]]) -> list[str]:
        found = [
            f"no rationale of class {label} was kept from perspective {view}, of {cell['pairs']} pairs"
            for (view, label), cell in sorted(self._of_class.items())
            if cell["pairs"] and not cell["pairs_kept"]
        ]
        for view, agreement in first.items():
            if agreement["answers"] >= _ENOUGH and agreement["p"] > _CHANCE:
                found.append(
                    f"the classes of {agreement['answers']} first answers from perspective {view} have nothing to do "
                    f"with their pairs' (p = {agreement['p']}): such a base has not learned to compare query and item"
                )
        return found

    def _agreement(self, view: str) -> dict[str, Any]:
        """Give how far one view's first answers agree with the labels beyond chance.

        Returns: the number of readable ones; Cohen's κ, None where both name one class alone; p of a χ² test that the
            class named does not depend on the pair's, 1 where either is always the same.
        """
        pairs = self._first[view]
        rows, columns = sorted({label for label, _ in pairs}), sorted({given for _, given in pairs})
        table_RC = np.array([[pairs[label, given] for given in columns] for label in rows])
        index = {name: number for number, name in enumerate(self._scheme.classes)}
        label_N, given_N = (np.repeat([index[pair[side]] for pair in pairs], list(pairs.values())) for side in (0, 1))
        p = chi2_contingency(table_RC).pvalue if min(table_RC.shape) > 1 else 1.0
        agreement = kappa(label_N, given_N)
        return {
            "answers": int(table_RC.sum()),
            "kappa": None if np.isnan(agreement) else round(agreement, 4),
            "p": float(f"{p:.2g}"),
        }

    def _cell(self, view: str, label: str) -> dict[str, float]:
        """Give one class's counts under one view; `keep_rate` is of its pairs, before classes are capped."""
        cell = self._of_class[view, label]
        names = ("pairs", "answers", "right", "pairs_kept", "kept")
        return {
            **{name: cell[name] for name in names},
            "answer_accuracy": _share(cell["right"], cell["answers"]),
            "keep_rate": _share(cell["pairs_kept"], cell["pairs"]),
        }


def words(text: str) -> int:
    """Count the words of a text in any script; a Japanese or Chinese run of n characters has n - 1."""
    return len(stems(text))


def variation(counts: Sequence[int]) -> float:
    """Give the coefficient of variation of class counts, 0 for equal ones (TaoSR1's measure of imbalance)."""
    mean = float(np.mean(counts))
    return round(float(np.std(counts)) / mean, 4) if mean else 0.0


def _share(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 0.0
