"""Connections on which no request arrives are closed; slow answers and patient clients are left alone."""

from __future__ import annotations

import asyncio
import socket
import threading
import time

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from service import http_protocol
from service.http_protocol import TimedProtocol

TIMEOUT_S = 20
LIMIT_S = 0.3


async def _unread(_) -> Response:
    """Answer without a look at the body."""
    return Response("refused", 401)


async def _slow(_) -> Response:
    """Take much longer than a request may take to arrive."""
    await asyncio.sleep(3 * LIMIT_S)
    return Response("scored")


@pytest.fixture
def port(monkeypatch):
    """The port of a server that gives a request 0.3 s to arrive."""
    monkeypatch.setattr(http_protocol, "REQUEST_TIMEOUT_S", LIMIT_S)
    app = Starlette(routes=[Route("/unread", _unread, methods=["POST"]), Route("/slow", _slow)])
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, http=TimedProtocol, log_config=None, lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        give_up = time.monotonic() + TIMEOUT_S
        while not server.started and time.monotonic() < give_up:
            time.sleep(0.005)
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(TIMEOUT_S)


def _closed_after(port: int, start: bytes, drip: bytes) -> bytes:
    """Send a beginning and then drips until the other side closes; gives what it had said."""
    said, give_up = b"", time.monotonic() + TIMEOUT_S
    with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as connection:
        connection.sendall(start)
        connection.settimeout(0.05)
        while time.monotonic() < give_up:
            try:
                connection.sendall(drip)
                part = connection.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                return said
            if not part:
                return said
            said += part
    raise AssertionError("the connection stayed open")


def test_headers_without_an_end_are_cut_off(port, monkeypatch):
    """300 MB of them in a second would end a pod, before anybody has asked for a key."""
    monkeypatch.setattr(http_protocol, "REQUEST_TIMEOUT_S", TIMEOUT_S)
    for line in (b"x-shop: " + b"a" * 1000 + b"\r\n", b"a" * 1000):
        said = _closed_after(port, b"GET /slow HTTP/1.1\r\nhost: a\r\nx-long: ", line * 50)
        assert said in {b"", http_protocol._TOO_LARGE}


def test_a_large_body_after_a_small_head_is_no_head(port):
    """And the next head of the connection is counted from nothing."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        answers = [client.post("/unread", content=b"a" * 300_000, headers={"x-shop": "a" * 20_000}) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [401] * 5


def test_a_silent_connection_is_closed(port):
    """Not one byte comes."""
    assert _closed_after(port, b"", b"") == b""


def test_a_header_that_trickles_in_is_closed(port):
    """A byte now and then does not buy more time."""
    assert _closed_after(port, b"GET /slow HTTP/1.1\r\nx-shop: ", b"a") == b""


def test_a_body_that_trickles_in_after_its_refusal_is_closed(port):
    """The answer was given at once; the rest of the body is not waited for."""
    start = b"POST /unread HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n"

    assert _closed_after(port, start, b" ").startswith(b"HTTP/1.1 401 ")


def test_the_second_request_of_a_connection_is_timed_too(port):
    """The first is answered, the second is left hanging in its header."""
    start = b"POST /unread HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\nPOST /unread HTTP/1.1\r\nx-shop: "

    assert _closed_after(port, start, b"a").count(b"HTTP/1.1 401 ") == 1


def test_slow_answers_and_pauses_between_requests_are_not_timed(port):
    """Two answers of three times the limit each on one connection, with a pause of twice the limit between."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=TIMEOUT_S) as client:
        streams = []
        for _ in range(2):
            with client.stream("GET", "/slow") as answer:
                streams.append(answer.extensions["network_stream"].get_extra_info("client_addr"))
                assert answer.read() == b"scored"
            time.sleep(2 * LIMIT_S)

    assert len(set(streams)) == 1
