"""Keys and values with room for the tokens to come: a new token is written into its place, and nothing is copied.

transformers' own layer makes new tensors of the whole cache for each token, which was half of the time of a small
decoder on a CPU (docs/decisions/0008-sampling.md). Shapes are (B sequences, heads, L tokens, D width of a head).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

_ROOM = 64
"""Tokens that a tensor is made longer than it must be."""


class RoomyLayer(DynamicLayer):  # type: ignore[misc]  # transformers is untyped here
    """One layer's cache; as `DynamicLayer`, but what it gives are views of tensors that have room."""

    keys: Tensor
    values: Tensor
    _rooms: list[Tensor] | None = None

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        cache_kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Write the new tokens' keys and values, and give those of all tokens so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states)
        before = self.get_seq_length()
        after = before + key_states.shape[-2]
        if self._rooms is None or self._rooms[0].shape[-2] < after:
            self._rooms = [_longer(self.keys, key_states, after), _longer(self.values, value_states, after)]
        for room, new in zip(self._rooms, (key_states, value_states), strict=True):
            room[:, :, before:after] = new
        self.keys, self.values = (room[:, :, :after] for room in self._rooms)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some sequences; the next update makes room anew."""
        super().batch_select_indices(indices)
        self._rooms = None


def roomy_cache(model: PreTrainedModel) -> Cache | None:
    """Give an empty cache for a model, None where layers attend to a window, for which transformers has its own."""
    kinds = getattr(model.config, "layer_types", None) or ["full_attention"]
    return Cache(layer_class_to_replicate=RoomyLayer) if set(kinds) == {"full_attention"} else None


def _longer(kept: Tensor, new: Tensor, tokens: int) -> Tensor:
    batch, heads, _, width = new.shape
    room = torch.empty((batch, heads, tokens + _ROOM, width), dtype=new.dtype, device=new.device)
    if kept.numel():
        room[:, :, : kept.shape[-2]] = kept
    return room
