"""Answers that have been paid for, by the hash of their request: one JSONL file that a run never asks around.

A line is on disk (flushed, not synced) before its answer is handed on, so that a killed process loses only what was
in flight. One process at a time writes to a store.
"""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from pydantic import BaseModel, ConfigDict

from relevance.errors import RunError

log = logging.getLogger("relevance.training")


class StoredAnswer(BaseModel):
    """One paid answer.

    Args: key: hash of the request, hex; generator: model and sampling settings, for people; the rest as in
        `Completion`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    generator: str
    text: str
    prompt_tokens: int | None
    completion_tokens: int | None
    finish_reason: str | None
    label_logprobs: dict[str, float] | None


class RequestStore:
    """A file of answers and an index of it in memory (about 150 bytes an answer; texts stay in the file).

    Args: path: of the JSONL file, made when the first answer comes; known: other such files, which are only read, also
        while others write to them; one that is not there, or is the store's own, is passed over.
    """

    def __init__(self, path: Path, known: Sequence[Path] = ()) -> None:
        self.path, self.known = path, tuple(other for other in known if other != path)
        self._elsewhere: dict[bytes, tuple[Path, int]] = {}
        self._known_to = dict.fromkeys(self.known, 0)
        self._known_files: dict[Path, BinaryIO] = {}
        self._offsets: dict[bytes, int] = {}
        self._read_to = 0
        self._file: BinaryIO | None = None

    def __len__(self) -> int:
        return len(self._offsets)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Lock the file and read what is new in it; answers can be looked up and added inside.

        A last line that a killed process left cut off is removed; another line that is no answer is passed over, so
        that its request is sent again.

        Raises: RunError: if another process, or another open store of this one, writes to the file.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as open_files, self.path.open("a+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunError(f"{self.path}: expected to be its only writer, found another; wait for it") from error
            self._index(file)
            for other in self.known:
                if other.is_file():
                    self._known_files[other] = open_files.enter_context(other.open("rb"))
                    self._index_known(other)
            self._file = file
            try:
                yield
            finally:
                self._file = None
                self._known_files.clear()

    def get(self, key: str) -> StoredAnswer | None:
        """Give the answer to a request, None if it has none."""
        file, found = self._open_file(), bytes.fromhex(key)
        offset = self._offsets.get(found)
        if offset is None:
            place = self._elsewhere.get(found)
            if place is None or place[0] not in self._known_files:
                return None
            file, offset = self._known_files[place[0]], place[1]
        file.seek(offset)
        return StoredAnswer.model_validate_json(file.readline())

    def add(self, answer: StoredAnswer) -> None:
        """Append an answer and flush it."""
        file = self._open_file()
        line = answer.model_dump_json().encode() + b"\n"
        file.write(line)
        file.flush()
        self._offsets[bytes.fromhex(answer.key)] = self._read_to
        self._read_to += len(line)

    def _open_file(self) -> BinaryIO:
        if self._file is None:
            raise RunError(f"{self.path}: expected to be used inside `opened`")
        return self._file

    def _index_known(self, path: Path) -> None:
        """Read the whole lines of another file that were not read before."""
        file = self._known_files[path]
        file.seek(self._known_to[path])
        for line in file:
            if not line.endswith(b"\n"):
                break
            if (key := _key(line)) is not None:
                self._elsewhere[key] = (path, self._known_to[path])
            self._known_to[path] += len(line)

    def _index(self, file: BinaryIO) -> None:
        """Read the lines that were not read before; a file that shrank is read anew."""
        size = file.seek(0, 2)
        if size < self._read_to:
            self._offsets.clear()
            self._read_to = 0
        file.seek(self._read_to)
        bad = 0
        for line in file:
            if not line.endswith(b"\n"):
                file.truncate(self._read_to)
                log.info("%s: removed a last line of %d bytes that was cut off", self.path, len(line))
                break
            if (key := _key(line)) is not None:
                self._offsets[key] = self._read_to
            bad += key is None
            self._read_to += len(line)
        if bad:
            log.warning("%s: expected an answer a line, found %d other lines; they are asked again", self.path, bad)


def _key(line: bytes) -> bytes | None:
    """Give the key of a line, None for what is no answer."""
    try:
        return bytes.fromhex(StoredAnswer.model_validate_json(line).key)
    except ValueError:
        return None
