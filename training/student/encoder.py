"""The student's BERT body and its tokenizer: pretrained by name or path, or a small one from scratch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, BertConfig, BertModel

from relevance.errors import RecipeError
from training.model_source import resolve_model
from training.student_recipe import EncoderRecipe

SCRATCH = "scratch"


def load_tokenizer(recipe: EncoderRecipe) -> Tokenizer:
    """Give the fast tokenizer of the encoder, or of `recipe.tokenizer` (which `scratch` needs).

    Raises: RecipeError: if it cannot be had or is not a fast one.
    """
    name = recipe.tokenizer or recipe.name
    if name == SCRATCH:
        raise RecipeError("student.encoder: name = 'scratch' needs a tokenizer; expected a name or path, found none")
    source = _offline_if_local(resolve_model(name))
    if Path(source).is_file():
        return Tokenizer.from_file(source)
    if (Path(source) / "tokenizer.json").is_file():
        return Tokenizer.from_file(str(Path(source) / "tokenizer.json"))
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, use_fast=True)
    except (OSError, ValueError) as error:
        raise RecipeError(f"student.encoder: expected a tokenizer at {name!r}: {error}") from error
    return tokenizer.backend_tokenizer


def load_encoder(recipe: EncoderRecipe, vocabulary_size: int) -> BertModel:
    """Give the encoder without a pooling layer.

    Args: vocabulary_size: of the tokenizer; a pretrained encoder must cover it.
    Raises: RecipeError: if the weights cannot be had, are not BERT's, or have too small a vocabulary.
    """
    if recipe.name == SCRATCH:
        config = BertConfig(
            vocab_size=vocabulary_size,
            hidden_size=recipe.width,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            intermediate_size=4 * recipe.width,
        )
        return BertModel(config, add_pooling_layer=False)
    source = _offline_if_local(resolve_model(recipe.name))
    try:
        config = BertConfig.from_pretrained(source)
        if config.model_type != "bert":
            raise RecipeError(f"student.encoder: expected a BERT encoder at {recipe.name!r}, found {config.model_type}")
        encoder = BertModel.from_pretrained(source, config=config, add_pooling_layer=False)
    except OSError as error:
        raise RecipeError(f"student.encoder: expected BERT weights at {recipe.name!r}: {error}") from error
    if encoder.config.vocab_size < vocabulary_size:
        raise RecipeError(
            f"student.encoder: expected a vocabulary of at least {vocabulary_size} as the tokenizer has, "
            f"found {encoder.config.vocab_size}"
        )
    return encoder


def encoder_from_config(config: dict[str, Any]) -> BertModel:
    """Give an encoder with random weights from `BertModel.config.to_dict()`."""
    return BertModel(BertConfig.from_dict(config), add_pooling_layer=False)


def _offline_if_local(source: str) -> str:
    if Path(source).is_dir():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return source
