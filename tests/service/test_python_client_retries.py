"""The Python client against a server that answers by a script: what is asked again, put together, refused."""

from __future__ import annotations

import asyncio
import pickle
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from functools import partial

import httpx
import pytest
import relevance_tiers_client as rtc
from client_calls import ITEMS, ask, one_by_one, scoring
from relevance_tiers_client import Client
from relevance_tiers_client.conversations import Conversations
from scripted_server import INFO, LIMITS, ScriptedServer, answer, problem

KEY = "summer-catalogue-key-01"


@pytest.fixture(params=["sync", "async"])
def ask_either(request):
    """Make a call with each of the two clients."""
    return partial(ask, request.param)


@pytest.fixture
def script():
    """Start scripted servers; their ports are closed at the end."""
    servers = []

    def start(*steps, **settings):
        servers.append(ScriptedServer(*steps, **settings))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def test_an_answer_that_repeats_the_key_does_not_get_it_into_the_error(script, ask_either):
    """A proxy that echoes what it was sent."""
    script_of = script(problem(500, "internal", request_id=KEY, errors=[{"pointer": "/", "message": f"found {KEY}"}]))
    with pytest.raises(rtc.ServerFailureError) as caught:
        ask_either(script_of.url, scoring(ITEMS[:1]), api_key=KEY)

    assert KEY not in repr(caught.value) + str(caught.value)


@pytest.mark.parametrize(("return_filtered", "shown"), [("none", []), ("ids", [2, 3, 4]), ("full", [2, 3, 4])])
def test_a_service_that_drops_unscored_items_has_the_rest_filtered(script, ask_either, return_filtered, shown):
    """keep_unscored is off: what was not reached is not kept."""
    late = problem(504, "deadline")
    scripted = script(answer, late, late, infos=({**INFO, "keep_unscored": False},))
    found = ask_either(scripted.url, scoring(return_filtered=return_filtered), **one_by_one(ask_either))

    assert [row.index for row in found.results] == [0, 1]
    assert [row.index for row in found.filtered] == shown
    assert all(
        getattr(row, "reason", "ids") == ("deadline" if return_filtered == "full" else "ids") for row in found.filtered
    )
    assert (found.counts.kept, found.counts.filtered, found.partial) == (2, 3, True)


def test_a_call_of_which_nothing_was_scored_in_time_raises(script, ask_either):
    """As the service's own 504."""
    with pytest.raises(rtc.DeadlineError, match="504 deadline"):
        ask_either(script(*[problem(504, "deadline")] * 3).url, scoring())


def test_an_answer_that_does_not_come_is_not_awaited_beyond_the_deadline(script, ask_either):
    """200 ms and the half second in which an answer is still read."""
    hold = threading.Event()
    scripted = script(lambda asked: hold.wait(20) and answer(asked))
    began = time.monotonic()
    try:
        with pytest.raises(rtc.DeadlineError):
            ask_either(scripted.url, scoring(ITEMS[:2], deadline_ms=200))
        assert 0.2 <= time.monotonic() - began < 10
    finally:
        hold.set()


@pytest.mark.parametrize(
    "first",
    [
        None,
        problem(429, "overloaded", retry_after="0"),
        problem(429, "overloaded", retry_after="9", retry_after_ms=5),
        problem(503, "not_ready", retry_after=formatdate(0, usegmt=True)),
        (503, {"content-type": "text/html"}, b"<h1>no upstream</h1>"),
    ],
    ids=["dropped", "seconds", "milliseconds", "date", "no word of the service"],
)
def test_what_may_go_well_later_is_asked_again(script, ask_either, first):
    """A dropped connection, 429 and 503; each attempt tells less time than the one before."""
    scripted = script(first, first)
    found = ask_either(scripted.url, scoring(ITEMS[:2], deadline_ms=20_000))

    assert found.counts.scored == 2
    assert scripted.paths == ["/info", "/score", "/score", "/score"]
    told = [int(headers["x-request-deadline-ms"]) for _, headers, _ in scripted.asked]
    assert 20_000 >= told[0] >= told[1] > told[2] - 1 >= told[3] - 1 > 0
    assert len({headers["x-request-id"] for path, headers, _ in scripted.asked if path == "/score"}) == 1


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, rtc.InvalidRequestError),
        (422, rtc.InvalidRequestError),
        (500, rtc.ServerFailureError),
        (502, rtc.ServerFailureError),
        (307, rtc.ServerFailureError),
        (403, rtc.UnauthorisedError),
    ],
)
def test_nothing_else_is_asked_again(script, ask_either, status, kind):
    """One request, one error of its kind, with what the service said."""
    scripted = script(problem(status, "scripted", request_id="r-1", errors=[{"pointer": "/query", "message": "long"}]))
    with pytest.raises(kind, match=f"{status} scripted: a scripted scripted; /query: long .request r-1") as caught:
        ask_either(scripted.url, scoring(ITEMS[:2]))

    assert scripted.paths == ["/info", "/score"]
    assert pickle.loads(pickle.dumps(caught.value)).errors == caught.value.errors


