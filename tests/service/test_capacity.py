"""`relevance capacity`: the smallest number that does, what it says, and what it refuses."""

import json
import math

import numpy as np
import pytest

from relevance.cli import main
from relevance.errors import InputError, SettingsError
from service import capacity
from service.capacity_plan import Plan, Planner, lengths_of, lost, plan_of, thinned, with_spare_zone

PLAN = {
    "rate": [40],
    "tokens_per_s": 20_000,
    "pair_tokens": 20,
    "mix": {10: 0.9, 100: 0.1},
    "slo": [{"percentile": 95, "ms": 150, "items": 10}, {"percentile": 99, "ms": 1500}],
    "deadline_ms": 5000,
    "calls": 1000,
}
ARGUMENTS = [
    *("--rate", "40", "160", "--tokens-per-s", "20000", "--pair-tokens", "20", "--mix", "10=0.9", "100=0.1"),
    *("--slo", "10=95:150", "99:1500", "--deadline-ms", "5000", "--calls", "1000", "--cost-per-hour", "1.5"),
]


def planner_of(trace_s=None, **changes: object) -> Planner:
    """Give the planner of the plan above, with some changes."""
    return Planner(plan_of(PLAN | changes), trace_s)


def test_the_answer_meets_every_objective_and_one_replica_fewer_does_not():
    """Minimal, and the report says what the smaller number misses."""
    planner = planner_of(zones=1, rate=[200])
    answer = planner.answer(200)

    assert answer.needed > 4
    assert planner.load(200, answer.needed).unmet == ()
    assert answer.too_few == planner.load(200, answer.needed - 1)
    assert answer.too_few.unmet
    assert answer.normal is answer.worst


@pytest.mark.parametrize("guess", [1, 3, 40])
def test_the_answer_does_not_depend_on_where_the_search_begins(guess):
    """From below, from near and from far above: the same number."""
    planner = planner_of(zones=1)
    assert planner.answer(100, guess=guess).needed == planner.answer(100).needed


def test_a_higher_rate_never_needs_fewer_replicas_and_a_very_high_one_as_many_a_query():
    """Above the group's size only the rate of one replica counts, so 100 times the rate needs 100 times as many."""
    planner = planner_of(zones=1)
    needed = [planner.answer(rate).needed for rate in (5, 50, 100, 10_000, 1_000_000)]

    assert needed == sorted(needed)
    assert needed[-1] / needed[-2] == pytest.approx(100, rel=0.02)


def test_cached_pairs_and_looser_objectives_need_fewer():
    """Half of the pairs in the cache; ten times the time."""
    loose = [{"percentile": 95, "ms": 1500, "items": 10}]
    plain, cached, patient = (
        planner_of(zones=1, **changes).answer(200).needed for changes in ({}, {"cached": 0.5}, {"slo": loose})
    )

    assert cached < 0.8 * plain
    assert patient < plain


@pytest.mark.parametrize(("needed", "zones", "replicas"), [(6, 3, 9), (1, 3, 2), (4, 2, 8), (7, 3, 11), (5, 1, 5)])
def test_a_fleet_survives_its_largest_zone(needed, zones, replicas):
    """Three zones for six: nine, of which three are lost; without zones there is no reserve."""
    assert with_spare_zone(needed, zones) == replicas
    assert replicas - lost(replicas, zones) >= needed
    assert zones == 1 or replicas - 1 - lost(replicas - 1, zones) < needed


def test_a_thinned_trace_has_the_rate_asked_for_and_keeps_its_bursts(rng):
    """A trace of 100 a second in every other second: a tenth of it still comes in those seconds alone."""
    bursts_s = np.sort(rng.uniform(0, 1, 20_000) + 2 * rng.integers(0, 100, 20_000))
    kept_s = thinned(bursts_s, 10.0, rng)

    assert len(kept_s) / 199 == pytest.approx(10, rel=0.1)
    assert ((kept_s + bursts_s[0]) % 2 <= 1).all()


def test_a_bursty_trace_needs_more_than_a_poisson_stream_of_its_rate(rng):
    """On average 50 a second, all of them within a third of the time."""
    trace_s = np.sort(rng.uniform(0, 1, 3000) + 3 * rng.integers(0, 20, 3000))
    smooth, bursty = planner_of(zones=1), planner_of(trace_s, zones=1)

    assert bursty.answer(45).needed > smooth.answer(45).needed
    with pytest.raises(SettingsError, match=r"trace: expected at least 500 calls a second"):
        bursty.load(500.0, 1)
    with pytest.raises(SettingsError, match=r"trace: expected at least 100 calls for one group"):
        bursty.load(1.0, 1)


