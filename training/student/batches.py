"""What a student trains on: pairs with labels, soft labels and what further terms read, in length-bucketed batches.

Suffixes: N pairs, B pairs of a batch, K classes, L tokens, F features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from relevance.errors import QueryTooLongError
from relevance.pairs import Item, Pair
from relevance.text import TextTemplate
from relevance.tokenization import PairTokenizer, TokenIds
from training.student.terms import SideInputs

WINDOW = 50
"""Batches whose pairs are sorted by length together: enough to halve padding, few enough to keep batches random."""
QUERY_WINDOW = 4
"""The same where pairs of one query should meet in a batch."""


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """N pairs with everything a loss may ask for.

    Args: label_N: class index, any value where label_weight_N is 0; label_weight_N: weight of the task loss;
        soft_NK: a teacher's probabilities, zeros where soft_weight_N is 0; soft_weight_N: weight of the soft loss;
        features_NF: a teacher's features, nan where missing.
    """

    pairs: list[Pair]
    label_N: NDArray[np.int64]
    label_weight_N: NDArray[np.float32]
    soft_NK: NDArray[np.float32]
    soft_weight_N: NDArray[np.float32]
    features_NF: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.pairs)

    def rows(self, chosen: NDArray[np.bool_]) -> TrainingSet:
        """Give some of the pairs, by mask."""
        arrays = {name: getattr(self, name)[chosen] for name in self.__slots__ if name != "pairs"}
        return TrainingSet([pair for pair, take in zip(self.pairs, chosen, strict=True) if take], **arrays)

    def extended(self, other: TrainingSet) -> TrainingSet:
        """Give this set with another's pairs after its own."""
        return TrainingSet(
            self.pairs + other.pairs,
            np.concatenate([self.label_N, other.label_N]),
            np.concatenate([self.label_weight_N, other.label_weight_N]),
            np.concatenate([self.soft_NK, other.soft_NK]),
            np.concatenate([self.soft_weight_N, other.soft_weight_N]),
            np.concatenate([self.features_NF, other.features_NF]),
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """Tensors of B pairs; side: what further terms read."""

    input_ids_BL: Tensor
    attention_mask_BL: Tensor
    token_type_ids_BL: Tensor
    label_B: Tensor
    label_weight_B: Tensor
    query_B: Tensor
    soft_BK: Tensor
    soft_weight_B: Tensor
    features_BF: Tensor
    side: Mapping[str, Tensor]

    def to(self, device: torch.device) -> Batch:
        """Give the batch on a device."""
        own = {name: getattr(self, name).to(device) for name in self.__slots__ if name != "side"}
        return Batch(**own, side={name: tensor.to(device) for name, tensor in self.side.items()})


class Batches:
    """All batches of one epoch, in an order that depends on the seed and the epoch alone.

    Args: training_set, template, tokenizer: what to read and how; batch_size: pairs a batch; field_dropout: chance
        that an optional item field is hidden from a pair in this epoch; side: what further terms read of each pair.
    """

    def __init__(
        self,
        training_set: TrainingSet,
        template: TextTemplate,
        tokenizer: PairTokenizer,
        *,
        batch_size: int,
        field_dropout: float = 0.0,
        side: Sequence[SideInputs] = (),
    ) -> None:
        numbers = {query: number for number, query in enumerate(dict.fromkeys(p.query.id for p in training_set.pairs))}
        self._query_N = np.array([numbers[pair.query.id] for pair in training_set.pairs], dtype=np.int64)
        self._set = training_set
        self._template = template
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._field_dropout = field_dropout
        self._side = tuple(side)
        self._queries = encode_queries(training_set.pairs, template, tokenizer)

    def __len__(self) -> int:
        return -(-len(self._set) // self._batch_size)

    def epoch(self, seed: int, epoch: int, *, skip: int = 0, by_query: bool = False) -> Iterator[Batch]:
        """Give the batches of an epoch, without the first `skip`.

        Args: by_query: let pairs of one query meet in a batch, for a loss that compares them.
        """
        rng = np.random.default_rng([seed, epoch])
        items = [drop_fields(pair.item, self._field_dropout, rng) for pair in self._set.pairs]
        item_ids = self._tokenizer.encode_items([self._template.item_text(item) for item in items])
        length_N = np.array([len(q) + len(i) for q, i in zip(self._queries, item_ids, strict=True)])
        groups = self._query_N if by_query else None
        for chosen in bucketed(length_N, self._batch_size, rng, groups)[skip:]:
            yield self._collate(chosen, item_ids)

    def _collate(self, chosen: NDArray[np.int64], item_ids: Sequence[TokenIds]) -> Batch:
        ids = self._tokenizer.collate([self._queries[i] for i in chosen], [item_ids[i] for i in chosen])
        return Batch(
            torch.from_numpy(ids.input_ids_BL),
            torch.from_numpy(ids.attention_mask_BL),
            torch.from_numpy(ids.token_type_ids_BL),
            torch.from_numpy(self._set.label_N[chosen]),
            torch.from_numpy(self._set.label_weight_N[chosen]),
            torch.from_numpy(self._query_N[chosen]),
            torch.from_numpy(self._set.soft_NK[chosen]),
            torch.from_numpy(self._set.soft_weight_N[chosen]),
            torch.from_numpy(self._set.features_NF[chosen]),
            {name: torch.from_numpy(a) for part in self._side for name, a in part.arrays(chosen, ids).items()},
        )


def encode_queries(pairs: Sequence[Pair], template: TextTemplate, tokenizer: PairTokenizer) -> list[TokenIds]:
    """Give the token ids of each pair's query, each distinct query encoded once.

    Raises: QueryTooLongError: if one has more tokens than the recipe's limit.
    """
    known: dict[str, TokenIds] = {}
    for pair in pairs:
        if pair.query.text not in known:
            known[pair.query.text] = tokenizer.encode_query(template.query_text(pair.query.text))
    return [known[pair.query.text] for pair in pairs]


def readable(pairs: Sequence[Pair], template: TextTemplate, tokenizer: PairTokenizer) -> NDArray[np.bool_]:
    """Say which pairs have a query within the token limit; the others cannot be trained on."""
    fits: dict[str, bool] = {}
    for pair in pairs:
        if pair.query.text not in fits:
            try:
                tokenizer.encode_query(template.query_text(pair.query.text))
                fits[pair.query.text] = True
            except QueryTooLongError:
                fits[pair.query.text] = False
    return np.array([fits[pair.query.text] for pair in pairs], dtype=bool)


def drop_fields(item: Item, chance: float, rng: np.random.Generator) -> Item:
    """Give the item without its brand, colour or text, each hidden with the same chance; the title always stays."""
    if chance == 0:
        return item
    hidden = rng.random(3) < chance
    return replace(
        item,
        brand=None if hidden[0] else item.brand,
        color=None if hidden[1] else item.color,
        text=None if hidden[2] else item.text,
    )


def bucketed(
    length_N: NDArray[np.int64],
    batch_size: int,
    rng: np.random.Generator,
    group_N: NDArray[np.int64] | None = None,
) -> list[NDArray[np.int64]]:
    """Cut shuffled pairs into batches of similar length: windows of `WINDOW` batches are sorted, batches shuffled.

    Args: group_N: number of each pair's group (0 …); whole groups are shuffled and the windows are `QUERY_WINDOW`
        batches, so that members of one group meet.
    Returns: index arrays that hold each of 0 … N - 1 exactly once.
    """
    shuffled = rng.permutation(len(length_N))
    window_batches = WINDOW
    if group_N is not None:
        place = rng.permutation(int(group_N.max(initial=0)) + 1)
        shuffled = shuffled[np.argsort(place[group_N[shuffled]], kind="stable")]
        window_batches = QUERY_WINDOW
    batches = []
    for start in range(0, len(shuffled), batch_size * window_batches):
        window = shuffled[start : start + batch_size * window_batches]
        window = window[np.argsort(length_N[window], kind="stable")]
        batches += [window[i : i + batch_size] for i in range(0, len(window), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]
