"""The shared cache against servers that are down, drip, talk nonsense or repeat what they hear."""

from __future__ import annotations

import logging
import socket
import socketserver
import threading
import time
import traceback
from contextlib import suppress

import pytest
from redis_servers import BOUND_S, KEYS, PATIENCE_S, SHORT_S, VALUES, errors, timed_get

from relevance.errors import SettingsError
from service.shared_cache import SharedCache
from service.telemetry import Telemetry


@pytest.fixture
def serve():
    """Serve TCP connections by a function of the connection, after the PING if it greets; gives the URL."""
    servers = []

    def start(talk, *, greets=True):
        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                with suppress(OSError):
                    if greets and b"PING" in self.request.recv(1000):
                        self.request.sendall(b"+PONG\r\n")
                    talk(self.request)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            block_on_close = False

        servers.append(Server(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.02,), daemon=True).start()
        return f"redis://127.0.0.1:{servers[-1].server_address[1]}/0"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def drip(connection):
    """Answer with a long string, one byte each 5 ms."""
    connection.recv(1000)
    connection.sendall(b"*1\r\n$1000000\r\n")
    while True:
        connection.sendall(b"x")
        time.sleep(0.005)


def test_a_dead_server_is_hardly_tried(connect):
    """Of 2,000 look-ups at a closed port all but the first few are not even sent."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{free.getsockname()[1]}"
    telemetry = Telemetry()
    cache = connect(url, telemetry=telemetry)

    assert all(timed_get(cache, KEYS[:1]) == [None] for _ in range(2000))
    assert 3 <= errors(telemetry, "connection") <= 20


@pytest.mark.parametrize("greets", [True, False])
def test_a_server_that_drips_bytes_costs_the_time_out(serve, connect, greets):
    """Each byte comes long before a socket's own time-out; look-ups, writes and the end are bounded all the same."""
    telemetry = Telemetry()
    cache = connect(serve(drip, greets=greets), timeout_s=SHORT_S, telemetry=telemetry)
    for _ in range(4):
        assert timed_get(cache, KEYS[:1]) == [None]
        cache.put_many(KEYS, VALUES)

    assert errors(telemetry, "timeout") >= 3
    started = time.monotonic()
    cache.close()
    assert time.monotonic() - started < BOUND_S


@pytest.mark.parametrize("greets", [True, False])
def test_connections_cut_for_lateness_are_made_anew(serve, connect, greets):
    """More dripping replies than there are threads, to look-ups or to greetings: no thread is held for ever."""
    connections = []

    def count_and_drip(connection):
        connections.append(connection.recv(1000))
        drip(connection)

    cache = connect(serve(count_and_drip, greets=greets), timeout_s=SHORT_S)
    give_up = time.monotonic() + PATIENCE_S
    while len(connections) < 6:
        assert time.monotonic() < give_up, f"{len(connections)} connections"
        assert timed_get(cache, KEYS[:1]) == [None]
        time.sleep(0.05)


@pytest.mark.parametrize("greets", [True, False])
@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (b"220 mail.example ESMTP\r\n", "garbage"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "garbage"),
        (b"+OK\r\n", "garbage"),
        (b"*1\r\n$-1\r\n", "garbage"),
        (b"*2\r\n:1\r\n:2\r\n", "garbage"),
        (b"-WRONGTYPE Operation against a key\r\n", "garbage"),
        (b"-LOADING Redis is loading the dataset in memory\r\n", "connection"),
        (b"-OOM command not allowed when used memory > 'maxmemory'.\r\n", "full"),
        (b"", "connection"),
    ],
)
def test_a_reply_that_is_not_two_values_is_a_miss_of_its_kind(serve, connect, reply, kind, greets):
    """Another protocol, another shape, an error, or none and the connection closed; to a look-up or at once."""

    def answer(connection):
        connection.recv(1000)
        connection.sendall(reply)

    telemetry = Telemetry()
    cache = connect(serve(answer, greets=greets), telemetry=telemetry)

    assert timed_get(cache, KEYS[:2]) == [None, None]
    assert errors(telemetry, kind) == 1


def test_what_a_server_sends_unasked_is_not_taken_for_a_reply(serve, connect):
    """A second reply to the first look-up waits on the connection; the second look-up makes a new one."""

    def answer_twice(connection):
        connection.recv(1000)
        connection.sendall(b"*1\r\n$3\r\nred\r\n" * 2)
        connection.recv(1000)

    cache = connect(serve(answer_twice))
    for _ in range(20):
        assert cache.get_many(KEYS[:1]) == [b"red"]


def test_a_connection_that_has_answered_wrongly_is_not_used_again(serve, connect):
    """Its later replies could belong to earlier commands; two writes, two connections."""
    connections = []

    def refuse(connection):
        while connection.recv(1000):
            connections.append(connection)
            connection.sendall(b"+NO\r\n")

    telemetry = Telemetry()
    cache = connect(serve(refuse), telemetry=telemetry)
    for n in (1, 2):
        cache.put_many(KEYS[:1], VALUES[:1])
        give_up = time.monotonic() + PATIENCE_S
        while errors(telemetry, "garbage") < n:
            assert time.monotonic() < give_up, "the write was not refused"
            time.sleep(0.01)

    assert len(set(connections)) == len(connections) == 2


def test_a_server_that_repeats_what_it_was_sent_does_not_bring_a_password_into_the_log(serve, connect, caplog):
    """Errors of a server may quote the command, AUTH included."""

    def repeat(connection):
        sent = connection.recv(1000).replace(b"\r\n", b" ")
        connection.sendall(b"-ERR unknown command, with args beginning with: " + sent + b"\r\n")

    caplog.set_level(logging.DEBUG)
    cache = connect(serve(repeat, greets=False).replace("//", "//:the-secret@"))
    for _ in range(4):
        assert timed_get(cache, KEYS) == [None] * 20

    assert "redis fails and is skipped" in caplog.text
    assert "secret" not in caplog.text + repr([vars(record) for record in caplog.records])


@pytest.mark.parametrize(
    "url",
    ["the-secret", "http://:the-secret@host/0", "redis://user:the-secret/1@host:6379", "redis://host?wait=the-secret"],
)
def test_a_url_that_cannot_be_used_is_refused_without_repeating_it(url):
    """A password may be anywhere in it; the traceback does not show it either."""
    with pytest.raises(SettingsError, match="expected redis://") as refused:
        SharedCache(url, timeout_s=1, ttl_s=1, telemetry=Telemetry())

    assert "the-secret" not in "".join(traceback.format_exception(refused.value, limit=0))
