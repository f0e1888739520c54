"""The pair cache: one (query, item) under one model → its raw logits, calibrated only when read.

Keys name everything that decides a logit and nothing else, so that a change of calibrator or policy flushes nothing.
Suffixes: B pairs, K classes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b, sha256
from threading import Lock
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from relevance.bundle import TEMPLATE, TOKENIZER, Bundle, Precision

KEY_BYTES = 16
ENTRY_BYTES = 235
"""Bytes of an entry beside the content of key and value: their headers, the map's slot and its links. Measured with
tracemalloc on full caches that replace entries: 184 to 267, by how full the map's table happens to be."""
_CRC_RESIDUE = 0x2144DF1C
"""CRC-32 of any bytes followed by their own CRC-32."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a cache knew of some pairs, in their order.

    Args: found_B; logits_BK: float32, NaN where not found; length_B: tokens of the pair, 0 where not found;
        truncated_B: not all of the item was read; n_garbage: values that were there but damaged, hence not found.
    """

    found_B: NDArray[np.bool_]
    logits_BK: NDArray[np.float32]
    length_B: NDArray[np.int64]
    truncated_B: NDArray[np.bool_]
    n_garbage: int


def scoring_identity(bundle: Bundle, precision: Precision) -> bytes:
    """Give the hash of what turns two texts into logits: graph, template, tokenizer, precision and token limits.

    Raises: BundleError: if the bundle has no graph of this precision.
    """
    manifest = bundle.manifest
    names = (bundle.graph_path(precision).name, TEMPLATE, TOKENIZER)
    parts = [precision, manifest.limits.model_dump_json(), *(manifest.files[name].sha256 for name in names)]
    return sha256("\n".join(parts).encode()).digest()


def pair_keys(identity: bytes, query_text: str, item_texts: Sequence[str]) -> list[bytes]:
    """Give the key of each pair of a query: 16 bytes.

    Args: identity: see `scoring_identity`; query_text, item_texts: cleaned, as the bundle's template gives them.
    """
    query = query_text.encode()
    start = blake2b(len(query).to_bytes(8) + query, digest_size=KEY_BYTES, key=identity)
    keys = []
    for text in item_texts:
        pair = start.copy()
        pair.update(text.encode())
        keys.append(pair.digest())
    return keys


def pack(
    logits_BK: NDArray[np.float32], length_B: NDArray[np.int64], truncated_B: NDArray[np.bool_]
) -> list[bytes | None]:
    """Give the value of each pair, its last four bytes a checksum; None where a logit is not finite."""
    layout = _layout(logits_BK.shape[1])
    rows_B = np.zeros(len(logits_BK), dtype=layout)
    rows_B["logits"], rows_B["length"], rows_B["truncated"] = logits_BK, length_B, truncated_B
    size, content = layout.itemsize, rows_B.tobytes()
    ends = range(size, len(content) + 1, size)
    rows_B["crc"] = np.fromiter((crc32(content[end - size : end - 4]) for end in ends), np.uint32, len(rows_B))
    content = rows_B.tobytes()
    finite_B = np.asarray(np.isfinite(logits_BK).all(axis=1))
    return [content[end - size : end] if keep else None for end, keep in zip(ends, finite_B, strict=True)]


def unpack(values: Sequence[bytes | None], n_classes: int) -> Found:
    """Read values as `pack` made them; one of another size or checksum is not found."""
    n, layout = len(values), _layout(n_classes)
    sound = [value is not None and len(value) == layout.itemsize and crc32(value) == _CRC_RESIDUE for value in values]
    found_B = np.asarray(sound, dtype=bool)
    rows = np.frombuffer(b"".join(v for v, s in zip(values, sound, strict=True) if s and v is not None), dtype=layout)
    logits_BK = np.full((n, n_classes), np.nan, dtype=np.float32)
    length_B, truncated_B = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=bool)
    logits_BK[found_B], length_B[found_B], truncated_B[found_B] = rows["logits"], rows["length"], rows["truncated"] != 0
    return Found(found_B, logits_BK, length_B, truncated_B, n - values.count(None) - len(rows))


class PairCache:
    """Least recently used out first, bounded by its estimated bytes; any thread may call any method.

    An ordered map of our own instead of cachetools: 2 ms instead of 5 for 3,000 values, and 40 % fewer bytes each.

    Args: max_bytes: held at most.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[bytes, bytes] = OrderedDict()
        self._n_bytes = 0
        self._lock = Lock()

    @property
    def n_bytes(self) -> int:
        """Estimated bytes held."""
        return self._n_bytes

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Give the value of each key, None where there is none; counts as a use."""
        with self._lock:
            values = [self._entries.get(key) for key in keys]
            for key, value in zip(keys, values, strict=True):
                if value is not None:
                    self._entries.move_to_end(key)
        return values

    def put_many(self, keys: Sequence[bytes], values: Sequence[bytes | None]) -> None:
        """Hold the values that are not None, and let go of what was not used for longest."""
        with self._lock:
            for key, value in zip(keys, values, strict=True):
                if value is None:
                    continue
                old = self._entries.pop(key, None)
                if old is not None:
                    self._n_bytes -= _entry_bytes(key, old)
                self._entries[key] = value
                self._n_bytes += _entry_bytes(key, value)
            while self._n_bytes > self._max_bytes:
                self._n_bytes -= _entry_bytes(*self._entries.popitem(last=False))

    def clear(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._entries.clear()
            self._n_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)


def _layout(n_classes: int) -> np.dtype[np.void]:
    return np.dtype([("logits", "<f4", (n_classes,)), ("length", "<i4"), ("truncated", "u1"), ("crc", "<u4")])


def _entry_bytes(key: bytes, value: bytes) -> int:
    return len(key) + len(value) + ENTRY_BYTES
