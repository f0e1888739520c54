"""MKD (Zhao et al., arXiv:2411.13045): learn a teacher's class distribution and its evidence; training only.

L = α T² KL(teacher ‖ student) + γ CRF loss per token. The paper's teacher gives p_good / (p_good + p_bad); with more
than two classes we soften the whole distribution instead, at temperature T.

Suffixes: B pairs (M of them with evidence), K classes, L tokens, D encoder width, T tags.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from relevance.pairs import Pair
from relevance.text import TextTemplate
from relevance.tokenization import PairBatch, PairTokenizer
from training.rationale_rows import Evidence
from training.student.batches import Batch
from training.student.bio_tags import N_TAGS, Alignment, spans_in_text, tags_of_spans
from training.student.crf import LinearChainCrf
from training.student.model import Student, StudentOutput
from training.student.terms import Term
from training.student_recipe import MkdRecipe

log = logging.getLogger("relevance.training")
TAGS = "evidence_tag_BL"
LEAST_ALIGNED = 0.6
_ROWS_AT_ONCE = 1024


class EvidenceTags:
    """The `SideInputs` of MKD: a tag per token, −1 at [CLS], [SEP] and padding and on pairs that do not count.

    A pair counts if at least one span of its evidence was found and the student reads the item text that was tagged,
    which it does not where field dropout hides a field. Logs how much was found, and warns under 60 % or without any.

    Args: pairs: the training set's; evidence: pair id → its evidence, of all perspectives.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        evidence: Mapping[str, Sequence[Evidence]],
        template: TextTemplate,
        tokenizer: PairTokenizer,
    ) -> None:
        self.alignment = Alignment()
        self._budget = tokenizer.item_budget
        self._ids: list[tuple[NDArray[np.int32], NDArray[np.int32]]] = []
        self._tags: list[tuple[NDArray[np.int8], NDArray[np.int8]] | None] = []
        fast = Tokenizer.from_buffer(tokenizer.to_bytes())
        for start in range(0, len(pairs), _ROWS_AT_ONCE):
            self._tag(pairs[start : start + _ROWS_AT_ONCE], evidence, template, fast, tokenizer.max_pair_tokens)
        share, found, spans = self.alignment.share, self.alignment.found, self.alignment.spans
        enough = share >= LEAST_ALIGNED
        log.log(
            logging.INFO if enough else logging.WARNING,
            "mkd: found %.1f %% of the spans of evidence in what the student reads (query %d of %d, item %d of %d)%s",
            100 * share,
            found["query"],
            spans["query"],
            found["item"],
            spans["item"],
            "" if enough else f"; under {LEAST_ALIGNED:.0%} MKD is under-supervised",
        )

    def arrays(self, chosen_B: NDArray[np.int64], ids: PairBatch) -> dict[str, NDArray[np.generic]]:
        """Give `evidence_tag_BL`, int64, for the tokens as the student reads them."""
        tag_BL = np.full(ids.input_ids_BL.shape, -1, dtype=np.int64)
        for row, chosen in enumerate(chosen_B):
            tags = self._tags[chosen]
            if tags is None:
                continue
            query_ids, item_ids = self._ids[chosen]
            item_start = len(query_ids) + 2
            item_end = int(ids.attention_mask_BL[row].sum()) - 1
            tagged = item_ids[: self._budget(query_ids)]
            if np.array_equal(ids.input_ids_BL[row, item_start:item_end], tagged):
                tag_BL[row, 1 : item_start - 1] = tags[0]
                tag_BL[row, item_start:item_end] = tags[1][: len(tagged)]
        return {TAGS: tag_BL}

    def _tag(
        self,
        pairs: Sequence[Pair],
        evidence: Mapping[str, Sequence[Evidence]],
        template: TextTemplate,
        fast: Tokenizer,
        max_tokens: int,
    ) -> None:
        texts = [(template.query_text(pair.query.text), template.item_text(pair.item)) for pair in pairs]
        encoded = [fast.encode_batch([text[part] for text in texts], add_special_tokens=False) for part in (0, 1)]
        for pair, text, query, item in zip(pairs, texts, *encoded, strict=True):
            rows = list(dict.fromkeys(evidence.get(pair.pair_id, ())))
            in_query = spans_in_text(text[0], [(row, row.query_span) for row in rows if row.query_span])
            in_item = spans_in_text(text[1], [(row, row.item_span) for row in rows if row.item_span])
            for part, found in (("query", in_query), ("item", in_item)):
                self.alignment.spans[part] += len(found)
                self.alignment.found[part] += sum(map(bool, found))
            counts = any(in_query) or any(in_item)
            tags = (
                tags_of_spans(query.offsets, [span for found in in_query for span in found]),
                tags_of_spans(item.offsets, [span for found in in_item for span in found])[:max_tokens],
            )
            self._ids.append((np.array(query.ids, np.int32), np.array(item.ids[:max_tokens], np.int32)))
            self._tags.append(tags if counts else None)


