"""A student of an LLM teacher's rationales beside students of programmatic ones, in one grid with one paired table."""

import json

import pytest

from relevance.labels import ESCI
from relevance.pairs import read_labelled_pairs
from training import report
from training.data import stage as data_stage
from training.grid import stage
from training.rationale_rows import rationale_line, read_rationales
from training.runs import DONE
from training.teacher import rationales

RIVALS = ("bert", "lrkd_programmatic", "lrkd_programmatic_combined")
SYSTEMS = (*RIVALS, "lrkd_gat", "lrkd_agree", "lrkd_unseen")
SETTINGS = {
    "name": "student-grid",
    "stages": '["data", "annotate", "embed", "pretrain"]',
    "rationales.generator": "teacher",
    "rationales.splits": '["train", "dev"]',
    "embed.combined": "false",
    "grid.systems": json.dumps(SYSTEMS),
    "grid.rivals": json.dumps(RIVALS),
    "grid.draws": "100",
}
SEEN = 3
"""The stand-in's writer was fitted on one pair in so many."""


def options(out, settings):
    """Give a command's options."""
    return ["--out", str(out), *(part for key, value in settings.items() for part in ("--set", f"{key}={value}"))]


def write_as_teacher(out, side):
    """Write one rationale a pair under the unified view: the annotator's structured one, with a verdict."""
    settings = {"rationales.splits": '["train", "dev"]', "rationales.perspectives": '["struct"]'}
    assert data_stage.main(["--recipe", "marketplace-smoke", *options(out, {})]) == 0
    side.mkdir()
    (side / "data").symlink_to(out / "data")
    assert rationales.main(["--recipe", "marketplace-smoke", *options(side, settings)]) == 0
    (out / "rationales").mkdir()
    for split in ("train", "dev"):
        labelled = read_labelled_pairs(out / "data" / f"pairs.{split}.parquet", ESCI)
        verdict = {one.pair.pair_id: one.label if i % 4 else "I" for i, one in enumerate(labelled)}
        rows = [
            row.model_copy(
                update={
                    "perspective": "unified",
                    "verdict": verdict[row.pair_id],
                    "generator": "stand-in",
                    "annotator_seen_pair": split == "train" and number % SEEN == 0,
                }
            )
            for number, row in enumerate(read_rationales(side / "rationales" / f"rationales.{split}.jsonl"))
        ]
        (out / "rationales" / f"rationales.{split}.jsonl").write_text("".join(map(rationale_line, rows)))
    (out / "rationales" / DONE).write_text('{"inputs": "by hand"}')


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of the finished and reported grid."""
    out = tmp_path_factory.mktemp("students")
    write_as_teacher(out, out / "side")
    assert stage.main(["marketplace-smoke", *options(out, SETTINGS)]) == 0
    assert report.main(["--recipe", "marketplace-smoke", *options(out, SETTINGS)]) == 0
    return out


@pytest.mark.timeout(600)
def test_all_students_are_paired_with_the_teachers_in_one_family(finished):
    """Each difference has figures; agreeing and unseen pairs stand beside them."""
    results = json.loads((finished / "report" / "results.json").read_text(encoding="utf-8"))
    differences = results["differences"]

    assert {run["state"] for run in results["runs"]} == {"done"}
    assert [(row["ours"], row["theirs"]) for row in differences["rivals"]] == [("lrkd_gat", name) for name in RIVALS]
    assert [row["theirs"] for row in differences["others"]] == ["lrkd_agree", "lrkd_unseen"]
    assert all(row["figures"] for family in ("rivals", "others") for row in differences[family])
    assert "LRKD-GAT, programmatic rationales as one text" in (finished / "report" / "table.md").read_text()


def test_the_checks_tell_whose_rationales_they_are_and_which_were_seen(finished):
    """The annotator's own are checked in a folder of theirs; the pairs' leaks stand beside."""
    checks = json.loads((finished / "grid.json").read_text(encoding="utf-8"))["checks"]

    assert checks["rationales"]["train"]["generators"] == ["stand-in"]
    assert checks["rationales"]["train"]["annotator_seen_pair"] == pytest.approx(1 / SEEN, abs=0.01)
    assert checks["rationales"]["dev"]["annotator_seen_pair"] == 0
    assert checks["programmatic"]["rationales"]["train"]["generators"] == ["marketplace-1/train"]
    assert checks["programmatic"]["embeddings"]["tokens_read"].keys() == {"user", "struct", "rule", "combined"}
    assert checks["data"]["shared"]["train|test"]["same_query"] == 0


def test_the_students_differ_in_what_guides_them(finished):
    """No two of them end with the same dev figure and the same explained guidance."""
    ends = {}
    for name in SYSTEMS[1:]:
        status = json.loads((finished / "fits" / name / "seed_0" / "status.json").read_text())
        ends[name] = (status["dev"], status["guidance_explained"])

    assert len(set(ends.values())) == len(ends)
