"""The playground in a real Chromium, against live servers: what a visitor sees and does."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from browser import CAPPING, Tab, address

from service.settings import DEFAULT_BUNDLE

KEY = "playground-key-0123456789"
HOSTILE = '<img src=x onerror="alert(1)"> hose </td><script>alert(2)</script>'


@pytest.fixture(scope="module")
def default(launch_shared):
    """A server of the embedded default bundle."""
    return launch_shared(DEFAULT_BUNDLE, max_items="50")


@pytest.fixture(scope="module")
def quick(launch_shared):
    """A server of the tiny bundle, whose engine obeys and which takes one request at a time."""
    return launch_shared(faulty=True, max_items="3000", max_queued_requests="1")


def test_the_example_is_scored_in_one_click(tab, default):
    """The best stands first, what is irrelevant is filtered; tiers, scores and rules are the service's own."""
    tab.open(address(default))
    tab.page.click("#try")
    tab.settled()
    kept, filtered = tab.rows("kept"), tab.rows("filtered")
    titles = tab.page.input_value("#items").splitlines()
    body = {"query": tab.page.input_value("#query"), "locale": "en-US", "return_filtered": "full"}
    items = [{"id": number, "title": title} for number, title in enumerate(titles)]
    answer = default.client.post("/score", json=body | {"items": items}).json()

    assert [row["index"] for row in kept] == [
        row["index"] for row in sorted(answer["results"], key=lambda row: -row["score"])
    ]
    for shown, group in ((kept, "results"), (filtered, "filtered")):
        told = {row["index"]: row for row in answer[group]}
        assert {row["index"] for row in shown} == set(told)
        for row in shown:
            assert row["tier"] == f"Tier {told[row['index']]['tier']}"
            assert row["score"] == f"{told[row['index']]['score']:.3f}"
            assert row["title"] == titles[row["index"]]
            assert ("rule complement: at most tier 1" in row["notes"]) == ("rules" in told[row["index"]])
    assert "Olive Oil 500 ml" in {titles[row["index"]] for row in filtered}
    assert tab.page.locator("#axis circle").count() == len(titles)
    assert tab.focused() == "answer"
    assert f"{len(titles)} items in" in tab.text("#status")
    assert {request.url.split("#")[0].startswith(address(default)) for request in tab.asked} == {True}


def test_everything_can_be_done_by_keyboard(tab, default):
    """Tab reaches the fields, Ctrl+Enter scores, arrows move a cut point, a toggle changes the theme."""
    tab.open(address(default))
    tab.tab_to("query")
    tab.page.keyboard.type("garden hose")
    tab.tab_to("items")
    tab.page.keyboard.type("Garden Hose with Brass Nozzle, 15 m\nSteel Water Bottle")
    tab.page.keyboard.press("Control+Enter")
    tab.settled()
    assert tab.focused() == "items"
    assert len(tab.rows("kept") + tab.rows("filtered")) == 2

    tab.tab_to("cut-4")
    before = float(tab.page.input_value("#cut-4"))
    for _ in range(5):
        tab.page.keyboard.press("ArrowLeft")
    tab.page.wait_for_selector("#changed:not([hidden])")
    assert float(tab.page.input_value("#cut-4-number")) == pytest.approx(before - 0.005)

    tab.page.keyboard.press("Home")
    tab.wait_until("document.getElementById('cut-1-number').value === '0'")
    tab.tab_to("reset")
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_selector("#changed", state="hidden")
    assert tab.focused() == "cut-1"
    assert float(tab.page.input_value("#cut-4")) == before


