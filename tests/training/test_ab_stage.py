"""`relevance ab`: from a file to ab.json and ab.md, planning and simulating, and what is refused."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from relevance.errors import InputError, RowError
from training.ab.analysis import Question, analyse
from training.ab.events import Events
from training.ab.page import page
from training.ab.simulate import Traffic, simulate, write_events
from training.ab.stage import main


@pytest.fixture(scope="module")
def clear(tmp_path_factory):
    """An experiment with a lift that cannot be missed, as a file."""
    path = tmp_path_factory.mktemp("ab") / "clear.parquet"
    write_events(path, simulate(Traffic(users=1500, days=6, lift=0.5), seed=2))
    return path


def run(path, *options):
    """Analyse a file; give ab.json and ab.md."""
    out = path.parent / "out"
    assert main([str(path), "--out", str(out), *options]) == 0
    return json.loads((out / "ab.json").read_text()), (out / "ab.md").read_text()


def with_values(events, *, segments=None, **values):
    """Give the events with some columns replaced."""
    changed = {"values": {**events.values, **values}, "segments": segments or {}}
    return Events(**{n: getattr(events, n) for n in events.__slots__} | changed)


def test_a_large_lift_is_called_better(clear, capsys):
    """Every metric's interval holds +50 %, the verdict and the page say so, CUPED is reported."""
    report, text = run(clear)
    result = report["treatments"]["treatment"]
    assert result["verdict"] == "better"
    assert "treatment: better (rpm)" in capsys.readouterr().out
    assert "## treatment: better" in text
    for metric in result["metrics"].values():
        assert metric["lift_cuped"]["low"] < 0.5 < metric["lift_cuped"]["high"]
        assert 0 < metric["variance_removed"] < 1
        assert metric["p"] <= metric["p_holm"] <= 1
    assert report["days"] == {"first": "2026-01-01", "last": "2026-01-06", "n": 6}
    assert report["sample_ratio"]["alarm"] is False
    assert result["looks"] is None


def test_the_other_way_round_it_is_worse(clear):
    """With the arms' roles exchanged the verdict turns."""
    report, _ = run(clear, "--control", "treatment")
    assert report["treatments"]["control"]["verdict"] == "worse"


def test_rpm_is_per_mille_and_ctr_a_share(clear):
    """The shown ratios are those of the file's columns added up."""
    report, _ = run(clear)
    rows = pq.read_table(clear).to_pandas()
    sums = rows[rows["variant"] == "control"][["revenue", "clicks", "impressions"]].sum()
    metrics = report["treatments"]["treatment"]["metrics"]
    assert metrics["rpm"]["control"]["value"] == pytest.approx(1000 * sums["revenue"] / sums["impressions"])
    assert metrics["ctr"]["control"]["value"] == pytest.approx(sums["clicks"] / sums["impressions"])


def test_a_lost_part_of_an_arm_stops_the_verdict(tmp_path):
    """A fifth of the treatment is not recorded: no winner however large the lift, and the page says why."""
    write_events(tmp_path / "e.parquet", simulate(Traffic(users=1500, days=6, lift=0.5, keep=0.8), seed=2))
    report, text = run(tmp_path / "e.parquet")
    assert report["sample_ratio"]["p"] < 0.001
    assert report["treatments"]["treatment"]["verdict"].startswith("not judged")
    assert "Sample ratio mismatch" in text
    as_planned, _ = run(tmp_path / "e.parquet", "--shares", "control=1,treatment=0.8")
    assert as_planned["treatments"]["treatment"]["verdict"] == "better"


def test_no_lift_is_undecided(tmp_path):
    """Two halves of the same traffic."""
    write_events(tmp_path / "e.parquet", simulate(Traffic(users=800, days=4), seed=5))
    report, _ = run(tmp_path / "e.parquet", "--sequential", "0.1")
    assert report["treatments"]["treatment"]["verdict"] == "undecided"
    assert report["treatments"]["treatment"]["looks"][-1]["p"] > 0.05


def test_segments_form_one_family(clear):
    """Two devices × three metrics, Holm's p never below the raw one; rows are those of the segment."""
    report, text = run(clear, "--segment", "device")
    assert [(row["value"], row["metric"]) for row in report["segments"]] == [
        (device, metric) for device in ("desktop", "phone") for metric in ("rpm", "ctr", "rs")
    ]
    assert all(row["p"] <= row["p_holm"] for row in report["segments"])
    assert sum(row["users"] for row in report["segments"] if row["metric"] == "ctr") == sum(report["users"].values())
    assert "| device = phone | treatment | RPM |" in text


