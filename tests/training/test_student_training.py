"""The student stage end to end on a small model: it learns, resumes after a kill, averages seeds and raises alarms."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from relevance.errors import CollapseError, RunError
from relevance.pairs import Item, LabelledPair, Pair, Query, write_labelled_pairs
from training.predictions import read_predictions
from training.recipe import load_recipe
from training.runs import DONE, Run
from training.soft_labels import SoftLabels, write_soft_labels
from training.student import train
from training.student.fit import rate_factor

KINDS = ("lamp", "shirt", "kettle", "backpack", "drill", "pillow", "sandal", "notebook")
COLOURS = ("red", "blue", "green", "black")


def invented_pairs(split, n_queries):
    """Colour-and-kind queries: same kind and colour is E, same kind S, a case for the kind C, another kind I."""
    pairs = []
    for i in range(n_queries):
        kind, other, colour = KINDS[i % 8], KINDS[(i + 3) % 8], COLOURS[(i // 8) % 4]
        query = Query(f"{colour} {kind} {split} {i}", f"{split}{i}", "us")
        for label, title in {
            "E": f"{colour} {kind} by Norda",
            "S": f"{COLOURS[(i // 8 + 1) % 4]} {kind} by Ostra",
            "C": f"storage case for {kind}",
            "I": f"{colour} {other} set",
        }.items():
            pairs.append(LabelledPair(Pair(query, Item(title, f"{split}{i}{label}")), label, "invented"))
    return pairs


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A finished data stage of invented pairs."""
    folder = tmp_path_factory.mktemp("run") / "data"
    folder.mkdir()
    for split, n in {"train": 40, "dev": 16, "cal": 8, "test": 8}.items():
        write_labelled_pairs(folder / f"pairs.{split}.parquet", invented_pairs(split, n))
    (folder / DONE).write_text(json.dumps({"inputs": ""}))
    return folder


def start(data, path, *overrides):
    """Give a run over its own directory with the shared data stage linked in."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "data").symlink_to(data)
    recipe = load_recipe(
        "tiny", ["student.guidance_weight=0", "student.fit.epochs=12", "student.fit.patience=12", *overrides]
    )
    return Run(recipe, path)


def train_student(run):
    """Run the stage's steps without the command line around them."""
    with run.stage("student", {"recipe": run.recipe.model_dump(mode="json")}, resumable=True) as folder:
        train.StudentTraining(run, folder).fine_tune()
    return run.path / "student"


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """An uninterrupted run."""
    run = start(data, tmp_path_factory.mktemp("whole"), "student.checkpoint_steps=3")
    return run, train_student(run)


def test_the_student_learns_and_writes_predictions_of_every_held_out_split(trained):
    """The task loss falls from about ln 4, a uniform guess, below 1.2; each split's predictions are complete."""
    run, folder = trained
    notes = [json.loads(line) for line in (run.path / "ledger.jsonl").read_text().splitlines()]
    losses = [note["task"] for note in notes if "task" in note]

    assert losses[-1] < 1.2 < losses[0]
    assert {s: len(read_predictions(folder / f"predictions.{s}.parquet")) for s in ("dev", "cal", "test")} == {
        "dev": 64,
        "cal": 32,
        "test": 32,
    }


def test_a_killed_run_resumes_to_the_same_weights(data, trained, tmp_path, monkeypatch):
    """Killed in the middle of the second epoch and started again, the run ends bit for bit where it would have."""
    run = start(data, tmp_path / "killed", "student.checkpoint_steps=3")
    steps = iter(range(1000))
    plain = train.Fit._train_epoch
    factor = rate_factor

    def killing(step, total, warmup_fraction):
        if next(steps) == 40:
            raise KeyboardInterrupt
        return factor(step, total, warmup_fraction)

    monkeypatch.setattr("training.student.fit.rate_factor", killing)
    with pytest.raises(KeyboardInterrupt):
        train_student(run)
    assert not (run.path / "student" / DONE).exists()
    monkeypatch.setattr("training.student.fit.rate_factor", factor)
    resumed = train_student(run)

    assert train.Fit._train_epoch is plain
    expected = load_file(trained[1] / "model.safetensors")
    found = load_file(resumed / "model.safetensors")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_several_seeds_are_averaged_into_one_student(data, tmp_path):
    """Each weight of the student is the mean of the two fits' weights."""
    run = start(data, tmp_path / "two", "student.seeds=[1, 2]", "student.fit.epochs=1")
    folder = train_student(run)
    one, two = (load_file(folder / "fits" / f"seed_{seed}" / "model.safetensors") for seed in (1, 2))
    both = load_file(folder / "model.safetensors")

    assert not torch.equal(one["head.weight"], two["head.weight"])
    assert torch.allclose(both["head.weight"], (one["head.weight"] + two["head.weight"]) / 2)


