"""The item-token cache stays within its bounds."""

from __future__ import annotations

import numpy as np

from service.item_cache import ENTRY_BYTES, MAX_TEXT_CHARS, ItemTokenCache


def _ids(n: int):
    return np.zeros(n, dtype=np.int32)


def test_the_least_recently_used_text_goes_first():
    """Three texts into two places, the first one read in between: the second is gone."""
    cache = ItemTokenCache(max_entries=2, max_bytes=10**6)
    cache["a"], cache["b"] = _ids(1), _ids(2)
    cache.get("a")
    cache["c"] = _ids(3)

    assert sorted(cache) == ["a", "c"]


def test_bytes_are_bounded():
    """Entries of 600 + 400 estimated bytes into 10,000: ten remain."""
    cache = ItemTokenCache(max_entries=1000, max_bytes=10 * (ENTRY_BYTES + 400))
    for i in range(50):
        cache[str(i)] = _ids(100)

    assert len(cache) == 10


def test_a_text_longer_than_the_estimate_allows_is_not_held():
    """Its size would not be covered by the estimate."""
    cache = ItemTokenCache(max_entries=10, max_bytes=10**6)
    cache["x" * (MAX_TEXT_CHARS + 1)] = _ids(1)

    assert len(cache) == 0
