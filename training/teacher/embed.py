"""Stage `embed`: rationales to CoT embeddings by a frozen sentence encoder, cached by text and model revision.

A text is embedded once, whatever run asks for it; a killed stage goes on after the last group of batches it stored.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from relevance.errors import InputError, RecipeError
from training.cot_store import CotStore
from training.model_source import resolve_model, weights_hash
from training.rationale_rows import COMBINED, Rationale, read_rationales
from training.recipe import VIEWS, EmbedRecipe
from training.runs import Run, hash_file, stage_arguments
from training.teacher.embedding_cache import EmbeddingCache, text_key
from training.teacher.label_words import strip_verdict
from training.teacher.lsa import PREFIX as LSA_PREFIX
from training.teacher.lsa import LsaEncoder
from training.teacher.policy_annotate import RATIONALES
from training.teacher.token_room import joined_whole, joined_within, share_read

log = logging.getLogger("relevance.training")
REPORT = "report.json"
_GROUP_BATCHES = 4
_JOINED = "an equal share of the encoder's room each"
"""How perspectives are joined; part of the inputs, so that other joined texts are embedded anew."""


class TextEncoder(Protocol):
    """A frozen encoder. `model` names it with its revision and whatever else changes the vectors."""

    @property
    def model(self) -> str:
        """Name, revision and token limit."""
        ...

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Give L2-normalised vectors, float32 of shape (N, D)."""
        ...


