"""CED-KD: a decoder writes the teacher's rationale from the encoder's token states; training only.

Explanation distillation in which the encoder must hold what the rationale says; the decoder is dropped for serving.
Our choices where the sources say nothing: a pre-norm Transformer decoder of the encoder's width, embeddings tied to the
encoder's for input and output, teacher forcing, one text a pair (the perspectives joined).

Suffixes: B pairs, L tokens of the pair, S of the rationale, N of all rationales, V of the vocabulary, D encoder width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, islice

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from relevance.errors import RecipeError
from relevance.pairs import Pair
from relevance.tokenization import PairBatch, PairTokenizer, TokenIds
from training.rationale_rows import shared_room
from training.recipe import VIEWS
from training.student.batches import Batch
from training.student.model import Student, StudentOutput
from training.student.terms import Term
from training.student_recipe import CedKdRecipe

RATIONALE = "rationale_ids_BS"
_ROWS_AT_ONCE = 1024


class RationaleTokens:
    """The `SideInputs` of CED-KD: each pair's rationale, padded; all padding where there is none.

    Args: pairs: the training set's; rationales: pair id → perspective → text, joined in the order user, struct, rule;
        max_tokens: of the joined text, shared fairly by the pair's perspectives: cutting the joined text at its end
        would mostly cut the last one off.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        rationales: Mapping[str, Mapping[str, str]],
        tokenizer: PairTokenizer,
        max_tokens: int,
    ) -> None:
        self._pad_id = tokenizer.pad_id
        self._fast = Tokenizer.from_buffer(tokenizer.to_bytes())
        self._special = (tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id)
        self._ids: list[TokenIds] = []
        self._whole = 0
        for start in range(0, len(pairs), _ROWS_AT_ONCE):
            own = [rationales.get(pair.pair_id, {}) for pair in pairs[start : start + _ROWS_AT_ONCE]]
            self._encode([[texts[p] for p in VIEWS if texts.get(p)] for texts in own], max_tokens)

    def arrays(self, chosen_B: NDArray[np.int64], ids: PairBatch) -> dict[str, NDArray[np.generic]]:
        """Give `rationale_ids_BS`, int64, as long as the batch's longest."""
        rows = [self._ids[chosen] for chosen in chosen_B]
        ids_BS = np.full((len(rows), max(map(len, rows), default=0)), self._pad_id, dtype=np.int64)
        for row, tokens in enumerate(rows):
            ids_BS[row, : len(tokens)] = tokens
        return {RATIONALE: ids_BS}

    @property
    def vocabulary(self) -> NDArray[np.int64]:
        """The ids that occur in any rationale, ascending."""
        return np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *self._ids])).astype(np.int64)

    @property
    def share_read(self) -> float:
        """The share of the rationales' tokens that the decoder writes."""
        return sum(map(len, self._ids)) / self._whole if self._whole else 1.0

    def _encode(self, texts: Sequence[Sequence[str]], max_tokens: int) -> None:
        encodings = iter(self._fast.encode_batch_fast(list(chain.from_iterable(texts)), add_special_tokens=False))
        for own in texts:
            texts_of_pair = [
                [token for token in encoding.ids if token not in self._special]
                for encoding in islice(encodings, len(own))
            ]
            self._whole += sum(map(len, texts_of_pair))
            cuts = shared_room([len(text) for text in texts_of_pair], max_tokens)
            ids = [token for text, cut in zip(texts_of_pair, cuts, strict=True) for token in text[:cut]]
            self._ids.append(np.array(ids, dtype=np.int32))


class RationaleDecoder(Term):
    """A Transformer decoder that predicts each token of the rationale from those before it and from the pair's states.

    Holds no word embeddings of its own: it reads the student's at each call, so they are the same tensor and learn from
    both. The target is padded at its end only, which the causal mask hides from every real token. It chooses among the
    tokens that occur in rationales: a softmax over a whole vocabulary would spend most of the step on words that no
    rationale has.

    Args: student: whose width and word embeddings it takes; vocabulary_V: the ids that occur, ascending; bos, eos, pad:
        ids that open, close and pad a rationale.
    Raises: RecipeError: if the encoder's width does not split into the heads.
    """

    name = "ced_kd"
    vocabulary_V: Tensor

    def __init__(
        self, student: Student, recipe: CedKdRecipe, vocabulary_V: NDArray[np.int64], *, bos: int, eos: int, pad: int
    ) -> None:
        super().__init__()
        width = int(student.encoder.config.hidden_size)
        if width % recipe.heads:
            raise RecipeError(f"student.ced_kd: expected heads that divide the width {width}, found {recipe.heads}")
        self.weight = recipe.weight
        self._bos, self._eos, self._pad = bos, eos, pad
        self.position = nn.Embedding(recipe.max_tokens + 1, width)
        nn.init.normal_(self.position.weight, std=0.02)
        self.embedding_norm = nn.LayerNorm(width)
        layer = nn.TransformerDecoderLayer(
            width, recipe.heads, 4 * width, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, recipe.layers, norm=nn.LayerNorm(width))
        for parameter in self.decoder.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
        written_V = torch.from_numpy(np.union1d(vocabulary_V, [eos]))
        self.register_buffer("vocabulary_V", written_V, persistent=False)
        self.bias = nn.Parameter(torch.zeros(len(written_V)))

    def forward(self, student: Student, output: StudentOutput, batch: Batch) -> Tensor:
        """Give the mean over pairs with a rationale of the mean negative log likelihood of its tokens."""
        given_BS, target_BS, real_BS = self._shifted(batch.side[RATIONALE])
        embedding_VD = student.encoder.embeddings.word_embeddings.weight
        length = given_BS.shape[1]
        embedded_BSD = nn.functional.embedding(given_BS, embedding_VD) + self.position.weight[:length]
        causal_SS = torch.ones(length, length, dtype=torch.bool, device=given_BS.device).triu(1)
        state_BSD = self.decoder(
            self.embedding_norm(embedded_BSD),
            output.hidden_BLD,
            tgt_mask=causal_SS,
            memory_key_padding_mask=batch.attention_mask_BL == 0,
            tgt_is_causal=True,
        )
        logits_NV = nn.functional.linear(state_BSD[real_BS], embedding_VD[self.vocabulary_V], self.bias)
        place_N = torch.searchsorted(self.vocabulary_V, target_BS[real_BS])
        loss_N = nn.functional.cross_entropy(logits_NV.float(), place_N, reduction="none")
        n_real_B = real_BS.sum(dim=1)
        share_BS = real_BS / n_real_B.clamp(min=1).unsqueeze(1)
        return (loss_N * share_BS[real_BS]).sum() / (n_real_B > 0).sum().clamp(min=1)

    def _shifted(self, ids_BS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give what the decoder reads (BOS first), what it writes (EOS last), and which of that counts."""
        n_B1 = (ids_BS != self._pad).sum(dim=1, keepdim=True)
        given_BS = nn.functional.pad(ids_BS, (1, 0), value=self._bos)
        target_BS = nn.functional.pad(ids_BS, (0, 1), value=self._pad).scatter(1, n_B1, self._eos)
        place_S = torch.arange(target_BS.shape[1], device=ids_BS.device)
        return given_BS, target_BS, (place_S <= n_B1) & (n_B1 > 0)
