"""What an LLM teacher writes for a student: rationales, labels and probabilities, and who saw which pair."""

import json
import shutil

import numpy as np
import pytest
from teacher_run import SPLIT_SIZES, WORDS, give_policy, make_run

from relevance.errors import RecipeError, RowError, RunError
from relevance.labels import ESCI
from relevance.pairs import read_labelled_pairs
from training.leakage import check_nearly_complete, check_rationales
from training.predictions import read_predictions
from training.rationale_rows import Rationale, read_rationales
from training.runs import Run
from training.soft_labels import FILE, read_soft_labels
from training.teacher.folds import fold_run
from training.teacher.parts import fold_of, split_parts
from training.teacher.policy_annotate import LABELS, RATIONALES, REPORT, PolicyLabel, annotate_by_policy, conclude
from training.teacher.rationale_teacher import rationale_teacher
from training.teacher.samples import Sample
from training.teacher.seen import pairs_read
from training.teacher.teacher_rationales import write_teacher_rationales


@pytest.fixture(scope="module")
def labelled(tiny_pairs):
    """Pairs of ten queries of each of two locales."""
    return tiny_pairs[:60]


@pytest.fixture(scope="module")
def taught(tmp_path_factory, labelled):
    """A run whose teacher calls everything Exact, with its rationales and its annotation."""
    run = make_run(tmp_path_factory.mktemp("taught"), labelled)
    give_policy(run, f"{WORDS}\nlabel: E")
    write_teacher_rationales(run)
    annotate_by_policy(run)
    return run


def pair_ids(run, split):
    """Give the ids of a split's pairs, in order."""
    return [one.pair.pair_id for one in read_labelled_pairs(run.path / "data" / f"pairs.{split}.parquet", ESCI)]


def test_each_pair_has_one_rationale_under_the_unified_prompt(taught):
    """With the label it concludes, the teacher's name, and the words it wrote; the leak check accepts it."""
    for split in ("train", "dev"):
        rows = list(read_rationales(taught.path / "rationales" / f"rationales.{split}.jsonl"))

        assert pair_ids(taught, split) == [row.pair_id for row in rows]
        assert {("unified", "E", WORDS)} == {(row.perspective, row.verdict, row.rationale) for row in rows}
        assert all(row.generator.startswith("local: sft@") for row in rows)
    assert check_rationales(taught)["train"]["rationales"] == SPLIT_SIZES["train"]


def test_a_rationale_says_whether_its_annotator_saw_the_pair(taught):
    """Without folds or a record of what SFT read, all it might have read were seen; reserved and dev pairs were not."""
    of_split = {
        split: list(read_rationales(taught.path / "rationales" / f"rationales.{split}.jsonl"))
        for split in ("train", "dev")
    }
    parts = split_parts(taught)

    assert parts.reserved
    assert {one.pair.pair_id for one in parts.fit} == {
        row.pair_id for row in of_split["train"] if row.annotator_seen_pair
    }
    share = check_rationales(taught)["train"]["annotator_seen_pair"]
    assert share == pytest.approx(len(parts.fit) / SPLIT_SIZES["train"], abs=1e-4)
    assert not any(row.annotator_seen_pair for row in of_split["dev"])


def test_the_report_counts_what_is_missing_and_what_is_right(taught):
    """Half of the labels are Exact, and so is every verdict; seen and unseen pairs are told apart."""
    report = json.loads((taught.path / "rationales" / "report.json").read_text())
    labels = {
        name: [one.label for one in part]
        for name, part in (("seen", split_parts(taught).fit), ("unseen", split_parts(taught).reserved))
    }

    assert report["train"] == {
        "pairs": 36,
        "rationales": 36,
        "missing": 0,
        "verdict_accuracy": 0.5,
        "annotator_seen_pair": len(labels["seen"]),
        **{
            f"verdict_accuracy_{name}": pytest.approx(own.count("E") / len(own), abs=1e-4)
            for name, own in labels.items()
        },
    }
    assert report["dev"]["verdict_accuracy_seen"] is None


