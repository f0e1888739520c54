"""Results in one file: loaded beside the same data they count as trained, and say so where they do not fit."""

import json
import shutil

import numpy as np
import pytest
from test_grid_stage import RECIPE, invented_pairs, status_of

from relevance.errors import RunError
from relevance.pairs import write_labelled_pairs
from training.grid import stage
from training.predictions import read_predictions

TEST = "student/predictions.test.parquet"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A recipe, the directory of its finished grid, and the file of its results."""
    folder = tmp_path_factory.mktemp("saved")
    write_labelled_pairs(folder / "pairs.jsonl", invented_pairs())
    recipe = folder / "grid.toml"
    recipe.write_text(RECIPE.format(pairs=folder / "pairs.jsonl"))
    out, file = folder / "out", folder / "results.npz"
    assert stage.main([str(recipe), "--out", str(out), "--systems", "majority,bert", "--save", str(file)]) == 0
    return recipe, out, file


def test_another_directory_takes_them_and_trains_only_what_is_missing(saved, tmp_path):
    """The loaded runs have status and predictions and no weights; the trained one has all three."""
    recipe, out, file = saved
    other = tmp_path / "other"
    arguments = [str(recipe), "--out", str(other), "--load", str(file)]
    assert stage.main([*arguments, "--systems", "bert,lrkd_no_guidance", "--seeds", "1"]) == 0
    for system, seed in (("majority", 0), ("bert", 0), ("bert", 1)):
        assert status_of(other, system, seed) == status_of(out, system, seed)
        mine, theirs = (read_predictions(f / f"fits/{system}/seed_{seed}" / TEST) for f in (other, out))
        np.testing.assert_array_equal(mine.logits_NK, theirs.logits_NK)
        np.testing.assert_array_equal(mine.label, theirs.label)
        assert not (other / f"fits/{system}/seed_{seed}/student/model.safetensors").exists()
    assert (other / "fits/lrkd_no_guidance/seed_1/student/model.safetensors").is_file()


def test_a_second_save_adds_to_the_first(saved, tmp_path):
    """What one machine trained goes beside what another did."""
    recipe, _, file = saved
    both, other = tmp_path / "both.npz", tmp_path / "other"
    shutil.copy(file, both)
    assert stage.main([str(recipe), "--out", str(other), "--systems", "tfidf", "--save", str(both)]) == 0
    third = tmp_path / "third"
    assert stage.main([str(recipe), "--out", str(third), "--systems", "tfidf", "--load", str(both)]) == 0
    assert {path.parent.name for path in third.glob("fits/*/seed_*")} == {"majority", "bert", "tfidf"}


def test_trials_are_kept_too(saved, tmp_path):
    """A ledger can be finished elsewhere, and has the rows of both."""
    recipe, _, _ = saved
    file, keys = tmp_path / "trials.npz", ["--tune", "--set", "grid.trials=1"]
    first, second = tmp_path / "first", tmp_path / "second"
    assert stage.main([str(recipe), "--out", str(first), *keys, "--systems", "bert", "--save", str(file)]) == 0
    assert stage.main([str(recipe), "--out", str(second), *keys, "--load", str(file)]) == 0
    rows = [json.loads(line) for line in (second / "tuning.jsonl").read_text().splitlines()]
    assert [row["system"] for row in rows] == ["bert", "lrkd_no_guidance"]
    assert rows[0] == json.loads((first / "tuning.jsonl").read_text())
    assert not (second / "tuning/bert/trial_0/student/model.safetensors").exists()


def test_results_of_another_configuration_are_not_taken(saved, tmp_path):
    """A learning rate more, and the runs are trained."""
    recipe, _, file = saved
    other = tmp_path / "other"
    changed = ["--set", "student.fit.learning_rate=0.01", "--systems", "bert", "--seeds", "0"]
    assert stage.main([str(recipe), "--out", str(other), *changed, "--load", str(file)]) == 0
    assert (other / "fits/bert/seed_0/student/model.safetensors").is_file()
    assert not (other / "fits/bert/seed_1").exists()


def test_files_of_other_pairs_and_no_files_are_refused(saved, tmp_path):
    """The message names the file, what was expected and what was found."""
    recipe, _, file = saved
    pairs = tmp_path / "pairs.jsonl"
    write_labelled_pairs(pairs, invented_pairs()[60:])
    others = ["--out", str(tmp_path / "other"), "--systems", "majority", "--set", f"data.path={pairs}"]
    with pytest.raises(RunError, match=r"results\.npz: expected results of this grid's \w+ pairs"):
        stage.main([str(recipe), *others, "--load", str(file)])
    wrong = tmp_path / "wrong.npz"
    wrong.write_bytes(b"PK no archive")
    same = ["--out", str(tmp_path / "same"), "--systems", "majority", "--load"]
    with pytest.raises(RunError, match=r"wrong\.npz: expected results that `relevance grid --save` wrote"):
        stage.main([str(recipe), *same, str(wrong)])
    with pytest.raises(RunError, match=r"gone\.npz: expected results"):
        stage.main([str(recipe), *same, str(tmp_path / "gone.npz")])
