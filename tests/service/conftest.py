"""Real servers in processes of their own, and the model of the tiny bundle."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import httpx
import pytest
from browser import Tab
from redis_servers import TIMEOUT_S, RedisServer

from relevance.labels import ESCI
from relevance.pairs import read_labelled_pairs
from service.model import Model, load_model
from service.settings import Settings
from service.shared_cache import SharedCache
from service.telemetry import Telemetry

PROJECT = Path(__file__).parents[2]
FAULTY = Path(__file__).with_name("faulty_server.py")
START_TIMEOUT_S = 60


@dataclass
class Server:
    """A running service, what it wrote, and a client of it; faults: the folder that a faulty one obeys."""

    process: subprocess.Popen[bytes]
    output: IO[str]
    client: httpx.Client
    faults: Path | None = None

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.client.base_url.port or 0

    def connect(self) -> socket.socket:
        """Give a bare connection."""
        return socket.create_connection(("127.0.0.1", self.port), START_TIMEOUT_S)

    def metrics(self) -> dict[str, float]:
        """Give the value of each series."""
        lines = self.client.get("/metrics").text.splitlines()
        return {name: float(value) for name, value in (ln.rsplit(" ", 1) for ln in lines if not ln.startswith("#"))}

    def post_apart(self, bodies: Sequence[dict[str, Any]], **headers: str) -> list[Future[httpx.Response]]:
        """Send each body to /score on a connection of its own, all at the same time."""
        pool = ThreadPoolExecutor(len(bodies))
        url = str(self.client.base_url.join("/score"))
        ask = partial(httpx.post, url, headers=headers, timeout=START_TIMEOUT_S)
        futures = [pool.submit(ask, json=body) for body in bodies]
        pool.shutdown(wait=False)
        return futures

    def wait_for(self, series: str, at_least: float) -> None:
        """Return when a series has reached a value."""
        give_up = time.monotonic() + START_TIMEOUT_S
        while (found := self.metrics()[series]) < at_least:
            assert time.monotonic() < give_up, f"expected {series} to reach {at_least}, found {found}"
            time.sleep(0.01)

    def set_engine(self, *steps: str) -> None:
        """Tell a faulty one what its next runs do, one step each, the last one for ever."""
        self._tell("engine", " ".join(steps))

    def set_clock(self, seconds: float) -> None:
        """Tell a faulty one by how much its wall clock is wrong."""
        self._tell("clock", str(seconds))

    def _tell(self, name: str, text: str) -> None:
        assert self.faults is not None
        made = Path(tempfile.mkstemp(dir=self.faults)[1])
        made.write_text(text)
        made.replace(self.faults / name)

    def lines(self) -> list[str]:
        """Give what the service has written so far."""
        self.output.seek(0)
        return self.output.read().splitlines()

    def line(self, **fields: object) -> dict[str, Any]:
        """Give the first log line that holds these fields, once it is written."""
        give_up = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < give_up:
            for line in (json.loads(line) for line in self.lines() if line.startswith("{") and line.endswith("}")):
                if fields.items() <= {name: value for name, value in line.items() if name in fields}.items():
                    return dict(line)
            time.sleep(0.01)
        raise AssertionError(f"expected a log line with {fields}, found none")

    def terminate(self) -> int:
        """Send SIGTERM and give the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(START_TIMEOUT_S)


def run_service(output: IO[str], *options: str, faults: Path | None = None, **settings: str) -> subprocess.Popen[bytes]:
    """Start `python -m service` with options and settings; what it writes goes to a file, so that it never blocks.

    Args: faults: a folder, to start the launcher that obeys it instead.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RELEVANCE_")}
    environment |= {f"RELEVANCE_{name.upper()}": value for name, value in settings.items()}
    program = ["-m", "service"]
    if faults is not None:
        program = [str(FAULTY)]
        environment |= {"FAULTS": str(faults), "PYTHONPATH": str(PROJECT)}
    return subprocess.Popen(
        [sys.executable, *program, *options],
        cwd=PROJECT,
        env=environment,
        stdout=output,
        stderr=output,
    )


def start_server(bundle: Path, *, faults: Path | None = None, **settings: str) -> Server:
    """Start a server on a free port and wait until it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    output = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - closed with its server
    process = run_service(output, "--port", str(port), "--bundle", str(bundle), faults=faults, **settings)
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=START_TIMEOUT_S)
    give_up = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < give_up and process.poll() is None:
        try:
            if client.get("/readyz").status_code == 200:
                return Server(process, output, client, faults)
        except httpx.TransportError:
            time.sleep(0.02)
    process.kill()
    process.wait()
    client.close()
    with output:
        output.seek(0)
        raise RuntimeError(f"the service did not start: {output.read()}")


