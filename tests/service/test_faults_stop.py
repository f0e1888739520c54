"""Stops under load: readiness goes first, whatever was sent is answered, the exit status is 0."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from threading import Event

import httpx
import pytest

N_CLIENTS = 8
PATIENCE_S = 30


@dataclass
class Load:
    """Clients that send one request after another, each on its connection as long as the server keeps it.

    Args: stop: they send nothing more; answers: (time sent, status); failures: (time sent, kind, whether it was the
        first request of its connection) of those that got no answer.
    """

    stop: Event = field(default_factory=Event)
    answers: list[tuple[float, int]] = field(default_factory=list)
    failures: list[tuple[float, str, bool]] = field(default_factory=list)

    def run(self, port: int, make_body) -> None:
        """Be one client, until told to stop or left without an answer."""
        connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
        headers = {"content-type": "application/json"}
        while not self.stop.is_set():
            sent, fresh = time.monotonic(), connection.sock is None
            try:
                connection.request("POST", "/score", json.dumps(make_body()), headers)
                answer = connection.getresponse()
                answer.read()
            except (OSError, HTTPException) as error:
                self.failures.append((sent, type(error).__name__, fresh))
                break
            self.answers.append((sent, answer.status))
        connection.close()


@pytest.fixture
def hammer(fresh_body):
    """Hammer a server from eight threads; they have all been answered when it returns, and are stopped at the end."""
    loads = []
    with ThreadPoolExecutor(N_CLIENTS) as pool:

        def begin(server) -> Load:
            loads.append(Load())
            for _ in range(N_CLIENTS):
                pool.submit(loads[-1].run, server.port, fresh_body)
            server.wait_for('relevance_requests_total{code="200",outcome="ok",route="/score"}', 5 * N_CLIENTS)
            return loads[-1]

        yield begin
        for load in loads:
            load.stop.set()


def wait_until_unready(server) -> float:
    """Give the time at which readiness said no, as a load balancer would see it."""
    with httpx.Client(base_url=server.client.base_url) as probe:
        give_up = time.monotonic() + PATIENCE_S
        while probe.get("/readyz").status_code == 200:
            assert time.monotonic() < give_up
            time.sleep(0.01)
    return time.monotonic()


def test_sigterm_under_load_loses_nothing(launch, hammer):
    """Clients that never stop: in the drain window all is answered, on no kept connection is a request ever lost.

    After the window a new connection may be refused, or reset while it waits to be accepted.
    """
    server = launch(drain_s="1.5")
    load = hammer(server)

    told = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    unready = wait_until_unready(server)
    status = server.process.wait(PATIENCE_S)

    assert status == 0
    assert {status for _, status in load.answers} == {200}
    assert sum(sent > unready for sent, _ in load.answers) > N_CLIENTS
    assert [(kind, fresh) for _, kind, fresh in load.failures if not fresh] == []
    assert all(sent > told + 1 for sent, _, _ in load.failures)


def test_the_pre_stop_hook_and_then_sigterm_lose_nothing(launch, hammer):
    """As in a cluster: drained, the load goes elsewhere while the hook waits, then the process ends at once.

    Drained, no answer lets its client keep the connection.
    """
    server = launch(drain_s="30")
    load = hammer(server)

    command = [sys.executable, "-m", "relevance.cli", "drain", "--wait", "0.5", "--url", str(server.client.base_url)]
    hook = subprocess.Popen(command)
    unready = wait_until_unready(server)
    assert server.client.get("/livez").headers["connection"] == "close"
    time.sleep(0.1)
    load.stop.set()
    assert hook.wait(PATIENCE_S) == 0
    began = time.monotonic()
    status = server.terminate()

    assert status == 0
    assert time.monotonic() - began < 15
    assert load.failures == []
    assert Counter(status for _, status in load.answers)[200] == len(load.answers)
    assert any(sent > unready for sent, _ in load.answers)


def test_a_request_in_flight_outlives_the_drain_window(launch, fresh_body):
    """It takes two seconds, the window half a second: its answer is whole, and then the process ends."""
    server = launch(faulty=True, drain_s="0.5")
    server.set_engine("slow:2", "ok")

    [long] = server.post_apart([fresh_body()])
    server.wait_for("relevance_inflight_batches", 1)
    status = server.terminate()

    assert long.result(0).json()["counts"]["scored"] == 3
    assert status == 0
