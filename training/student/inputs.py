"""What a fine-tuning reads: the run's tokenizer, and labelled or annotated pairs as training sets."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file

from relevance.labels import LabelScheme
from relevance.pairs import LabelledPair, Pair
from relevance.tokenization import PairTokenizer
from training.recipe import Recipe
from training.runs import Run
from training.soft_labels import SoftLabels
from training.student.batches import TrainingSet
from training.student.encoder import load_tokenizer
from training.student_recipe import StudentRecipe

OF_RUN = "run:"
"""What a tokenizer's name starts with that a stage of the run made."""


def make_tokenizer(run: Run, max_pair_tokens: int | None = None) -> PairTokenizer:
    """Give the recipe's pair tokenizer, or one for shorter pairs."""
    recipe = run.recipe
    name = recipe.student.encoder.tokenizer or ""
    encoder = recipe.student.encoder
    if name.startswith(OF_RUN):
        stage, _, file = name.removeprefix(OF_RUN).partition("/")
        encoder = encoder.model_copy(update={"tokenizer": str(run.require(stage) / file)})
    return PairTokenizer(
        load_tokenizer(encoder),
        max_query_tokens=min(recipe.max_query_tokens, (max_pair_tokens or recipe.max_pair_tokens) - 4),
        max_pair_tokens=max_pair_tokens or recipe.max_pair_tokens,
    )


def learned_pairs(labelled: list[LabelledPair], student: StudentRecipe) -> list[LabelledPair]:
    """Give the labelled pairs that a student learns from: of its recipe's sources, and of their first queries.

    Queries count in order of appearance.
    """
    usable = [p for p in labelled if student.exact_only or not p.exact_only]
    chosen = set(list(dict.fromkeys(p.pair.query.id for p in usable))[: student.max_queries])
    return [p for p in usable if p.pair.query.id in chosen]


def labelled_training_set(
    labelled: list[LabelledPair], soft: SoftLabels | None, recipe: Recipe, seed: int
) -> TrainingSet:
    """Give the labelled pairs, their soft labels where annotated, and random negatives with a low weight.

    Random negatives are the items of other queries, labelled as the least relevant class; an item that the query has a
    label for is never drawn.
    """
    student, scheme = recipe.student, recipe.label_scheme
    per_query = Counter(p.pair.query.id for p in labelled)
    weight_N = np.array(
        [per_query[p.pair.query.id] ** -0.5 if student.query_weights == "sqrt_inverse" else 1.0 for p in labelled],
        dtype=np.float32,
    )
    weight_N /= weight_N.mean()
    n_features = 0 if soft is None else soft.features_NF.shape[1]
    row_of = {} if soft is None else {pair.pair_id: row for row, pair in enumerate(soft.pairs)}
    soft_NK = np.zeros((len(labelled), scheme.n_classes), dtype=np.float32)
    features_NF = np.full((len(labelled), n_features), np.nan, dtype=np.float32)
    for i, pair in enumerate(labelled):
        row = row_of.get(pair.pair.pair_id)
        if soft is not None and row is not None:
            soft_NK[i], features_NF[i] = soft.probabilities_NK[row], soft.features_NF[row]
    data = TrainingSet(
        [p.pair for p in labelled],
        np.array([scheme.index(p.label) for p in labelled], dtype=np.int64),
        weight_N,
        soft_NK,
        weight_N * (soft_NK.sum(axis=1) > 0),
        features_NF,
    )
    return data.extended(_random_negatives(labelled, student, scheme, seed=seed, n_features=n_features))


def _random_negatives(
    labelled: list[LabelledPair], student: StudentRecipe, scheme: LabelScheme, *, seed: int, n_features: int
) -> TrainingSet:
    rng = np.random.default_rng([seed, 17])
    judged = {(p.pair.query.id, p.pair.item.id) for p in labelled}
    pairs = []
    for i in rng.choice(len(labelled), size=round(student.random_negatives * len(labelled))):
        query, item = labelled[i].pair.query, labelled[int(rng.integers(len(labelled)))].pair.item
        if (query.id, item.id) not in judged:
            pairs.append(Pair(query, item))
    n = len(pairs)
    return TrainingSet(
        pairs,
        np.full(n, scheme.irrelevant, dtype=np.int64),
        np.full(n, student.random_negative_weight, dtype=np.float32),
        np.zeros((n, scheme.n_classes), dtype=np.float32),
        np.zeros(n, dtype=np.float32),
        np.full((n, n_features), np.nan, dtype=np.float32),
    )


def soft_training_set(soft: SoftLabels, without: set[str]) -> TrainingSet:
    """Give annotated pairs, without labels; pairs whose id is in `without` are left out."""
    n = len(soft.pairs)
    data = TrainingSet(
        soft.pairs,
        np.zeros(n, np.int64),
        np.zeros(n, np.float32),
        soft.probabilities_NK,
        np.ones(n, np.float32),
        soft.features_NF,
    )
    return data.rows(np.array([pair.pair_id not in without for pair in soft.pairs], dtype=bool))


def class_weights(data: TrainingSet, scheme: LabelScheme, recipe: StudentRecipe) -> NDArray[np.float32] | None:
    """Give one weight a class, mean 1 over the labelled pairs; None for all ones."""
    labelled = data.label_weight_N > 0
    if recipe.class_weights == "none" or not labelled.any():
        return None
    share_K = np.bincount(data.label_N[labelled], data.label_weight_N[labelled], minlength=scheme.n_classes)
    share_K = np.maximum(share_K / share_K.sum(), 1e-3)
    weight_K = share_K**-0.5
    balanced_K: NDArray[np.float32] = (weight_K / (weight_K @ share_K)).astype(np.float32)
    return balanced_K


def average_weights(files: list[Path]) -> dict[str, object]:
    """Give the uniform average of the weights of several fits of one start (arXiv:2203.05482)."""
    states = [load_file(file) for file in files]
    return {
        name: sum(state[name] for state in states) / len(states) if tensor.is_floating_point() else tensor
        for name, tensor in states[0].items()
    }