@pytest.fixture(scope="session")
def settings(tiny_bundle: Path) -> Settings:
    """Settings of the tiny bundle on one thread."""
    return Settings(bundle=tiny_bundle, threads=1)


@pytest.fixture(scope="session")
def model(settings: Settings) -> Model:
    """The model of the tiny bundle."""
    return load_model(settings)


@pytest.fixture(scope="session")
def other_bundle(tiny_run: Path, tiny_pairs, make_student, fit_student_head, tmp_path_factory) -> Path:
    """The bundle of a student of other weights, fp32 only: another score for every pair."""
    from export.build import main
    from training.predictions import predictions_of, write_predictions
    from training.student.predict import predict

    path = tmp_path_factory.mktemp("other") / "run"
    shutil.copytree(tiny_run, path, ignore=shutil.ignore_patterns("export", "student"))
    recipe = (path / "recipe.toml").read_text().replace('["fp32", "int8w"]', '["fp32"]')
    (path / "recipe.toml").write_text(recipe.replace('model_id = "tiny"', 'model_id = "other"'))
    (path / "student").mkdir()
    shutil.copy(tiny_run / "student" / "DONE.json", path / "student")
    student, tokenizer = make_student(seed=1)
    fit_student_head(student, tokenizer, tiny_pairs)
    student.save(path / "student", tokenizer)
    for split in ("dev", "cal"):
        rows = read_labelled_pairs(path / "data" / f"pairs.{split}.parquet", ESCI)
        logits_NK = predict(student, tokenizer, [row.pair for row in rows])
        write_predictions(path / "student" / f"predictions.{split}.parquet", predictions_of(rows, logits_NK, ESCI))
    assert main(["--recipe", str(path / "recipe.toml"), "--out", str(path)]) == 0

    return path / "export" / "bundle"


@contextmanager
def _servers(tiny_bundle: Path, folders: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(bundle: Path = tiny_bundle, *, faulty: bool | str = False, **settings: str) -> Server:
        faults = folders.mktemp("faults") if faulty else None
        if faulty:
            settings = {"engines": "1"} | settings
        if faults is not None and isinstance(faulty, str):
            (faults / "engine").write_text(faulty)
        servers.append(start_server(bundle, faults=faults, **settings))
        return servers[-1]

    yield start
    for server in servers:
        server.client.close()
        server.process.kill()
        server.process.wait()
        server.output.close()


@pytest.fixture
def launch(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Start servers with settings of their own; all are gone at the test's end.

    `faulty=True` gives one whose engine, its only one, obeys; a text says what it does from the start.
    """
    with _servers(tiny_bundle, tmp_path_factory) as start:
        yield start


@pytest.fixture(scope="module")
def launch_shared(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Start servers as `launch` does, for all tests of a module."""
    with _servers(tiny_bundle, tmp_path_factory) as start:
        yield start


@pytest.fixture(scope="session")
def fresh_body() -> Callable[..., dict[str, Any]]:
    """Give bodies of requests whose pairs no cache knows; more fields as given."""
    numbers = itertools.count()

    def make(n_items: int = 3, **fields: object) -> dict[str, Any]:
        number = next(numbers)
        items = [{"id": i, "title": f"garden hose {number}, {i} m, with brass nozzle"} for i in range(n_items)]
        return {"query": f"garden hose {number}", "items": items, "min_tier": 0} | fields

    return make


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
    """Run the service with options and settings that must not start it; gives the last line of standard error."""

    def run(*options: str, **settings: str) -> str:
        with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
            status = run_service(output, *options, **settings).wait(START_TIMEOUT_S)
            output.seek(0)
            lines = output.read().splitlines()
        assert status == 2, lines
        return lines[-1]

    return run


@pytest.fixture
def tab(browser):
    """A fresh tab on a wide light screen; its console must stay clean."""
    opened = Tab(browser, viewport={"width": 1280, "height": 900}, color_scheme="light")
    yield opened
    opened.close()


@pytest.fixture
def start_redis(tmp_path):
    """Start Redis servers; all are gone at the end of the test."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed (Debian: redis-server)")
    servers = []

    def start(*options):
        servers.append(RedisServer(tmp_path, *options))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


@pytest.fixture
def connect():
    """Open shared caches; all are closed at the end of the test, with no thread left."""
    caches = []

    def open_cache(url, *, timeout_s=TIMEOUT_S, telemetry=None):
        caches.append(SharedCache(url, timeout_s=timeout_s, ttl_s=60, telemetry=telemetry or Telemetry()))
        return caches[-1]

    yield open_cache
    for cache in caches:
        cache.close()
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("redis-")] == []