def test_the_command_prints_a_line_a_rate_and_what_the_next_smaller_number_misses(capsys):
    """The table names rates, replicas and cost; a sweep has one line each."""
    assert main(["capacity", *ARGUMENTS]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["queries/s", "replicas", "needed", "busy", "unserved", "cost/1M", "pairs"]
    assert [line.split()[0] for line in lines[1:3]] == ["40", "160"]
    assert any("one of 3 zones lost" in line for line in lines)
    assert any("replicas: p" in line or "replicas: unserved" in line for line in lines)


def test_the_command_reads_a_file_and_options_win_and_prints_json(tmp_path, capsys):
    """The price of a million pairs is replicas × price an hour / pairs an hour: all calls are complete here."""
    path = tmp_path / "plan.toml"
    path.write_text(
        "rate = [40]\ntokens_per_s = 20000\npair_tokens = 20\nmix = { 10 = 0.9, 100 = 0.1 }\ncalls = 500\n"
        "deadline_ms = 5000\nzones = 1\ncost_per_hour = 3\n[[slo]]\npercentile = 95\nms = 150\nitems = 10\n"
    )
    assert capacity.main(["--plan", str(path), "--calls", "1000", "--json"]) == 0

    told = json.loads(capsys.readouterr().out)
    (answer,) = told["answers"]
    assert told["plan"]["calls"] == 1000
    assert told["plan"]["slo"] == [{"percentile": 95.0, "ms": 150.0, "items": 10}]
    pairs_per_hour = 40 * 3600 * answer["normal"]["scored_per_call"]
    assert answer["cost_per_million"] == pytest.approx(answer["replicas"] * 3 / pairs_per_hour * 1e6)
    assert set(answer["normal"]["latency_ms"]) == {"0", "10", "100"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--slo", "95"], r"--slo: expected \[ITEMS=\]PERCENTILE:MS, found '95'"),
        (["--slo", "7=95:100"], "slo: expected sizes of the mix"),
        (["--slo", "99:0.5"], "expected objectives that an idle replica meets"),
        (["--mix", "10"], "--mix: expected ITEMS=SHARE, found '10'"),
        (["--tokens-per-s", "fast"], "tokens_per_s: .* found 'fast'"),
        (["--batch-fixed-ms", "50"], "batch_fixed_ms: expected less than batch_ms 40"),
        (["--plan", "nowhere.toml"], "nowhere.toml: expected a TOML file"),
        (["--trace", "nowhere.txt"], "nowhere.txt: expected one arrival time"),
    ],
)
def test_a_plan_that_is_wrong_or_cannot_be_met_is_refused_in_one_line(options, expected):
    """The message names the option or key, and what was found."""
    with pytest.raises(InputError, match=expected) as refused:
        capacity.main([*ARGUMENTS, *options])
    assert "\n" not in str(refused.value)


def test_lengths_of_pairs_have_the_mean_and_spread_asked_for(rng):
    """Log-normal, ascending; without a spread all equal."""
    lengths = lengths_of(20_000, 24, 0.4, rng)

    assert lengths == sorted(lengths)
    assert np.mean(lengths) == pytest.approx(24, rel=0.02)
    assert np.std(lengths) / 24 == pytest.approx(0.4, rel=0.05)
    assert lengths_of(3, 24, 0, rng) == [24, 24, 24]


def test_missing_keys_are_named():
    """All of them at once."""
    with pytest.raises(SettingsError, match=r"rate: .*tokens_per_s: .*pair_tokens: .*slo: "):
        plan_of({})


def test_a_plan_speaks_of_every_field_of_the_model(capsys):
    """Each key of the file is an option too."""
    with pytest.raises(SystemExit):
        capacity.main(["--help"])
    shown = capsys.readouterr().out
    assert [name for name in Plan.model_fields if f"--{name.replace('_', '-')}" not in shown] == []
    assert math.isclose(plan_of(PLAN).mean_tokens, 20 * (0.9 * 10 + 0.1 * 100))