def test_moved_cut_points_give_what_the_service_gives_under_that_policy(tab, quick, tiny_bundle, tmp_path):
    """The lines for policy.toml are put into the policy, which is reloaded: tiers and groups are those that were shown.

    Some items are capped by a business rule before and after.
    """
    edges = {"#cut-2-number": "0.6", "#cut-3-number": "0.7", "#cut-4-number": "0.75"}
    policy = (tiny_bundle / "policy.toml").read_text(encoding="utf-8") + CAPPING
    file = tmp_path / "policy.toml"
    file.write_text(policy.replace('version = "', 'version = "capped-'), encoding="utf-8")
    assert quick.client.post("/admin/reload", json={"policy": str(file)}).json()["replaced"] == "policy"
    titles = [
        title
        for extra in ("with warranty", "2 pack", "for home and office", "new model")
        for title in (f"red running shoes {extra}", f"{extra} running shoes phone case", f"coffee maker {extra}")
    ]
    tab.open(address(quick))
    tab.fill("red running shoes", "\n".join(titles), locale="us", **{"min-tier": "2"})
    tab.score()
    for field, value in edges.items():
        tab.page.fill(field, value)
        tab.page.press(field, "Enter")
    tab.says("what-if", "would change tier")
    shown = {group: {row["index"]: row["tier"] for row in tab.rows(group)} for group in ("kept", "filtered")}
    toml = tab.text("#toml")

    changed, n_sections = re.subn(r'\[locales\."?us"?\]\n(?:.+\n)+', f"{toml}\n", policy)
    changed = changed.replace('version = "', 'version = "moved-')
    file.write_text(changed, encoding="utf-8")
    assert n_sections == 1
    quick.client.post("/admin/reload", json={"policy": str(file)})
    tab.score()
    reloaded = {group: {row["index"]: row["tier"] for row in tab.rows(group)} for group in ("kept", "filtered")}
    notes = {row["notes"] for row in tab.rows("filtered")}
    quick.client.post("/admin/reload", json={"policy": str(tiny_bundle / "policy.toml")})

    assert reloaded == shown
    assert min(len(group) for group in shown.values()) > 0
    assert "rule capped: at most tier 1" in notes
    assert tab.page.input_value("#cut-4-number") == "0.75"
    assert "moved-" in tab.text("#facts")


def test_moved_cut_points_are_called_certified_no_longer(tab, default):
    """Certified cut points come with their promise; moved by hand they have none, whoever decides what is kept."""
    epsilon = default.client.get("/info").json()["locales"]["us"]["epsilon"]
    tab.open(address(default))
    tab.fill("garden hose", "Garden Hose 15 m\nOlive Oil 500 ml", locale="en-US")
    said = [_policy_said(tab, moved) for moved in (False, True)]
    tab.fill("garden hose", "Garden Hose 15 m", locale="es")
    said += [_policy_said(tab, moved) for moved in (False, True)]
    tab.fill("garden hose", "Garden Hose 15 m", locale="en-US", **{"min-tier": "2"})
    said += [_policy_said(tab, moved) for moved in (False, True)]

    us, es = "Cut points of “us”", "Cut points of “es”"
    would = "the groups show what filtering by them would do"
    assert said[0].startswith(f"{us}, certified: by an upper confidence bound, at most {100 * epsilon:g} % of exact")
    assert said[1] == f"{us}, moved by hand: no longer certified; {would}, the lines below filter nothing."
    assert said[2] == f"{es}, not certified: items get tiers, and nothing is filtered."
    assert said[3] == f"{es}, moved by hand, not certified: items get tiers, and nothing is filtered."
    assert said[4] == f"{us}; this request keeps tier 2 and up."
    assert said[5] == f"{us}, moved by hand: no longer certified; {would}."


def _policy_said(tab: Tab, moved: bool) -> str:
    """Give what an answer's page says of its cut points, as they are or with one of them moved."""
    tab.score()
    if moved:
        tab.page.press("#cut-4", "ArrowLeft")
        tab.page.wait_for_selector("#changed:not([hidden])")
    return tab.text("#policy")


