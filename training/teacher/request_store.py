"""Answers that have been paid for, by the hash of their request: one JSONL file that a run never asks around.

A line is on disk (flushed, not synced) before its answer is handed on, so that a killed process loses only what was
in flight. One process at a time writes to a store.
"""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
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

    Args: path: of the JSONL file, made when the first answer comes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
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
        with self.path.open("a+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunError(f"{self.path}: expected to be its only writer, found another; wait for it") from error
            self._index(file)
            self._file = file
            try:
                yield
            finally:
                self._file = None

    def get(self, key: str) -> StoredAnswer | None:
        """Give the answer to a request, None if it has none."""
        offset = self._offsets.get(bytes.fromhex(key))
        if offset is None:
            return None
        file = self._open_file()
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
            try:
                self._offsets[bytes.fromhex(StoredAnswer.model_validate_json(line).key)] = self._read_to
            except ValueError:
                bad += 1
            self._read_to += len(line)
        if bad:
            log.warning("%s: expected an answer a line, found %d other lines; they are asked again", self.path, bad)
