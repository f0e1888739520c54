"""The cache of keys and values that is written in place, held against transformers' own."""

from types import SimpleNamespace

import torch
from transformers.cache_utils import DynamicLayer

from training.teacher.roomy_cache import RoomyLayer, roomy_cache


def tokens(n, batch):
    """Keys and values of new tokens: two heads of four numbers."""
    return torch.randn(batch, 2, n, 4), torch.randn(batch, 2, n, 4)


def test_it_holds_what_transformers_own_holds_through_growth_and_selection():
    """A prompt, new tokens one by one past the room that was made, sequences that end, and one that is asked twice."""
    ours, theirs = RoomyLayer(), DynamicLayer()
    for step in range(200):
        if step in {50, 120}:
            kept = torch.tensor([0, 2, 2] if step == 50 else [1])
            ours.batch_select_indices(kept)
            theirs.batch_select_indices(kept)
        new = tokens(30 if step == 0 else 1, 3 if step < 120 else 1)
        for found, expected in zip(ours.update(*new), theirs.update(*new), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)

    assert ours.get_seq_length() == theirs.get_seq_length() == 229


def test_a_new_token_moves_nothing():
    """The tensors lie where they lay, until the room is used up."""
    layer = RoomyLayer()
    layer.update(*tokens(10, 2))
    places = {layer.update(*tokens(1, 2))[0].data_ptr() for _ in range(60)}

    assert len(places) == 1


def test_a_model_with_a_window_keeps_transformers_cache():
    """Such a layer forgets, and has masks of its own."""
    windowed = SimpleNamespace(config=SimpleNamespace(layer_types=["full_attention", "sliding_attention"]))

    assert roomy_cache(windowed) is None
    assert roomy_cache(SimpleNamespace(config=SimpleNamespace(layer_types=["full_attention"]))) is not None
    assert roomy_cache(SimpleNamespace(config=SimpleNamespace())) is not None
