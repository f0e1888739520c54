"""The second tier of the pair cache: a Redis that replicas share, whose failures cost a look-up at most its time-out.

Connections live on threads of their own; a caller waits for them no longer than the time-out and cuts those that are
late, so that a server which is down, silent or dripping bytes holds nobody. Every failure is a miss, counted by kind.
Logs name the kind of an error only: the text of one may hold what we sent, the password included.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Lock, Thread
from time import monotonic

import redis

from relevance.errors import SettingsError
from service.telemetry import Telemetry

log = logging.getLogger("relevance.service")
PREFIX = b"relevance:1:"
"""Before every key in Redis; the number changes with the layout of the values."""
MAX_WAITING = 20_000
"""Values that may wait to be written, about 3 MB; more are dropped."""
_READERS = 4
_CONNECT_S = 1.0
_WRITE_S = 1.0
_WRITE_PAIRS = 500
_CLOSE_S = 0.8
_FAILURES_TO_OPEN = 3
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0


@dataclass(frozen=True, slots=True)
class _LookUp:
    keys: Sequence[bytes]
    due: float
    future: Future[list[bytes | None]] = field(default_factory=Future)


class SharedCache:
    """Look-ups and writes from any thread but the event loop's; neither ever raises.

    Args: url: redis://, rediss:// or unix://, password included; timeout_s: added to a request at most; ttl_s: how long
        Redis holds a value.
    Raises: SettingsError: if the URL cannot be used; the message does not repeat it.
    """

    def __init__(self, url: str, *, timeout_s: float, ttl_s: int, telemetry: Telemetry) -> None:
        self._timeout_s = timeout_s
        self._ttl_ms = ttl_s * 1000
        self._telemetry = telemetry
        self._closed = False
        self._readers, self._writer = [_Line(url) for _ in range(_READERS)], _Line(url)
        self._reading, self._writing = _Breaker("look-ups"), _Breaker("writes")
        self._look_ups: SimpleQueue[_LookUp | None] = SimpleQueue()
        self._writes: SimpleQueue[tuple[Sequence[bytes], Sequence[bytes | None]] | None] = SimpleQueue()
        self._n_waiting = 0
        self._lock = Lock()
        self._threads = [
            *(Thread(target=self._read, args=(line,), name="redis-read", daemon=True) for line in self._readers),
            Thread(target=self._write, args=(self._writer,), name="redis-write", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Give the value of each key as Redis holds it, unchecked; None where there is none or Redis fails."""
        if not keys or self._closed or not self._reading.admits():
            return [None] * len(keys)
        started = monotonic()
        look_up = _LookUp(keys, started + self._timeout_s)
        self._look_ups.put(look_up)
        error: BaseException | None
        try:
            error = look_up.future.exception(self._timeout_s)
        except TimeoutError as late:
            error = late
            look_up.future.cancel()
            for line in self._readers:
                line.cut_if_late()
        self._telemetry.shared_cache_seconds.observe(monotonic() - started)
        if error is not None:
            self._failed(self._reading, error, since=started)
            return [None] * len(keys)
        self._reading.succeeded()
        return look_up.future.result()

    def put_many(self, keys: Sequence[bytes], values: Sequence[bytes | None]) -> None:
        """Leave the values that are not None to be written; at once, and dropped if too many wait or Redis fails."""
        self._writer.cut_if_late()
        if not keys or self._closed or self._writing.is_open:
            return
        with self._lock:
            fits = self._n_waiting + len(keys) <= MAX_WAITING
            if fits:
                self._n_waiting += len(keys)
        if fits:
            self._writes.put((keys, values))
        else:
            self._telemetry.shared_cache_errors.labels("full").inc()

    def close(self) -> None:
        """End the threads, within about a second; what still waits to be written is dropped."""
        self._closed = True
        for _ in self._readers:
            self._look_ups.put(None)
        self._writes.put(None)
        for patience_s in (_CLOSE_S, 1.0 - _CLOSE_S):
            give_up = monotonic() + patience_s
            for thread in self._threads:
                thread.join(max(0.0, give_up - monotonic()))
            for line in (*self._readers, self._writer):
                line.cut()

    def _read(self, line: _Line) -> None:
        try:
            line.connect()
        except Exception:  # noqa: BLE001 - thread boundary; the first look-up meets the same failure, and counts it
            line.close()
        while (look_up := self._look_ups.get()) is not None:
            if not look_up.future.set_running_or_notify_cancel():
                continue
            try:
                line.connect()
                if monotonic() < look_up.due:  # else nobody waits any more, and the connection is kept for the next
                    look_up.future.set_result(_fetch(line, look_up))
            except Exception as error:  # noqa: BLE001 - thread boundary; given to the caller, whatever the server sent
                line.close()
                look_up.future.set_exception(error)
        line.close()

    def _write(self, line: _Line) -> None:
        while (waiting := self._writes.get()) is not None and not self._closed:
            keys, values = waiting
            pairs = [(key, value) for key, value in zip(keys, values, strict=True) if value is not None]
            for start in range(0, len(pairs), _WRITE_PAIRS):
                if self._closed or not self._writing.admits():
                    break
                since = monotonic()
                try:
                    self._store(line, pairs[start : start + _WRITE_PAIRS])
                except Exception as error:  # noqa: BLE001 - thread boundary; counted, whatever the server sent
                    line.close()
                    self._failed(self._writing, error, since=since)
                else:
                    self._writing.succeeded()
            with self._lock:
                self._n_waiting -= len(keys)
        line.close()

    def _store(self, line: _Line, pairs: list[tuple[bytes, bytes]]) -> None:
        line.connect()
        commands = [("SET", PREFIX + key, value, "PX", self._ttl_ms) for key, value in pairs]
        replies = line.exchange(commands, due=monotonic() + _WRITE_S)
        if any(reply != b"OK" for reply in replies):
            raise redis.InvalidResponse("expected OK to each SET")

    def _failed(self, breaker: _Breaker, error: BaseException, *, since: float) -> None:
        kind = _kind(error)
        self._telemetry.shared_cache_errors.labels(kind).inc()
        breaker.failed(kind, type(error).__name__, since=since)


