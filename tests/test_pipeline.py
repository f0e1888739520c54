"""One command from labelled pairs to a bundle that serves: every stage of the tiny recipe, run as a user would."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from relevance.bundle import open_bundle
from relevance.pairs import Item, write_labelled_pairs
from service.model import load_model
from service.settings import Settings

ROOT = Path(__file__).parents[1]


def relevance(*arguments):
    """Run the command line in the checkout."""
    command = [sys.executable, "-m", "relevance.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=280)


@pytest.fixture(scope="module")
def finished(tiny_pairs, tmp_path_factory):
    """The run directory of the whole tiny recipe over invented pairs."""
    folder = tmp_path_factory.mktemp("pipeline")
    write_labelled_pairs(folder / "pairs.jsonl", tiny_pairs)
    overrides = (
        "data.source=pairs",
        f"data.path={folder / 'pairs.jsonl'}",
        "data.cal_fraction=0.3",
        "evaluate.draws=50",
        "calibrate.min_exact_queries=5",
        "export.precisions=['fp32']",
        "export.ship=['fp32']",
    )
    options = [part for override in overrides for part in ("--set", override)]
    done = relevance("pipeline", "--recipe", "tiny", "--out", folder / "run", *options)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run", options


def test_every_stage_leaves_its_result(finished):
    """The guided student has a latent, the report is one page, the bundle opens."""
    run, _ = finished

    assert json.loads((run / "student" / "config.json").read_text())["extractor"]["kind"] == "gat"
    assert (run / "report" / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert open_bundle(run / "export" / "bundle").manifest.model_id == "relevance-tiers-tiny"


def test_the_ledger_shows_that_guidance_was_trained(finished):
    """Guidance falls from its first note to its last: the latent moves towards the CoT embeddings."""
    run, _ = finished
    notes = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    guidance = [note["guidance"] for note in notes if "guidance" in note]

    assert len(guidance) > 1
    assert guidance[-1] < guidance[0]


def test_the_bundle_verifies_and_scores(finished):
    """What the pipeline made passes `relevance verify`, and the service's own engine gives tiers."""
    run, _ = finished
    verified = relevance("verify", run / "export" / "bundle")
    model = load_model(Settings(bundle=run / "export" / "bundle"))
    scored = model.scorer.score("red desk lamp", [Item("red desk lamp"), Item("steel water bottle")], locale="us")

    assert verified.returncode == 0, verified.stderr
    assert ((scored.score_B >= 0) & (scored.score_B <= 1)).all()
    assert set(scored.tier_B.tolist()) <= {0, 1, 2, 3, 4}


def test_a_second_run_with_the_same_inputs_does_nothing(finished):
    """Every stage recognises its inputs."""
    run, options = finished
    before = {path: path.stat().st_mtime_ns for path in run.glob("*/DONE.json")}
    again = relevance("pipeline", "--recipe", "tiny", "--out", run, *options)

    assert again.returncode == 0
    assert before == {path: path.stat().st_mtime_ns for path in run.glob("*/DONE.json")}
    assert again.stderr.count("nothing to do") == len(before)


def test_a_damaged_bundle_is_refused_with_its_file(finished, tmp_path):
    """One flipped byte in the calibrator: exit status 2 and the file's name."""
    run, _ = finished
    copy = tmp_path / "bundle"
    copy.mkdir()
    for path in (run / "export" / "bundle").iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    damaged = bytearray((copy / "calibration.json").read_bytes())
    damaged[10] ^= 1
    (copy / "calibration.json").write_bytes(damaged)
    done = relevance("verify", copy)

    assert done.returncode == 2
    assert "calibration.json" in done.stderr
