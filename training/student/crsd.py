"""CRSD (arXiv:2510.11056): one set of weights reads a pair with and without its rationale; training only.

Suffixes: N pairs, B pairs of a batch, L tokens, D encoder width, K classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from relevance.errors import RecipeError
from relevance.pairs import Pair
from relevance.text import TextTemplate
from relevance.tokenization import PairBatch, PairTokenizer, TokenIds
from training.rationale_rows import joined, shared_room
from training.recipe import VIEWS
from training.student.batches import Batch
from training.student.losses import alike, info_nce, task_loss
from training.student.model import Student, StudentOutput
from training.student.terms import Term
from training.student_recipe import CrsdRecipe

MIN_ROOM = 16
"""Tokens that a rationale must have beside the longest pair."""


class SecondView:
    """The second view `[CLS] query [SEP] item [SEP] rationale [SEP]` of each pair of a training set.

    Args: rationales: pair id → perspective → text; a pair without any is read without one and takes no part in the
        losses between the views; max_tokens: of the view, as many as the encoder has positions at most.
        `share_read` is the share of the rationales' tokens that fit.
    Raises: RecipeError: if the longest pair leaves no room for a rationale.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        rationales: Mapping[str, Mapping[str, str]],
        template: TextTemplate,
        tokenizer: PairTokenizer,
        max_tokens: int,
    ) -> None:
        if max_tokens < tokenizer.max_pair_tokens + MIN_ROOM:
            raise RecipeError(
                f"student.crsd.max_tokens: expected at least {tokenizer.max_pair_tokens + MIN_ROOM}, a pair and a "
                f"rationale of {MIN_ROOM} tokens; found {max_tokens}"
            )
        own = [rationales.get(pair.pair_id, {}) for pair in pairs]
        self._pad = tokenizer.pad_id
        self._rows, self.share_read = _rows(pairs, own, template, tokenizer, max_tokens)
        digests = [hashlib.blake2b(joined(texts).encode("utf-8", "replace"), digest_size=7).digest() for texts in own]
        self._hash_N = np.array([int.from_bytes(digest) for digest in digests], dtype=np.int64)
        self._told_N = np.array([bool(joined(texts)) for texts in own])

    def arrays(self, chosen_B: NDArray[np.int64], ids: PairBatch) -> dict[str, NDArray[np.generic]]:
        """Give token ids, their mask and types, the rationales' hashes and whether there is one."""
        rows = [self._rows[i] for i in chosen_B]
        length = max(len(row) for row, _ in rows)
        input_ids_BL = np.full((len(rows), length), self._pad, dtype=np.int64)
        mask_BL, types_BL = np.zeros_like(input_ids_BL), np.zeros_like(input_ids_BL)
        for i, (row, n_query) in enumerate(rows):
            input_ids_BL[i, : len(row)], mask_BL[i, : len(row)] = row, 1
            types_BL[i, n_query + 2 : len(row)] = 1
        return {
            "view_input_ids": input_ids_BL,
            "view_attention_mask": mask_BL,
            "view_token_type_ids": types_BL,
            "rationale_hash": self._hash_N[chosen_B],
            "has_rationale": self._told_N[chosen_B],
        }


def _rows(
    pairs: Sequence[Pair],
    rationales: Sequence[Mapping[str, str]],
    template: TextTemplate,
    tokenizer: PairTokenizer,
    max_tokens: int,
) -> tuple[list[tuple[TokenIds, int]], float]:
    """Give each pair's token ids in the second view with its number of query tokens, and how much fits.

    The pair is never cut; what room it leaves is shared fairly by the perspectives.

    Returns: the rows, and the share of the rationales' tokens that are in them.
    """
    items = tokenizer.encode_items([template.item_text(pair.item) for pair in pairs])
    texts = [[own[p] for p in VIEWS if own.get(p)] for own in rationales]
    notes = iter(tokenizer.encode_texts([text for own in texts for text in own]))
    rows, read, whole = [], 0, 0
    for pair, item, own in zip(pairs, items, texts, strict=True):
        query = tokenizer.encode_query(template.query_text(pair.query.text))
        row = [tokenizer.cls_id, *query, tokenizer.sep_id, *item[: tokenizer.item_budget(query)], tokenizer.sep_id]
        of_pair = [next(notes) for _ in own]
        cuts = shared_room([len(note) for note in of_pair], max_tokens - len(row) - 1)
        row += [token for note, cut in zip(of_pair, cuts, strict=True) for token in note[:cut]]
        read, whole = read + sum(cuts), whole + sum(map(len, of_pair))
        rows.append((np.array([*row, tokenizer.sep_id] if own else row, dtype=np.int32), len(query)))
    return rows, read / whole if whole else 1.0


class CrsdTerm(Term):
    """CE of the second view + λ_c InfoNCE(g(h), sg g(h')) + λ_kl KL(sg p' ‖ p); its weight within the loss is 1.

    Args: student: gives the encoder's width; class_weight_K: of the task loss, None for all ones.
    Raises: RecipeError: if the second view is longer than the encoder's positions.
    """

    def __init__(self, student: Student, recipe: CrsdRecipe, class_weight_K: Tensor | None) -> None:
        super().__init__()
        self.name, self.weight = "crsd", 1.0
        self._recipe, self._class_weight_K = recipe, class_weight_K
        positions = int(student.encoder.config.max_position_embeddings)
        if recipe.max_tokens > positions:
            raise RecipeError(
                f"student.crsd.max_tokens: expected at most {positions} (encoder positions), found {recipe.max_tokens}"
            )
        width = int(student.encoder.config.hidden_size)
        self.projector = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, student: Student, output: StudentOutput, batch: Batch) -> Tensor:
        """Give the sum of the three losses, over the pairs that have a rationale."""
        recipe, side = self._recipe, batch.side
        view: StudentOutput = student(side["view_input_ids"], side["view_attention_mask"], side["view_token_type_ids"])
        told_B = side["has_rationale"]
        weight_B = batch.label_weight_B * told_B
        class_weight_K = None if self._class_weight_K is None else self._class_weight_K.to(weight_B.device)
        loss = task_loss(view.logits_BK.float(), batch.label_B, weight_B, class_weight_K, 0.0)
        n_told = told_B.sum().clamp(min=1)
        if recipe.contrast_weight > 0:
            same_BB = alike(batch.query_B, batch.label_B) | (
                side["rationale_hash"].unsqueeze(1) == side["rationale_hash"].unsqueeze(0)
            )
            anchor_BD = self.projector(output.hidden_BLD[:, 0]).float()
            target_BD = self.projector(view.hidden_BLD[:, 0]).float().detach()
            contrast_B = info_nce(anchor_BD, target_BD, same_BB | ~told_B, recipe.temperature)
            loss = loss + recipe.contrast_weight * (contrast_B * told_B).sum() / n_told
        if recipe.kl_weight > 0:
            teacher_BK = torch.softmax(view.logits_BK.float(), dim=-1).detach()
            kl_BK = nn.functional.kl_div(
                torch.log_softmax(output.logits_BK.float(), dim=-1), teacher_BK, reduction="none"
            )
            loss = loss + recipe.kl_weight * (kl_BK.sum(dim=-1) * told_B).sum() / n_told
        return loss
