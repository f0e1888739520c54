"""Real servers in processes of their own, and the engine of the tiny bundle."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx
import pytest

from service.lifecycle import Engine, load_engine
from service.settings import Settings

PROJECT = Path(__file__).parents[2]
START_TIMEOUT_S = 60


@dataclass
class Server:
    """A running service, what it wrote, and a client of it."""

    process: subprocess.Popen[bytes]
    output: IO[str]
    client: httpx.Client

    def lines(self) -> list[str]:
        """Give what the service has written so far."""
        self.output.seek(0)
        return self.output.read().splitlines()

    def terminate(self) -> int:
        """Send SIGTERM and give the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(START_TIMEOUT_S)


def run_service(output: IO[str], *options: str, **settings: str) -> subprocess.Popen[bytes]:
    """Start `python -m service` with options and settings; what it writes goes to a file, so that it never blocks."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RELEVANCE_")}
    environment |= {f"RELEVANCE_{name.upper()}": value for name, value in settings.items()}
    return subprocess.Popen(
        [sys.executable, "-m", "service", *options],
        cwd=PROJECT,
        env=environment,
        stdout=output,
        stderr=output,
    )


def start_server(bundle: Path, **settings: str) -> Server:
    """Start a server on a free port and wait until it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    output = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - closed with its server
    process = run_service(output, "--port", str(port), "--bundle", str(bundle), **settings)
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=START_TIMEOUT_S)
    give_up = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < give_up and process.poll() is None:
        try:
            if client.get("/readyz").status_code == 200:
                return Server(process, output, client)
        except httpx.TransportError:
            time.sleep(0.02)
    process.kill()
    process.wait()
    client.close()
    output.seek(0)
    raise RuntimeError(f"the service did not start: {output.read()}")


@pytest.fixture(scope="session")
def settings(tiny_bundle: Path) -> Settings:
    """Settings of the tiny bundle on one thread."""
    return Settings(bundle=tiny_bundle, threads=1)


@pytest.fixture(scope="session")
def engine(settings: Settings) -> Engine:
    """The engine of the tiny bundle."""
    return load_engine(settings)


@pytest.fixture
def launch(tiny_bundle: Path) -> Iterator[Callable[..., Server]]:
    """Start servers with settings of their own; all are gone at the end of the test."""
    servers: list[Server] = []

    def start(**settings: str) -> Server:
        servers.append(start_server(tiny_bundle, **settings))
        return servers[-1]

    yield start
    for server in servers:
        server.client.close()
        server.process.kill()
        server.process.wait()
        server.output.close()


@pytest.fixture(scope="session")
def server(tiny_bundle: Path) -> Iterator[Server]:
    """One server for all tests that do not end it; it must stop cleanly at the end."""
    running = start_server(tiny_bundle, max_items="600", max_body_bytes="2000000", drain_s="0")
    yield running
    running.client.close()
    status = running.terminate()
    lines = running.lines()
    running.output.close()
    assert status == 0, lines[-5:]


@pytest.fixture
def launch_failing() -> Callable[..., str]:
    """Run the service with options that must not start it; gives the last line of standard error."""

    def run(*options: str) -> str:
        with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
            status = run_service(output, *options).wait(START_TIMEOUT_S)
            output.seek(0)
            lines = output.read().splitlines()
        assert status == 2, lines
        return lines[-1]

    return run
