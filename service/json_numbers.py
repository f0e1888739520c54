"""Numbers in [-1, 1] as JSON with four decimals, looked up: to format one takes five times as long."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

_STEPS = 10_000


def json_numbers(values: NDArray[np.floating]) -> list[bytes]:
    """Give the JSON of each of some numbers, of an array of any shape in order; null for NaN."""
    table = _table()
    step = np.rint(np.clip(values, -1, 1) * _STEPS) + _STEPS
    return [table[place] for place in np.where(np.isnan(step), -1, step).astype(np.int64).ravel().tolist()]


@cache
def _table() -> list[bytes]:
    return [*(b"%.4f" % (step / _STEPS) for step in range(-_STEPS, _STEPS + 1)), b"null"]
