"""Starting, watching and killing the processes that tests ask for answers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

SERVER = Path(__file__).with_name("llm_server.py")
START_TIMEOUT_S = 90


def free_port() -> int:
    """Give a port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Process:
    """A server process on a loopback port.

    Args: command: with `{port}` where the port belongs; port: None for a free one.
    """

    def __init__(self, command: list[str], *, port: int | None = None, **environment: str) -> None:
        self.port = free_port() if port is None else port
        self._command = [word.format(port=self.port) for word in command]
        self._environment = os.environ | environment
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The base URL of its API."""
        return f"http://127.0.0.1:{self.port}/v1"

    def spawn(self) -> None:
        """Start it without waiting for it."""
        self._process = subprocess.Popen(
            self._command, env=self._environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.spawn()
        give_up = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < give_up:
            try:
                with urlopen(f"http://127.0.0.1:{self.port}/health"):
                    return
            except (URLError, ConnectionError):
                assert self._process is not None
                assert self._process.poll() is None, "the server did not start"
                time.sleep(0.05)
        raise AssertionError("the server did not start in time")

    def kill(self) -> None:
        """Kill it, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class LlmServer(Process):
    """The misbehaving server, with the log of what it was asked; a context manager."""

    def __init__(self, folder: Path, *, key: str | None = None, delay_s: float = 0.0) -> None:
        self.log = folder / "requests.jsonl"
        keyed = [] if key is None else ["--key", key]
        super().__init__(
            [sys.executable, str(SERVER), "--port", "{port}", "--log", str(self.log), "--delay", str(delay_s), *keyed]
        )

    def __enter__(self) -> LlmServer:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def requests(self) -> list[dict]:
        """Give what it was asked so far, over all its lives; a line that its death cut off is left out."""
        if not self.log.is_file():
            return []
        lines = self.log.read_bytes().split(b"\n")[:-1]
        return [json.loads(line) for line in lines]
