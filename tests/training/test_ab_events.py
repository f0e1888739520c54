"""Events of an experiment from files: columns, periods, days, bad rows, and what users add up to."""

import json
from datetime import UTC, date, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from relevance.errors import InputError, RowError
from relevance.pairs import BadRows
from training.ab.events import read_events, user_totals
from training.ab.simulate import Traffic, simulate, write_events


def row(user, variant, **values):
    """Give one event row; ten impressions, two clicks and 1.5 of revenue unless told otherwise."""
    return {"user_id": user, "variant": variant, "impressions": 10, "clicks": 2, "revenue": 1.5} | values


def jsonl(folder, rows):
    """Write rows as JSONL."""
    path = folder / "events.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return path


def test_simulated_events_survive_a_file(tmp_path):
    """Written to Parquet and read back: the same totals of every user, days, segments and pasts."""
    events = simulate(Traffic(users=60, days=4), seed=3)
    write_events(tmp_path / "e.parquet", events)
    found = read_events(tmp_path / "e.parquet", segments=["device"])
    assert found.variants == events.variants
    assert found.days == events.days
    assert np.array_equal(found.variant_U, events.variant_U)
    assert np.array_equal(found.segments["device"], events.segments["device"])
    for name in ("impressions", "revenue", "clicks", "relevant_impressions"):
        assert np.array_equal(found.values[name], events.values[name])
        assert np.array_equal(found.pre[name], events.pre[name])
    with pytest.raises(InputError, match=r"expected a \.parquet file"):
        write_events(tmp_path / "e.jsonl", events)


def test_jsonl_and_parquet_of_the_same_rows_are_the_same_events(tmp_path):
    """Three rows of two users, blank lines between."""
    rows = [
        row("ann", "control", day="2026-03-01"),
        row("bob", "new", day="2026-03-02"),
        row("ann", "control", day="2026-03-02"),
    ]
    path = jsonl(tmp_path, rows)
    path.write_text(path.read_text().replace("\n", "\n\n"))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "events.parquet")
    one, other = read_events(path), read_events(tmp_path / "events.parquet")
    assert one.days == other.days == ("2026-03-01", "2026-03-02")
    assert one.user_N.tolist() == other.user_N.tolist() == [0, 1, 0]
    assert one.variants == other.variants == ("control", "new")
    assert one.values["revenue"].tolist() == other.values["revenue"].tolist()


def test_request_rows_add_up_to_users(tmp_path):
    """Three requests of ann and one of bob; only the rows chosen count, and only users with any."""
    rows = [row("ann", "a", clicks=c) for c in (1, 0, 4)] + [row("bob", "b", clicks=7)]
    events = read_events(jsonl(tmp_path, rows))
    assert user_totals(events, "clicks").numerator_U.tolist() == [5.0, 7.0]
    assert user_totals(events, "clicks").denominator_U.tolist() == [30.0, 10.0]
    some = user_totals(events, "clicks", np.array([True, False, True, False]))
    assert (some.numerator_U.tolist(), some.variant_U.tolist()) == ([5.0], [0])
    assert some.pre_numerator_U is None


def test_rows_before_the_experiment_are_the_pre_columns(tmp_path):
    """Period 'pre' without a variant, or pre_ columns repeated on each row: the same past; cy was never exposed."""
    before = [
        {"user_id": "ann", "period": "pre", "impressions": 3, "clicks": 1, "revenue": 0.5, "variant": None},
        {"user_id": "ann", "period": "pre", "impressions": 4, "clicks": 0, "revenue": 0.0, "variant": None},
        {"user_id": "cy", "period": "pre", "impressions": 9, "clicks": 9, "revenue": 9.0, "variant": None},
    ]
    after = [row("ann", "a", period="post"), row("bob", "b", period="post"), row("ann", "a", period="post")]
    by_period = read_events(jsonl(tmp_path, before + after))
    past = {"pre_impressions": 7, "pre_clicks": 1, "pre_revenue": 0.5}
    none = dict.fromkeys(past, 0)
    by_column = read_events(
        jsonl(tmp_path, [row("ann", "a", **past), row("bob", "b", **none), row("ann", "a", **past)])
    )
    for name in ("impressions", "clicks", "revenue"):
        assert by_period.pre[name].tolist() == by_column.pre[name].tolist()
    assert by_period.pre["impressions"].tolist() == [7.0, 0.0]
    assert (by_period.unexposed, by_column.unexposed) == (1, 0)


def test_the_columns_are_those_of_the_first_row_of_the_experiment(tmp_path):
    """Rows of the time before stand first, without variant, day or latency: nothing of the experiment is lost."""
    before = [{"user_id": "ann", "period": "pre", "impressions": 3, "clicks": 1, "revenue": 0.5}]
    after = [row(user, "a", day="2026-03-01", latency_ms=20.0) for user in ("ann", "bob")]
    events = read_events(jsonl(tmp_path, before + after))

    assert events.days == ("2026-03-01",)
    assert events.values["latency_ms"].tolist() == [20.0, 20.0]
    assert events.pre["impressions"].tolist() == [3.0, 0.0]
    with pytest.raises(InputError, match="none but of period 'pre'"):
        read_events(jsonl(tmp_path, before))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("day", "2026-03-05"),
        ("timestamp", "2026-03-05T23:59:59Z"),
        ("timestamp", "2026-03-06T01:30:00+02:00"),
        ("timestamp", datetime(2026, 3, 5, 12, tzinfo=UTC).timestamp()),
    ],
)
def test_a_day_comes_from_a_date_or_a_time_in_utc(tmp_path, column, value):
    """ISO text with and without an offset, and seconds since 1970."""
    assert read_events(jsonl(tmp_path, [row("ann", "a", **{column: value})])).days == ("2026-03-05",)


