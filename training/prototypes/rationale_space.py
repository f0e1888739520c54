"""The space that rendered rationales and latents meet in: sentence embeddings, centred a perspective, reduced by a PCA.

Suffixes: N pairs, T distinct texts of a perspective, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from relevance.errors import InputError
from relevance.pairs import LabelledPair
from training.prototypes.templates import Verdicts, render, verdicts_of
from training.rationale_rows import Rationale
from training.recipe import EmbedRecipe
from training.runs import Run
from training.teacher.embed import SentenceEncoder, TextEncoder, embed_texts
from training.teacher.embedding_cache import EmbeddingCache
from training.teacher.lsa import PREFIX as LSA_PREFIX
from training.teacher.lsa import LsaEncoder

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
_LEAST_VARIANCE = 1e-6
"""Directions with a smaller share of the largest one's variance are rounding."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """The rationales of N pairs from one perspective, as texts that pairs share.

    Args: texts, verdicts: T of each, of which the first is made of the second; row_N: text of each pair.
    """

    perspective: str
    texts: tuple[str, ...]
    verdicts: tuple[Verdicts, ...]
    row_N: Ints

    @property
    def members_T(self) -> Ints:
        """Pairs of each text."""
        return np.bincount(self.row_N, minlength=len(self.texts)).astype(np.int64)


def verdicts_by_pair(rationales: Iterable[Rationale], perspectives: Sequence[str]) -> dict[str, tuple[Verdicts, ...]]:
    """Give what the rationales of each pair conclude, one a perspective; pairs that lack one are left out."""
    found: dict[str, dict[str, Verdicts]] = {}
    for rationale in rationales:
        found.setdefault(rationale.pair_id, {})[rationale.perspective] = verdicts_of(rationale.evidence)
    return {
        pair_id: tuple(own[name] for name in perspectives)
        for pair_id, own in found.items()
        if set(perspectives) <= own.keys()
    }


def rendered(
    pairs: Sequence[LabelledPair], verdicts: Mapping[str, Sequence[Verdicts]], perspectives: Sequence[str]
) -> list[Rendered]:
    """Render each pair's rationales; of verdicts that read the same the first stands for all.

    Args: verdicts: as `verdicts_by_pair` gave them, of all the pairs.
    Raises: InputError: if there are no phrases for a perspective.
    """
    parts = []
    for place, perspective in enumerate(perspectives):
        first: dict[str, Verdicts] = {}
        of_pair = []
        for pair in pairs:
            own = verdicts[pair.pair.pair_id][place]
            text = render(perspective, own)
            first.setdefault(text, own)
            of_pair.append(text)
        number = {text: i for i, text in enumerate(first)}
        row_N = np.array([number[text] for text in of_pair], dtype=np.int64)
        parts.append(Rendered(perspective, tuple(first), tuple(first.values()), row_N))
    return parts


def encoder_name(recipe: EmbedRecipe) -> str:
    """Give the recipe's rationale encoder with its revision, so that other weights are other inputs of the stage.

    Raises: RecipeError: if a model inside a package is not there.
    """
    return recipe.model if recipe.model.startswith(LSA_PREFIX) else SentenceEncoder(recipe).model


def place_texts(run: Run, parts: Sequence[Rendered], width: int) -> list[Floats]:
    """Embed the texts and give their places, centred over the pairs of their perspective; (T, D) for each.

    Args: width: D at most; less where the texts do not span it.
    Raises: InputError: if a perspective has one text alone, which then says nothing; RecipeError: if the recipe's
        rationale encoder cannot be had.
    """
    lonely = [part.perspective for part in parts if len(part.texts) < 2]
    if lonely:
        raise InputError(f"prototypes: expected at least 2 different rationales a perspective, {lonely} have one")
    texts = list(dict.fromkeys(text for part in parts for text in part.texts))
    recipe = run.recipe.embed
    lsa = recipe.model.startswith(LSA_PREFIX)
    encoder: TextEncoder = LsaEncoder(recipe.model, texts) if lsa else SentenceEncoder(recipe)
    cache = EmbeddingCache(run.path / recipe.cache)
    found_TD, _ = embed_texts(texts, encoder, cache, group_size=recipe.batch_size)
    row_of = {text: row for row, text in enumerate(texts)}
    centred, covariance_DD = [], np.zeros((found_TD.shape[1],) * 2)
    for part in parts:
        own_TD = found_TD[[row_of[text] for text in part.texts]].astype(np.float64)
        share_T = part.members_T / part.members_T.sum()
        own_TD -= share_T @ own_TD
        covariance_DD += (own_TD * share_T[:, None]).T @ own_TD
        centred.append(own_TD)
    variance_D, axis_DD = np.linalg.eigh(covariance_DD)
    kept = np.flatnonzero(variance_D > _LEAST_VARIANCE * variance_D[-1])[::-1][:width]
    return [own_TD @ axis_DD[:, kept] for own_TD in centred]


def unit_rows(places_TD: Floats) -> Floats:
    """Give the rows at length 1."""
    return np.asarray(places_TD / np.maximum(np.linalg.norm(places_TD, axis=1, keepdims=True), 1e-12))
