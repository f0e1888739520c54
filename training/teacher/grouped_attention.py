"""Attention of one new token over a cache whose heads are shared by groups of queries, without copying the cache.

For each new token transformers repeats keys and values once per query head where there is a padding mask (its
`sdpa_attention_forward`): of a small decoder on a CPU most of a step. The queries of a group differ in nothing but
their vector, so they can stand where a sequence of queries would: the same products, in place.

Suffixes: B sequences, H query heads, G heads of keys and values, Q queries a group, L tokens, D width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "grouped_sdpa"


def use_grouped_attention(model: PreTrainedModel) -> None:
    """Let a model on a CPU that would use `sdpa` attend so; any other is left as it is."""
    shared = getattr(model.config, "num_key_value_heads", None) not in {None, model.config.num_attention_heads}
    if shared and model.device.type == "cpu" and model.config._attn_implementation == "sdpa":
        AttentionInterface.register(NAME, grouped_attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(NAME)


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,  # noqa: ANN401 - transformers' protocol
) -> tuple[Tensor, None]:
    """Attend; several tokens at once go transformers' way.

    Args: query: of shape (B, H, tokens, D); key, value: (B, G, L, D); attention_mask: (B, 1, tokens, L) or None.
    Returns: (B, tokens, H, D), and no weights.
    """
    batch, heads, tokens, width = query.shape
    groups = key.shape[1]
    if tokens > 1 or heads == groups or options.get("dropout"):
        attended, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return attended, None
    mask = None if attention_mask is None else attention_mask[:, :, :, : key.shape[2]]
    query_BGQD = query.reshape(batch, groups, heads // groups, width)
    attended = torch.nn.functional.scaled_dot_product_attention(
        query_BGQD, key, value, attn_mask=mask, scale=options.get("scaling")
    )
    return attended.reshape(batch, 1, heads, width), None
