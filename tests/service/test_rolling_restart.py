"""Two replicas behind a real haproxy under load: drained and restarted in turn, then one killed."""

from __future__ import annotations

import json
import socket
import subprocess

import pytest

from benchmarks.load import Call, Reply
from benchmarks.rolling_restart import CONFIG, HAPROXY, NAMES, Death, Proxy, held, kill_of, lost, main
from benchmarks.servers import free_port

needs_haproxy = pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed (Debian: haproxy)")


def reply(sent: float, done: float, status: int = 200) -> Reply:
    """Give the reply to a call of one item."""
    return Reply(Call(b"", 1), sent, sent, done, status, 1, False)


@pytest.fixture(scope="module")
def lone_proxy():
    """Give the port of a proxy whose replicas are away."""
    away = [free_port() for _ in NAMES]
    with held(away), Proxy(away) as proxy:
        yield proxy.port


@needs_haproxy
def test_the_proxys_configuration_is_valid_as_it_stands():
    """Without a single variable set."""
    done = subprocess.run([HAPROXY, "-c", "-f", CONFIG], env={}, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


@needs_haproxy
def test_restarts_lose_no_call_and_a_kill_only_those_in_flight(tiny_bundle, tmp_path):
    """Both replicas once, then one by SIGKILL; the program fails if a call is lost that must not be."""
    out = tmp_path / "report.json"

    assert main(["--bundle", str(tiny_bundle), "--quick", "--out", str(out)]) == 0

    figures = json.loads(out.read_text(encoding="utf-8"))["figures"]
    assert figures["restarts"]["replicas_restarted"] == 2
    assert list(figures["restarts"]["answers"]) == ["200"]
    (kill,) = figures["kills"]
    assert kill["in_flight_on_it"] >= 1
    assert kill["failed"] <= kill["in_flight_on_it"] + kill["sent_it_meanwhile"]
    assert figures["kills_lost_beyond_those_in_flight"] == lost(kill) == 0


@needs_haproxy
@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/admin/drain", 403),
        ("/%61dmin/drain", 403),
        ("/admin%2Fdrain", 403),
        ("/metrics", 403),
        ("/%6Detrics", 403),
        ("/metrics/", 403),
        ("/score", 503),
        ("/v1/models?of=/admin/", 503),
    ],
)
def test_the_proxy_denies_what_only_the_host_may_ask_however_it_is_written(path, status, lone_proxy):
    """No replica runs: what is let through is answered 503, and denied is denied before."""
    with socket.create_connection(("127.0.0.1", lone_proxy), timeout=10) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n".encode())
        line = connection.makefile("rb").readline()

    assert int(line.split()[1]) == status


def test_calls_around_a_kill_are_counted_by_when_they_were_sent_and_failed():
    """Signal at 10, gone at 11: one call was over, four were in flight, of two sent later one failed."""
    replies = [
        reply(8, 9),
        reply(9, 10.5, 502),
        reply(9, 10.6, 0),
        reply(9, 11.2, 502),
        reply(9, 12),
        reply(11.5, 12, 503),
        reply(12, 13),
    ]

    kill = kill_of(Death(1, 1, 10, 11), replies)

    assert kill == {
        "calls": 7,
        "in_flight": 4,
        "in_flight_on_it": 1,
        "sent_it_meanwhile": 1,
        "failed": 4,
        "failed_but_sent_later": 1,
        "failed_before": 0,
        "failed_elsewhere": 1,
    }
    assert lost(kill) == 2


def test_a_kill_may_cost_as_many_calls_as_were_on_the_replica_and_no_more():
    """Of three calls in flight two fail: none is lost with two on the replica, one with one."""
    replies = [reply(9, 10.5, 502), reply(9, 10.5, 502), reply(9, 12)]

    assert [lost(kill_of(Death(on_it, 0, 10, 11), replies)) for on_it in (2, 1)] == [0, 1]


def test_a_held_port_can_be_served_and_refuses_while_it_is_not():
    """What haproxy must see of a replica that is away: a refused connection, not a silent one."""
    port = free_port()
    with held([port]):
        for _ in range(2):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port))
            with socket.create_server(("127.0.0.1", port)), socket.create_connection(("127.0.0.1", port)):
                pass
