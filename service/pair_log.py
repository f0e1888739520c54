"""The pair log: a sample of what was scored, as rotating Parquet files; the input of annotation and recalibration.

Opt-in, because it holds texts. Columns that `relevance.pairs` knows have its names, so `read_pairs` reads a file; what
the model said is in `predicted_label`, because `label` is an annotator's word. A file appears under its final name only
when it is whole; a kill loses at most the rows of the last FILE_S seconds.
"""

from __future__ import annotations

import json
import logging
import os
import pkgutil
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from time import monotonic
from typing import TYPE_CHECKING

from relevance.bundle import Bundle
from relevance.errors import InputError, SettingsError
from relevance.pairs import Item
from service.scorer import REASONS, Scored
from service.telemetry import Telemetry

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger("relevance.service")
FILE_S = 60.0
FILE_ROWS = 10_000
FILE_BYTES = 64 * 1024 * 1024
MAX_WAITING_CHARS = 32 * 1024 * 1024
_REQUEST_CHARS = 1000
"""What a waiting request weighs beside its texts."""
_NAME = re.compile(r"pairs-\d{8}-\d{8}T\d{6}Z\.parquet")
Redact = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class _Sample:
    query: str
    items: Sequence[Item]
    locale: str | None
    scored: Scored
    bundle: Bundle
    n_chars: int
    time: datetime = field(default_factory=lambda: datetime.now(UTC))


def load_redact(name: str) -> Redact:
    """Give the redaction function that `module:function` names.

    Raises: SettingsError: no such module or function, or not a function.
    """
    try:
        redact = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingsError(f"pair_log_redact: expected module:function, found {name!r}: {error}") from error
    if not callable(redact):
        raise SettingsError(f"pair_log_redact: expected a function, found {name!r}, a {type(redact).__name__}")
    function: Redact = redact
    return function


def _schema() -> pa.Schema:
    import pyarrow as pa

    texts = dict.fromkeys(("item_id", "title", "brand", "color", "text", "attributes"), pa.string())
    types: dict[str, pa.DataType] = {
        "time": pa.timestamp("us", tz="UTC"),
        **dict.fromkeys(("query", "locale", "policy_locale"), pa.string()),
        **{"index": pa.int32(), **texts},
        **{"score": pa.float64(), "tier": pa.int8(), "predicted_label": pa.string()},
        **{"kept": pa.bool_(), "reason": pa.string(), "bundle": pa.string()},
    }
    return pa.schema(list(types.items()))


