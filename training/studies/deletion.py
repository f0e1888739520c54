"""Deletion test of token weights: words of the largest weight are dropped, and as many random ones of the same side.

If the weights name what the score rests on, dropping their words moves it more. Words are what blanks separate; a text
without blanks is one word and drops out. Suffixes: N pairs, L tokens, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from relevance.pairs import LabelledPair
from relevance.tokenization import N_SPECIAL, PairTokenizer, TokenIds
from training.measures import Bootstrap, Scored
from training.student.model import Student
from training.teacher.judge_measures import mean_intervals

Side = Literal["query", "item"]
Score = Callable[[Sequence[LabelledPair], NDArray[np.float64]], Scored]
"""What a service would answer of pairs and their logits."""
SIDES: tuple[Side, ...] = ("query", "item")
DROPPED = (1, 3)
RANDOM_DRAWS = 3
_BATCH_SIZE = 64


@dataclass(frozen=True, slots=True)
class PairWords:
    """The words of one pair that the student reads, as token ids, with the weight of each."""

    query: list[TokenIds]
    item: list[TokenIds]
    weights: dict[Side, NDArray[np.float64]]

    def without(self, side: Side, dropped: NDArray[np.int64]) -> tuple[TokenIds, TokenIds]:
        """Give the token ids of query and item without some words of one side."""
        gone = set(dropped.tolist())
        parts = {"query": self.query, "item": self.item}
        parts[side] = [ids for place, ids in enumerate(parts[side]) if place not in gone]
        return _joined(parts["query"]), _joined(parts["item"])


def deletion_test(
    student: Student,
    tokenizer: PairTokenizer,
    pairs: Sequence[LabelledPair],
    score: Score,
    *,
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    """Drop words by weight and at random, and give what that does to score, label and tier.

    Returns: `SIDE, N dropped` → `n_pairs` (those with more words than are dropped), and by figure (`score_change`,
        absolute, `label_flips`, `tier_flips`) the value and interval of `weighted`, `random` and their `difference`.
    """
    words = read_words(student, tokenizer, pairs)
    rng = np.random.default_rng([bootstrap.seed, 11])
    results: dict[str, Any] = {}
    for side in SIDES:
        for count in DROPPED:
            rows = [n for n, own in enumerate(words) if len(own.weights[side]) > count]
            chosen, own_words = [pairs[n] for n in rows], [words[n] for n in rows]
            heaviest = [np.argsort(-own.weights[side], kind="stable")[:count] for own in own_words]
            drawn = [
                [rng.choice(len(own.weights[side]), size=count, replace=False) for own in own_words]
                for _ in range(RANDOM_DRAWS)
            ]
            result: dict[str, Any] = {"n_pairs": len(rows)}
            if rows:
                whole = [(_joined(own.query), _joined(own.item)) for own in own_words]
                before = score(chosen, run_ids(student, tokenizer, whole)[0])
                effects = []
                for dropped in (heaviest, *drawn):
                    cut = [own.without(side, places) for own, places in zip(own_words, dropped, strict=True)]
                    after = score(chosen, run_ids(student, tokenizer, cut)[0])
                    effects.append(_effects(before, after))
                result |= _figures(before.query_id, effects[0], effects[1:], bootstrap)
            results[f"{side}, {count} dropped"] = result
    return results


def read_words(student: Student, tokenizer: PairTokenizer, pairs: Sequence[LabelledPair]) -> list[PairWords]:
    """Split pairs into words and sum the token weights of each; words of an item that are cut off are left out."""
    template = student.config.template
    split = []
    for labelled in pairs:
        query = _known(tokenizer, template.query_text(labelled.pair.query.text))
        item = _known(tokenizer, template.item_text(labelled.pair.item))
        ends = np.cumsum([len(ids) for ids in item])
        budget = tokenizer.max_pair_tokens - N_SPECIAL - sum(map(len, query))
        split.append((query, [ids for ids, end in zip(item, ends.tolist(), strict=True) if end <= budget]))
    _, weights = run_ids(student, tokenizer, [(_joined(query), _joined(item)) for query, item in split])
    found = []
    for (query, item), weight_L in zip(split, weights, strict=True):
        start = 1 + sum(map(len, query))
        sides: dict[Side, NDArray[np.float64]] = {
            "query": _summed(weight_L[1:start], query),
            "item": _summed(weight_L[start + 1 : -1], item),
        }
        found.append(PairWords(query, item, sides))
    return found


def _joined(words: Sequence[TokenIds]) -> TokenIds:
    """Give the tokens of all words, none of no words: an item without blanks may be one word that is cut off."""
    return np.concatenate([np.array([], dtype=np.int32), *words])


def _known(tokenizer: PairTokenizer, text: str) -> list[TokenIds]:
    """Give the tokens of each word, without words that come to none, such as one of accents alone."""
    return [ids for ids in tokenizer.encode_texts(text.split()) if len(ids)]


@torch.inference_mode()
def run_ids(
    student: Student, tokenizer: PairTokenizer, pairs: Sequence[tuple[TokenIds, TokenIds]]
) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:
    """Run a student over token ids of queries and items, in batches sorted by length.

    Returns: logits of shape (N, K), and the token weights of each pair, specials included, padding not.
    """
    order = sorted(range(len(pairs)), key=lambda n: len(pairs[n][0]) + len(pairs[n][1]))
    logits_NK = np.empty((len(pairs), student.config.label_scheme.n_classes))
    weights: list[NDArray[np.float64]] = [np.empty(0)] * len(pairs)
    device = next(student.parameters()).device
    for start in range(0, len(order), _BATCH_SIZE):
        chosen = order[start : start + _BATCH_SIZE]
        batch = tokenizer.collate([pairs[n][0] for n in chosen], [pairs[n][1] for n in chosen])
        output = student(**{name: torch.from_numpy(array).to(device) for name, array in batch.inputs().items()})
        logits_NK[chosen] = output.logits_BK.float().cpu().numpy()
        weight_BL = output.token_weights_BL.double().cpu().numpy()
        lengths = batch.attention_mask_BL.sum(axis=1).tolist()
        for row, n in enumerate(chosen):
            weights[n] = weight_BL[row, : lengths[row]]
    return logits_NK, weights


def _summed(weight_L: NDArray[np.float64], words: Sequence[TokenIds]) -> NDArray[np.float64]:
    ends = np.cumsum([0, *map(len, words)])
    return np.array([weight_L[a:b].sum() for a, b in pairwise(ends.tolist())])


def _effects(before: Scored, after: Scored) -> dict[str, NDArray[np.float64]]:
    return {
        "score_change": np.abs(after.score - before.score),
        "label_flips": (after.predicted != before.predicted).astype(np.float64),
        "tier_flips": (after.tier != before.tier).astype(np.float64),
    }


def _figures(
    query_id: NDArray[np.str_],
    weighted: dict[str, NDArray[np.float64]],
    drawn: Sequence[dict[str, NDArray[np.float64]]],
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    figures = {}
    for name, own_N in weighted.items():
        random_N = np.mean([effects[name] for effects in drawn], axis=0)
        values = {"weighted": own_N, "random": random_N, "difference": own_N - random_N}
        figures[name] = mean_intervals(query_id, values, bootstrap)
    return figures
