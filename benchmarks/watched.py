"""A service that a real Prometheus watches while a little of everything is asked of it.

Windows of rules and dashboards are hours and days; here they are shortened: every range, and `$__rate_interval`,
becomes WINDOW, and the variables of dashboards match everything.
"""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import yaml

from benchmarks.servers import Server
from service.settings import DEFAULT_BUNDLE

WINDOW = "10s"
TARGET_LABELS = {"namespace": "ads", "pod": "relevance-0", "relevance_tiers_track": "stable"}
"""What Kubernetes' service discovery would put on each series."""
_START_TIMEOUT_S = 60
_TIMEOUT_S = 60
_RANGE = re.compile(r"\[[^\]]+\]")
_WAIT = re.compile(r"\n +(?:for|interval): .*")
_VARIABLE = re.compile(r"\$[a-z_]+")


def shortened(expr: str) -> str:
    """Give an expression of a rule or dashboard as it is asked here."""
    return _VARIABLE.sub(".*", _RANGE.sub(f"[{WINDOW}]", expr))


@dataclass(frozen=True, slots=True)
class Line:
    """One series of an answer: its labels, and its values at unix times."""

    labels: dict[str, str]
    times: list[float]
    values: list[float]


class Prometheus:
    """A Prometheus server of our own that scrapes a service every second; a context manager.

    Args: port: of the service; rule_files: evaluated every second, with shortened windows and without waiting.
    Raises: RuntimeError: on entering, if it does not become ready; carries what it wrote.
    """

    def __init__(self, folder: Path, port: int, rule_files: Sequence[Path] = ()) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._address = f"127.0.0.1:{free.getsockname()[1]}"
        self._folder = folder
        for path in rule_files:
            text = _RANGE.sub(f"[{WINDOW}]", _WAIT.sub("", path.read_text("utf-8")))
            (folder / path.name).write_text(text, "utf-8")
        settings = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [path.name for path in rule_files],
            "scrape_configs": [
                {
                    "job_name": "relevance-tiers",
                    "static_configs": [{"targets": [f"127.0.0.1:{port}"], "labels": TARGET_LABELS}],
                }
            ],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(settings), "utf-8")

    def __enter__(self) -> Prometheus:
        data = self._folder / "data"
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8")
        self._process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={self._folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={data}",
                f"--web.listen-address={self._address}",
            ],
            stdout=self._log,
            stderr=self._log,
        )
        give_up = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < give_up and self._process.poll() is None:
            try:
                with urlopen(f"http://{self._address}/-/ready", timeout=_TIMEOUT_S):
                    return self
            except (HTTPError, URLError, ConnectionError):
                time.sleep(0.05)
        self._log.seek(0)
        written = self._log.read()
        self.__exit__()
        raise RuntimeError(f"prometheus did not start: {written}")

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def get(self, path: str, parameters: Mapping[str, object]) -> Any:
        """Ask the API and give the data.

        Raises: ValueError: with Prometheus's own words, if it refuses.
        """
        try:
            with urlopen(f"http://{self._address}/api/v1/{path}?{urlencode(parameters)}", timeout=_TIMEOUT_S) as answer:
                return json.load(answer)["data"]
        except HTTPError as error:
            with error:
                raise ValueError(f"expected an answer to {parameters}, found {error.read().decode()}") from error

    def lines(self, expr: str, seconds: float, *, step_s: float = 1) -> list[Line]:
        """Give what an expression gave over the last seconds."""
        now = time.time()
        found = self.get("query_range", {"query": expr, "start": now - seconds, "end": now, "step": step_s})["result"]
        return [
            Line(row["metric"], [float(at) for at, _ in row["values"]], [float(value) for _, value in row["values"]])
            for row in found
        ]

    def wait_for_scrapes(self, n: int) -> None:
        """Return when so many more scrapes have succeeded."""
        query = "sum(count_over_time(up[1d]))"
        goal = self._count(query) + n
        give_up = time.monotonic() + _TIMEOUT_S
        while (found := self._count(query)) < goal:
            if time.monotonic() > give_up:
                raise RuntimeError(f"expected {goal} scrapes, found {found}")
            time.sleep(0.1)

    def _count(self, query: str) -> int:
        result = self.get("query", {"query": query})["result"]
        return int(result[0]["value"][1]) if result else 0


def ask(port: int, body: object) -> int:
    """Send one body to /score and give the status."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = Request(f"http://127.0.0.1:{port}/score", data, {"content-type": "application/json"})
    try:
        with urlopen(request, timeout=_TIMEOUT_S) as answer:
            answer.read()
            return int(answer.status)
    except HTTPError as error:
        with error:
            error.read()
        return error.code


def _body(query: str, n_items: int, **fields: object) -> dict[str, object]:
    titles = (f"{query} for women", query, f"{query} box", "steel water bottle", "garden hose with brass nozzle")
    items = [{"id": i, "title": titles[i % len(titles)]} for i in range(n_items)]
    return {"query": query, "items": items, **fields}


def exercise(port: int, round_number: int) -> list[int]:
    """Ask for all size classes and locales, and for every kind of failure; gives the statuses.

    Args: round_number: makes some pairs new, so that the engine has work and not only the caches.
    """
    new = f"desk {round_number}"
    statuses = [ask(port, _body("red shoes", 8, locale="us")) for _ in range(12)]
    statuses += [ask(port, _body(new, 4, locale=locale)) for locale in ("en-US", "es", "jp", "fr", None)]
    statuses += [ask(port, _body("red shoes", n, locale="us")) for n in (120, 800, 1200)]
    long = {"query": new, "items": [{"id": 1, "title": "garden " * 400}]}
    statuses += [ask(port, body) for body in (long, b"{", _body(new, 1, colour="red"))]
    statuses += [ask(port, _body(f"late {round_number}", 40, deadline_ms=1))]
    with ThreadPoolExecutor(8) as pool:
        bodies = [_body(f"busy {round_number} {i}", 12) for i in range(8)]
        statuses += list(pool.map(lambda body: ask(port, body), bodies))
    return statuses


@contextmanager
def watched_service(folder: Path, rule_files: Sequence[Path]) -> Iterator[tuple[Server, Prometheus]]:
    """Start a service that has everything switched on that is measured, and the Prometheus that watches it.

    The embedded default bundle, which is its own shadow here; all requests are sampled; a third request at the same
    time is shed.
    """
    settings = {"max_queued_requests": 2, "shadow_bundle": DEFAULT_BUNDLE}
    samples = {"shadow_rate": 1, "shadow_budget": 1, "pair_log": folder / "pairs", "pair_log_rate": 1}
    (folder / "prometheus").mkdir()
    with (
        Server(None, drain_s=0, **settings, **samples) as server,
        Prometheus(folder / "prometheus", server.port, rule_files) as prometheus,
    ):
        yield server, prometheus
