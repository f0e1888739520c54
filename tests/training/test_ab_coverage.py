"""The program that measures what the A/B analysis promises, on a handful of experiments."""

import json

import pytest

from benchmarks.ab_coverage import coverage, main, share
from training.ab.estimate import Lift


def test_the_program_writes_every_share_with_its_interval(tmp_path, capsys):
    """Two experiments a setting: the mechanics only."""
    out = tmp_path / "ab.json"
    assert main(["--experiments", "2", "--pilot-users", "500", "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert json.loads(capsys.readouterr().out) == report
    assert report["coverage"]["large"]["ctr"]["cuped"]["n"] == 2
    assert 0.05 < report["power"]["rpm"]["users"]["planned"] < report["power"]["ctr"]["users"]["planned"] < 1
    assert report["sample_ratio_alarms"]["a_tenth_of_one_arm_lost"]["value"] >= 0.5
    for setting in report["found_at_no_lift"].values():
        for one in setting.values():
            assert 0 <= one["low"] <= one["value"] <= one["high"] <= 1


def test_coverage_counts_the_intervals_that_hold_the_lift():
    """One of two holds +10 %; CUPED halves the variance."""
    wide, narrow = Lift(0.1, 0.0, 0.2, 0.02, 0.1), Lift(0.3, 0.2, 0.4, 0.01, 0.01)
    row = {"rows": narrow, "users": wide, "cuped": narrow}
    other = {"rows": wide, "users": wide, "cuped": wide}
    found = [dict.fromkeys(("rpm", "ctr", "rs"), one) for one in (row, other)]
    table = coverage(found, 0.1)["ctr"]
    assert [table[reading]["value"] for reading in ("rows", "users", "cuped")] == [0.5, 1.0, 0.5]
    assert table["cuped"]["variance_removed"] == pytest.approx(0.25)
    assert table["users"]["mean_width"] == pytest.approx(0.2)
    assert share([True, False])["n"] == 2
