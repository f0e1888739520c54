"""The playground where something is in the way: keys, a start, an end, a proxy; and for every eye and ear."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import Tab, address

from benchmarks.rolling_restart import HAPROXY
from benchmarks.servers import free_port

KEY = "playground-key-0123456789"
EXPLAINED = {"min_tier": 0, "explain": True}
FAULTY = Path(__file__).with_name("faulty_server.py")
PROJECT = Path(__file__).parents[2]
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
SUB_PATH = """
defaults
    mode http
    timeout connect 1s
    timeout client 30s
    timeout server 30s
listen shop
    bind 127.0.0.1:{front}
    http-request redirect location /ads/relevance/ if {{ path /ads/relevance }}
    http-request deny deny_status 404 unless {{ path_beg /ads/relevance/ }}
    http-request replace-path /ads/relevance(.*) \\1
    server one 127.0.0.1:{back}
"""


@pytest.fixture(scope="module")
def locked(launch_shared, tmp_path_factory):
    """A server that asks for a key."""
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(KEY)
    return launch_shared(api_keys=str(file), max_items="200")


@pytest.fixture(scope="module")
def explaining(launch_shared, explained_bundle: Path):
    """A server whose bundle can explain itself."""
    return launch_shared(explained_bundle)


def violations(tab: Tab) -> list[str]:
    """Give what axe-core finds wrong, with where."""
    found = Axe().run(tab.page).response["violations"]
    return [f"{fault['impact']} {fault['id']}: {node['target']}" for fault in found for node in fault["nodes"]]


def test_a_key_is_asked_for_taken_and_forgotten(tab, locked):
    """Without one and with a wrong one the page says what to do; with the right one it works; a reload has none."""
    tab.open(address(locked))
    tab.says("service", "asks for an API key")
    tab.fill("hose", "garden hose")
    tab.score()
    without = tab.problem()
    tab.fill("hose", "garden hose", key="wrong-key-0123456789")
    tab.score()
    wrong = tab.problem()
    tab.fill("hose", "garden hose", key=KEY)
    tab.score()
    rows = tab.rows("kept") + tab.rows("filtered")
    stored = tab.page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])")
    tab.page.reload()
    tab.says("service", "asks for an API key")

    assert "An API key is needed" in without
    assert "An API key is needed" in wrong
    assert len(rows) == 1
    assert KEY not in stored
    assert tab.page.input_value("#key") == ""


@pytest.mark.parametrize("key", ["schlüssel-0123456789", "“playground-key”", "two words-0123456789"])
def test_a_key_that_can_be_none_is_said_to_be_so(tab, locked, key: str):
    """It is not taken for a service that does not answer, nothing is sent with it, and nothing is asked again."""
    tab.open(address(locked))
    tab.says("service", "asks for an API key")
    tab.fill("hose", "garden hose", key=key)
    tab.page.press("#key", "Tab")
    tab.says("service", "a character that no key can hold")
    asked = len(tab.asked)
    tab.score()

    assert "a character that no key can hold" in tab.problem()
    assert "No connection" not in tab.problem()
    assert [r.url for r in tab.asked[asked:] if r.url.endswith(("/score", "/info"))] == []


def test_a_start_is_waited_for(tab, tiny_bundle, tmp_path):
    """The page is there before the model is, says so, and goes on by itself."""
    port = free_port()
    (tmp_path / "engine").write_text("slow:1 slow:1 ok")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RELEVANCE_")}
    environment |= {"FAULTS": str(tmp_path), "PYTHONPATH": str(PROJECT), "RELEVANCE_ENGINES": "1"}
    command = [sys.executable, str(FAULTY), "--port", str(port), "--bundle", str(tiny_bundle)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, cwd=PROJECT) as process:
        try:
            _when_there(tab, f"http://127.0.0.1:{port}/")
            tab.says("service", "starting")
            tab.fill("hose", "garden hose")
            tab.score()
            early = tab.problem()
            tab.says("about", "up to")
            tab.score()
            rows, said = tab.rows("kept") + tab.rows("filtered"), tab.text("#service")
        finally:
            process.kill()

    assert "The service is not ready" in early
    assert len(rows) == 1
    assert said == ""


def _when_there(tab: Tab, url: str) -> None:
    """Open a page as soon as something answers there."""
    from playwright.sync_api import Error

    give_up = time.monotonic() + 20
    while True:
        try:
            tab.open(url)
        except Error:
            assert time.monotonic() < give_up
            time.sleep(0.05)
        else:
            return


def test_a_draining_service_says_so_and_one_that_stopped_too(tab, launch):
    """It still answers while it drains; after its end the page keeps what was typed."""
    server = launch()
    tab.open(address(server))
    assert tab.text("#service") == ""
    server.client.post("/admin/drain")
    tab.fill("hose", "garden hose")
    tab.score()
    tab.says("service", "draining")
    answered = len(tab.rows("kept") + tab.rows("filtered"))
    server.process.kill()
    server.process.wait()
    tab.score()

    assert answered == 1
    assert "No connection" in tab.problem()
    assert tab.page.input_value("#items") == "garden hose"
    tab.says("service", "does not answer")


@pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed (Debian: haproxy)")
def test_below_another_path_it_works_and_a_proxys_own_answer_is_told_apart(tab, launch, tmp_path):
    """A real haproxy gives it a path; once the service is away, its page of HTML is not taken for an answer."""
    server, front = launch(), free_port()
    config = tmp_path / "haproxy.cfg"
    config.write_text(SUB_PATH.format(front=front, back=server.port))
    with subprocess.Popen([str(HAPROXY), "-f", config], stderr=subprocess.DEVNULL) as proxy:
        try:
            _when_there(tab, f"http://127.0.0.1:{front}/ads/relevance")
            tab.fill("hose", "garden hose")
            tab.score()
            answered = len(tab.rows("kept") + tab.rows("filtered"))
            asked = {request.url.split("#")[0] for request in tab.asked}
            server.process.kill()
            server.process.wait()
            tab.score()
        finally:
            proxy.kill()

    assert answered == 1
    assert {url.startswith(f"http://127.0.0.1:{front}/ads/relevance") for url in asked} == {True}
    assert "The answer is not this service’s" in tab.problem()
    assert "503" in tab.problem()


@pytest.mark.parametrize("viewport", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_wrong(browser, locked, scheme: str, viewport: dict):
    """In every state: empty, with a banner, an error, an answer whose cut points were moved; nothing overflows."""
    tab = Tab(browser, viewport=viewport, color_scheme=scheme, reduced_motion="reduce")
    tab.open(address(locked))
    tab.says("service", "asks for an API key")
    found = violations(tab)
    tab.fill("hose", "")
    tab.score()
    found += violations(tab)
    items = [f"hose of {n} metres and a_word_that_is_very_long_indeed_and_has_no_blank_in_it_at_all" for n in range(60)]
    tab.fill("garden hose", "\n".join(items), key=KEY)
    tab.score()
    tab.page.fill("#cut-2-number", "0.5")
    tab.page.press("#cut-2-number", "Enter")
    tab.page.wait_for_selector("#changed:not([hidden])")
    found += violations(tab)
    overflows = tab.page.evaluate("document.documentElement.scrollWidth > innerWidth")
    dark = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
    tab.close()

    assert found == []
    assert not overflows
    assert (dark == "rgb(255, 255, 255)") == (scheme == "light")


def test_an_explanation_is_asked_for_one_item_and_shown_as_the_service_gave_it(tab, explaining):
    """Keyboard alone: the place of the score, each perspective's rationale or that none is close, words, shares."""
    titles = [f"{kind} {thing}" for kind in ("red", "steel", "kids") for thing in ("phone case", "desk lamp", "bottle")]
    body = {"query": "red phone case", "items": [{"id": t, "title": t} for t in titles]} | EXPLAINED
    rows = explaining.client.post("/score", json=body).json()["results"]
    row = next(row for row in rows if {r["close"] for r in row["explanation"]["rationales"]} == {True, False})
    told, name = row["explanation"], f"Why? {row['id']}"
    tab.open(address(explaining))
    tab.fill("red phone case", "\n".join(titles), **{"min-tier": "0"})
    tab.score()
    asked = len(tab.asked)
    tab.page.get_by_role("button", name=name).focus()
    tab.page.keyboard.press("Enter")
    tab.wait_until("document.querySelector('.explanation h4') !== null")
    shown = tab.text(".explanation")
    request = next(r for r in tab.asked[asked:] if r.url.endswith("/score"))
    words = tab.page.locator(".explanation .words").all_inner_texts()
    wrong = violations(tab)
    tab.page.select_option("#order", "input")
    reordered = tab.text(".explanation")
    tab.page.get_by_role("button", name=name).press("Enter")

    assert [item["title"] for item in request.post_data_json["items"]] == [row["id"]]
    assert request.post_data_json["explain"] is True
    assert f"As served: tier {row['tier']}. The score {row['score']:.3f} lies" in shown
    for rationale in told["rationales"]:
        assert (rationale["text"] or "No close rationale") in shown
        assert f"Similarity {rationale['similarity']:.3f}" in shown
    assert " ".join(words).split() == ["Query", "red", "phone", "case", "Item", *row["id"].split()]
    for share in told["probabilities"].values():
        assert f"{100 * share:.1f} %" in shown
    assert wrong == []
    assert reordered == shown
    assert tab.page.locator(".explanation").count() == 0