def test_a_small_segment_is_named_and_not_judged(tmp_path):
    """Ten users of each arm are too few."""
    events = simulate(Traffic(users=200, days=3), seed=1)
    tablet = np.where(np.isin(events.user_N, [*range(10), *range(300, 310)]), "tablet", "phone")
    write_events(
        tmp_path / "e.parquet",
        Events(**{n: getattr(events, n) for n in events.__slots__} | {"segments": {"device": tablet}}),
    )
    report, text = run(tmp_path / "e.parquet", "--segment", "device")
    assert report["segments_with_too_few_users"] == ["device = tablet, treatment"]
    assert {row["value"] for row in report["segments"]} == {"phone"}
    assert "Too few users or events: device = tablet, treatment." in text


def test_the_always_valid_reading_decides_where_it_is_asked_for(clear):
    """A look a day, shown on the page; its interval is wider than the fixed one."""
    report, text = run(clear, "--sequential", "0.3")
    result = report["treatments"]["treatment"]
    assert [look["day"] for look in result["looks"]] == [f"2026-01-0{day}" for day in range(1, 7)]
    last, fixed = result["looks"][-1], result["metrics"]["rpm"]["lift_cuped"]
    assert last["low"] < fixed["low"] < fixed["high"] < last["high"]
    assert result["verdict"] == "better"
    assert "p so far" in text


def test_several_treatments_are_adjusted_for_each_other():
    """The second treatment is a copy of the first one's users: p of the primary metric doubles."""
    events = simulate(Traffic(users=400, days=3, lift=0.2), seed=4)
    copy = events.variant_U[events.user_N] == 1
    twice = Events(
        user_N=np.concatenate([events.user_N, events.user_N[copy] + len(events.variant_U)]),
        day_N=np.concatenate([events.day_N, events.day_N[copy]]),
        values={name: np.concatenate([of, of[copy]]) for name, of in events.values.items()},
        segments={},
        variant_U=np.concatenate([events.variant_U, np.where(events.variant_U == 1, 2, 0)]),
        variants=("control", "one", "two"),
        pre={},
        days=events.days,
    )
    kept = np.unique(twice.user_N)
    place = np.searchsorted(kept, twice.user_N)
    twice = Events(
        **{n: getattr(twice, n) for n in twice.__slots__} | {"user_N": place, "variant_U": twice.variant_U[kept]}
    )
    found = analyse(twice, Question())["treatments"]
    one, two = (found[name]["metrics"]["rpm"] for name in ("one", "two"))
    assert one["p"] == two["p"]
    assert one["p_holm"] == pytest.approx(min(1, 2 * one["p"]))
    assert one["lift_cuped"] is one["variance_removed"] is None


def test_latency_is_reported_where_it_is_recorded(tmp_path):
    """One latency a row; the page has its line."""
    events = simulate(Traffic(users=150, days=3), seed=1)
    slow = 20 + np.arange(len(events.user_N)) % 100
    values = {**events.values, "latency_ms": slow.astype(float)}
    write_events(
        tmp_path / "e.parquet", Events(**{n: getattr(events, n) for n in events.__slots__} | {"values": values})
    )
    report, text = run(tmp_path / "e.parquet")
    latency = report["treatments"]["treatment"]["latency_p99_ms"]
    assert latency["control"]["value"] == pytest.approx(118, abs=1)
    assert latency["difference"]["low"] <= 0 <= latency["difference"]["high"]
    assert "p99 latency in ms" in text


def test_a_name_from_the_file_cannot_break_the_page():
    """Pipes, tags and line breaks of a variant's name are shown, not obeyed."""
    events = simulate(Traffic(users=120, days=2), seed=1)
    odd = Events(**{n: getattr(events, n) for n in events.__slots__} | {"variants": ("control", "a|b\n<script>")})
    text = page(analyse(odd, Question()))
    assert "<script" not in text.replace("\\<script", "")
    assert "a\\|b \\<script\\>" in text