def test_a_finished_stage_asks_nothing_and_another_policy_asks_anew(taught, tmp_path, labelled):
    """The teacher's weights are part of the inputs."""
    path = tmp_path / "run"
    shutil.copytree(taught.path, path)
    run = make_run(path)
    before = (path / "rationales" / "rationales.train.jsonl").stat().st_mtime_ns
    write_teacher_rationales(run)

    assert before == (path / "rationales" / "rationales.train.jsonl").stat().st_mtime_ns

    give_policy(run, f"{WORDS}\nlabel: S")
    write_teacher_rationales(run)

    assert {"S"} == {row.verdict for row in read_rationales(path / "rationales" / "rationales.train.jsonl")}


def test_a_teacher_that_babbles_writes_nothing_and_fails_the_check(tmp_path, labelled):
    """Its answers, first and second, are kept; every pair is counted as missing."""
    run = make_run(tmp_path, labelled, generate={"samples": 2})
    give_policy(run, "unused", steps=0)
    write_teacher_rationales(run)
    report = json.loads((tmp_path / "rationales" / "report.json").read_text())
    again = (tmp_path / "rationales" / "samples.train.all.again.jsonl").read_text()

    assert report["train"]["missing"] + report["train"]["rationales"] == 36
    assert report["train"]["missing"] > 18
    assert again.count("\n") >= report["train"]["missing"]
    with pytest.raises(RunError, match=r"expected rationales of all but 10% of 36 pairs"):
        check_rationales(run)


def test_a_run_without_a_teacher_says_which_stage_is_missing(tmp_path, labelled):
    """Before anything is written."""
    with pytest.raises(RunError, match="run `relevance sft`"):
        write_teacher_rationales(make_run(tmp_path, labelled))


def test_when_cross_fitting_each_pair_is_annotated_by_the_teacher_that_left_it_out(tmp_path, labelled):
    """Two teachers with an answer each: a pair's verdict tells which one wrote it, and nothing was seen."""
    run = make_run(tmp_path, labelled, folds=2)
    for fold, label in enumerate("SI"):
        give_policy(fold_run(run, fold), f"{WORDS}\nlabel: {label}")
    write_teacher_rationales(run)
    rows = list(read_rationales(tmp_path / "rationales" / "rationales.train.jsonl"))
    query_of = {one.pair.pair_id: one.pair.query.text for one in labelled}

    assert pair_ids(run, "train") == [row.pair_id for row in rows]
    assert ["SI"[fold_of(query_of[row.pair_id], 2)] for row in rows] == [row.verdict for row in rows]
    assert {"S", "I"} == {row.verdict for row in rows}
    assert not any(row.annotator_seen_pair for row in rows)
    assert {"S"} == {row.verdict for row in read_rationales(tmp_path / "rationales" / "rationales.dev.jsonl")}


def with_named_teacher(path, labelled, text):
    """Give a run that names a finished teacher of one perspective, below its own folder."""
    run, name = make_run(path, labelled), "teachers/single_rule/seed_0"
    section = run.recipe.teacher.model_copy(update={"perspectives": ("rule",)})
    taught = Run(run.recipe.model_copy(update={"teacher": section}), path / name, shared=path)
    give_policy(taught, text)
    (path / name / "recipe.json").write_text(taught.recipe.model_dump_json())
    rationales = run.recipe.rationales.model_copy(update={"teacher": name})
    return Run(run.recipe.model_copy(update={"rationales": rationales}), path)


def test_a_finished_teacher_of_another_folder_writes_and_is_asked_as_it_was_trained(tmp_path, labelled):
    """Rationales lie in the run, under the view of the named teacher's own recipe; the check expects that view."""
    run = with_named_teacher(tmp_path, labelled, f"{WORDS}\nlabel: C")
    write_teacher_rationales(run)
    rows = list(read_rationales(tmp_path / "rationales" / "rationales.train.jsonl"))

    assert {("rule", "C", WORDS)} == {(row.perspective, row.verdict, row.rationale) for row in rows}
    assert check_rationales(run)["dev"]["rationales"] == SPLIT_SIZES["dev"]
    before = (tmp_path / "rationales" / "rationales.train.jsonl").stat().st_mtime_ns
    absolute = run.recipe.rationales.model_copy(update={"teacher": str(tmp_path / "teachers/single_rule/seed_0")})
    write_teacher_rationales(Run(run.recipe.model_copy(update={"rationales": absolute}), tmp_path))
    assert before == (tmp_path / "rationales" / "rationales.train.jsonl").stat().st_mtime_ns


