"""The student: encoder, extractor and head, and the folder it is saved in.

Suffixes: B pairs, L tokens, D encoder width, R latent width, H head width, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertModel

from relevance.errors import LabelError, RunError
from relevance.labels import LabelScheme
from relevance.text import TextTemplate
from relevance.tokenization import PairTokenizer
from training.recipe import PERSPECTIVES
from training.student.encoder import encoder_from_config
from training.student.extractor import SlotExtractor, make_extractor, uniform_weights, weighted_sum
from training.student.frozen import FrozenStates
from training.student_recipe import ExtractorRecipe

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
Pooling = Literal["cls", "cls_mean", "segments"]


class StudentConfig(BaseModel):
    """Everything needed to rebuild a student before its weights are loaded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoder: dict[str, Any]
    extractor: ExtractorRecipe
    pooling: Pooling
    head_width: int | None = None
    scheme: dict[str, Any]
    template: TextTemplate
    max_query_tokens: int
    max_pair_tokens: int

    @property
    def label_scheme(self) -> LabelScheme:
        """The classes the student tells apart."""
        return LabelScheme.from_dict(self.scheme)


@dataclass(frozen=True, slots=True)
class StudentOutput:
    """What a forward pass gives.

    Args: logits_BK; head_BH: the head's first layer before its activation (H = hidden width, or K without one);
        latent_BR: None for a plain cross-encoder; token_weights_BL: rows summing to 1; hidden_BLD: last token states;
        slots_BPR: the latents of the perspectives, None without slots.
    """

    logits_BK: Tensor
    head_BH: Tensor
    latent_BR: Tensor | None
    token_weights_BL: Tensor
    hidden_BLD: Tensor
    slots_BPR: Tensor | None = None


class Student(nn.Module):
    """BERT cross-encoder with a latent reasoning extractor (arXiv:2601.21611, section 3.3).

    logits = output(W [pooled ; latent] + b). Pooled is the raw last-layer state of [CLS] (`cls`); [CLS] and the mean
    (`cls_mean`); or [CLS], the means q and i of the query's and the item's tokens, |q − i|, q · i and 4 cos(q, i)
    (`segments`, ours). Output is the identity, or GELU and a second linear layer when the head has a hidden width.
    """

    def __init__(self, config: StudentConfig, encoder: BertModel | None = None) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder or encoder_from_config(config.encoder)
        width = int(self.encoder.config.hidden_size)
        self.extractor = make_extractor(config.extractor, width, len(PERSPECTIVES))
        pooled_width = {"cls": width, "cls_mean": 2 * width, "segments": 5 * width + 1}[config.pooling]
        latent_width = 0 if self.extractor is None else self.extractor.latent_width
        n_classes = config.label_scheme.n_classes
        self.head = nn.Linear(pooled_width + latent_width, config.head_width or n_classes)
        self.output: nn.Module = nn.Identity()
        if config.head_width is not None:
            self.output = nn.Sequential(nn.GELU(), nn.Dropout(0.1), nn.Linear(config.head_width, n_classes))
        self.dropout = nn.Dropout(0.1)
        self.frozen: FrozenStates | None = None
        """Set by a training whose frozen layers' states are kept."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> StudentOutput:
        """Score B padded pairs; all inputs are int64 of shape (B, L)."""
        if self.frozen is None:
            hidden_BLD = self.encoder(
                input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
            ).last_hidden_state
        else:
            hidden_BLD = self.frozen.last_states(self.encoder, input_ids, attention_mask, token_type_ids)
        features = pool_states(self.config.pooling, hidden_BLD, attention_mask, token_type_ids)
        latent_BR, slots_BPR = None, None
        if self.extractor is None:
            token_weights_BL = uniform_weights(attention_mask, hidden_BLD.dtype)
        elif isinstance(self.extractor, SlotExtractor):
            slots_BPR, weights_BPL = self.extractor.slots(hidden_BLD, attention_mask)
            latent_BR, token_weights_BL = self.extractor.mix(hidden_BLD, slots_BPR, weights_BPL)
        else:
            latent_BR, token_weights_BL = self.extractor(hidden_BLD, attention_mask)
        if latent_BR is not None:
            features = torch.cat([features, latent_BR], dim=-1)
        head = self.head(self.dropout(features))
        return StudentOutput(self.output(head), head, latent_BR, token_weights_BL, hidden_BLD, slots_BPR)

    def save(self, folder: Path, tokenizer: PairTokenizer) -> None:
        """Write weights (safetensors), config and tokenizer into a folder that `load_student` reads."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, folder / WEIGHTS)
        (folder / CONFIG).write_text(self.config.model_dump_json(indent=2) + "\n", encoding="utf-8")
        (folder / TOKENIZER).write_bytes(tokenizer.to_bytes())


def pool_states(pooling: Pooling, hidden_BLD: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
    """Give what stands before the latent in the head's input, of shape (B, pooled width)."""
    cls_BD = hidden_BLD[:, 0]
    if pooling == "cls":
        return cls_BD
    if pooling == "cls_mean":
        mean_BD = weighted_sum(uniform_weights(attention_mask, hidden_BLD.dtype), hidden_BLD)
        return torch.cat([cls_BD, mean_BD], dim=-1)
    query_mask_BL = attention_mask * (1 - token_type_ids)
    query_BD = weighted_sum(uniform_weights(query_mask_BL, hidden_BLD.dtype), hidden_BLD)
    item_BD = weighted_sum(uniform_weights(attention_mask * token_type_ids, hidden_BLD.dtype), hidden_BLD)
    product_BD = query_BD * item_BD
    norms_B1 = query_BD.norm(dim=-1, keepdim=True) * item_BD.norm(dim=-1, keepdim=True)
    cosine_B1 = product_BD.sum(dim=-1, keepdim=True) / norms_B1.clamp(min=1e-6)
    return torch.cat([cls_BD, query_BD, item_BD, (query_BD - item_BD).abs(), product_BD, 4 * cosine_B1], dim=-1)


def load_student(folder: Path) -> tuple[Student, PairTokenizer]:
    """Read a student in evaluation mode and its tokenizer.

    Raises: RunError: if a file is missing or does not fit the others.
    """
    try:
        config = StudentConfig.model_validate_json((folder / CONFIG).read_bytes())
        student = Student(config)
        student.load_state_dict(load_file(folder / WEIGHTS))
        tokenizer_bytes = (folder / TOKENIZER).read_bytes()
    except (OSError, ValidationError, LabelError, RuntimeError) as error:
        raise RunError(f"{folder}: expected a student ({CONFIG}, {WEIGHTS}, {TOKENIZER}): {error}") from error
    tokenizer = PairTokenizer.from_bytes(
        tokenizer_bytes, max_query_tokens=config.max_query_tokens, max_pair_tokens=config.max_pair_tokens
    )
    return student.eval(), tokenizer
