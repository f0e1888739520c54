"""Real service processes to measure: started on a free port with settings from the environment, watched, stopped."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import psutil
from prometheus_client.parser import text_string_to_metric_families

from service.settings import load_settings

PROJECT = Path(__file__).parents[1]
START_TIMEOUT_S = 240
STOP_TIMEOUT_S = 60
_DESCRIBED = ("bundle", "model", "precision", "provider")
_SETTINGS = ("prefetch", "pair_cache_bytes", "item_cache_entries")


@dataclass(frozen=True, slots=True)
class Metrics:
    """One scrape: the value of each series."""

    values: dict[tuple[str, frozenset[tuple[str, str]]], float]

    def total(self, name: str, **labels: str) -> float:
        """Give the sum of the samples of this name that carry these labels; 0 if there are none."""
        asked = set(labels.items())
        return sum(value for (found, carried), value in self.values.items() if found == name and asked <= carried)

    def since(self, before: Metrics, name: str, **labels: str) -> float:
        """Give by how much `total` has grown since an earlier scrape."""
        return self.total(name, **labels) - before.total(name, **labels)

    def histogram_since(self, before: Metrics, name: str) -> Counter[float]:
        """Give what a histogram saw since an earlier scrape: upper edge → observations up to it."""
        counts: Counter[float] = Counter()
        for (found, carried), value in self.values.items():
            if found == f"{name}_bucket":
                counts[float(dict(carried)["le"])] += int(value - before.values.get((found, carried), 0.0))
        return counts


def quantile_edge(counts: Counter[float], q: float) -> float | None:
    """Give the upper edge of the bucket that holds a quantile; None if nothing was seen, infinity beyond the last."""
    if not counts or not max(counts.values()):
        return None
    return min(edge for edge, seen in counts.items() if seen >= q * counts[max(counts)])


class ServerProcess:
    """A process that answers HTTP on a port; a context manager that is ready inside and stopped outside.

    Args: command: what to run; port: where it listens; environment: all of it; ready: path that answers 200 when it is;
        folder: to run in; stop_timeout_s: after which a process that does not end is killed.
    Raises: RuntimeError: on entering, if the process does not become ready; carries what it wrote.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        port: int,
        environment: Mapping[str, str],
        ready: str,
        folder: Path = PROJECT,
        stop_timeout_s: float = STOP_TIMEOUT_S,
    ) -> None:
        self.port = port
        self._command, self._environment, self._folder = command, environment, folder
        self._ready, self._stop_timeout_s = ready, stop_timeout_s
        self._output = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - closed with its server
        self._process: subprocess.Popen[bytes] | None = None
        self._began = 0.0

    def spawn(self) -> None:
        """Start the process without waiting for it; from now on SIGTERM ends this program as Ctrl-C does.

        Else a program that is told to end would leave its servers behind. A shell's background job ignores SIGINT, and
        so would its servers.
        """
        if threading.current_thread() is threading.main_thread():
            for number, found in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.SIG_IGN)):
                if signal.getsignal(number) is found:
                    signal.signal(number, signal.default_int_handler)
        self._began = time.monotonic()
        self._process = subprocess.Popen(
            self._command, cwd=self._folder, env=dict(self._environment), stdout=self._output, stderr=self._output
        )

    def __enter__(self) -> ServerProcess:
        if self._process is None:
            self.spawn()
        give_up = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < give_up and self.process.poll() is None:
            try:
                self.get(self._ready)
            except (HTTPError, URLError, ConnectionError):
                time.sleep(0.05)
            else:
                return self
        self.stop()
        written = self._written()
        self._output.close()
        raise RuntimeError(f"the service did not start: {written}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._output.close()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The running process."""
        if self._process is None:
            raise RuntimeError("expected a started server, found none")
        return self._process

    @property
    def age_s(self) -> float:
        """Seconds since the process was started."""
        return time.monotonic() - self._began

    def stop(self) -> None:
        """End the process: SIGINT skips the drain window, which no client waits for here."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(self._stop_timeout_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def get(self, path: str) -> bytes:
        """Give the body of the answer to a GET."""
        with urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=START_TIMEOUT_S) as answer:
            content: bytes = answer.read()
        return content

    def rss_bytes(self) -> int:
        """Give the resident memory of the process and its children."""
        process = psutil.Process(self.process.pid)
        return int(sum(p.memory_info().rss for p in (process, *process.children(recursive=True))))

    def _written(self) -> str:
        self._output.seek(0)
        return self._output.read()[-2000:]


class Server:
    """A process of the service; a context manager that is ready inside and stopped outside.

    Args: bundle: None for the embedded one; module: what to run, `service` or a launcher that changes one thing of it;
        settings: of the service, by name.
    Raises: RuntimeError: on entering, if the process does not become ready; carries what it wrote.
    """

    def __init__(self, bundle: Path | None, *, module: str = "service", **settings: object) -> None:
        self.port = free_port()
        self.settings = settings | ({} if bundle is None else {"bundle": bundle})
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RELEVANCE_")}
        environment |= {f"RELEVANCE_{name.upper()}": str(value) for name, value in self.settings.items()}
        command = [sys.executable, "-m", module, "--port", str(self.port)]
        self.served = ServerProcess(command, port=self.port, environment=environment, ready="/readyz")

    def spawn(self) -> None:
        """Start the process without waiting for it."""
        self.served.spawn()

    def __enter__(self) -> Server:
        self.served.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.served.__exit__(kind, error, trace)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The running process."""
        return self.served.process

    def stop(self) -> None:
        """End the process, as `ServerProcess.stop` does."""
        self.served.stop()

    def info(self) -> dict[str, Any]:
        """Give what `/info` says."""
        told: dict[str, Any] = json.loads(self.served.get("/info"))
        return told

    def description(self) -> dict[str, Any]:
        """Give what is served and the settings that decide its speed, for a report."""
        told = self.info()
        settings = load_settings(**self.settings)
        used = {name: getattr(settings, name) for name in _SETTINGS}
        resolved = {
            "engines": settings.n_engines,
            "threads": settings.session_threads,
            "batch_ms": 1000 * settings.batch_s,
        }
        return {name: told[name] for name in _DESCRIBED} | resolved | used

    def metrics(self) -> Metrics:
        """Scrape `/metrics`."""
        families = text_string_to_metric_families(self.served.get("/metrics").decode())
        return Metrics({(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples})

    def rss_bytes(self) -> int:
        """Give the resident memory of the process and its children."""
        return self.served.rss_bytes()

    def batches_since(self, before: Metrics) -> tuple[int, int]:
        """Give the number of batches run since an earlier scrape, and their mean of pairs × padded length."""
        now = self.metrics()
        count, tokens = (now.since(before, f"relevance_batch_tokens_{part}") for part in ("count", "sum"))
        if not count:
            raise RuntimeError("expected batches run since the last scrape, found none")
        return int(count), int(tokens / count)


@contextmanager
def running(servers: Sequence[Server]) -> Iterator[None]:
    """Start servers together, so that they load at the same time, and stop them all."""
    with ExitStack() as stack:
        for server in servers:
            server.spawn()
            stack.push(server)
        for server in servers:
            server.__enter__()
        yield


def free_port() -> int:
    """Give a port of the loopback address that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def cores() -> int:
    """Give the cores that client and server share."""
    return len(os.sched_getaffinity(0))
