"""The whole road in small: pairs, a tiny teacher prompted, fine-tuned and judged, its student distilled and served."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from sklearn.metrics import f1_score

from relevance.labels import ESCI
from relevance.pairs import read_labelled_pairs
from training.grid.teacher_systems import TEACHERS
from training.rationale_rows import read_rationales
from training.teacher.preference_rows import read_preferences
from training.teacher.samples import read_samples

ROOT = Path(__file__).parents[1]
RECIPE = "teacher-tiny"
PATIENCE_S = 120

pytestmark = pytest.mark.timeout(900)


def relevance(*arguments):
    """Run the command line in the checkout."""
    command = [sys.executable, "-m", "relevance.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=800)


def report(out, stage):
    """Give the report of a stage."""
    return json.loads((out / stage / "report.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The run directory of the whole tiny recipe."""
    out = tmp_path_factory.mktemp("teacher") / "run"
    done = relevance("pipeline", "--recipe", RECIPE, "--out", out)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def test_what_sft_learns_agrees_with_the_labels_and_nothing_is_cut(finished):
    """Every kept rationale concludes its pair's label (eq. 1), and no row is longer than the model reads."""
    generated, fitted = report(finished, "generate"), report(finished, "sft")

    assert generated["kept"] > 100
    assert generated["answered"] > generated["kept"]
    assert fitted["phases"]["sft"]["truncated"] == 0


def test_dpo_starts_at_the_sft_policy_and_the_gate_decides(finished):
    """Rewards are 0 before the first step; sklearn's macro-F1 of both policies' answers decides who is judged."""
    preferences = list(read_preferences(finished / "preferences" / "preferences.jsonl"))
    decision = report(finished, "dpo")
    label_of = {
        one.pair.pair_id: one.label for one in read_labelled_pairs(finished / "data" / "pairs.dev.parquet", ESCI)
    }
    macro_f1 = {}
    for name in ("sft", "dpo"):
        (path,) = (finished / "dpo").glob(f"gate.{name}.*.jsonl")
        answers = list(read_samples(path))
        labels, named = [label_of[one.pair_id] for one in answers], [one.label or "none" for one in answers]
        macro_f1[name] = f1_score(labels, named, labels=ESCI.classes, average="macro", zero_division=0)
        assert decision["gate"][name]["macro_f1"] == pytest.approx(macro_f1[name], abs=1e-6)
        assert len(answers) == decision["gate"]["pairs"]

    assert len(preferences) >= 8
    assert decision["training"]["first_step"]["rewards/margins"] == 0
    assert decision["shipped"] == ("dpo" if macro_f1["dpo"] > macro_f1["sft"] else "sft")
    assert f"{decision['shipped']}@" in report(finished, "judge")["generator"]


def test_the_teacher_is_judged_and_has_a_card(finished):
    """Figures of the shipped policy, and a card that says what it is."""
    judged = report(finished, "judge")

    assert judged["split"] == "test"
    assert "teacher-tiny" in (finished / "judge" / "card.md").read_text(encoding="utf-8")


def test_the_student_learned_from_the_teachers_own_rationales(finished):
    """One rationale a pair, of no named perspective; guidance was trained."""
    rationales = list(read_rationales(finished / "rationales" / "rationales.train.jsonl"))
    notes = [json.loads(line) for line in (finished / "ledger.jsonl").read_text(encoding="utf-8").splitlines()]

    assert {rationale.perspective for rationale in rationales} == {"unified"}
    assert len({rationale.pair_id for rationale in rationales}) == len(rationales) > 100
    assert any("guidance" in note for note in notes)


def test_the_distilled_student_serves(finished):
    """A real server loads the bundle and answers with a tier for each item."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    bundle = finished / "export" / "bundle"
    command = [sys.executable, "-m", "relevance.cli", "serve", "--port", str(port), "--bundle", str(bundle)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as client:
                _wait_until_ready(client, server)
                items = [{"id": 1, "title": "steel kettle 1.7 l"}, {"id": 2, "title": "garden hose"}]
                answer = client.post("/score", json={"query": "steel kettle", "items": items, "return_filtered": "ids"})
        finally:
            server.terminate()

    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert {item["id"] for item in [*body["results"], *body["filtered"]]} == {1, 2}


def _wait_until_ready(client, server):
    give_up = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up and server.poll() is None:
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError("expected the service to become ready")


def test_teachers_are_compared_on_the_same_first_answers(finished):
    """Two teachers go through SFT, DPO and judgement; the one that was not run keeps its row."""
    shared = 'stages=["data", "annotate", "teacher_pretrain", "generate"]'
    options = ("--out", finished, "--set", shared, "--systems", "mpcot,single_rule")
    done = relevance("teachers", RECIPE, *options)
    assert done.returncode == 0, done.stderr[-3000:]
    table = (finished / "teachers" / "comparison.md").read_text(encoding="utf-8")
    again = relevance("teachers", RECIPE, *options)

    for name in ("mpcot", "single_rule"):
        status = json.loads((finished / "teachers" / name / "seed_0" / "status.json").read_text(encoding="utf-8"))
        assert (status["state"], status["error"]) == ("done", None)
        row = next(line for line in table.splitlines() if line.startswith(f"| {TEACHERS[name].title}, SFT |"))
        assert row.rstrip(" |").split(" | ")[-2] == f"{status['learned']['sft_tokens']:,}"
    assert "not run" in table
    assert "2 jobs, 2 ended before" in again.stderr