def test_bad_rows_are_counted_or_refused(tmp_path):
    """One row with a negative count."""
    lines = [
        {
            "user_id": f"u{i}",
            "variant": ("control", "new")[i % 2],
            "impressions": 5,
            "clicks": 1 + i % 3,
            "revenue": 1 + i % 4,
        }
        for i in range(40)
    ]
    lines[7]["clicks"] = -1
    path = tmp_path / "e.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(RowError, match=r"e\.jsonl, row 8, column 'clicks'"):
        main([str(path), "--out", str(tmp_path / "out")])
    report, _ = run(path, "--on-bad-row", "skip")
    assert report["bad_rows"]["count"] == 1
    assert report["users"] == {"control": 20, "new": 19}
    with pytest.raises(InputError, match="expected a day or timestamp"):
        run(path, "--on-bad-row", "skip", "--sequential", "0.1")


def test_simulate_writes_events_to_try_it_on(tmp_path):
    """The file is analysed like any other."""
    assert main(["--simulate", str(tmp_path / "e.parquet"), "--users", "150", "--days", "3", "--lift", "0.1"]) == 0
    report, _ = run(tmp_path / "e.parquet", "--primary", "ctr")
    assert sorted(report["treatments"]["treatment"]["metrics"]) == ["ctr", "rpm", "rs"]


def test_simulated_events_go_into_a_folder_that_is_not_there_yet(tmp_path):
    """As `--out` does."""
    path = tmp_path / "new" / "events.parquet"
    assert main(["--simulate", str(path), "--users", "100", "--days", "2"]) == 0
    assert path.is_file()


def test_a_plan_comes_from_events_or_from_stated_figures(clear, capsys):
    """Mean 1 and variance 1 need 2·(1.96 + 0.84)²/log(1.1)² = 1,729 users; CUPED needs fewer than the plain reading."""
    assert main(["--plan", "0.1", "--mean", "1", "--variance", "1"]) == 0
    assert "stated: 1729 users an arm" in capsys.readouterr().out
    assert main([str(clear), "--plan", "0.02"]) == 0
    lines = dict(line.split(":") for line in capsys.readouterr().out.splitlines()[1:])
    users = {name: int(text.split()[0]) for name, text in lines.items()}
    assert users["rpm with CUPED"] < users["rpm"]
    assert users["rs"] < users["ctr"] < users["rpm"]


def test_a_metric_that_can_not_be_planned_for_leaves_the_others(tmp_path, capsys):
    """Every impression is relevant: no number of users would show RS a lift."""
    events = simulate(Traffic(users=200, days=3), seed=1)
    write_events(tmp_path / "e.parquet", with_values(events, relevant_impressions=events.values["impressions"]))
    assert main([str(tmp_path / "e.parquet"), "--plan", "0.02"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert "rs: no plan (expected a ratio above 0 that differs between users)" in lines
    assert sum("users an arm" in line for line in lines) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "expected an events file and --out DIR"),
        (["FILE"], "expected an events file and --out DIR"),
        (["FILE", "--out", "OUT", "--control", "old"], "expected the control 'old'.*found control, treatment"),
        (["FILE", "--out", "OUT", "--shares", "control=1"], "expected shares of control, treatment, found control"),
        (["FILE", "--out", "OUT", "--shares", "control"], "expected name=number"),
        (["FILE", "--out", "OUT", "--shares", "control=0,treatment=1"], "expected numbers above 0"),
        (["FILE", "--out", "OUT", "--sequential", "0"], "expected a planned lift above 0"),
        (["FILE", "--plan", "0.1", "--mean", "1", "--variance", "2"], "expected either an events file, or --mean"),
        (["--plan", "0.1", "--mean", "1"], "expected either an events file, or --mean"),
        (["--plan", "0.1", "--mean", "0", "--variance", "2"], "expected a mean and a variance above 0"),
        (["FILE", "--plan", "0.1", "--control", "old"], "expected the control 'old', found control, treatment"),
    ],
)
def test_a_wrong_option_is_refused(clear, tmp_path, options, message):
    """What was expected and what came."""
    given = [{"FILE": str(clear), "OUT": str(tmp_path)}.get(option, option) for option in options]
    with pytest.raises(InputError, match=message):
        main(given)


def test_a_metric_that_is_not_there_or_nothing_but_zero_is_refused():
    """RS without its column; no click at all."""
    events = simulate(Traffic(users=60, days=2), seed=1)
    values = {name: events.values[name] for name in ("impressions", "clicks")}
    fewer = Events(**{n: getattr(events, n) for n in events.__slots__} | {"values": values, "pre": {}})
    with pytest.raises(InputError, match="expected a primary metric of ctr, found 'rs'"):
        analyse(fewer, Question(primary="rs"))
    fewer.values["clicks"][:] = 0
    with pytest.raises(InputError, match="ctr: no lift: expected ratios clearly above 0 in both arms, found 0 in the"):
        analyse(fewer, Question(primary="ctr"))


