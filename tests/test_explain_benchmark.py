"""The program that measures what explanations cost: a report from the tiny bundle, and the bundle that it makes."""

from __future__ import annotations

import json

import pytest

from benchmarks.explain import main


def test_the_program_writes_what_explanations_add(explained_bundle, tmp_path, capsys):
    """What `--quick` measures means nothing, but the bound has a verdict and the A/A difference is there."""
    out = tmp_path / "report.json"

    assert main(["--bundle", str(explained_bundle), "--quick", "--items", "20", "--out", str(out)]) == 0

    report = json.loads(out.read_text(encoding="utf-8"))
    assert report["command"] == "python -m benchmarks.explain --bundle bundle --quick --items 20 --out report.json"
    assert json.loads(capsys.readouterr().out) == report["figures"]
    assert report["figures"]["added_ms_per_100_items_median"]["verdict"] in {"met", "undecided", "missed"}
    assert report["figures"]["aa_plain_minus_plain_ms_per_100_items"]["n"] == 4


def test_a_bundle_that_explains_nothing_is_refused(tiny_bundle, tmp_path):
    """Its reason is told."""
    with pytest.raises(SystemExit, match="this bundle carries no rationales"):
        main(["--bundle", str(tiny_bundle), "--quick", "--out", str(tmp_path / "report.json")])
