"""A small decoder from scratch, shaped like Qwen3, with a byte-level BPE tokenizer of its own.

The chat template writes what Qwen3's writes for system, user and assistant turns. With `enable_thinking` false the
empty think block stands at the end of the prompt; with true, or without a word on it, the block belongs to the answer.
Training and asking must therefore say the same.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from relevance.errors import RecipeError
from training.teacher_recipe import DecoderRecipe

PAD, TURN, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
THINK = ("<think>", "</think>")
_FEED_FORWARD = 3
"""Width of the feed-forward layers as a multiple of the residual stream's, as in Qwen3's smallest models."""
_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Where Qwen's tokenizers cut a text before they merge bytes: before a word's blank, and between digits."""
CHAT_TEMPLATE = """\
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- set answer = message.content.split('</think>')[-1].lstrip('\\n') %}
        {%- set thoughts = '' %}
        {%- if '</think>' in message.content %}
            {%- set thoughts = message.content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.last %}
            {{- '<think>\\n' + thoughts + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- answer + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""


def train_tokenizer(texts: Iterable[str], recipe: DecoderRecipe) -> PreTrainedTokenizerBase:
    """Train a byte-level BPE tokenizer; it has at most `recipe.vocabulary` entries, and a token for every byte."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary - len(THINK),
        special_tokens=[PAD, TURN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in THINK])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[TURN],
        chat_template=CHAT_TEMPLATE,
        model_max_length=recipe.context,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def make_decoder(recipe: DecoderRecipe, tokenizer: PreTrainedTokenizerBase) -> Qwen3ForCausalLM:
    """Build a decoder with random weights; input and output embeddings are one matrix.

    Raises: RecipeError: if the heads do not divide the width, or the key heads the heads.
    """
    head_width, rest = divmod(recipe.width, recipe.heads)
    if rest or head_width % 2 or recipe.heads % recipe.kv_heads:
        raise RecipeError(
            f"teacher.decoder: expected width / heads to be an even integer and kv_heads to divide heads, found "
            f"{recipe.width}, {recipe.heads} and {recipe.kv_heads}"
        )
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=_FEED_FORWARD * recipe.width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=head_width,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3ForCausalLM(config)
    # Servers read the temperature of a request only where sampling is the default.
    model.generation_config = GenerationConfig(
        do_sample=True, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None
    )
    return model


def n_parameters(model: nn.Module, *, trained: bool = False) -> int:
    """Count a model's parameters, tied ones once; `trained` counts those with gradients only."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trained)