def test_a_link_brings_everything_back_but_the_key(tab, browser, default):
    """Query, items, locale, options and moved cut points; the address alone is enough."""
    tab.open(address(default))
    tab.fill("café crème", HOSTILE + "\nGarden Hose 15 m", locale="es", key=KEY, **{"min-tier": "1"})
    tab.score()
    tab.page.fill("#cut-4-number", "0.9")
    tab.page.press("#cut-4-number", "Enter")
    tab.page.click("#share")
    tab.wait_until("location.hash.length > 4")
    link = tab.page.url
    other = Tab(browser)
    other.open(link)
    other.settled()
    fields = [other.page.input_value(f"#{name}") for name in ("query", "items", "locale", "min-tier", "key")]
    cut = other.page.input_value("#cut-4-number")
    rows = [tab.rows("kept"), other.rows("kept")]
    other.close()

    assert fields == ["café crème", HOSTILE + "\nGarden Hose 15 m", "es", "1", ""]
    assert cut == "0.9"
    assert rows[0] == rows[1]
    assert KEY not in link
    assert all("#" not in request.url for request in other.asked)


@pytest.mark.parametrize("fragment", ["#v1.", "#v1.AAAA", "#v1.%%%", "#v1.q1YqLE0tqlSyUjJS0lFKLSrK"])
def test_a_damaged_link_says_so(tab, default, fragment: str):
    """It is neither half read nor asked of the service."""
    tab.open(address(default), fragment)
    tab.page.wait_for_selector(".problem")

    assert "damaged" in tab.problem()
    assert [request.url for request in tab.asked if request.url.endswith("/score")] == []


def test_a_link_that_would_be_too_long_is_not_made(tab, quick):
    """The message says how long and what the bound is."""
    tab.open(address(quick))
    numbers = range(4000)
    tab.fill("hose", "\n".join(f"hose {n * 7919 % 1000003:x} {n * 104729 % 999983:x}" for n in numbers))
    tab.page.click("#share")
    tab.page.wait_for_selector(".problem")

    assert "at most 16,000" in tab.problem()
    assert "#" not in tab.page.url


def test_titles_are_shown_as_text_whatever_they_hold(tab, quick):
    """No element is made of them, and nothing runs."""
    tab.open(address(quick))
    tab.fill("hose", HOSTILE)
    tab.score()
    (row,) = tab.rows("kept") + tab.rows("filtered")

    assert row["title"] == HOSTILE
    assert tab.page.locator("#result img, #result script").count() == 0


@pytest.mark.parametrize(
    ("items", "read"),
    [
        ('id,title,Brand,colour,size\n7,"hose, 15 m",Ostra,red,XL\n8,pipe', "2 items, read as a table."),
        ('[{"id": 7, "title": "hose, 15 m", "brand": "Ostra"}, "pipe"]', "2 items, read as a JSON list."),
        ('{"id": 7, "title": "hose, 15 m"}\n{"title": "pipe"}', "2 items, read as JSON lines."),
        ('{"query": "hose", "items": [{"id": 7, "title": "hose, 15 m"}, "pipe"]}', "a request body"),
        ("hose, 15 m\n\n  pipe ", "2 items, read as titles."),
        ('[\n  "hose, 15 m", "pipe"]', "2 items, read as a JSON list."),
    ],
)
def test_items_are_read_from_whatever_was_pasted(tab, quick, items: str, read: str):
    """Titles, JSON, JSON lines, tables and whole bodies; the page says what it took them for, the service gets them."""
    tab.open(address(quick))
    tab.fill("hose", items)
    tab.score()
    sent = next(r for r in tab.asked if r.url.endswith("/score")).post_data_json["items"]

    assert read in tab.text("#items-read")
    assert sorted(row["title"] for row in tab.rows("kept") + tab.rows("filtered")) == ["hose, 15 m", "pipe"]
    if "table" in read:
        known = {"id": "7", "title": "hose, 15 m", "brand": "Ostra", "color": "red"}
        assert sent[0] == known | {"attributes": {"size": "XL"}}
        assert "does not read attributes" in tab.text("#items-read")


