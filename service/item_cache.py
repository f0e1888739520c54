"""The item-token cache: item text → token ids, least recently used out first, bounded and thread-safe."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from threading import Lock
from typing import TypeVar, overload

from cachetools import LRUCache

from relevance.tokenization import TokenIds

T = TypeVar("T")
ENTRY_BYTES = 600
"""Estimated bytes of an entry beside its token ids: the text, the array's header, the map's links."""
MAX_TEXT_CHARS = 1000
"""Longer texts are not cached: they are rare, and would break the estimate."""


class ItemTokenCache(MutableMapping[str, TokenIds]):
    """Bounded map that a `PairTokenizer` reads and fills.

    Args: max_entries: texts held at most, at least 1; max_bytes: estimated bytes held at most.
    """

    def __init__(self, *, max_entries: int, max_bytes: int) -> None:
        self._entries: LRUCache[str, TokenIds] = LRUCache(max_bytes, getsizeof=lambda ids: ids.nbytes + ENTRY_BYTES)
        self._max_entries = max_entries
        self._lock = Lock()

    @property
    def n_bytes(self) -> int:
        """Estimated bytes held."""
        return int(self._entries.currsize)

    @overload
    def get(self, key: str, default: None = None, /) -> TokenIds | None: ...
    @overload
    def get(self, key: str, default: TokenIds | T, /) -> TokenIds | T: ...
    def get(self, key: str, default: object = None, /) -> object:
        """Give the ids of a text, the default if they are not held; counts as a use."""
        with self._lock:
            return self._entries.get(key, default)

    def __getitem__(self, key: str) -> TokenIds:
        with self._lock:
            return self._entries[key]

    def __setitem__(self, key: str, ids: TokenIds) -> None:
        if len(key) > MAX_TEXT_CHARS or ids.nbytes + ENTRY_BYTES > self._entries.maxsize:
            return
        with self._lock:
            self._entries[key] = ids
            while len(self._entries) > self._max_entries:
                self._entries.popitem()

    def __delitem__(self, key: str) -> None:
        with self._lock:
            del self._entries[key]

    def __iter__(self) -> Iterator[str]:
        with self._lock:
            return iter(list(self._entries))

    def __len__(self) -> int:
        return len(self._entries)
