"""A real Redis for tests, and what tests of the shared cache have in common."""

from __future__ import annotations

import socket
import subprocess
import time
from contextlib import suppress

import numpy as np
import redis

from service.pair_cache import pack

TIMEOUT_S = 2.0
SHORT_S = 0.1
"""The time-out of look-ups that are meant to run into it."""
BOUND_S = 10.0
"""What a look-up may take in these tests: far beyond its time-out, far below hanging."""
PATIENCE_S = 30.0
KEYS = [bytes([i]) * 16 for i in range(20)]
VALUES = pack(np.arange(80, dtype=np.float32).reshape(20, 4), np.full(20, 9), np.zeros(20, bool))


class RedisServer:
    """A redis-server of our own, which can be killed, started again, stopped and continued."""

    def __init__(self, folder, *options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)]
        self._command += ["--save", "", "--appendonly", "no", *options]
        self.start()

    def start(self):
        """Start it and wait until it accepts connections."""
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        give_up = time.monotonic() + PATIENCE_S
        while time.monotonic() < give_up:
            with suppress(OSError):
                return socket.create_connection(("127.0.0.1", self.port)).close()
            time.sleep(0.01)
        raise RuntimeError("redis-server did not start")

    def kill(self):
        """End it at once."""
        self.process.kill()
        self.process.wait()

    def wait_for_keys(self, n):
        """Return when it holds so many: writes do not keep answers waiting."""
        client = self.client()
        give_up = time.monotonic() + PATIENCE_S
        while (found := client.dbsize()) < n:
            assert time.monotonic() < give_up, f"expected {n} keys, found {found}"
            time.sleep(0.01)
        client.close()

    def client(self):
        """Give a plain client of it."""
        return redis.Redis(port=self.port, protocol=2)


def errors(telemetry, kind):
    """Give the counted errors of a kind."""
    return telemetry.registry.get_sample_value("relevance_shared_cache_errors_total", {"kind": kind})


def timed_get(cache, keys):
    """Look up keys; the time it takes must be bounded."""
    started = time.monotonic()
    values = cache.get_many(keys)
    assert time.monotonic() - started < BOUND_S
    return values