@pytest.mark.parametrize("title", ["[2 Pack] HDMI Cable", "{New} HDMI Cable", "[ 2] x", "[Refurbished] “TV” {used}"])
def test_titles_that_begin_with_a_bracket_are_titles(tab, quick, title: str):
    """As shops write them; JSON begins otherwise."""
    tab.open(address(quick))
    tab.fill("hdmi cable", f"{title}\nHDMI Cable, 2 m")
    tab.score()

    assert tab.text("#items-read").startswith("2 items, read as titles.")
    assert title in {row["title"] for row in tab.rows("kept") + tab.rows("filtered")}


def test_a_pasted_body_fills_the_form_once_and_what_is_typed_then_wins(tab, quick):
    """All that it says is asked; no locale of an earlier request is left, and editing its items changes no field."""
    pasted = {"query": "garden hose", "min_tier": 0, "deadline_ms": 9000, "items": [{"id": 7, "title": "hose"}]}
    paste = "(field, text) => { field.value = text; field.dispatchEvent(new Event('input')); }"
    tab.open(address(quick))
    tab.fill("pipe", "pipe", locale="us", **{"min-tier": "3"})
    tab.page.locator("#items").evaluate(paste, json.dumps(pasted))
    tab.score()
    tab.fill("steel pipe", json.dumps(pasted), locale="es", deadline="", **{"min-tier": ""})
    tab.page.locator("#items").press("Control+End")
    tab.page.locator("#items").press("Enter")
    tab.page.locator("#items").evaluate(paste, json.dumps(pasted)[:-1])
    tab.page.locator("#items").evaluate(paste, json.dumps(pasted | {"items": ["copper hose"]}))
    tab.score()
    sent = [r.post_data_json for r in tab.asked if r.url.endswith("/score")]

    assert sent[0] == pasted | {"return_filtered": "full"}
    typed = {"query": "steel pipe", "locale": "es", "return_filtered": "full"}
    assert sent[1] == typed | {"items": [{"id": 1, "title": "copper hose"}]}


def test_an_answer_that_was_stopped_while_the_page_asked_what_is_served_is_not_shown(tab, quick, tiny_bundle, tmp_path):
    """After a change of policy /info is asked again: neither Stop nor the next request may see the old answer then."""
    policy = (tiny_bundle / "policy.toml").read_text(encoding="utf-8")
    file = tmp_path / "policy.toml"
    file.write_text(policy.replace('version = "', 'version = "swapped-'), encoding="utf-8")
    tab.open(address(quick))
    quick.client.post("/admin/reload", json={"policy": str(file)})
    held: list[Any] = []
    tab.page.route("**/info", lambda route: held.append(route))
    tab.fill("hose", "garden hose")
    tab.page.click("#send")
    _wait_for(tab, held, 1)
    tab.page.click("#stop")
    tab.settled()
    stopped = tab.text("#status")
    tab.page.click("#send")
    _wait_for(tab, held, 2)
    tab.fill("elbow", "brass elbow\nsteel elbow")
    tab.page.press("#query", "Control+Enter")
    _wait_for(tab, held, 3)
    for route in held[:2]:
        route.continue_()
    tab.page.wait_for_timeout(300)
    early = (tab.page.locator("#result").is_hidden(), tab.text("#status"))
    held[2].continue_()
    tab.settled()
    quick.client.post("/admin/reload", json={"policy": str(tiny_bundle / "policy.toml")})

    assert stopped == "Stopped."
    assert early == (True, "Scoring 2 items…")
    assert {row["title"] for row in tab.rows("kept") + tab.rows("filtered")} == {"brass elbow", "steel elbow"}
    assert "swapped-" in tab.text("#facts")


def _wait_for(tab: Tab, held: list[Any], n: int) -> None:
    """Wait until so many requests are held back."""
    give_up = time.monotonic() + 20
    while len(held) < n:
        assert time.monotonic() < give_up, f"expected {n} requests, found {len(held)}"
        tab.page.wait_for_timeout(20)


