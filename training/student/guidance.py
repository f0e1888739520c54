"""Guidance of the latent by CoT embeddings (arXiv:2601.21611, eq. 8), and the targets of its controls; training only.

Suffixes: N rows, B pairs, P perspectives, R latent width, D width of a CoT embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from relevance.errors import RecipeError
from relevance.pairs import Pair
from relevance.tokenization import PairBatch
from training.cot_store import CotStore
from training.recipe import VIEWS
from training.student.batches import Batch
from training.student.losses import alike, cosine_guidance_loss, guidance_loss, info_nce_guidance_loss
from training.student.model import Student, StudentOutput
from training.student.terms import Term
from training.student_recipe import GuidanceRecipe

EMBEDDING, PRESENT = "cot_embedding", "cot_present"


class CotInputs:
    """The CoT embeddings of each pair and perspective, zeros where there is none, and which are there."""

    def __init__(self, pairs: Sequence[Pair], store: CotStore) -> None:
        self._pair_ids = [pair.pair_id for pair in pairs]
        self._store = store

    def arrays(self, chosen_B: NDArray[np.int64], ids: PairBatch) -> dict[str, NDArray[np.generic]]:
        """Give float32 of shape (B, P, D) and bool of shape (B, P)."""
        embedding_BPD, present_BP = self._store.lookup([self._pair_ids[i] for i in chosen_B])
        return {EMBEDDING: embedding_BPD, PRESENT: present_BP}


class GuidanceProjection(nn.Module):
    """The training-only map P from the latent to the space of the CoT embeddings; never exported.

    The identity when both widths agree and no map is needed (the paper's eq. 8), else linear without bias.
    """

    def __init__(self, latent_width: int, embedding_width: int) -> None:
        super().__init__()
        self.map: nn.Module = (
            nn.Identity() if latent_width == embedding_width else nn.Linear(latent_width, embedding_width, bias=False)
        )

    def forward(self, latent_BR: Tensor) -> Tensor:
        """Give P r, of shape (B, D), or (B, P, D) for the latents of perspectives."""
        projected: Tensor = self.map(latent_BR)
        return projected


class GuidanceTerm(Term):
    """λ times the distance between P r and e; with slots each perspective's latent has its own target.

    Args: student: has an extractor; weight: λ; recipe: form of the distance; embedding_width: D.
    """

    def __init__(self, student: Student, weight: float, recipe: GuidanceRecipe, embedding_width: int) -> None:
        super().__init__()
        if student.extractor is None:
            raise RecipeError("student.guidance_weight: expected an extractor to guide, found student.extractor 'none'")
        self.name, self.weight = "guidance", weight
        self._recipe = recipe
        self.projection = GuidanceProjection(student.extractor.latent_width, embedding_width)

    def forward(self, student: Student, output: StudentOutput, batch: Batch) -> Tensor:
        """Give the mean distance over the (pair, perspective) entries that have an embedding."""
        latent = output.latent_BR if output.slots_BPR is None else output.slots_BPR
        projected = self.projection(latent).float()
        target = (batch.side[EMBEDDING], batch.side[PRESENT])
        if self._recipe.loss == "mse":
            return guidance_loss(projected, *target)
        if self._recipe.loss == "cosine":
            return cosine_guidance_loss(projected, *target)
        alike_BB = alike(batch.query_B, batch.label_B)
        return info_nce_guidance_loss(projected, *target, alike_BB, self._recipe.temperature)


def guidance_targets(
    store: CotStore, recipe: GuidanceRecipe, pair_ids: Sequence[str], label_N: NDArray[np.int64], seed: int
) -> CotStore:
    """Give what the latent is to be near: the chosen perspectives' embeddings, or a control without reasoning in it.

    Controls keep the pairs that have an embedding, λ and every parameter: `shuffled` hands each pair the embeddings of
    another one of its class, all perspectives of the same one, `random` gives each pair a random unit vector for all of
    them, `one_hot` the unit vector of its label, and `constant` gives all pairs the mean, which is what centring takes
    away from the others. So one latent can come as near to shuffled targets as to the right ones.

    Args: pair_ids, label_N: of the training pairs, whose embeddings alone are used.
    Raises: RecipeError: if a perspective was not embedded.
    """
    wanted = recipe.perspectives or tuple(p for p in store.perspectives if p in VIEWS)
    unknown = set(wanted) - set(store.perspectives)
    if unknown:
        raise RecipeError(
            f"student.guidance.perspectives: expected some of {store.perspectives}, found {sorted(unknown)}"
        )
    rows = {key: store.row_of[key] for i in pair_ids for p in wanted if (key := (i, p)) in store.row_of}
    label_of = dict(zip(pair_ids, label_N.tolist(), strict=True))
    rng = np.random.default_rng([seed, 29])
    matrix_ND, model = store.embedding_ND, store.model
    if recipe.target == "constant":
        matrix_ND = np.stack([matrix_ND[[r for (_, q), r in rows.items() if q == p]].mean(axis=0) for p in wanted])
        return CotStore(wanted, matrix_ND, {key: wanted.index(key[1]) for key in rows}, f"{model}#constant")
    if recipe.target == "shuffled":
        rows = _shuffled(rows, label_of, rng)
    elif recipe.target == "random":
        place = {pair_id: i for i, pair_id in enumerate(dict.fromkeys(pair_id for pair_id, _ in rows))}
        matrix_ND = rng.standard_normal((len(place), store.width)).astype(np.float32)
        matrix_ND /= np.linalg.norm(matrix_ND, axis=1, keepdims=True)
        rows, model = {key: place[key[0]] for key in rows}, f"{model}#random"
    elif recipe.target == "one_hot":
        matrix_ND = np.eye(int(label_N.max()) + 1, store.width, dtype=np.float32)
        rows, model = {key: label_of[key[0]] for key in rows}, f"{model}#one-hot"
    made = CotStore(wanted, matrix_ND, rows, model)
    return centred(made) if recipe.centre else made


def centred(store: CotStore) -> CotStore:
    """Give embeddings less their perspective's mean over all entries, so that a latent need not learn a constant."""
    parts: list[NDArray[np.float32]] = []
    row_of: dict[tuple[str, str], int] = {}
    offset = 0
    for perspective in store.perspectives:
        own = {key: row for key, row in store.row_of.items() if key[1] == perspective}
        if not own:
            continue
        used, place_N = np.unique(list(own.values()), return_inverse=True)
        mean_D = store.embedding_ND[list(own.values())].mean(axis=0)
        parts.append(store.embedding_ND[used] - mean_D)
        row_of |= {key: offset + int(place) for key, place in zip(own, place_N, strict=True)}
        offset += len(used)
    matrix_ND = np.concatenate(parts) if parts else store.embedding_ND[:0]
    return CotStore(store.perspectives, matrix_ND.astype(np.float32), row_of, f"{store.model}#centred")


def mean_square(store: CotStore) -> float:
    """Give the mean squared length of the targets; of centred ones, how far a latent that says nothing is from them."""
    rows = list(store.row_of.values())
    return float((store.embedding_ND[rows] ** 2).sum(axis=1).mean()) if rows else float("nan")


def reachable(store: CotStore) -> float:
    """Give the largest share of `mean_square` that one latent for all perspectives of a pair can explain.

    Nothing is nearer to a pair's targets than their mean, so what these differ by stays unexplained; 1 where each pair
    has one target, 0 where no target has a length.
    """
    rows_of: dict[str, list[int]] = {}
    for (pair_id, _), row in store.row_of.items():
        rows_of.setdefault(pair_id, []).append(row)
    matrix_ND = store.embedding_ND.astype(np.float64)
    nearest = sum(len(rows) * float((matrix_ND[rows].mean(axis=0) ** 2).sum()) for rows in rows_of.values())
    total = sum(float((matrix_ND[rows] ** 2).sum()) for rows in rows_of.values())
    return nearest / total if total > 0 else 0.0


def _shuffled(
    rows: dict[tuple[str, str], int], label_of: dict[str, int], rng: np.random.Generator
) -> dict[tuple[str, str], int]:
    """Hand each pair all embeddings of one pair of its class that has the same perspectives."""
    held: dict[str, list[str]] = {}
    for pair_id, perspective in rows:
        held.setdefault(pair_id, []).append(perspective)
    groups: dict[tuple[int, tuple[str, ...]], list[str]] = {}
    for pair_id, perspectives in held.items():
        groups.setdefault((label_of[pair_id], tuple(sorted(perspectives))), []).append(pair_id)
    donor_of: dict[str, str] = {}
    for pair_ids in groups.values():
        donor_of |= {pair_id: pair_ids[i] for pair_id, i in zip(pair_ids, rng.permutation(len(pair_ids)), strict=True)}
    return {key: rows[donor_of[key[0]], key[1]] for key in rows}


def reduced_by_pca(store: CotStore, width: int) -> CotStore:
    """Give embeddings projected to the latent's width by a PCA of their own, so that P needs no parameters.

    Raises: RecipeError: if there are fewer distinct embeddings, or narrower ones, than `width`.
    """
    used = sorted(set(store.row_of.values()))
    if store.width < width or len(used) < width:
        raise RecipeError(
            f"student.guidance.pca: expected embeddings of at least {width} dimensions and as many of them, found "
            f"{len(used)} of {store.width}"
        )
    mean_D = store.embedding_ND[used].mean(axis=0)
    centred_ND = store.embedding_ND - mean_D
    covariance_DD = np.cov(centred_ND[used], rowvar=False)
    components_DR = np.linalg.eigh(covariance_DD)[1][:, ::-1][:, :width]
    return CotStore(
        store.perspectives, (centred_ND @ components_DR).astype(np.float32), store.row_of, f"{store.model}#pca{width}"
    )