def test_a_secondary_metric_that_an_arm_has_none_of_stops_nothing(tmp_path):
    """No click in the treatment: CTR has a dash and its reason, RPM is judged, RS alone is left of Holm's family."""
    events = simulate(Traffic(users=1500, days=6, lift=0.5), seed=2)
    treated = events.variant_U[events.user_N] == 1
    path = tmp_path / "e.parquet"
    write_events(path, with_values(events, clicks=np.where(treated, 0, events.values["clicks"])))
    report, text = run(path)
    result = report["treatments"]["treatment"]
    rpm, ctr, rs = (result["metrics"][name] for name in ("rpm", "ctr", "rs"))
    assert {ctr[name] for name in ("lift", "lift_cuped", "variance_removed", "p", "p_holm", "detectable_lift")} == {
        None
    }
    assert ctr["treatment"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert rs["p_holm"] == rs["p"]
    assert result["verdict"] == "better"
    assert rpm["note"] is rs["note"] is None
    assert "CTR: no lift: expected ratios clearly above 0 in both arms, found " in text
    assert "0 in the treatment." in text
    assert "| – | – | – | – | – | – |" in text


def test_a_ratio_that_cuped_would_push_below_nothing_is_read_without_it(tmp_path):
    """Users who clicked before do so again; the treatment got the keener ones and few clicks: the plain lift counts."""
    n = 300
    past = np.arange(n) % 5 + np.where(np.arange(n) < n // 2, 0, 5)
    lines = [
        {
            "user_id": f"u{i}",
            "variant": "control" if i < n // 2 else "treatment",
            "impressions": 20,
            "clicks": int(past[i] + 2 if i < n // 2 else past[i] == 9),
            "pre_impressions": 20,
            "pre_clicks": int(past[i]),
            "device": "phone",
        }
        for i in range(n)
    ]
    path = tmp_path / "e.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report, text = run(path, "--primary", "ctr", "--segment", "device")
    ctr = report["treatments"]["treatment"]["metrics"]["ctr"]
    assert ctr["lift"]["value"] == pytest.approx(0.2 / 4 - 1)
    assert ctr["lift_cuped"] is ctr["variance_removed"] is None
    assert report["treatments"]["treatment"]["verdict"] == "worse"
    assert "CTR: no CUPED: the past is empty or alike for all users, or would push a ratio to 0 or below." in text
    (row,) = report["segments"]
    assert (row["cuped"], row["lift"]) == (False, ctr["lift"])


def test_a_metric_that_is_the_same_for_everybody_has_a_lift_of_0(tmp_path):
    """Every impression is relevant, though it was not so before: p is 1, and no variance is there to remove."""
    events = simulate(Traffic(users=200, days=3), seed=1)
    write_events(tmp_path / "e.parquet", with_values(events, relevant_impressions=events.values["impressions"]))
    report, _ = run(tmp_path / "e.parquet")
    rs = report["treatments"]["treatment"]["metrics"]["rs"]
    assert rs["lift"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert rs["variance_removed"] is None
    assert rs["p"] == 1


def test_a_metric_without_a_lift_within_a_segment_keeps_the_others(tmp_path):
    """No click on phones in the treatment: their CTR has a dash, the other five rows are there."""
    events = simulate(Traffic(users=600, days=3), seed=3)
    device = events.segments["device"]
    none = (device == "phone") & (events.variant_U[events.user_N] == 1)
    path = tmp_path / "e.parquet"
    clicks = np.where(none, 0, events.values["clicks"])
    write_events(path, with_values(events, segments={"device": device}, clicks=clicks))
    report, text = run(path, "--segment", "device")
    unknown = [(row["value"], row["metric"]) for row in report["segments"] if row["p"] is None]
    assert unknown == [("phone", "ctr")]
    assert sum(row["p_holm"] is not None for row in report["segments"]) == 5
    assert report["segments_with_too_few_users"] == []
    assert "device = phone, treatment, CTR: no lift" in text


def test_a_share_outside_the_open_unit_interval_is_no_power(capsys):
    """argparse tells it."""
    with pytest.raises(SystemExit):
        main(["--plan", "0.1", "--mean", "1", "--variance", "2", "--power", "1"])
    assert "between 0 and 1" in capsys.readouterr().err
