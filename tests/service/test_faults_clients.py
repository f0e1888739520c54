"""Clients that leave, trickle or never finish: what they leave undone is dropped, and nobody else waits for them."""

from __future__ import annotations

import json
import socket
import time
from contextlib import ExitStack
from threading import Event, Thread

import httpx
import pytest

PATIENCE_S = 30
HEAD = b"POST /score HTTP/1.1\r\nhost: shop\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
CANCELLED = 'relevance_requests_total{code="499",outcome="cancelled",route="/score"}'


@pytest.fixture(scope="module")
def server(launch_shared):
    """A server that no test of this module ends."""
    return launch_shared(faulty=True)


@pytest.fixture(autouse=True)
def sound_engine(server):
    """Leave no fault to the next test."""
    yield
    server.set_engine("ok")


@pytest.fixture(scope="module")
def impatient(launch_shared):
    """A server with short limits on receiving a request."""
    return launch_shared(faulty=True, body_timeout_s="1")


def raw(body: dict) -> bytes:
    """Give a whole request as bytes."""
    content = json.dumps(body).encode()
    return HEAD % len(content) + content


def read_all(connection: socket.socket) -> bytes:
    """Give what comes until the other side closes; a reset counts as closing."""
    connection.settimeout(PATIENCE_S)
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def test_what_a_gone_client_wanted_is_not_computed(server, fresh_body):
    """It leaves while the first of many batches runs; the rest is dropped and counted, another client is answered."""
    before = server.metrics()
    server.set_engine("slow:0.3")
    with server.connect() as leaving:
        leaving.sendall(raw(fresh_body(3000)))
        server.wait_for("relevance_inflight_batches", 1)
    [other] = server.post_apart([fresh_body()])
    server.wait_for(CANCELLED, before[CANCELLED] + 1)
    server.set_engine("ok")
    answer = other.result(PATIENCE_S)
    after = server.metrics()

    pairs = 'relevance_pairs_total{outcome="%s"}'
    assert answer.json()["counts"]["scored"] == 3
    assert after[pairs % "cancelled"] - before[pairs % "cancelled"] == 3000
    assert (
        after[pairs % "scored"] + after[pairs % "filtered"] - before[pairs % "scored"] - before[pairs % "filtered"] == 3
    )
    assert after["relevance_batch_tokens_count"] - before["relevance_batch_tokens_count"] <= 4
    assert after["relevance_queue_tokens"] == after["relevance_queue_requests"] == 0
    dropped = 'relevance_dropped_requests_total{kind="cancelled"}'
    assert after[dropped] - before[dropped] == 1


def test_a_client_that_leaves_while_it_sends_is_no_error(server, fresh_body):
    """Counted as 499, nothing in the log above information."""
    before = server.metrics()[CANCELLED]
    with server.connect() as leaving:
        leaving.sendall(raw(fresh_body())[:-20])
        server.wait_for("relevance_inflight_requests", 2)
    server.wait_for(CANCELLED, before + 1)

    assert server.client.post("/score", json=fresh_body()).json()["counts"]["scored"] == 3
    assert {json.loads(line)["level"] for line in server.lines()} == {"info"}


def test_fifty_trickling_clients_hold_nobody_up(server, fresh_body):
    """Half of them send a header, half a body, a byte at a time; others are answered, and in the end they too."""
    requests = [raw(fresh_body()) for _ in range(50)]
    with ExitStack() as stack:
        connections = [stack.enter_context(server.connect()) for _ in requests]
        starts = [10 if number % 2 else request.index(b"\r\n\r\n") + 10 for number, request in enumerate(requests)]
        for connection, request, start in zip(connections, requests, starts, strict=True):
            connection.sendall(request[:start])
        for step in range(20):
            for connection, request, start in zip(connections, requests, starts, strict=True):
                connection.sendall(request[start + step : start + step + 1])
            assert server.client.post("/score", json=fresh_body()).status_code == 200
            assert server.client.get("/livez").status_code == 200
        for connection, request, start in zip(connections, requests, starts, strict=True):
            connection.sendall(request[start + 20 :])
        answers = [connection.recv(65536) for connection in connections]

    assert {answer.split(b"\r\n")[0] for answer in answers} == {b"HTTP/1.1 200 OK"}


def test_a_request_that_never_ends_is_ended(impatient):
    """A body that trickles on gets a 408, a header that does gets its connection closed; no other request suffers."""
    with impatient.connect() as body, impatient.connect() as header:
        body.sendall(HEAD % 5000)
        header.sendall(b"POST /score HTTP/1.1\r\n")
        done = Event()

        def trickle() -> None:
            """Send a byte now and then as long as the other side takes them."""
            while not done.wait(0.05):
                for connection in (body, header):
                    try:
                        connection.sendall(b" " if connection is body else b"a")
                    except OSError:
                        continue

        thread = Thread(target=trickle)
        thread.start()
        try:
            answer = read_all(body)
            closed = read_all(header)
        finally:
            done.set()
            thread.join()

    head, _, content = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in head.lower()
    assert json.loads(content)["code"] == "body_timeout"
    assert closed == b""
    assert impatient.client.get("/readyz").status_code == 200


def test_probes_are_answered_while_a_large_body_arrives(server, fresh_body):
    """3,000 items in small pieces, then parsed, tokenised and scored: liveness within a second, all the time."""
    request = raw(fresh_body(3000))
    seconds: list[float] = []
    done = Event()

    def probe() -> None:
        """Ask without a pause."""
        with httpx.Client(base_url=server.client.base_url) as client:
            while not done.is_set():
                began = time.perf_counter()
                assert client.get("/livez").status_code == 200
                seconds.append(time.perf_counter() - began)

    thread = Thread(target=probe)
    thread.start()
    with server.connect() as connection:
        for start in range(0, len(request), 4096):
            connection.sendall(request[start : start + 4096])
        answer = connection.recv(65536)
    done.set()
    thread.join()

    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert len(seconds) > 3
    assert max(seconds) < 1