def test_where_nothing_can_be_explained_nothing_is_offered(tab, locked):
    """No button, no empty column."""
    tab.open(address(locked))
    tab.fill("hose", "garden hose", key=KEY)
    tab.score()

    assert tab.page.get_by_role("button", name="Why?").count() == 0
    assert tab.page.get_by_role("columnheader").count() == 3


def test_the_theme_is_chosen_and_remembered(tab, locked):
    """One press turns to dark whatever the system says; a reload keeps it; the button tells its state."""
    tab.open(address(locked))
    assert tab.page.get_attribute("#theme", "aria-pressed") == "false"
    tab.page.click("#theme")
    tab.page.reload()

    assert tab.page.get_attribute("#theme", "aria-pressed") == "true"
    assert tab.page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"


def test_what_changes_is_said_aloud(tab, locked):
    """Answers and what-ifs are statuses, problems alerts; tables have captions and headers, fields their labels."""
    tab.open(address(locked))
    tab.fill("hose", "garden hose", key=KEY)
    tab.score()
    roles = tab.page.evaluate("['status', 'problem', 'what-if', 'service'].map(id => document.getElementById(id).role)")

    assert roles == ["status", "alert", "status", "status"]
    assert tab.page.get_by_role("main").count() == tab.page.get_by_role("banner").count() == 1
    assert (
        tab.page.get_by_role("table", name="Kept items")
        .or_(tab.page.get_by_role("table", name="Filtered items"))
        .count()
    )
    assert tab.page.get_by_role("rowheader", name="garden hose").count() == 1
    fields = {
        "textbox": ("Query", "Items", "Deadline, ms"),
        "combobox": ("Locale", "Lowest tier kept", "Order", "Example"),
    }
    for role, names in fields.items():
        for name in names:
            assert tab.page.get_by_role(role, name=name, exact=True).count() == 1, name
    assert tab.page.get_by_role("slider").count() == 4
    assert "tier" in str(tab.page.get_by_role("img").get_attribute("aria-label"))
