"""Numbers in [-1, 1] as JSON of one width with four decimals, looked up: to format one takes ten times as long."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

WIDTH = 7
"""Bytes of a number: a blank stands where there is no minus, and blanks fill a null up."""
ROOM = b" " * WIDTH
_STEPS = 10_000


def json_digits(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Give the JSON of numbers as bytes along one more axis, `WIDTH` of them; null for NaN."""
    step = np.rint(np.clip(values, -1, 1) * _STEPS) + _STEPS
    return _table()[np.where(np.isnan(step), -1, step).astype(np.int64)]


def json_numbers(values: NDArray[np.floating]) -> list[bytes]:
    """Give the JSON of each of some numbers, of an array of any shape in order; null for NaN."""
    text = json_digits(values).tobytes()
    return [text[start : start + WIDTH] for start in range(0, len(text), WIDTH)]


@cache
def _table() -> NDArray[np.uint8]:
    numbers = [b"% .4f" % (step / _STEPS) for step in range(-_STEPS, _STEPS + 1)]
    return np.frombuffer(b"".join([*numbers, b"null".ljust(WIDTH)]), dtype=np.uint8).reshape(-1, WIDTH)