def test_attempts_are_counted(script, ask_either):
    """Two of two, then the last error."""
    scripted = script(None, None, None)
    with pytest.raises(rtc.NoConnectionError, match=r"127\.0\.0\.1"):
        ask_either(scripted.url, scoring(ITEMS[:2]), max_attempts=2)

    assert scripted.paths == ["/info", "/score", "/score"]


def test_a_wait_that_does_not_fit_raises_at_once(script, ask_either):
    """Five seconds asked, half a second left."""
    scripted = script(problem(429, "overloaded", retry_after="5"))
    with pytest.raises(rtc.OverloadedError) as caught:
        ask_either(scripted.url, scoring(ITEMS[:2], deadline_ms=500))

    assert caught.value.retry_after_s == 5
    assert scripted.paths == ["/info", "/score"]


@pytest.mark.parametrize(
    "reply",
    [
        (200, {}, b"<html>"),
        (200, {}, b""),
        (200, {"content-encoding": "gzip"}, b"not gzip"),
        partial(answer, counts={"items": 9, "scored": 9, "kept": 9, "filtered": 0, "by_tier": {}}),
        partial(answer, filtered=[{"id": 0, "index": 7}]),
        partial(answer, filtered=[{"id": "0", "index": 0}]),
        partial(answer, usage=None),
        partial(answer, timing_ms={"queue": float("nan"), "tokenize": 0, "infer": 0, "total": 0}),
    ],
)
def test_an_answer_that_is_not_what_was_asked_for_is_a_failure(script, ask_either, reply):
    """Not JSON, damaged, of another request, without a field, not a number."""
    with pytest.raises(rtc.ServerFailureError, match="malformed_answer"):
        ask_either(script(reply).url, scoring(ITEMS[:2]))


def test_fields_sources_and_reasons_of_a_later_version_pass(script, ask_either):
    """As docs/compatibility.md asks of clients."""
    row = {"id": 0, "index": 0, "score": None, "tier": None, "label": None, "kept": True, "truncated": False}
    row |= {"source": "oracle", "reason": "tired", "mood": "good"}
    found = ask_either(script(partial(answer, results=[row], weather="dry")).url, scoring(ITEMS[:1]))

    assert (found.results[0].source, found.results[0].reason) == ("oracle", "tired")


def test_limits_are_read_once_and_again_when_a_413_says_that_they_changed(script, ask_either):
    """Five items at first in one request, then in three; each has the id of the call."""
    wide = {**INFO, "limits": {**LIMITS, "max_items": 9}}
    scripted = script(problem(413, "too_large"), infos=(wide, INFO))
    found = ask_either(scripted.url, scoring())

    assert sorted(scripted.paths) == ["/info"] * 2 + ["/score"] * 4
    assert len({headers["x-request-id"] for path, headers, _ in scripted.asked if path == "/score"}) == 1
    assert [row.index for row in found.results] == [0, 1, 2, 3, 4]


def test_a_413_under_the_same_limits_is_an_error(script, ask_either):
    """Something between client and service allows less."""
    with pytest.raises(rtc.InvalidRequestError, match="413 too_large"):
        ask_either(script(problem(413, "too_large")).url, scoring(ITEMS[:1]))