def test_a_named_teacher_is_asked_where_this_run_says_and_how_it_was_trained(tmp_path, labelled):
    """Its folder's recipe is that of the last command that ran there: a judgement by a server, say."""
    run = with_named_teacher(tmp_path, labelled, f"{WORDS}\nlabel: C")
    path = tmp_path / "teachers/single_rule/seed_0/recipe.json"
    recipe = json.loads(path.read_text())
    recipe["teacher"]["sampling"] |= {"kind": "openai", "model": "m", "policy_model": "old", "max_new_tokens": 77}
    path.write_text(json.dumps(recipe))
    found = rationale_teacher(run).recipe.teacher

    assert (found.sampling.kind, found.sampling.policy_model) == (run.recipe.teacher.sampling.kind, None)
    assert (found.sampling.max_new_tokens, found.perspectives) == (77, ("rule",))


def test_a_named_teacher_that_is_not_there_not_the_only_one_or_of_other_pairs_is_refused(tmp_path, labelled):
    """The message names the folder and what was found."""
    run = with_named_teacher(tmp_path, labelled, "unused")
    folder = tmp_path / "teachers/single_rule/seed_0"
    answered = folder / "preference_answers" / "inputs.json"
    answered.parent.mkdir()
    answered.write_text('{"inputs": {"files": {"pairs.train.parquet": "of another world"}}}')
    with pytest.raises(RunError, match=r"a teacher of this run's training pairs .*found one of others .of another w"):
        write_teacher_rationales(run)
    folds = run.recipe.teacher.model_copy(update={"folds": 2})
    with pytest.raises(RecipeError, match=r"expected null with teacher\.folds = 2.*single_rule"):
        write_teacher_rationales(Run(run.recipe.model_copy(update={"teacher": folds}), tmp_path))
    give_policy(run, "unused", steps=0)
    with pytest.raises(RunError, match=r"rationales\.teacher = .*expected no other teacher .*found its stages .'sft'"):
        write_teacher_rationales(run)
    shutil.rmtree(tmp_path / "sft")
    shutil.rmtree(folder)
    with pytest.raises(RunError, match="single_rule/seed_0: expected the folder of a finished teacher"):
        write_teacher_rationales(run)


def rationale_of(pair_id, view="unified"):
    """Give a rationale."""
    fields = {"evidence": (), "rationale": "r", "verdict": "E", "generator": "g", "annotator_seen_pair": False}
    return Rationale(pair_id=pair_id, perspective=view, **fields)


def test_one_pair_in_ten_may_be_missing_but_none_may_stand_twice():
    """Of ten pairs nine will do; eight, a pair twice, one of no pair, or of another view will not."""
    ids = [str(n) for n in range(10)]
    nine = [rationale_of(pair_id) for pair_id in ids[1:]]
    check_nearly_complete(nine, ids, "unified", where="r.jsonl")

    for wrong, message in (
        (nine[1:], "found none for 2"),
        ([*nine, nine[0]], "1 more than one"),
        ([*nine, rationale_of("x")], "1 for no pair"),
        ([*nine, rationale_of("0", "rule")], "1 missing"),
    ):
        with pytest.raises(RunError, match=message):
            check_nearly_complete(wrong, ids, "unified", where="r.jsonl")


