"""Cross-fitting end to end: a tiny teacher a fold, and rationales of pairs that their writer never saw."""

import json
import shutil

import pytest
from constant_policy import save_constant_policy

from relevance.errors import RunError
from relevance.labels import ESCI
from relevance.pairs import read_labelled_pairs, write_labelled_pairs
from training.rationale_rows import read_rationales
from training.recipe import Recipe
from training.runs import DONE, Run, hash_file
from training.teacher.folds import annotators, fold_run, train_folds
from training.teacher.keep import kept_rows
from training.teacher.parts import fold_of, split_parts
from training.teacher.seen import pairs_read
from training.teacher.teacher_rationales import write_teacher_rationales

pytest.importorskip("trl")


def make_run(path, labelled, **other):
    """Give a run of two folds whose base model calls everything Exact."""
    (path / "data").mkdir(parents=True)
    for split in ("train", "dev"):
        write_labelled_pairs(path / "data" / f"pairs.{split}.parquet", labelled)
    (path / "data" / DONE).write_text('{"inputs": ""}')
    fit = {"epochs": 1, "batch_size": 8, "device_batch_size": 4, "max_tokens": 320, "learning_rate": 1e-4}
    fit |= {"bf16": False, "gradient_checkpointing": False}
    teacher = {
        "base": str(path / "base"),
        "folds": 2,
        "lora": False,
        "prompt": {"version": "compact", "shots": 0},
        "sampling": {"max_new_tokens": 30, "batch_size": 16},
        "generate": {"samples": 1},
        "preferences": {"samples": 1},
        "sft": fit,
        "dpo": fit,
        **other,
    }
    data = {"source": "pairs", "path": "unused.jsonl"}
    rationales = {"generator": "teacher"}
    recipe = {"name": "t", "data": data, "rationales": rationales, "teacher": teacher}
    run = Run(Recipe.model_validate(recipe), path)
    save_constant_policy(path / "base", run, [one.pair for one in labelled[:8]], "the item fits the wish\nlabel: E")
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_pairs):
    """A run whose folds' teachers are trained."""
    run = make_run(tmp_path_factory.mktemp("folds"), tiny_pairs[:150])
    train_folds(run)
    write_teacher_rationales(run)
    return run


def test_the_base_is_asked_once_and_every_fold_has_a_teacher_of_its_own(run):
    """`generate` lies in the run, SFT and what follows in the folds."""
    assert (run.path / "generate" / DONE).is_file()
    for fold in range(2):
        folder = run.path / "folds" / str(fold)
        assert not (folder / "generate").exists()
        assert all((folder / stage / DONE).is_file() for stage in ("sft", "preferences", "dpo"))
        assert json.loads((folder / "dpo" / "report.json").read_text())["shipped"] == "sft"


def test_a_fold_is_fitted_on_no_pair_that_it_annotates(run):
    """Neither by SFT nor by preferences; together the folds annotate every pair once."""
    annotated = []
    for fold, annotator in enumerate(annotators(run, "train")):
        own = fold_run(run, fold)
        parts = split_parts(own)
        used = {one.pair.pair_id for one, _ in kept_rows(own)} | {one.pair.pair_id for one in parts.reserved}
        ids = {pair.pair_id for pair in annotator.pairs}
        annotated += ids

        assert used
        assert not used & ids
        assert {fold} == {fold_of(pair.query.text, 2) for pair in annotator.pairs}
    labelled = read_labelled_pairs(run.path / "data" / "pairs.train.parquet", ESCI)
    assert sorted(one.pair.pair_id for one in labelled) == sorted(annotated)


def test_what_a_teacher_saw_is_what_it_learned(run):
    """Of the pairs that it might have read, those with a kept answer; SFT's policy is the teacher and saw no other."""
    for annotator in annotators(run, "train"):
        parts = split_parts(annotator.run)
        kept = {one.pair.pair_id for one, _ in kept_rows(annotator.run)}
        learned = json.loads((annotator.run.folder("sft") / "report.json").read_text())["phases"]["sft"]

        assert annotator.seen < {one.pair.pair_id for one in parts.fit}
        assert annotator.seen <= kept
        assert len(kept - annotator.seen) <= learned["held_out_rows"]
        assert len(annotator.seen) <= learned["rows"]


def test_without_the_files_that_were_learned_from_all_that_might_have_been_count(run, tmp_path):
    """Preferences count where DPO's policy is the teacher; answers or preferences made anew prove nothing."""
    shutil.copytree(run.path, tmp_path / "run")
    own = fold_run(Run(run.recipe, tmp_path / "run"), 0)
    parts, dpo = split_parts(own), own.path / "dpo"
    fit, reserved = ({one.pair.pair_id for one in part} for part in (parts.fit, parts.reserved))
    (dpo / "report.json").write_text('{"shipped": "dpo"}')
    row = {"pair_id": min(reserved), "label": "E", "view": "unified", "prompt": [], "chosen": "a", "rejected": "b"}
    for side, label, tokens in (("chosen", "E", 1), ("rejected", "S", 1)):
        row |= {f"{side}_label": label, f"{side}_view": "user", f"{side}_tokens": tokens, f"{side}_score": 0.0}
    preferences = own.path / "preferences" / "preferences.jsonl"
    preferences.write_text(json.dumps(row) + "\n")
    (dpo / "inputs.json").write_text(json.dumps({"inputs": {"files": {preferences.name: hash_file(preferences)}}}))
    learned = pairs_read(fold_run(run, 0))

    assert pairs_read(own) == learned | {min(reserved)}
    preferences.write_text(json.dumps(row) + "\n\n")
    assert pairs_read(own) == learned | reserved
    kept = tmp_path / "run" / "generate" / "kept.train.jsonl"
    kept.write_text("".join(kept.read_text().splitlines(keepends=True)[1:]))
    changed = [fold_run(Run(run.recipe, tmp_path / "run"), fold) for fold in range(2)]
    wide = [pairs_read(one) >= {p.pair.pair_id for p in split_parts(one).fit} for one in changed]
    assert True in wide
    assert learned < fit


def test_no_rationale_was_written_by_a_teacher_that_saw_the_pair(run):
    """And two teachers wrote them."""
    rows = list(read_rationales(run.path / "rationales" / "rationales.train.jsonl"))

    assert len(rows) == 150
    assert not any(row.annotator_seen_pair for row in rows)
    assert len({row.generator for row in rows}) == 2


def test_folds_that_one_process_cannot_train_are_refused_with_the_commands(tmp_path, tiny_pairs):
    """A server would have to serve policies before they are trained."""
    served = make_run(tmp_path, tiny_pairs[:30], sampling={"kind": "openai", "model": "m", "max_new_tokens": 30})
    with pytest.raises(RunError, match=r"each FOLD from 0 to 1 `relevance sft`.* --set teacher\.folds=2 .*--shared"):
        train_folds(served)
    assert not (tmp_path / "generate").exists()


def test_trained_folds_are_not_trained_again(run):
    """Every stage finds itself finished."""
    before = (run.path / "folds" / "1" / "sft" / DONE).stat().st_mtime_ns
    train_folds(run)

    assert before == (run.path / "folds" / "1" / "sft" / DONE).stat().st_mtime_ns