class _Line:
    """One connection, used by one thread; any other may cut it, which wakes that thread with an error."""

    def __init__(self, url: str) -> None:
        try:
            pool = redis.ConnectionPool.from_url(
                url, protocol=2, driver_info=None, socket_timeout=_CONNECT_S, socket_connect_timeout=_CONNECT_S
            )
            self._connection = pool.make_connection()
        except (ValueError, TypeError, redis.RedisError):
            raise SettingsError(
                "redis_url: expected redis://[user:password@]host[:port][/db], rediss:// or unix://, found another form"
            ) from None
        self._due = float("inf")

    def connect(self) -> None:
        """Connect, unless a sound connection is there; has a time of its own, which may be longer than a look-up's.

        A first PING also reads what TLS sends after its handshake, which would look like a reply nobody asked for.
        """
        connection = self._connection
        if connection.is_connected and _is_stale(connection):
            connection.disconnect()
        if not connection.is_connected:
            self._due = monotonic() + _CONNECT_S
            connection.connect()
            if self.exchange([("PING",)], due=self._due) != [b"PONG"]:
                raise redis.InvalidResponse("expected PONG to PING")

    def exchange(self, commands: Sequence[tuple[str | bytes | int, ...]], *, due: float) -> list[object]:
        """Send commands together and give their replies; after an error, or a reply of no use, the line must be closed.

        Args: due: when the line is late, on the `time.monotonic` clock.
        """
        self._due = due
        try:
            self._connection.send_packed_command(self._connection.pack_commands(commands), check_health=False)
            return [self._connection.read_response(disable_decoding=True) for _ in commands]
        finally:
            self._due = float("inf")

    def cut_if_late(self) -> None:
        """Cut the connection if what it does is past its time."""
        if monotonic() >= self._due:
            self.cut()

    def cut(self) -> None:
        """Shut the socket down; closing it is left to its thread, which may hold its number in a system call."""
        found: socket.socket | None = self._connection._sock  # type: ignore[attr-defined]  # redis-py has no public way
        if found is not None:
            with suppress(OSError):
                # An SSL socket's own method would drop its cipher state under the thread that reads.
                socket.socket.shutdown(found, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection; for its own thread."""
        self._connection.disconnect()
        self._due = float("inf")


class _Breaker:
    """Keeps callers off a failing Redis for a while that doubles; after each while, one use probes."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._lock = Lock()
        self._failures = 0
        self._pause_s = 0.0
        self._opened = self._until = float("-inf")

    @property
    def is_open(self) -> bool:
        """Whether uses are skipped now."""
        return monotonic() < self._until

    def admits(self) -> bool:
        """Say whether to use Redis; a yes while it fails is a probe, and keeps others off until it has ended."""
        with self._lock:
            if self._pause_s:
                if self.is_open:
                    return False
                self._until = monotonic() + self._pause_s
            return True

    def succeeded(self) -> None:
        """Note that Redis answered."""
        with self._lock:
            was_failing = self._pause_s > 0
            self._failures, self._pause_s, self._until = 0, 0.0, float("-inf")
        if was_failing:
            log.info("redis answers again", extra={"fields": {"use": self._what}})

    def failed(self, kind: str, error: str, *, since: float) -> None:
        """Note a failure; one of a use begun before the pause does not lengthen it."""
        with self._lock:
            self._failures += 1
            if self._failures < _FAILURES_TO_OPEN or since < self._opened:
                return
            self._pause_s = min(_LONGEST_PAUSE_S, max(_SHORTEST_PAUSE_S, 2 * self._pause_s))
            self._opened = monotonic()
            self._until = self._opened + self._pause_s
            fields = {"use": self._what, "kind": kind, "error": error, "seconds": self._pause_s}
        log.warning("redis fails and is skipped", extra={"fields": fields})


def _fetch(line: _Line, look_up: _LookUp) -> list[bytes | None]:
    (reply,) = line.exchange([("MGET", *(PREFIX + key for key in look_up.keys))], due=look_up.due)
    if not isinstance(reply, list) or len(reply) != len(look_up.keys):
        raise redis.InvalidResponse("expected as many values as keys")
    values: list[bytes | None] = [value for value in reply if value is None or isinstance(value, bytes)]
    if len(values) != len(reply):
        raise redis.InvalidResponse("expected strings")
    return values


def _is_stale(connection: redis.connection.ConnectionInterface) -> bool:
    """Say whether the server has hung up since the last use, or sent what nobody asked for."""
    try:
        return bool(connection.can_read())
    except (redis.RedisError, OSError):
        return True


def _kind(error: BaseException) -> str:
    match error:
        case TimeoutError() | redis.TimeoutError():
            return "timeout"
        case redis.ConnectionError() | OSError():
            return "connection"
        case redis.OutOfMemoryError():
            return "full"
    return "garbage"