class MkdTerm(Term):
    """Both parts of MKD's loss; what it adds to the student (a linear layer and a CRF) is never saved with it.

    Needs soft labels in the batch, and `EvidenceTags` among its side inputs.
    """

    name = "mkd"
    weight = 1.0

    def __init__(self, student: Student, recipe: MkdRecipe) -> None:
        super().__init__()
        self._recipe = recipe
        self.emission = nn.Linear(int(student.encoder.config.hidden_size), N_TAGS)
        self.crf = LinearChainCrf(N_TAGS)

    def forward(self, student: Student, output: StudentOutput, batch: Batch) -> Tensor:
        """Give α T² KL + γ CRF loss; each part is the mean over the pairs that have a teacher's word on it."""
        recipe = self._recipe
        soft = softened_loss(output.logits_BK.float(), batch.soft_BK, batch.soft_weight_B, recipe.temperature)
        tags = self._tag_loss(output.hidden_BLD, batch.side[TAGS])
        return recipe.soft_weight * soft + recipe.tag_weight * tags

    def _tag_loss(self, hidden_BLD: Tensor, tag_BL: Tensor) -> Tensor:
        counts_B = (tag_BL >= 0).any(dim=1)
        hidden_MLD, tag_ML, mask_ML = without_specials(hidden_BLD[counts_B], tag_BL[counts_B])
        loss_M: Tensor = self.crf(self.emission(hidden_MLD).float(), tag_ML, mask_ML)
        return (loss_M / mask_ML.sum(dim=1)).sum() / max(len(loss_M), 1)


def without_specials(hidden_BLD: Tensor, tag_BL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Move the query's and the item's tokens together, so that no [CLS], [SEP] or padding stands before or between.

    Args: tag_BL: −1 where a token has no tag.
    Returns: states, tags (0 where masked) and mask, True on each row's first tokens; cut to the longest row.
    """
    has_tag_BL = tag_BL >= 0
    longest = int(has_tag_BL.sum(dim=1).amax()) if len(tag_BL) else 1
    order_BL = torch.argsort(~has_tag_BL, dim=1, stable=True)[:, :longest]
    moved_BLD = hidden_BLD.gather(1, order_BL.unsqueeze(2).expand(-1, -1, hidden_BLD.shape[2]))
    return moved_BLD, tag_BL.gather(1, order_BL).clamp(min=0), has_tag_BL.gather(1, order_BL)


def softened_loss(logits_BK: Tensor, teacher_BK: Tensor, weight_B: Tensor, temperature: float) -> Tensor:
    """Weighted mean of T² KL(teacher at T ‖ student at T) (Hinton et al., arXiv:1503.02531).

    Args: teacher_BK: probabilities at temperature 1, zeros where weight_B is 0.
    """
    softened_BK = teacher_BK.float().pow(1 / temperature)
    softened_BK = softened_BK / softened_BK.sum(dim=1, keepdim=True).clamp(min=1e-8)
    log_student_BK = torch.log_softmax(logits_BK / temperature, dim=1)
    loss_B = nn.functional.kl_div(log_student_BK, softened_BK, reduction="none").sum(dim=1)
    return temperature**2 * (loss_B * weight_B).sum() / weight_B.sum().clamp(min=1e-8)