def test_annotated_training_pairs_are_soft_labels_in_order(taught):
    """One row a pair; probabilities of the label's tokens sum to one and lead to the label the policy always gives."""
    folder = taught.path / "annotate"
    rows = [PolicyLabel.model_validate_json(line) for line in (folder / LABELS).read_text().splitlines()]
    soft = read_soft_labels(folder / FILE, 4)

    assert pair_ids(taught, "train") == [row.pair_id for row in rows] == [pair.pair_id for pair in soft.pairs]
    assert {("E", 1.0, WORDS)} == {(row.label, row.vote_share, row.rationale) for row in rows}
    np.testing.assert_allclose(soft.probabilities_NK.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(soft.probabilities_NK, [row.probabilities for row in rows], atol=1e-6)
    assert {0} == set(soft.probabilities_NK.argmax(axis=1).tolist())
    assert soft.features_NF.shape == (36, 0)
    assert len(list(read_rationales(folder / RATIONALES))) == 36
    (reading,) = (taught.path / "test_reads.jsonl").read_text().splitlines()
    assert json.loads(reading)["stage"] == "annotate"
    for split in ("dev", "cal", "test"):
        predictions = read_predictions(folder / f"predictions.{split}.parquet")
        assert pair_ids(taught, split) == predictions.pair_id.tolist()
        assert {0} == set(predictions.logits_NK.argmax(axis=1).tolist())


def test_a_log_without_labels_is_annotated_row_by_row(taught, tmp_path):
    """A repeated pair is asked once, a bad row is named or skipped; a text that was read is seen under any id."""
    run_path = tmp_path / "run"
    shutil.copytree(taught.path, run_path)
    log = tmp_path / "log.jsonl"
    rows = [{"query": "steel lamp", "title": f"desk lamp {n}", "item_id": n} for n in (1, 2, 1)]
    rows.insert(1, {"query": "steel lamp", "title": " ", "item_id": 9})
    train = list(read_labelled_pairs(taught.path / "data" / "pairs.train.parquet", ESCI))
    read = next(one.pair for one in train if one.pair.pair_id in pairs_read(taught))
    rows.append({"query": read.query.text.upper(), "title": f"{read.item.title} ", "item_id": "of-the-log"})
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    label = {"pairs": str(log), "samples": 3, "probabilities": "votes"}
    with pytest.raises(RowError, match=r"log\.jsonl, row 2, column 'title'"):
        annotate_by_policy(make_run(run_path, label=label))
    annotate_by_policy(make_run(run_path, label=label, on_bad_row="skip"))
    folder = run_path / "annotate"
    found = [PolicyLabel.model_validate_json(line) for line in (folder / LABELS).read_text().splitlines()]
    report = json.loads((folder / REPORT).read_text())

    assert [row.pair_id.partition("\t")[2] for row in found] == ["1", "2", "of-the-log"]
    assert (folder / "samples.all.jsonl").read_text().count("\n") == 9
    assert all(sum(row.probabilities) == pytest.approx(1) for row in found)
    assert [row.annotator_seen_pair for row in found] == [False, False, True]
    assert report["bad_rows"]["count"] == 1
    assert "row 2" in report["bad_rows"]["first"][0]


def sample_of(number, label, rationale="because", ended="stop"):
    """Give an answer about one pair."""
    fields = {"text": "t", "evidence": (), "prompt_tokens": 1, "completion_tokens": 1, "finish_reason": ended}
    problems = () if label else ("no_label",)
    fields |= {"pair_id": "q\ti", "view": "unified", "generator": "g", "error": None, "problems": problems}
    return Sample(sample=number, label=label, rationale=rationale, **fields)


def test_the_label_is_the_commonest_and_among_equals_the_more_probable():
    """Two E, two S and one unreadable: S by its probability; its share is 2/5, its rationale the shortest whole one."""
    answers = [sample_of(0, "E"), sample_of(1, "S", "short"), sample_of(2, "S", "cut", "length"), sample_of(3, "E")]
    answers.append(sample_of(4, None))
    row = conclude(answers, np.array([0.3, 0.6, 0.1, 0.0]), ESCI, seen=True)

    assert (row.label, row.vote_share, row.rationale, row.annotator_seen_pair) == ("S", 0.4, "short", True)
    assert row.problems == ("no_label",)
    assert conclude(answers[:2] + answers[3:], np.array([0.3, 0.6, 0.1, 0.0]), ESCI, seen=False).label == "E"


def test_a_pair_without_a_readable_answer_has_no_label():
    """And no probabilities, but a row."""
    row = conclude([sample_of(0, None), sample_of(1, "E", " ")], None, ESCI, seen=False)

    assert (row.label, row.probabilities, row.vote_share, row.rationale) == (None, None, 0.0, "")