class PairLog:
    """Takes samples from any thread without waiting; a thread of its own redacts and writes them.

    Args: folder: made if missing; of this process alone, left-over temporary files in it are removed; rate: share of
        requests; max_bytes: of all files together, the oldest go first; redact: see `load_redact`, None for none.
    Raises: SettingsError: a folder that cannot be written to, or no such redaction function.
    """

    def __init__(self, folder: Path, telemetry: Telemetry, *, rate: float, max_bytes: int, redact: str | None) -> None:
        self._folder = folder
        self._telemetry = telemetry
        self._rate = rate
        self._max_bytes = max_bytes
        self._file_bytes = min(FILE_BYTES, max_bytes // 4)
        self._redact = None if redact is None else load_redact(redact)
        self._random = random.Random()
        self._queue: SimpleQueue[_Sample | None] = SimpleQueue()
        self._lock = Lock()
        self._waiting_chars = 0
        self._closed = False
        self._next_number = self._open_folder()
        self._schema = _schema()
        self._tables: list[pa.Table] = []
        self._write_at = 0.0
        self._told: set[str] = set()
        self._thread = Thread(target=self._run, name="pair-log", daemon=True)
        self._thread.start()

    def offer(self, query: str, items: Sequence[Item], *, locale: str | None, scored: Scored, bundle: Bundle) -> None:
        """Take one answered request into the log, or not: sampled by rate, dropped while too much waits.

        Args: query, items, locale: as the caller wrote them; bundle: what scored them.
        """
        if self._random.random() >= self._rate:
            return
        n_chars = _REQUEST_CHARS + len(query) + sum(map(_chars, items))
        with self._lock:
            fits = not self._closed and self._waiting_chars + n_chars <= MAX_WAITING_CHARS
            if fits:
                self._waiting_chars += n_chars
                self._queue.put(_Sample(query, items, locale, scored, bundle, n_chars))
        if not fits:
            self._count("dropped", len(items))

    def close(self) -> None:
        """Write what waits and end the thread."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join()

    def _open_folder(self) -> int:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for left_over in self._folder.glob("pairs-*.tmp"):
                left_over.unlink()
            files = self._files()
        except OSError as error:
            raise SettingsError(f"{self._folder}: expected a folder for the pair log: {error.strerror}") from error
        if not os.access(self._folder, os.W_OK | os.X_OK):
            raise SettingsError(f"{self._folder}: expected a folder for the pair log, found it not writable")
        self._telemetry.pair_log_bytes.set(sum(map(_size, files)))
        return 1 + int(files[-1].name.split("-")[1]) if files else 1

    def _files(self) -> list[Path]:
        return sorted(path for path in self._folder.iterdir() if _NAME.fullmatch(path.name))

    def _run(self) -> None:
        while True:
            try:
                sample = self._queue.get(timeout=self._seconds_left() if self._tables else None)
            except Empty:
                self._write()
                continue
            if sample is None:
                self._write()
                return
            self._take(sample)
            n_rows, n_bytes = sum(t.num_rows for t in self._tables), sum(t.nbytes for t in self._tables)
            if n_rows >= FILE_ROWS or n_bytes >= self._file_bytes or not self._seconds_left():
                self._write()

    def _seconds_left(self) -> float:
        return max(0.0, self._write_at - monotonic())

    def _take(self, sample: _Sample) -> None:
        n_rows = 0
        try:
            table = _table(sample, self._schema, redact=self._redact)
        except Exception as error:  # noqa: BLE001 - the hook is not ours, and its message may hold a text
            self._tell("redacting or laying out a request", error)
        else:
            n_rows = table.num_rows
            if not self._tables:
                self._write_at = monotonic() + FILE_S
            self._tables.append(table)
        self._count("dropped", len(sample.items) - n_rows)
        with self._lock:
            self._waiting_chars -= sample.n_chars

    def _write(self) -> None:
        if not self._tables:
            return
        import pyarrow as pa

        table, self._tables = pa.concat_tables(self._tables), []
        try:
            written = self._write_file(table)
        except (OSError, pa.ArrowException) as error:
            self._tell("writing a file", error)
            written = False
        self._count("written" if written else "dropped", table.num_rows)

    def _write_file(self, table: pa.Table) -> bool:
        import pyarrow.parquet as pq

        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        path = self._folder / f"pairs-{self._next_number:08d}-{stamp}.parquet"
        temporary = path.with_suffix(".tmp")
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                pq.write_table(table, file, compression="zstd")
            fits = self._make_room(temporary.stat().st_size)
            if fits:
                os.replace(temporary, path)
                self._next_number += 1
        finally:
            temporary.unlink(missing_ok=True)
        return fits

    def _make_room(self, n_bytes: int) -> bool:
        if n_bytes > self._max_bytes:
            return False
        sizes = {path: _size(path) for path in self._files()}
        total = sum(sizes.values()) + n_bytes
        for path, size in sizes.items():
            if total <= self._max_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size
        self._telemetry.pair_log_bytes.set(total)
        return True

    def _count(self, outcome: str, n_rows: int) -> None:
        self._telemetry.pair_log_rows.labels(outcome).inc(n_rows)

    def _tell(self, what: str, error: Exception) -> None:
        """Log each kind of failure once, without its message, which may hold a text."""
        kind = f"{what}: {type(error).__name__}"
        if kind not in self._told:
            self._told.add(kind)
            log.error("pair log: %s; such rows are dropped and counted", kind)


def _table(sample: _Sample, schema: pa.Schema, *, redact: Redact | None) -> pa.Table:
    """Lay out one request; rows whose query or title is blank are left out, because `read_pairs` refuses them."""
    import pyarrow as pa

    query, items = _redacted(sample.query, redact) or "", [_redacted_item(item, redact) for item in sample.items]
    scored, classes = sample.scored, sample.bundle.scheme.classes
    rows = []
    columns = zip(
        items,
        scored.score_B.tolist(),
        scored.tier_B.tolist(),
        scored.label_B.tolist(),
        scored.kept_B.tolist(),
        scored.reason_B.tolist(),
        strict=True,
    )
    for index, (item, score, tier, label, kept, reason) in enumerate(columns):
        if not query.strip() or not item.title.strip():
            continue
        row = {
            "time": sample.time,
            "query": query,
            "locale": sample.locale,
            "policy_locale": scored.policy_locale,
            "index": index,
            "item_id": str(item.id),
            "title": item.title,
            "brand": item.brand,
            "color": item.color,
            "text": item.text,
            "attributes": json.dumps(dict(item.attributes), ensure_ascii=False) if item.attributes else None,
            "score": None if reason else score,
            "tier": None if reason else tier,
            "predicted_label": None if reason else classes[label],
            "kept": kept,
            "reason": REASONS[reason - 1] if reason else None,
            "bundle": sample.bundle.manifest.bundle_id,
        }
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=schema)


def _redacted(text: str | None, redact: Redact | None) -> str | None:
    if text is None or redact is None:
        return text
    redacted = redact(text)
    if not isinstance(redacted, str):
        raise InputError(f"redaction: expected a text, found {type(redacted).__name__}")
    return redacted


def _redacted_item(item: Item, redact: Redact | None) -> Item:
    if redact is None:
        return item
    return Item(
        title=_redacted(item.title, redact) or "",
        id=item.id,
        brand=_redacted(item.brand, redact),
        color=_redacted(item.color, redact),
        text=_redacted(item.text, redact),
        attributes={name: _redacted(value, redact) or "" for name, value in item.attributes.items()},
    )


def _chars(item: Item) -> int:
    texts = (item.title, item.brand, item.color, item.text, *item.attributes.values())
    return sum(len(text) for text in texts if text)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
