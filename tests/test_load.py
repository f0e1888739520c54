"""The load test: its schedule, its texts and thresholds, and Locust itself for a few seconds on the tiny bundle."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.locust.__main__ import main
from benchmarks.locust.arrivals import OVERLOAD, PHASES, Bodies, Mix, schedule
from benchmarks.locust.outcomes import Outcome, Thresholds, by_kind, overload, verdicts
from benchmarks.servers import PROJECT, Server

MIX = Mix({50: 0.8, 500: 0.15, 3000: 0.05})
LIMITS = Thresholds({50: 1.0}, error_ratio=0.01, goodput=0.8, cached=0.95)
LOCUST = [sys.executable, "-m", "locust", "-f", "benchmarks/locust/locustfile.py", "--headless"]


def outcome(
    kind: str = "cold",
    status: int = 200,
    *,
    latency_s: float = 0.5,
    retry_after: bool = False,
    scored: int = 50,
    computed: int | None = None,
) -> Outcome:
    """Give what became of a call of 50 items whose limit is one second."""
    if computed is None:
        computed = 0 if kind == "warm" else 900
    return Outcome(kind, 50, 0.0, latency_s, status, retry_after, scored if status == 200 else 0, computed, latency_s)


SHED = outcome("overload", 429, retry_after=True)


def broken(*outcomes: Outcome, limits: Thresholds = LIMITS) -> list[str]:
    """Give what the broken thresholds are about, at a capacity of two calls a second and an overload of one second."""
    over = overload(outcomes, limits, capacity=100, seconds=1)
    return [one["about"] for one in verdicts(outcomes, limits, over) if not one["kept"]]


def test_the_phases_fill_the_schedule_and_offer_what_they_say(rng):
    """At 265 items a call and 26,500 pairs/s, 100 calls a second are capacity: each phase has its load of them."""
    arrivals = schedule(26_500, MIX, 400.0, rng)

    assert sum(phase.share for phase in PHASES) == pytest.approx(1)
    assert [a.at_s for a in arrivals] == sorted(a.at_s for a in arrivals)
    assert 390 < arrivals[-1].at_s < 400
    for phase, n in Counter(a.phase for a in arrivals).items():
        expected = 100 * phase.load * phase.share * 400
        assert abs(n - expected) < 5 * expected**0.5, phase.name
    assert next(phase.load for phase in PHASES if phase.name == "overload") == OVERLOAD == 2


def test_a_ramp_begins_slow_and_ends_fast(rng):
    """From 0.05 to 0.4 of capacity, the second half has 2.3 times the calls of the first."""
    ramp = [a.at_s for a in schedule(26_500, MIX, 1000.0, rng) if a.phase.name == "ramp"]

    late = sum(at > 75 for at in ramp)
    assert 1.9 < late / (len(ramp) - late) < 2.8


def test_sizes_come_in_their_shares(rng):
    """Of 10,000 calls 80 %, 15 % and 5 %, within five standard deviations."""
    counts = Counter(MIX.draw(10_000, rng))

    for size, share in MIX.shares.items():
        assert abs(counts[size] - 10_000 * share) < 5 * (10_000 * share * (1 - share)) ** 0.5


def test_no_new_call_repeats_a_pair_however_fast_the_service_is(tmp_path):
    """Of one query and two titles too, a thousand times."""
    path = tmp_path / "pairs.parquet"
    columns = {"query": ["kettle"] * 2, "product_title": ["Kettle 2 l", "Kettle 3 l"]}
    pq.write_table(pa.table(columns | {"query_locale": ["us"] * 2, "product_locale": ["us"] * 2}), path)
    bodies = Bodies(path, Mix({2: 1.0}), exponent=1.0, seed=0)
    read = [json.loads(bodies.new(2, limit_s=None)) for _ in range(1000)]

    assert len({(body["query"], item["title"]) for body in read for item in body["items"]}) == 2000


def test_new_calls_have_pairs_of_their_own_and_repeats_follow_the_law():
    """No pair twice in 40 calls; of two answered calls, exponent 1, the first is repeated in two cases of three."""
    bodies = Bodies(None, Mix({20: 1.0}), exponent=1.0, seed=0)
    made = [bodies.new(20, limit_s=2.0) for _ in range(40)]
    read = [json.loads(body) for body in made]
    pairs = {(body["query"], item["title"]) for body in read for item in body["items"]}

    assert len(pairs) == 800
    assert {body["deadline_ms"] for body in read} == {1800}
    assert bodies.repeat(20) is None
    for body in made[:2]:
        bodies.answered(20, body)
    drawn = Counter(bodies.repeat(20) for _ in range(900))
    assert set(drawn) == set(made[:2])
    assert 530 < drawn[made[0]] < 670


def test_texts_come_from_a_parquet_file_that_is_given(tmp_path):
    """US queries and titles only; more items than there are titles are refused."""
    path = tmp_path / "pairs.parquet"
    locales = ["us", "us", "es"]
    columns = {"query": ["kettle", "hose", "hervidor"], "product_title": ["Kettle 2 l", "Hose 20 m", "Hervidor"]}
    pq.write_table(pa.table(columns | {"query_locale": locales, "product_locale": locales}), path)
    bodies = Bodies(path, Mix({2: 1.0}), exponent=1.0, seed=0)
    body = json.loads(bodies.new(2, limit_s=None))

    assert body["query"] in {"kettle 0", "hose 0"}
    assert {item["title"] for item in body["items"]} == {"Kettle 2 l", "Hose 20 m"}
    assert "deadline_ms" not in body
    with pytest.raises(SystemExit, match="--sizes: expected at most 2 items, found 3"):
        Bodies(path, Mix({3: 1.0}), exponent=1.0, seed=0)


def test_answers_in_time_and_calls_shed_under_overload_break_nothing():
    """A 429 with Retry-After is what overload is answered with."""
    calls = [*[outcome()] * 99, outcome("warm"), *[outcome("overload")] * 2]

    assert broken(*calls) == broken(*calls, SHED, outcome("overload", latency_s=9), outcome("overload", scored=1)) == []


@pytest.mark.parametrize(
    ("bad", "about"),
    [
        (outcome(latency_s=1.5), ["p99 in ms of 50 items, cold"]),
        (outcome("cold", 429, retry_after=True), ["share of errors outside overload"]),
        (outcome(scored=1), ["share of errors outside overload"]),
        (SHED, ["goodput over capacity under overload"]),
        (outcome("overload", latency_s=1.1), ["goodput over capacity under overload"]),
        (outcome("overload", scored=49), ["goodput over capacity under overload"]),
        (outcome("warm", computed=900), ["share of repeats wholly from the cache"]),
        (outcome("cold", 429), ["share of errors outside overload", "429 without Retry-After"]),
        (outcome("cold", 503), ["share of errors outside overload", "answers 5xx or none"]),
        (outcome("cold", 0), ["share of errors outside overload", "answers 5xx or none"]),
    ],
)
def test_each_threshold_is_broken_by_what_it_forbids(bad, about):
    """Two calls in 36 are above one in a hundred, and carry the p99; under overload they are all there is."""
    assert broken(*[outcome()] * 17, *[outcome("warm")] * 17, bad, bad) == about


def test_under_overload_too_each_call_is_answered_and_told_when_to_come_back():
    """With enough goodput beside them."""
    good = [outcome(), outcome("warm"), *[outcome("overload")] * 2]

    assert broken(*good, outcome("overload", 429)) == ["429 without Retry-After"]
    assert broken(*good, outcome("overload", 503)) == broken(*good, outcome("overload", 0)) == ["answers 5xx or none"]


def test_goodput_is_held_against_what_came_where_that_is_less_than_capacity():
    """One call at half of capacity can have no more than half of it."""
    assert broken(outcome(), outcome("warm"), outcome("overload")) == []


def test_a_test_without_a_single_answer_or_repeat_is_broken():
    """Nothing was measured; repeats are not missed where they are held against nothing."""
    assert broken() == ["calls wholly scored", "share of repeats wholly from the cache"]
    assert broken(outcome(), limits=replace(LIMITS, cached=None)) == []


def test_figures_tell_cold_from_warm_and_what_came_of_the_overload():
    """Four calls of 50 in 1 s at a capacity of 100 pairs/s are twice it; two are answered, one of them in time.

    An answer within its limit that came when the overload was over adds nothing.
    """
    late = outcome("overload", latency_s=2)
    outcomes = [
        outcome(),
        outcome("warm"),
        *[SHED] * 2,
        outcome("overload"),
        late,
    ]
    told, over = by_kind(outcomes, LIMITS), overload(outcomes, LIMITS, capacity=100, seconds=1)

    assert (told["cold"]["50_items"]["wholly_from_cache"], told["warm"]["50_items"]["wholly_from_cache"]) == (0, 1)
    assert told["overload"]["50_items"]["answers"] == {"200": 2, "429": 2}
    assert told["overload"]["50_items"]["p99_ms"]["bound"] is None
    assert (over["offered_over_capacity"], over["goodput_over_capacity"], over["shed"]) == (2.0, 0.5, 2)
    afterwards = [replace(one, ended_s=1.2) for one in outcomes]
    assert overload(afterwards, LIMITS, capacity=100, seconds=1)["goodput_over_capacity"] == 0


def test_locust_runs_every_phase_and_writes_figures_and_a_page(tiny_bundle, tmp_path: Path):
    """A few seconds: limits that any machine keeps, and repeats that a cache answers."""
    limits = ("--p99-ms", "60000", "60000", "60000", "--min-goodput", "0.8")
    assert main(["--quick", "--bundle", str(tiny_bundle), "--out", str(tmp_path), "--capacity", "900", *limits]) == 0

    report = json.loads((tmp_path / "load.json").read_text(encoding="utf-8"))
    figures = report["figures"]
    assert report["server"]["model"] == "tiny"
    assert figures["overload"]["backlog_s"] >= 0
    assert set(figures["calls"]) == {"ramp", "cold", "warm", "overload", "recovery"}
    warm = figures["calls"]["warm"].values()
    assert sum(one["wholly_from_cache"] for one in warm) == sum(one["calls"] for one in warm) > 0
    assert sum(one["wholly_from_cache"] for one in figures["calls"]["cold"].values()) == 0
    assert all(one["kept"] for one in figures["thresholds"])
    assert {"goodput over capacity under overload", "share of repeats wholly from the cache"} <= {
        one["about"] for one in figures["thresholds"]
    }
    assert "warm, 5 items" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_broken_threshold_fails_the_run_and_is_named(tiny_bundle, tmp_path: Path):
    """Nothing is scored within a microsecond, and the service, which asks for a key, says so by 504."""
    options = ["--sizes", "5", "--shares", "1", "--schedule-s", "1", "--calibrate-s", "0.2", "--p99-ms", "0.001"]
    keys = tmp_path / "keys"
    keys.write_text("a-key-for-the-load-test\n", encoding="utf-8")
    with Server(tiny_bundle, api_keys=keys) as server:
        told = ["--host", f"http://127.0.0.1:{server.port}", "--figures", str(tmp_path / "load.json")]
        told += ["--api-keys", str(keys)]
        done = subprocess.run([*LOCUST, *told, *options], cwd=PROJECT, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "threshold broken: answers 5xx or none: bound 0" in done.stderr
    report = json.loads((tmp_path / "load.json").read_text(encoding="utf-8"))
    figures = report["figures"]
    assert report["server"]["model"] == "tiny"
    assert figures["capacity_measured"]
    assert "share of repeats wholly from the cache" not in {one["about"] for one in figures["thresholds"]}
    assert figures["capacity_pairs_per_s"] > 0


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--shares", "1"], "--shares: expected 3, one a size, found 1"),
        (["--host", "http://127.0.0.1:1", "--calibrate-s", "0.1"], "expected scored pairs to measure capacity by"),
    ],
)
def test_what_cannot_be_run_says_why(options, problem, tmp_path):
    """Options that contradict each other, and a host where nothing listens."""
    told = ["--figures", str(tmp_path / "load.json"), "--host", "http://127.0.0.1:1", *options]
    done = subprocess.run([*LOCUST, *told], cwd=PROJECT, capture_output=True, text=True, check=False)

    assert done.returncode != 0
    assert problem in done.stderr
    assert not (tmp_path / "load.json").exists()


def test_the_schedule_is_the_same_every_time():
    """Whatever the service does."""
    first, second = (schedule(1000, MIX, 20.0, np.random.default_rng(7)) for _ in range(2))

    assert first == second
