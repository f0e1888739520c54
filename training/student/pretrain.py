"""Stage `pretrain`: a small encoder from scratch reads the training texts, without labels, before any training.

A cross-encoder from scratch needs tens of thousands of labels to find out that equal words in query and title matter.
Three tasks teach it that from texts alone: which query tokens the title has, how many of them ([CLS]), and which tokens
were masked in the title (Devlin et al., arXiv:1810.04805). Suffixes: B pairs, L tokens, D encoder width, V vocabulary.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from accelerate.utils import set_seed
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import BertModel

from relevance.errors import RecipeError
from relevance.pairs import read_labelled_pairs
from relevance.tokenization import PairBatch, PairTokenizer, TokenIds
from training.runs import Run, hash_file, stage_arguments
from training.student.encoder import load_encoder
from training.student.fit import rate_factor
from training.student.inputs import make_tokenizer
from training.student.train import ENCODER, PRETRAIN

MASKED = 0.15
OWN_WORD = 0.5
"""Chance that a word of a made-up query is one of the title it is held against."""
MAX_WORDS = 5
_NOTE_STEPS = 50


def main(argv: list[str]) -> int:
    """Run the stage.

    Raises: RecipeError: if the recipe has no section `student.pretrain`.
    """
    run = stage_arguments(argv, PRETRAIN, __doc__)
    recipe = run.recipe.student
    if recipe.pretrain is None:
        raise RecipeError("expected a section student.pretrain in the recipe, found none")
    pairs = run.require("data") / "pairs.train.parquet"
    inputs = {
        "pretrain": recipe.pretrain.model_dump(mode="json"),
        "encoder": recipe.encoder.model_dump(mode="json"),
        "template": run.recipe.template.model_dump(mode="json"),
        "tokens": [run.recipe.max_query_tokens, run.recipe.max_pair_tokens],
        "seed": run.recipe.seed,
        "pairs": hash_file(pairs),
        "tokenizer": hashlib.sha256(make_tokenizer(run).to_bytes()).hexdigest(),
    }
    with run.stage(PRETRAIN, inputs) as folder:
        if folder is not None:
            encoder = pretrain(run)
            state = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
            save_file(state, folder / ENCODER)
    return 0


def pretrain(run: Run) -> BertModel:
    """Give an encoder that has read the training texts; progress and losses go to the ledger.

    Raises: RecipeError: without a section `student.pretrain`.
    """
    recipe = run.recipe.student.pretrain
    if recipe is None:
        raise RecipeError("expected a section student.pretrain in the recipe, found none")
    set_seed(run.recipe.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = make_tokenizer(run)
    encoder = load_encoder(run.recipe.student.encoder, tokenizer.vocabulary_size).to(device)
    tasks = PretrainingTasks(encoder).to(device).train()
    optimizer = torch.optim.AdamW(tasks.parameters(), lr=recipe.learning_rate, weight_decay=0.01)
    texts = PretrainingTexts(run, tokenizer)
    rng = np.random.default_rng([run.recipe.seed, 31])
    with tqdm(total=recipe.steps, unit="batch", desc=PRETRAIN) as bar:
        for step in range(recipe.steps):
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * rate_factor(step, recipe.steps, 0.06)
            parts = tasks(texts.batch(recipe.batch_size, rng).to(device))
            loss: Tensor = torch.stack(list(parts.values())).sum()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(tasks.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            bar.update(1)
            if step % _NOTE_STEPS == 0 or step == recipe.steps - 1:
                figures = {name: round(float(value.detach()), 5) for name, value in parts.items()}
                bar.set_postfix(figures)
                run.note(PRETRAIN, step=step, **figures)
    return encoder.eval()


@dataclass(frozen=True, slots=True)
class PretrainingBatch:
    """B padded pairs with what is asked of them.

    Args: present_BL: 1 for a query token that the visible title has, 0 for one it has not, −1 elsewhere;
        masked_BL: the token behind a mask, −1 elsewhere.
    """

    input_ids_BL: Tensor
    attention_mask_BL: Tensor
    token_type_ids_BL: Tensor
    present_BL: Tensor
    masked_BL: Tensor

    def to(self, device: torch.device) -> PretrainingBatch:
        """Give the batch on a device."""
        return PretrainingBatch(**{name: getattr(self, name).to(device) for name in self.__slots__})


class PretrainingTexts:
    """Training queries and titles, cut and joined at random: half real pairs, half titles with made-up queries."""

    def __init__(self, run: Run, tokenizer: PairTokenizer) -> None:
        scheme, template = run.recipe.label_scheme, run.recipe.template
        pairs = [p.pair for p in read_labelled_pairs(run.require("data") / "pairs.train.parquet", scheme)]
        self._tokenizer = tokenizer
        self._titles = tokenizer.encode_items([template.item_text(pair.item) for pair in pairs])
        self._queries = tokenizer.encode_texts([template.query_text(pair.query.text) for pair in pairs])
        self._queries = [query[: tokenizer.max_query_tokens] for query in self._queries]
        self._words = [_words(tokenizer, template.item_text(pair.item)) for pair in pairs]
        self._mask_id = tokenizer.token_id("[MASK]")

    def batch(self, size: int, rng: np.random.Generator) -> PretrainingBatch:
        """Draw a batch."""
        chosen = rng.integers(len(self._titles), size=size)
        titles = [self._titles[i] for i in chosen]
        made_up = rng.random(size) < 0.5
        queries = [
            self._made_up_query(int(i), rng) if invent else self._queries[i]
            for i, invent in zip(chosen, made_up, strict=True)
        ]
        ids = self._tokenizer.collate(queries, titles)
        masked_BL, input_ids_BL = self._mask(ids, rng)
        return PretrainingBatch(
            torch.from_numpy(input_ids_BL),
            torch.from_numpy(ids.attention_mask_BL),
            torch.from_numpy(ids.token_type_ids_BL),
            torch.from_numpy(_present(input_ids_BL, ids, [len(query) for query in queries])),
            torch.from_numpy(masked_BL),
        )

    def _made_up_query(self, own: int, rng: np.random.Generator) -> TokenIds:
        words = []
        for _ in range(rng.integers(1, MAX_WORDS + 1)):
            source = self._words[own] if rng.random() < OWN_WORD else self._words[rng.integers(len(self._words))]
            if source:
                words.append(source[rng.integers(len(source))])
        query: TokenIds = np.concatenate(words or [self._queries[own]])[: self._tokenizer.max_query_tokens]
        return query

    def _mask(self, ids: PairBatch, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Give the tokens behind the masks, and the ids with masks in some places of the titles."""
        title_BL = (ids.token_type_ids_BL == 1) & (ids.input_ids_BL != self._tokenizer.sep_id)
        hidden_BL = title_BL & (rng.random(title_BL.shape) < MASKED)
        return np.where(hidden_BL, ids.input_ids_BL, -1), np.where(hidden_BL, self._mask_id, ids.input_ids_BL)


