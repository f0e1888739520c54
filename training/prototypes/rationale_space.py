"""The space that rendered rationales and latents meet in: sentence embeddings, centred and reduced by a PCA.

Suffixes: N pairs, T distinct texts of a perspective, D width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from relevance.errors import InputError
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


def rendered(perspective: str, verdicts_N: Sequence[Verdicts]) -> Rendered:
    """Render the rationales of N pairs from one perspective; of verdicts that read the same the first stands for all.

    Raises: InputError: if there are no phrases for the perspective.
    """
    first: dict[str, Verdicts] = {}
    of_pair = []
    for own in verdicts_N:
        text = render(perspective, own)
        first.setdefault(text, own)
        of_pair.append(text)
    number = {text: i for i, text in enumerate(first)}
    row_N = np.array([number[text] for text in of_pair], dtype=np.int64)
    return Rendered(perspective, tuple(first), tuple(first.values()), row_N)


def encoder_name(recipe: EmbedRecipe) -> str:
    """Give the recipe's rationale encoder with its revision, so that other weights are other inputs of the stage.

    Raises: RecipeError: if a model inside a package is not there.
    """
    return recipe.model if recipe.model.startswith(LSA_PREFIX) else SentenceEncoder(recipe).model


def place_texts(run: Run, part: Rendered, width: int) -> Floats:
    """Embed the texts and give their places, centred over the pairs; (T, D).

    Args: width: D at most; less where the texts do not span it.
    Raises: InputError: if there is one text alone, which then says nothing; RecipeError: if the recipe's rationale
        encoder cannot be had.
    """
    if len(part.texts) < 2:
        raise InputError(
            f"prototypes: expected at least 2 different rationales of {part.perspective!r} that the latents can tell, "
            f"found {list(part.texts)}; see rationales.perspectives"
        )
    recipe = run.recipe.embed
    lsa = recipe.model.startswith(LSA_PREFIX)
    encoder: TextEncoder = LsaEncoder(recipe.model, part.texts) if lsa else SentenceEncoder(recipe)
    cache = EmbeddingCache(run.path / recipe.cache)
    found_TD, _ = embed_texts(part.texts, encoder, cache, group_size=recipe.batch_size)
    share_T = part.members_T / part.members_T.sum()
    centred_TD = found_TD.astype(np.float64)
    centred_TD -= share_T @ centred_TD
    variance_D, axis_DD = np.linalg.eigh((centred_TD * share_T[:, None]).T @ centred_TD)
    kept = np.flatnonzero(variance_D > _LEAST_VARIANCE * variance_D[-1])[::-1][:width]
    return np.asarray(centred_TD @ axis_DD[:, kept])


def unit_rows(places_TD: Floats) -> Floats:
    """Give the rows at length 1."""
    return np.asarray(places_TD / np.maximum(np.linalg.norm(places_TD, axis=1, keepdims=True), 1e-12))
