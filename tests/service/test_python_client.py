"""The Python client against real servers, sync and async alike."""

from __future__ import annotations

import pickle
from functools import partial

import pytest
import relevance_tiers_client as rtc
from client_calls import ITEMS, ask, one_by_one, scoring
from relevance_tiers_client import AsyncClient, Client

KEY = "summer-catalogue-key-01"
ANSWERED = 'relevance_requests_total{code="200",outcome="ok",route="/score"}'


@pytest.fixture(params=["sync", "async"])
def ask_either(request):
    """Make a call with each of the two clients."""
    return partial(ask, request.param)


@pytest.fixture(scope="module")
def narrow(launch_shared, tmp_path_factory):
    """A real server that takes seven items and 1 KiB, and asks for a key."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"{KEY}\n")
    return launch_shared(max_items="7", max_body_bytes="1024", api_keys=str(keys))


@pytest.fixture(scope="module")
def obedient(launch_shared):
    """A real server whose engine obeys, for one request at a time, two items each."""
    return launch_shared(faulty=True, max_queued_requests="1", max_items="2", canary_s="600")


@pytest.fixture(scope="module")
def catalogue(tiny_pairs):
    """Forty items of one locale, some of which are filtered; two share an id."""
    items = [rtc.Item(id=number, title=p.pair.item.title) for number, p in enumerate(tiny_pairs[:40])]
    return [*items[:-1], rtc.Item(id=0, title="red running shoes", brand="Fleetrun", color="red")]


def compared(response):
    """Give what must not depend on how a call was sent."""
    found = response.model_dump(exclude={"request_id", "timing_ms"})
    found["usage"] = found["usage"]["pairs"]
    for row in (*found["results"], *found["filtered"]):
        if "score" in row:
            row.update(score=pytest.approx(row["score"], abs=1e-4), source="any")
    return found


@pytest.mark.parametrize(
    "options",
    [
        {"min_tier": 4, "return_filtered": "full"},
        {"min_tier": 4, "return_filtered": "ids", "sort": "score"},
        {"min_tier": 4, "top_k": 9},
        {"min_tier": 4, "top_k": 9, "sort": "score", "locale": "es-ES", "request_id": "shop-1"},
    ],
)
def test_a_call_cut_by_the_limits_is_answered_as_one_request_is(server, narrow, catalogue, ask_either, options):
    """Forty items in at least six requests: the same rows, places, order and counts."""
    call = scoring(catalogue, "red running shoes", **options)
    before = narrow.metrics().get(ANSWERED, 0)
    whole = ask_either(str(server.client.base_url), call)
    cut = ask_either(str(narrow.client.base_url), call, api_key=KEY)

    assert compared(cut) == compared(whole)
    assert cut.counts.items == 40
    assert 0 < cut.counts.filtered < 40
    assert cut.request_id == options.get("request_id", cut.request_id)
    narrow.wait_for(ANSWERED, before + 6)
    assert cut.timing_ms.total > 0


def test_info_tells_what_is_served_and_ready_whether_traffic_may_come(narrow, ask_either, tiny_bundle):
    """`ready` needs no key; nobody listening is not ready."""
    url = str(narrow.client.base_url)
    info = ask_either(url, lambda client: client.info(), api_key=KEY)

    assert (info.limits.max_items, info.limits.max_body_bytes) == (7, 1024)
    assert info.pooled.cut_points == [0.1, 0.25, 0.45, 0.65]
    assert ask_either(url, lambda client: client.ready()) is True
    assert ask_either("http://127.0.0.1:9", lambda client: client.ready()) is False


def test_a_wrong_key_is_told_without_showing_it(narrow, ask_either):
    """Neither in the message nor in the pickled error."""
    with pytest.raises(rtc.UnauthorisedError) as caught:
        ask_either(str(narrow.client.base_url), scoring(), api_key="a-wrong-key-0123")

    assert (caught.value.status, caught.value.code) == (401, "unauthorised")
    assert caught.value.request_id
    assert b"a-wrong-key-0123" not in pickle.dumps(caught.value) + str(caught.value).encode()


@pytest.mark.parametrize(
    ("call", "pointer"),
    [
        (scoring([*ITEMS, {"id": 9}]), "/items/5/title"),
        (scoring([{"id": True, "title": "hose"}]), "/items/0/id"),
        (scoring([ITEMS[0], {"id": 1, "title": "hose", "size": "M"}]), "/items/1/size"),
        (scoring([{"id": 1, "title": "\ud800"}]), "/items/0/title"),
        (scoring(["hose"]), "/items/0"),
        (scoring([]), "/items"),
        (scoring(query=" "), "/query"),
        (scoring(min_tier=5), "/min_tier"),
        (scoring(request_id="two words"), "/request_id"),
        (scoring(top_x=1), "/top_x"),
    ],
)
def test_what_the_schema_refuses_is_refused_here_with_its_place(ask_either, call, pointer):
    """Before anything is sent: nobody listens there."""
    with pytest.raises(rtc.InvalidRequestError) as caught:
        ask_either("http://127.0.0.1:9", call)

    assert caught.value.status is None
    assert {error.pointer for error in caught.value.errors} == {pointer}


def test_an_item_that_fits_into_no_request_is_named(narrow, ask_either):
    """With its place and the limit."""
    items = [ITEMS[0], {"id": 1, "title": "hose", "text": "x" * 1000}]
    with pytest.raises(rtc.InvalidRequestError, match=r"too_large.*1024") as caught:
        ask_either(str(narrow.client.base_url), scoring(items), api_key=KEY)

    assert caught.value.errors[0].pointer == "/items/1"


@pytest.mark.parametrize(
    "settings",
    [{"api_key": "two\nlines"}, {"api_key": ""}, {"timeout_s": 0}, {"max_attempts": 0}, {"base_url": "localhost:8000"}],
)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_settings_that_can_never_work_are_refused(kind, settings):
    """A key is not shown."""
    with pytest.raises(ValueError, match="expected") as caught:
        kind(**({"base_url": "http://shop"} | settings))

    assert "two" not in str(caught.value)


def test_a_server_that_refuses_first_is_asked_again_when_it_said(obedient, fresh_body, ask_either):
    """A place for one request, taken for half a second: refused with a 429, asked again, answered."""
    refused = 'relevance_requests_total{code="429",outcome="shed",route="/score"}'
    before = obedient.metrics()
    obedient.set_engine("slow:0.5", "ok")
    (holder,) = obedient.post_apart([fresh_body(1)])
    obedient.wait_for("relevance_inflight_requests", 2)
    body = fresh_body(2)
    found = ask_either(str(obedient.client.base_url), scoring(body["items"], body["query"], min_tier=0), max_attempts=9)

    assert found.counts.scored == 2
    assert holder.result().status_code == 200
    after = obedient.metrics()
    assert after[refused] > before.get(refused, 0)


def test_when_time_runs_out_between_requests_the_rest_comes_back_unscored(obedient, fresh_body, ask_either):
    """Two requests of two items, the second of which the engine holds back: kept, with the reason."""
    url, body = str(obedient.client.base_url), fresh_body(4)
    obedient.set_engine("ok")
    ask_either(url, scoring(fresh_body(1)["items"], "an engine that is free again"), max_attempts=9)
    obedient.set_engine("ok", "slow:3", "ok")
    call = scoring(body["items"], body["query"], min_tier=0, deadline_ms=1500)
    found = ask_either(url, call, **one_by_one(ask_either))

    assert [(row.index, row.reason, row.source) for row in found.results if row.score is None] == [
        (2, "deadline", "unscored"),
        (3, "deadline", "unscored"),
    ]
    assert found.partial
    assert (found.counts.items, found.counts.scored, found.counts.kept, found.usage.pairs) == (4, 2, 4, 2)


def test_the_public_names_are_exact_and_sorted():
    """What `from relevance_tiers_client import …` may name."""
    assert rtc.__all__ == sorted(rtc.__all__)
    assert all(hasattr(rtc, name) for name in rtc.__all__)
