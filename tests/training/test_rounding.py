"""Weights rounded for int8w: rounding twice is rounding once, and storing what was rounded loses nothing."""

import numpy as np
import pytest

from training.student.rounding import quantize_channels, row_factors, snap


@pytest.mark.parametrize("axis", [0, 1])
def test_a_snapped_weight_is_stored_without_loss(axis):
    """What export makes of a snapped weight restores it to float32 precision; of the raw weight it does not."""
    rng = np.random.default_rng(0)
    raw = (rng.standard_normal((96, 64)) * np.exp(rng.standard_normal((96, 1)))).astype(np.float32)

    def stored_and_restored(weight):
        factor = row_factors(weight) if axis == 1 else np.ones((96, 1), dtype=np.float32)
        stored, scale = quantize_channels(weight / factor, axis)
        return stored.astype(np.float32) * np.expand_dims(scale, 1 - axis) * factor

    snapped = snap(raw, axis)
    assert np.abs(stored_and_restored(snapped) - snapped).max() < 1e-5 * np.abs(snapped).max()
    assert np.abs(stored_and_restored(raw) - raw).max() > 1e-3 * np.abs(raw).max()


def test_snapping_moves_a_weight_by_about_half_a_step():
    """127 steps a side: the mean move is below 1 / 127 of a row's largest entry."""
    raw = np.random.default_rng(1).standard_normal((64, 64)).astype(np.float32)

    assert np.abs(snap(raw, 0) - raw).mean() < np.abs(raw).max() / 127


def test_rows_of_zeros_stay_zero():
    """A padding embedding is all zeros and must not become nan."""
    assert np.array_equal(snap(np.zeros((4, 8), dtype=np.float32), 1), np.zeros((4, 8), dtype=np.float32))
