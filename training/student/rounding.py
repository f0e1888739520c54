"""Rounding weights to the grid that the int8w graph stores, so that what is calibrated is what is shipped.

A weight that is rounded again comes out as it was (`snap` repeats until it does). Export stores with the same
functions, so an encoder rounded here loses nothing there.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import BertModel

_ROUNDS = 50


def row_factors(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give for each row its root mean square, rounded to half a power of two, shape (rows, 1).

    Rows divided by it are alike in size, so that one step of an output channel fits all of its inputs: that took a
    third off the error of int8w on MiniLM, for a few bytes. A row of zeros has factor 1.
    """
    size = np.sqrt((weight.astype(np.float64) ** 2).mean(axis=1, keepdims=True))
    factor: NDArray[np.float32] = np.exp2(np.rint(2 * np.log2(np.where(size > 0, size, 1))) / 2).astype(np.float32)
    return factor


def quantize_channels(weight: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round a weight to int8 in [-127, 127], symmetric, one scale a channel.

    Args: weight: of two axes; axis: the channels' axis.
    Returns: (stored, scale) with weight ≈ stored · scale along the axis; a channel of zeros has scale 1.
    """
    largest = np.abs(weight).max(axis=1 - axis)
    scale = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    stored = np.rint(weight / np.expand_dims(scale, 1 - axis))
    return np.clip(stored, -127, 127).astype(np.int8), scale


def snap(weight: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Give the nearest weight that int8w stores without loss, up to float32 rounding.

    Args: weight: as the graph holds it, inputs × outputs for a product (axis 1), rows of an embedding (axis 0).
    """
    for _ in range(_ROUNDS):
        factor = row_factors(weight) if axis == 1 else np.ones((len(weight), 1), dtype=np.float32)
        stored, scale = quantize_channels(weight / factor, axis)
        restored = stored.astype(np.float32) * np.expand_dims(scale, 1 - axis) * factor
        if np.allclose(restored, weight, rtol=1e-5, atol=0):
            break
        weight = restored
    return weight


@torch.no_grad()
def snap_encoder(encoder: BertModel) -> None:
    """Round an encoder's weights in place: embeddings by row, query, key and value together as the fused graph packs
    them, and the three dense layers of each block; biases and normalisation stay.
    """
    embeddings = encoder.embeddings
    for table in (embeddings.word_embeddings, embeddings.position_embeddings, embeddings.token_type_embeddings):
        _copy(table.weight, snap(table.weight.float().cpu().numpy(), axis=0))
    for layer in encoder.encoder.layer:
        attention = layer.attention.self
        packed = [attention.query.weight, attention.key.weight, attention.value.weight]
        _snap_products(packed)
        for dense in (layer.attention.output.dense, layer.intermediate.dense, layer.output.dense):
            _snap_products([dense.weight])


def _snap_products(weights: list[Tensor]) -> None:
    joined = np.concatenate([weight.float().cpu().numpy().T for weight in weights], axis=1)
    start = 0
    rounded = snap(joined, axis=1)
    for weight in weights:
        _copy(weight, np.ascontiguousarray(rounded[:, start : start + weight.shape[0]].T))
        start += weight.shape[0]


def _copy(weight: Tensor, values: NDArray[np.float32]) -> None:
    weight.copy_(torch.from_numpy(values).to(weight))
