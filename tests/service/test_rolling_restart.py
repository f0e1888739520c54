"""Two replicas behind a real haproxy under load: drained and restarted in turn, then one killed."""

from __future__ import annotations

import json
import subprocess

import pytest

from benchmarks.load import Call, Reply
from benchmarks.rolling_restart import CONFIG, HAPROXY, Death, kill_of, main

needs_haproxy = pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed (Debian: haproxy)")


def reply(sent: float, done: float, status: int = 200) -> Reply:
    """Give the reply to a call of one item."""
    return Reply(Call(b"", 1), sent, sent, done, status, 1, False)


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
    assert kill["failed"] <= kill["in_flight"]
    assert (kill["failed_but_sent_later"], kill["failed_before"]) == (0, 0)


def test_calls_around_a_kill_are_counted_by_when_they_were_sent_and_failed():
    """Signal at 10, gone at 11: one call was over, two were in flight, of two sent later one failed."""
    replies = [reply(8, 9), reply(9, 10.5, 502), reply(9, 12), reply(11.5, 12, 503), reply(12, 13)]

    assert kill_of(Death(1, 10, 11), replies) == {
        "calls": 5,
        "in_flight_on_it": 1,
        "in_flight": 2,
        "failed": 2,
        "failed_but_sent_later": 1,
        "failed_before": 0,
    }
