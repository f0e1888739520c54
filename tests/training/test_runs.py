"""Run directories: finished stages are not repeated, changed inputs start over, killed stages can resume."""

import json

import pytest

from relevance.errors import RunError
from training.recipe import load_recipe
from training.runs import DONE, Run


@pytest.fixture
def run(tmp_path):
    """A run of the tiny recipe in an empty directory."""
    return Run(load_recipe("tiny"), tmp_path)


def test_a_finished_stage_with_the_same_inputs_is_skipped(run):
    """The second entry yields no folder."""
    with run.stage("data", {"a": 1}) as folder:
        (folder / "file").write_text("x")

    with run.stage("data", {"a": 1}) as again:
        assert again is None


def test_changed_inputs_empty_the_folder(run):
    """Nothing of the old inputs can leak into the new result."""
    with run.stage("data", {"a": 1}) as folder:
        (folder / "file").write_text("x")

    with run.stage("data", {"a": 2}) as folder:
        assert not (folder / "file").exists()


def test_a_killed_stage_has_no_done_marker_and_keeps_its_work_when_resumable(run):
    """An exception stands for the kill: what was written stays for the same inputs."""
    killed = run.stage("student", {"a": 1}, resumable=True)
    folder = killed.__enter__()
    (folder / "half").write_text("x")
    swallowed = killed.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)

    assert not swallowed
    assert not (run.path / "student" / DONE).exists()
    with run.stage("student", {"a": 1}, resumable=True) as again:
        assert (again / "half").read_text() == "x"


def test_a_missing_stage_is_named_with_the_command_that_makes_it(run):
    """The reader learns what to run."""
    with pytest.raises(RunError, match="relevance data"):
        run.require("data")


def test_the_ledger_has_one_json_line_a_note(run):
    """Figures of a run can be read back without parsing logs."""
    run.note("student", loss=0.5)
    run.note("student", loss=0.25)

    lines = [json.loads(line) for line in (run.path / "ledger.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == [0.5, 0.25]