class SentenceEncoder:
    """A sentence-transformers model as the recipe names it; weights are loaded at the first text.

    Raises: RecipeError: if a `package:` model is not there, or, at the first text, the model cannot be loaded.
    """

    def __init__(self, recipe: EmbedRecipe) -> None:
        self._recipe = recipe
        self._path = resolve_model(recipe.model)
        folder = Path(self._path)
        self._local = folder.is_dir()
        revision = weights_hash(folder) if self._local else (recipe.revision or "main")
        self._name = f"{recipe.model}@{revision}#{recipe.max_tokens}"
        self._loaded: Any = None

    @property
    def model(self) -> str:
        """Name, revision (of a local folder: a hash of its files) and token limit."""
        return self._name

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Give L2-normalised vectors, float32 of shape (N, D)."""
        vectors = self._encoder().encode(
            list(texts), batch_size=self._recipe.batch_size, normalize_embeddings=True, show_progress_bar=False
        )
        return np.asarray(vectors, dtype=np.float32)

    @property
    def room(self) -> int:
        """Tokens of a text that are read, special ones not counted."""
        encoder = self._encoder()
        return int(encoder.max_seq_length) - int(encoder.tokenizer.num_special_tokens_to_add())

    def token_ends(self, texts: Sequence[str]) -> list[list[int]]:
        """Give where each token of each text ends, in characters; no text is cut.

        Raises: RecipeError: if the model's tokenizer does not tell.
        """
        tokenizer = self._encoder().tokenizer
        if not self.tells_tokens:
            raise RecipeError(
                f"embed.model {self._recipe.model!r}: expected a model with tokenizer.json, which tells where tokens "
                "end in a text, found none"
            )
        if not texts:
            return []
        found = tokenizer(list(texts), add_special_tokens=False, truncation=False, return_offsets_mapping=True)
        return [[end for _, end in offsets] for offsets in found["offset_mapping"]]

    @property
    def tells_tokens(self) -> bool:
        """Whether its tokenizer tells where tokens end, as those with a tokenizer.json do."""
        return bool(getattr(self._encoder().tokenizer, "is_fast", False))

    def _encoder(self) -> Any:  # noqa: ANN401 - sentence-transformers is untyped here
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    def _load(self) -> Any:  # noqa: ANN401 - sentence-transformers is untyped here
        if self._local:
            os.environ["HF_HUB_OFFLINE"] = "1"
        from sentence_transformers import SentenceTransformer

        try:
            model = SentenceTransformer(
                self._path, revision=None if self._local else self._recipe.revision, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            raise RecipeError(f"embed.model {self._recipe.model!r}: expected a sentence encoder: {error}") from error
        model.max_seq_length = min(model.max_seq_length or self._recipe.max_tokens, self._recipe.max_tokens)
        return model.eval()


def main(argv: list[str] | None = None) -> int:
    """Run the stage; see the module."""
    run = stage_arguments(sys.argv[1:] if argv is None else argv, "embed", __doc__)
    recipe, source = run.recipe.embed, run.require("rationales")
    files = [
        source / f"rationales.{split}.jsonl" for split in (run.recipe.embed.splits or run.recipe.rationales.splits)
    ]
    if recipe.annotated:
        files.append(run.require("annotate") / RATIONALES)
    inputs: dict[str, Any] = {
        "embed": recipe.model_dump(mode="json", exclude={"batch_size", "cache"}),
        "scheme": run.recipe.label_scheme.to_dict(),
        "files": {path.name: hash_file(path) for path in files},
    }
    sentence = None if recipe.model.startswith(LSA_PREFIX) else SentenceEncoder(recipe)
    if sentence is not None:
        inputs["model"] = sentence.model
    if recipe.combined:
        inputs["combined"] = _JOINED
    with run.stage("embed", inputs) as folder:
        if folder is not None:
            read = [rationale for path in files for rationale in read_rationales(path)]
            rationales = list({(r.pair_id, r.perspective): r for r in reversed(read)}.values())[::-1]
            encoder = sentence or LsaEncoder(recipe.model, _train_texts(source))
            store, shares = embed_rationales(run, rationales, encoder)
            store.save(folder)
            (folder / REPORT).write_text(json.dumps({"tokens_read": shares}, indent=2) + "\n", encoding="utf-8")
    return 0


def _train_texts(source: Path) -> list[str]:
    """Give what an encoder may be fitted on: the training pairs' rationales, no other split's."""
    return [rationale.rationale for rationale in read_rationales(source / "rationales.train.jsonl")]


def embed_rationales(
    run: Run, rationales: Sequence[Rationale], encoder: TextEncoder
) -> tuple[CotStore, dict[str, float]]:
    """Embed rationales through the run's cache, equal texts once.

    Returns: the embeddings, and by perspective the share of the rationales' tokens that the encoder reads, {} where its
        tokenizer does not tell.
    Raises: InputError: if there are no rationales.
    """
    if not rationales:
        raise InputError(f"{run.path}: expected rationales to embed, found none")
    recipe, scheme = run.recipe.embed, run.recipe.label_scheme
    texts = [strip_verdict(r.rationale, scheme) if recipe.strip_label_words else r.rationale for r in rationales]
    keys: list[tuple[str, str]] = [(r.pair_id, r.perspective) for r in rationales]
    perspective_of = [perspective for _, perspective in keys]
    bounded = encoder if isinstance(encoder, SentenceEncoder) else None
    shares = dict.fromkeys(perspective_of, 1.0)
    if bounded is not None:
        shares = share_read(texts, perspective_of, bounded) if bounded.tells_tokens else {}
    if recipe.combined:
        by_pair: dict[str, dict[str, str]] = {}
        for (pair_id, perspective), text in zip(keys, texts, strict=True):
            by_pair.setdefault(pair_id, {})[perspective] = text
        together = list(by_pair.values())
        made = joined_whole(together) if bounded is None else joined_within(together, bounded)
        keys += [(pair_id, COMBINED) for pair_id in by_pair]
        texts += made.texts
        shares[COMBINED] = made.share_read
    row_of_text = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    cache = EmbeddingCache(run.path / recipe.cache)
    embedding_ND, embedded = embed_texts(
        list(row_of_text), encoder, cache, group_size=recipe.batch_size * _GROUP_BATCHES
    )
    counts = {"rationales": len(texts), "texts": len(row_of_text), "embedded": embedded}
    run.note("embed", **counts, model=encoder.model, tokens_read=shares)
    log.info("embed: %s; share of tokens read: %s", counts, shares)
    row_of: dict[tuple[str, str], int] = {key: row_of_text[text] for key, text in zip(keys, texts, strict=True)}
    asked = run.recipe.rationales
    seen = {r.perspective for r in rationales}
    views: tuple[str, ...] = () if asked.generator == "teacher" else asked.perspectives
    views += tuple(v for v in VIEWS if v in seen and v not in views)
    perspectives = (*views, *((COMBINED,) if recipe.combined else ()))
    return CotStore(perspectives, embedding_ND, row_of, encoder.model), shares


def embed_texts(
    texts: Sequence[str], encoder: TextEncoder, cache: EmbeddingCache, *, group_size: int
) -> tuple[NDArray[np.float32], int]:
    """Embed texts, longest first, storing each group before the next.

    Args: group_size: texts between two writes to the cache, at most so many are lost to a kill.
    Returns: float32 of shape (N, D), in the order of the texts, and how many were not in the cache.
    """
    keys = [text_key(text, encoder.model) for text in texts]
    found = cache.get(keys)
    todo = sorted((i for i, key in enumerate(keys) if key not in found), key=lambda i: -len(texts[i]))
    with tqdm(total=len(texts), initial=len(texts) - len(todo), unit="text", desc="embed") as progress:
        for start in range(0, len(todo), group_size):
            group = todo[start : start + group_size]
            vectors = encoder.encode([texts[i] for i in group])
            made = {keys[i]: vector for i, vector in zip(group, vectors, strict=True)}
            cache.put(made)
            found |= made
            progress.update(len(group))
    return np.stack([found[key] for key in keys]).astype(np.float32), len(todo)
