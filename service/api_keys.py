"""API keys from a file: one or two active at a time, compared in constant time, never shown, rotated without a restart.

The file holds one key a line; blank lines and lines that start with `#` do not count. To rotate: add the new key, move
the clients, remove the old one.
"""

from __future__ import annotations

import hmac
import logging
import re
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from time import monotonic

from relevance.errors import SettingsError

log = logging.getLogger("relevance.service")
MAX_KEYS = 2
MIN_KEY_CHARS = 16
RECHECK_S = 1.0
_KEY = re.compile(rb"[!-~]+")
_AUTHORIZATION = re.compile(rb"(?:bearer +)?([!-~]+)", re.IGNORECASE)


def read_keys(path: Path) -> list[bytes]:
    """Give the SHA-256 digests of the keys of a file.

    Raises: SettingsError: naming the file and line at fault, never what the line holds.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise SettingsError(f"{path}: expected a readable file of API keys: {error.strerror}") from error
    digests = []
    for number, line in enumerate(lines, start=1):
        key = line.strip()
        if not key or key.startswith(b"#"):
            continue
        if not _KEY.fullmatch(key):
            raise SettingsError(f"{path}, line {number}: expected a key of printable ASCII without blanks")
        if len(key) < MIN_KEY_CHARS:
            raise SettingsError(
                f"{path}, line {number}: expected a key of at least {MIN_KEY_CHARS} characters, found {len(key)}"
            )
        digests.append(sha256(key).digest())
    if not 1 <= len(digests) <= MAX_KEYS:
        raise SettingsError(f"{path}: expected 1 to {MAX_KEYS} keys, found {len(digests)}")
    return digests


class ApiKeys:
    """The keys that are accepted now; the file is looked at again once a second at most, while requests come.

    A file that has become unreadable or wrong leaves the keys as they are and is logged as an error.

    Raises: SettingsError: if the file is wrong at the start.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._fingerprint()
        self._digests = read_keys(path)
        self._checked = monotonic()

    def allows(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Say whether a request carries an active key, as `Authorization: Bearer KEY` or `X-API-Key: KEY`.

        Some rerank clients send what they were given as it is, so `Authorization: KEY` is heard as well.

        Args: headers: as ASGI gives them, names in lower case.
        """
        self._refresh()
        # Every key is compared, found or not, so that the time says nothing about which one was near.
        matches = [
            hmac.compare_digest(sha256(key).digest(), digest) for key in _presented(headers) for digest in self._digests
        ]
        return any(matches)

    def _refresh(self) -> None:
        now = monotonic()
        if now - self._checked < RECHECK_S:
            return
        self._checked = now
        fingerprint = self._fingerprint()
        if fingerprint == self._seen:
            return
        self._seen = fingerprint
        try:
            self._digests = read_keys(self._path)
        except SettingsError as error:
            log.error("API keys unchanged: %s", error)
            return
        log.info("API keys read again", extra={"fields": {"keys": len(self._digests)}})

    def _fingerprint(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino


def _presented(headers: Iterable[tuple[bytes, bytes]]) -> Iterator[bytes]:
    for name, value in headers:
        if name == b"x-api-key":
            yield value.strip()
        elif name == b"authorization" and (given := _AUTHORIZATION.fullmatch(value.strip())):
            yield given[1]