def test_a_collapsed_student_raises_the_alarm(data, tmp_path, monkeypatch):
    """A student that gives every dev pair the same logits must not be saved as if it were one."""
    run = start(data, tmp_path / "flat")
    monkeypatch.setattr(
        train.StudentTraining, "_dev_logits", lambda self, student: torch.zeros(len(self._dev), 4).double().numpy()
    )

    with pytest.raises(CollapseError, match="standard deviation"):
        train_student(run)


def test_a_run_without_dev_pairs_trains_all_epochs(data, tmp_path):
    """Nothing to select by: no early stop, no figure, and an empty predictions file."""
    folder = tmp_path / "blind" / "data"
    folder.mkdir(parents=True)
    for path in data.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    write_labelled_pairs(folder / "pairs.dev.parquet", [])
    recipe = load_recipe("tiny", ["student.guidance_weight=0", "student.fit.epochs=4", "student.fit.patience=1"])
    run = Run(recipe, folder.parent)
    student = train_student(run)
    notes = [json.loads(line) for line in (run.path / "ledger.jsonl").read_text().splitlines()]

    assert max(note["step"] for note in notes if "step" in note) == 4 * 5 - 1
    assert not any("dev_figure" in note for note in notes)
    assert len(read_predictions(student / "predictions.dev.parquet")) == 0


def test_guidance_without_embeddings_names_the_missing_stages(data, tmp_path):
    """The reader learns what to run or to switch off."""
    run = start(data, tmp_path / "unguided", "student.guidance_weight=0.1")

    with pytest.raises(RunError, match="relevance embed"):
        train_student(run)


@pytest.mark.parametrize(("step", "expected"), [(0, 0.1), (9, 1.0), (10, 1.0), (55, 0.5), (100, 0.0)])
def test_the_learning_rate_warms_up_and_decays_linearly(step, expected):
    """100 steps with a tenth of warm-up: 0.1 at the first, 1 at the tenth, a half mid-way down, 0 at the end."""
    assert rate_factor(step, 100, 0.1) == pytest.approx(expected)


def test_two_processes_train_one_student(data, tmp_path):
    """Two CPU processes share five batches in three steps; one student, one ledger and all predictions come out."""
    run = start(data, tmp_path / "parallel", "student.fit.epochs=1")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--local-addr", "127.0.0.1"]
    launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "-m"]
    options = ["--recipe", "tiny", "--out", str(run.path), "--set", "student.guidance_weight=0"]
    command = [*launcher, "relevance.cli", "student", *options, "--set", "student.fit.epochs=1"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    notes = [json.loads(line) for line in (run.path / "ledger.jsonl").read_text().splitlines()]

    assert done.returncode == 0, done.stderr[-2000:]
    assert [note["epoch"] for note in notes if "epoch" in note] == [1]
    assert max(note["step"] for note in notes if "step" in note) == 2
    assert len(read_predictions(run.path / "student" / "predictions.dev.parquet")) == 64


def test_a_query_over_the_limit_in_a_judged_split_is_named_before_anything_trains(data, tmp_path):
    """Not after an epoch: the message names split, number and query."""
    run = start(data, tmp_path / "short", "max_query_tokens=3")
    with pytest.raises(RunError, match=r"(dev|cal|test): expected queries of at most 3 tokens, found \d+ pairs"):
        train_student(run)
    assert not (run.path / "student" / "fits").exists()


def test_soft_labels_of_other_pairs_are_refused(data, tmp_path):
    """Label distillation without one soft label of the training pairs would be plain BERT under another name."""
    run = start(data, tmp_path / "soft", "student.fit.soft_label_weight=1.0")
    folder = run.path / "annotate"
    folder.mkdir()
    pair = Pair(Query("red lamp", "elsewhere"), Item("Red lamp", "none"))
    soft = SoftLabels([pair], np.full((1, 4), 0.25, np.float32), np.zeros((1, 0), np.float32))
    write_soft_labels(folder / "soft_labels.parquet", soft)
    (folder / DONE).write_text(json.dumps({"inputs": ""}))
    with pytest.raises(RunError, match="expected soft labels of the training pairs, found none"):
        train_student(run)