def test_answers_of_two_models_are_not_mixed(script, ask_either):
    """A reload between two requests: what the old model scored is asked again; if that never ends, it is an error."""
    old, new = partial(answer, model="old"), partial(answer, model="new")
    scripted = script(old, new, new, new)
    found = ask_either(scripted.url, scoring(ITEMS[:4]), **one_by_one(ask_either))
    assert (found.model, len(scripted.paths)) == ("new", 4)

    never = [old, new, old, old, *[old, new] * 5]
    with pytest.raises(rtc.ServerFailureError, match="mixed_versions"):
        ask_either(script(*never).url, scoring(ITEMS[:4]), **one_by_one(ask_either))


def test_beside_a_canary_the_commonest_version_answers_all(script, ask_either):
    """Two of five requests met the canary, one of them twice: only these are sent again, up to the stable one."""
    stable, canary = partial(answer, model="stable"), partial(answer, model="canary")
    one_each = ({**INFO, "limits": {**LIMITS, "max_items": 1}},)
    scripted = script(stable, canary, stable, stable, canary, canary, stable, stable, infos=one_each)
    found = ask_either(scripted.url, scoring(ITEMS[:5]), **one_by_one(ask_either))

    assert (found.model, scripted.paths.count("/score")) == ("stable", 8)


def test_a_call_of_many_requests_hardly_ever_fails_beside_a_canary():
    """A quarter of the traffic meets the canary at random: of 2,000 calls of 8 requests less than one in a hundred."""
    draw, failed = random.Random(0), 0
    asks = {"query": "q", "items": [{"id": 0, "title": "t"}]}
    stable, canary = (rtc.ScoreResponse.model_validate_json(answer(asks, model=m)[2]) for m in ("stable", "canary"))
    for _ in range(2000):
        talk = Conversations("http://a", None, 1.0, 3)._of_one_model([None] * 8)
        asked = next(talk)
        try:
            while True:
                asked = talk.send([canary if draw.random() < 0.25 else stable for _ in asked])
        except StopIteration:
            continue
        except rtc.ServerFailureError:
            failed += 1

    assert failed < 20


def test_the_async_client_s_time_is_over_wherever_it_is_spent():
    """Headers that trickle in, a byte at a time: no step is long, all of them together would take half a minute."""

    async def trickle(reader, writer):
        """Answer slowly for ever."""
        try:
            await reader.readuntil(b"\r\n\r\n")
            for byte in b"HTTP/1.1 200 OK\r\nx-slow: " + b"a" * 200:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.15)
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def asked():
        """Ask such a server for what it serves."""
        server = await asyncio.start_server(trickle, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, rtc.AsyncClient(f"http://127.0.0.1:{port}", timeout_s=0.3, max_attempts=1) as client:
            started = time.monotonic()
            with pytest.raises(rtc.DeadlineError):
                await client.info()
            return time.monotonic() - started

    assert asyncio.run(asked()) < 10


def test_the_async_client_sends_requests_side_by_side_up_to_its_bound(script):
    """Each request is answered when another one is there too, and never a third."""
    pair, lock, here, most = threading.Barrier(2), threading.Lock(), [0], [0]

    def together(asked):
        with lock:
            here[0] += 1
            most[0] = max(most[0], here[0])
        pair.wait(20)
        with lock:
            here[0] -= 1
        return answer(asked)

    items = [{"id": number, "title": "hose"} for number in range(12)]
    found = ask("async", script(*[together] * 6).url, scoring(items), max_concurrency=2)

    assert most == [2]
    assert [row.id for row in found.results] == list(range(12))
    assert found.timing_ms.infer == 18


def test_an_httpx_client_of_the_caller_is_used_and_left_open(script):
    """With its own headers; one client may be shared by threads."""
    scripted = script()
    with httpx.Client(headers={"x-shop": "17"}) as http:
        with Client(scripted.url, http=http) as client, ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: client.score("hose", ITEMS), range(4)))
        assert not http.is_closed
    assert {len(response.results) for response in found} == {5}
    assert {headers["x-shop"] for _, headers, _ in scripted.asked} == {"17"}