@pytest.mark.parametrize("value", [date(2026, 3, 5), datetime(2026, 3, 5, 8, tzinfo=UTC), datetime(2026, 3, 5, 8)])
def test_parquet_dates_and_times_are_days_too(tmp_path, value):
    """Arrow's own types."""
    pq.write_table(pa.Table.from_pylist([row("ann", "a", day=value)]), tmp_path / "e.parquet")
    assert read_events(tmp_path / "e.parquet").days == ("2026-03-05",)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row("ann", "a", clicks=-1), "row 2, column 'clicks': expected a number of at least 0"),
        (row("ann", "a", clicks=True), "row 2, column 'clicks': expected a finite number, found True"),
        (row("ann", "a", clicks=10**400), "row 2, column 'clicks': expected a finite number"),
        (row("ann", "a", revenue=float("nan")), "row 2, column 'revenue': expected a finite number"),
        (row("ann", "a", impressions="12"), "row 2, column 'impressions': expected a finite number, found '12'"),
        (row("", "a"), "row 2, column 'user_id': expected a text"),
        (row("ann", None), "row 2, column 'variant': expected a text"),
        (row("bob", "b"), "row 2, column 'variant': expected each user in one variant, found 'b' after 'a'"),
        (row("ann", "a", period="before"), "row 2, column 'period': expected 'pre' or 'post'"),
        (row("ann", "a", day="5 March"), "row 2, column 'day': expected a day or a time"),
        (row("ann", "a", day=20260305), "row 2, column 'day': expected a day or a time"),
        (
            row("bob", "a", pre_impressions=3),
            "row 2, column 'pre_impressions': expected one value a user, found 3 after 2",
        ),
        (row("ann", "a", period="pre"), "row 2, column 'period': expected either pre_"),
        ([1], "row 2, column '\\*': expected a JSON object, found list"),
    ],
)
def test_a_bad_row_is_named_and_can_be_left_out(tmp_path, bad, message):
    """The file, the row and the column; under skip the other rows stay."""
    good = row("bob", "a", day="2026-03-01", pre_impressions=2, pre_clicks=0)
    if isinstance(bad, dict):
        bad = {"day": "2026-03-01", "pre_impressions": 2, "pre_clicks": 0} | bad
    path = jsonl(tmp_path, [good, bad, row("cy", "a") | {k: good[k] for k in ("day", "pre_impressions", "pre_clicks")}])
    with pytest.raises(RowError, match=message):
        read_events(path)
    skipped = BadRows("skip")
    events = read_events(path, bad_rows=skipped)
    assert skipped.count == 1
    assert len(events.variant_U) == (1 if events.crossed else 2)


def test_a_refund_is_no_error(tmp_path):
    """Revenue alone may be negative."""
    assert read_events(jsonl(tmp_path, [row("ann", "a", revenue=-4.0)])).values["revenue"].tolist() == [-4.0]


def test_a_line_that_is_not_json_is_named(tmp_path):
    """Row 1 of the file."""
    (tmp_path / "e.jsonl").write_text('{"user_id": \n')
    with pytest.raises(RowError, match=r"e\.jsonl, row 1, column '\*': expected one JSON object"):
        read_events(tmp_path / "e.jsonl")


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "expected rows of the experiment, found none"),
        ([{"user_id": "ann", "variant": "a", "impressions": 3}], {}, "expected at least one of the columns revenue"),
        ([row("ann", "a", pre_clicks=1)], {}, "expected the column 'pre_impressions'"),
        ([row("ann", "a")], {"segments": ["device"]}, r"missing: \['device'\]"),
        ([row("ann", "a")], {"denominator": "requests"}, r"missing: \['requests'\]"),
    ],
)
def test_a_file_without_what_is_needed_is_refused(tmp_path, rows, options, message):
    """Empty, without a metric, half a past, an unknown segment or denominator."""
    with pytest.raises(InputError, match=message):
        read_events(jsonl(tmp_path, rows), **options)


def test_a_missing_file_another_ending_and_nobody_left_are_refused(tmp_path):
    """Nothing there; a CSV; and the only user seen in two variants."""
    with pytest.raises(InputError, match="expected a file, found none"):
        read_events(tmp_path / "none.jsonl")
    (tmp_path / "e.csv").write_text("user_id\n")
    with pytest.raises(InputError, match=r"expected a \.jsonl or \.parquet file"):
        read_events(tmp_path / "e.csv")
    with pytest.raises(InputError, match="expected users of one variant each, found none"):
        read_events(jsonl(tmp_path, [row("ann", "a"), row("ann", "b")]), bad_rows=BadRows("skip"))


@pytest.mark.parametrize("wrong", [{"users": 0}, {"days": 0}, {"lift": 1.0}, {"lift": -1.0}])
def test_impossible_traffic_is_refused(wrong):
    """No users, no days, a probability over 1."""
    with pytest.raises(InputError, match="expected"):
        Traffic(**wrong)
