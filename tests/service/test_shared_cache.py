"""The shared cache on a real Redis: shared, killed, stopped, full, locked and overwritten."""

from __future__ import annotations

import logging
import os
import signal
import time

from redis_servers import BOUND_S, KEYS, PATIENCE_S, SHORT_S, VALUES, errors, timed_get

from service.pair_cache import unpack
from service.shared_cache import MAX_WAITING, PREFIX
from service.telemetry import Telemetry


def put_until_found(cache, reader=None):
    """Put the values until a look-up finds all of them."""
    give_up = time.monotonic() + PATIENCE_S
    while (reader or cache).get_many(KEYS) != VALUES:
        assert time.monotonic() < give_up, "nothing was found"
        cache.put_many(KEYS, VALUES)
        time.sleep(0.05)


def test_two_replicas_share_what_either_has_computed(start_redis, connect):
    """One puts, the other finds; unknown keys are misses, and nothing is an error."""
    server, telemetry = start_redis(), Telemetry()
    first, second = connect(server.url, telemetry=telemetry), connect(server.url, telemetry=telemetry)
    put_until_found(first, reader=second)

    assert second.get_many([b"unknown", *KEYS[:2]]) == [None, *VALUES[:2]]
    assert second.get_many([]) == []
    assert {errors(telemetry, kind) for kind in ("timeout", "connection", "garbage", "full")} == {0.0}
    assert telemetry.registry.get_sample_value("relevance_shared_cache_duration_seconds_count") >= 2


def test_entries_end_and_carry_a_prefix(start_redis, connect):
    """Each lives for the seconds set; a value of None is not written."""
    server = start_redis()
    cache = connect(server.url)
    cache.put_many([b"k" * 16], [None])
    put_until_found(cache)
    with server.client() as client:
        names = sorted(client.keys())
        left_ms = [client.pttl(name) for name in names]

    assert names == sorted(PREFIX + key for key in KEYS)
    assert all(0 < left <= 60_000 for left in left_ms)


def test_entries_overwritten_with_garbage_or_another_type_are_misses(start_redis, connect):
    """One is cut short, one is other text, one has become a list; the rest is found."""
    server = start_redis()
    cache = connect(server.url)
    put_until_found(cache)
    with server.client() as client:
        client.set(PREFIX + KEYS[0], VALUES[0][:-1])
        client.set(PREFIX + KEYS[1], b"walking shoes for women..")
        client.delete(PREFIX + KEYS[2])
        client.lpush(PREFIX + KEYS[2], b"walking shoes")
    found = unpack(cache.get_many(KEYS), 4)

    assert found.found_B.tolist() == [False] * 3 + [True] * 17
    assert found.n_garbage == 2


def test_a_server_that_dies_is_a_miss_and_is_used_again_once_it_is_back(start_redis, connect, caplog):
    """Without a restart of ours; the log says when it was given up and when it answered again."""
    server, telemetry = start_redis(), Telemetry()
    cache = connect(server.url, telemetry=telemetry)
    put_until_found(cache)
    caplog.set_level(logging.INFO)
    server.kill()
    for _ in range(5):
        assert timed_get(cache, KEYS) == [None] * 20
        cache.put_many(KEYS, VALUES)

    assert errors(telemetry, "connection") >= 3
    assert "redis fails and is skipped" in caplog.text
    server.start()
    put_until_found(cache)
    assert "redis answers again" in caplog.text


def test_a_server_that_comes_back_between_two_look_ups_costs_no_error(start_redis, connect):
    """A connection that the server has closed meanwhile is noticed before it is used."""
    server, telemetry = start_redis(), Telemetry()
    cache = connect(server.url, telemetry=telemetry)
    put_until_found(cache)
    server.kill()
    server.start()

    assert [cache.get_many(KEYS) for _ in range(8)] == [[None] * 20] * 8
    assert errors(telemetry, "connection") == 0


def test_a_server_that_hangs_costs_the_time_out_and_is_used_again_once_it_goes_on(start_redis, connect):
    """SIGSTOP: connections are accepted, nothing is answered."""
    server, telemetry = start_redis(), Telemetry()
    cache = connect(server.url, timeout_s=SHORT_S, telemetry=telemetry)
    put_until_found(cache)
    server.process.send_signal(signal.SIGSTOP)
    for _ in range(5):
        assert timed_get(cache, KEYS) == [None] * 20

    assert errors(telemetry, "timeout") >= 3
    server.process.send_signal(signal.SIGCONT)
    put_until_found(cache)


def test_writes_that_a_hanging_server_does_not_take_are_dropped_and_counted(start_redis, connect):
    """The first fill the queue, the last do not fit; putting never waits."""
    server, telemetry = start_redis(), Telemetry()
    cache = connect(server.url, telemetry=telemetry)
    server.process.send_signal(signal.SIGSTOP)
    keys = [os.urandom(16) for _ in range(MAX_WAITING // 2)]
    started = time.monotonic()
    for _ in range(4):
        cache.put_many(keys, [VALUES[0]] * len(keys))

    assert time.monotonic() - started < BOUND_S
    assert errors(telemetry, "full") == 2


def test_a_write_that_is_refused_leaves_look_ups_alone(start_redis, connect):
    """A full Redis still answers: what is in it is found, what does not fit is counted."""
    server, telemetry = start_redis(), Telemetry()
    cache = connect(server.url, telemetry=telemetry)
    put_until_found(cache)
    with server.client() as client:
        client.config_set("maxmemory", 1)
    give_up = time.monotonic() + PATIENCE_S
    while errors(telemetry, "full") < 3:
        assert time.monotonic() < give_up, "writes were not refused"
        cache.put_many(KEYS, VALUES)
        time.sleep(0.05)

    assert cache.get_many(KEYS) == VALUES


def test_a_wrong_password_is_a_miss_and_no_password_is_logged(start_redis, connect, caplog):
    """Neither ours nor the server's, at any level of any logger."""
    caplog.set_level(logging.DEBUG)
    server, telemetry = start_redis("--requirepass", "the-right-secret"), Telemetry()
    cache = connect(server.url.replace("//", "//:the-wrong-secret@"), telemetry=telemetry)
    for _ in range(4):
        assert timed_get(cache, KEYS) == [None] * 20

    assert errors(telemetry, "connection") >= 3
    assert "redis fails and is skipped" in caplog.text
    assert "secret" not in caplog.text + repr([vars(record) for record in caplog.records])


def test_the_right_password_is_let_in(start_redis, connect):
    """From the URL, user name or not."""
    server = start_redis("--requirepass", "the-right-secret")
    cache = connect(server.url.replace("//", "//default:the-right-secret@"))
    put_until_found(cache)

    assert cache.get_many(KEYS) == VALUES


def test_a_closed_cache_finds_and_takes_nothing(start_redis, connect):
    """Without waiting for it; closing twice does no harm."""
    telemetry = Telemetry()
    cache = connect(start_redis().url, telemetry=telemetry)
    put_until_found(cache)
    cache.close()
    cache.close()
    cache.put_many(KEYS, VALUES)

    assert cache.get_many(KEYS) == [None] * 20
    assert errors(telemetry, "timeout") == 0