def test_three_thousand_items_stay_usable(tab, quick):
    """Fifty rows a group at first, more on demand with the focus on the first new one; the axis becomes bars."""
    tab.open(address(quick))
    tab.fill("water bottle", "\n".join(f"steel water bottle {number}" for number in range(3000)), **{"min-tier": "0"})
    tab.score()
    assert len(tab.rows("kept")) == 50
    assert tab.page.locator("#axis circle").count() == 0

    tab.page.click("#kept > button")
    assert len(tab.rows("kept")) == 250
    focused = tab.page.evaluate("document.activeElement.closest('tr').rowIndex")
    assert focused == 51
    tab.page.press("#cut-1", "ArrowRight")
    tab.page.wait_for_selector("#changed:not([hidden])")


CALLS = {
    "no items": ({"query": "hose", "items": ""}, ["No items"]),
    "no query": ({"query": " ", "items": "hose"}, ["/query", "only white space"]),
    "an unknown field": ({"query": "hose", "items": '[{"title": "hose", "colour": "red"}]'}, ["/items/0/colour"]),
    "too long a query": ({"query": "hose " * 400, "items": "hose"}, ["The query is too long", "tokens"]),
    "too many items": ({"query": "hose", "items": "hose\n" * 3001}, ["Too much", "at most 3000"]),
    "a deadline that is no number": ({"query": "hose", "items": "hose", "deadline": "soon"}, ["/deadline_ms"]),
    "items that are no JSON": ({"query": "hose", "items": '[{"title": }]'}, ["expected JSON"]),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_refused_request_says_what_is_wrong_and_where(tab, quick, name: str):
    """In words, with the place the service points at; what was typed stays."""
    fields, expected = CALLS[name]
    tab.open(address(quick))
    tab.fill(**fields)
    tab.score()

    assert [text for text in expected if text not in tab.problem()] == []
    assert tab.page.input_value("#items") == fields["items"]
    assert tab.page.locator("#result").is_hidden()


def test_a_busy_and_a_late_service_say_so_and_a_request_can_be_stopped(tab, quick):
    """While another request has the only place: 429 with its wait; with too little time: 504; Stop gives up."""
    tab.open(address(quick))
    quick.set_engine("slow:1.5")
    (other,) = quick.post_apart([{"query": "pipe", "items": [{"id": 1, "title": "copper pipe"}]}])
    quick.wait_for("relevance_queue_requests", 1)
    tab.fill("hose", "garden hose that nobody asked for")
    tab.score()
    busy = tab.problem()
    other.result()
    tab.fill("hose", "garden hose that nobody asked for", deadline="100")
    tab.score()
    late = tab.problem()
    tab.fill("hose", "garden hose to be stopped", deadline="")
    tab.page.click("#send")
    tab.page.click("#stop")
    tab.settled()
    quick.set_engine("ok")

    assert "The service is busy" in busy
    assert re.search(r"Try again in (a second|\d+ s)", busy)
    assert "No item was scored in time" in late
    assert (tab.text("#status"), tab.focused()) == ("Stopped.", "send")


def test_unscored_items_say_why_and_passthrough_is_announced(tab, quick):
    """A row of NaN has no score and a reason; the switch is told above everything."""
    tab.open(address(quick))
    quick.set_engine("nan", "ok")
    tab.fill("unlucky hose", "unlucky garden hose\nanother garden hose altogether")
    tab.score()
    unscored = [row for row in tab.rows("kept") if row["tier"] == "Unscored"]
    quick.set_engine("ok")
    quick.client.post("/admin/mode", json={"mode": "passthrough"})
    tab.fill("unlucky hose", "garden hose")
    tab.score()
    tab.says("service", "Passthrough")
    quick.client.post("/admin/mode", json={"mode": "score"})

    assert [(row["score"], row["notes"]) for row in unscored] == [("–", "no score: the model gave no number")]
    assert [row["notes"] for row in tab.rows("kept")] == ["no score: passthrough mode"]