class PretrainingTasks(nn.Module):
    """The encoder with its three heads; the masked tokens are predicted by the encoder's own word embeddings."""

    def __init__(self, encoder: BertModel) -> None:
        super().__init__()
        self.encoder = encoder
        width = int(encoder.config.hidden_size)
        self.present, self.share, self.transform = nn.Linear(width, 1), nn.Linear(width, 1), nn.Linear(width, width)

    def forward(self, batch: PretrainingBatch) -> dict[str, Tensor]:
        """Give the loss of each task."""
        hidden_BLD = self.encoder(
            input_ids=batch.input_ids_BL,
            attention_mask=batch.attention_mask_BL,
            token_type_ids=batch.token_type_ids_BL,
        ).last_hidden_state
        asked_BL, hidden_mask_BL = batch.present_BL >= 0, batch.masked_BL >= 0
        entropy = nn.functional.binary_cross_entropy_with_logits
        present_BL = batch.present_BL.clamp(min=0).float()
        share_B = (present_BL * asked_BL).sum(dim=1) / asked_BL.sum(dim=1).clamp(min=1)
        vocabulary_VD = self.encoder.embeddings.word_embeddings.weight
        guess_NV = nn.functional.gelu(self.transform(hidden_BLD[hidden_mask_BL])) @ vocabulary_VD.T
        masked_N = batch.masked_BL[hidden_mask_BL]
        masked = nn.functional.cross_entropy(guess_NV, masked_N) if len(masked_N) else guess_NV.sum()
        return {
            "present": entropy(self.present(hidden_BLD).squeeze(-1)[asked_BL], present_BL[asked_BL]),
            "share": entropy(self.share(hidden_BLD[:, 0]).squeeze(-1), share_B),
            "masked": masked,
        }


def _words(tokenizer: PairTokenizer, text: str) -> list[TokenIds]:
    """Give the token ids of each word of a text."""
    return tokenizer.encode_texts(text.split())


def _present(input_ids_BL: NDArray[np.int64], ids: PairBatch, n_query: list[int]) -> NDArray[np.int64]:
    """Say of each query token whether the visible part of the title has it."""
    present_BL = np.full(input_ids_BL.shape, -1)
    for row, n in enumerate(n_query):
        title = input_ids_BL[row][ids.token_type_ids_BL[row] == 1]
        present_BL[row, 1 : n + 1] = np.isin(input_ids_BL[row, 1 : n + 1], title)
    return present_BL
