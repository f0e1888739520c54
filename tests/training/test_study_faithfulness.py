"""The faithfulness study: prototypes against controls, and the deletion test, on hand-made rows and a tiny run."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from relevance.errors import InputError, RunError
from relevance.labels import ESCI
from relevance.pairs import Item, LabelledPair, Pair, Query
from relevance.prototypes import Prototypes
from training.measures import Bootstrap
from training.predictions import predictions_of
from training.prototypes import stage
from training.studies.deletion import PairWords, deletion_test, read_words, run_ids
from training.studies.faithfulness import CONTROLS, MEASURES, NEAREST, best_constant, choices, measures
from training.studies.stage import main
from training.teacher import rationales

OPTIONS = (
    'rationales.splits=["train", "dev", "test"]',
    "embed.model=lsa:8",
    "prototypes.width=6",
    "prototypes.most=8",
    "prototypes.least_members=6",
    "evaluate.draws=60",
)


def arguments(run):
    """Give the arguments of a stage or study on a run directory."""
    extra = [part for override in OPTIONS for part in ("--set", override)]
    return ["--recipe", str(run / "recipe.toml"), "--out", str(run), *extra]


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    """A copy of the tiny run with rationales, and no prototypes yet."""
    out = tmp_path_factory.mktemp("faithfulness") / "run"
    shutil.copytree(tiny_run, out, ignore=shutil.ignore_patterns("export"))
    assert rationales.main(arguments(out)) == 0
    return out


def two_prototypes(sign):
    """Give a common prototype of class 0 to the left and a rarer one of class 1 to the right, or the other way."""
    return Prototypes(
        perspectives=("user",),
        texts=("Left.", "Right."),
        perspective_M=np.zeros(2, np.int64),
        share_MK=np.array([[0.7, 0.3], [0.4, 0.6]], np.float32),
        size_M=np.array([60, 20]),
        direction_MD=np.array([[-1.0], [1.0]], np.float32),
        map_PRD=np.array([[[sign]]], np.float32),
        offset_PD=np.zeros((1, 1), np.float32),
        floor_P=np.zeros(1, np.float32),
    )


def test_controls_know_less_than_the_nearest():
    """Of class 1 the left one has 0.3 · 60 = 18 pairs, the right 0.6 · 20 = 12: the label alone always says left."""
    latent_NR = np.array([[-1.0], [2.0]], np.float32)
    both = two_prototypes(1.0), two_prototypes(-1.0)
    found = choices(0, both, [(("type", "match"),), ()], latent_NR, np.array([0, 1]))
    silent = choices(0, both, [(), (("type", "match"),)], latent_NR, np.array([0, 1]))

    assert {*found, "constant"} == {NEAREST, *CONTROLS}
    assert found[NEAREST].tolist() == [[1, 0], [0, 1]]
    assert found["common"].tolist() == [[1, 0], [1, 0]]
    assert silent["common"].tolist() == [[0, 1], [0, 1]]
    assert found["shuffled"].tolist() == [[0, 1], [1, 0]]
    assert found["random"].tolist() == [[0.75, 0.25]] * 2
    assert found["label"].argmax(axis=1).tolist() == [0, 0]


def test_the_best_constant_is_one_of_the_perspective_with_a_value():
    """The first has no value, the last is of another perspective."""
    value_NM = np.array([[np.nan, 0.2, 0.4, 1.0], [np.nan, 0.3, 0.2, 1.0]])
    found = best_constant(value_NM, np.array([True, True, True, False]), np.ones(2, dtype=bool))

    assert found.tolist() == [[0, 0, 1, 0]] * 2


def test_the_best_constant_is_the_best_on_the_pairs_that_count():
    """Of all five pairs the first is best, of the last two, which alone are averaged, the second."""
    value_NM = np.array([[1.0, 0.0]] * 3 + [[0.0, 1.0]] * 2)
    own_M, counted_N = np.ones(2, dtype=bool), np.arange(5) >= 3

    assert best_constant(value_NM, own_M, np.ones(5, dtype=bool)).tolist() == [[1, 0]] * 5
    assert best_constant(value_NM, own_M, counted_N).tolist() == [[0, 1]] * 5


def test_the_label_control_names_a_prototype_of_its_own_perspective():
    """No pair of the label is with one of this perspective: the other perspective's prototype is not named for it."""
    one = two_prototypes(1.0)
    share_MK = np.array([[1.0, 0.0], [1.0, 0.0]], np.float32)
    of_two = replace(
        one,
        perspectives=("user", "struct"),
        perspective_M=np.array([0, 1]),
        share_MK=share_MK,
        map_PRD=np.repeat(one.map_PRD, 2, axis=0),
        offset_PD=np.repeat(one.offset_PD, 2, axis=0),
        floor_P=np.zeros(2, np.float32),
    )
    found = choices(1, (of_two, of_two), [(), ()], np.array([[-1.0]], np.float32), np.array([1]))

    assert found["label"].tolist() == [[0, 1]]


def test_measures_hold_each_pair_against_each_prototype():
    """Shares and top labels by the student's label, verdicts by the annotator's; without a clause none is right."""
    verdicts = [(("type", "match"), ("brand", "match")), (("type", "mismatch"),)]
    true_N = [(("type", "match"), ("brand", "missing")), (("type", "mismatch"),)]
    found = measures(two_prototypes(1.0), verdicts, true_N, np.array([0, 1]))
    silent = measures(two_prototypes(1.0), [verdicts[0], ()], true_N, np.array([0, 1]))

    assert set(found) == set(MEASURES)
    assert found["label_share"] == pytest.approx(np.array([[0.7, 0.4], [0.3, 0.6]]))
    assert found["top_label"].tolist() == [[1, 0], [0, 1]]
    assert found["precision"].tolist() == [[0.5, 0], [0, 1]]
    assert found["verdicts"].tolist() == [[0.5, 0], [0, 1]]
    assert found["all_verdicts"].tolist() == [[0, 0], [0, 1]]
    assert np.isnan(silent["precision"]).tolist() == [[False, True]] * 2


def test_words_carry_the_token_weights_of_the_pair(make_student, tiny_pairs):
    """Joined, they are the ids of the whole texts; their weights are those of the student's pass over them."""
    student, tokenizer = make_student()
    pairs = tiny_pairs[:6]
    # A lone combining accent is a word to `split` and nothing to the tokenizer: it cannot be dropped.
    odd = replace(pairs[0].pair, query=Query(f"\u0301 {pairs[0].pair.query.text}"))
    pairs[0] = replace(pairs[0], pair=odd)
    template = student.config.template
    for labelled, words in zip(pairs, read_words(student, tokenizer, pairs), strict=True):
        query = tokenizer.encode_query(template.query_text(labelled.pair.query.text))
        (item,) = tokenizer.encode_items([template.item_text(labelled.pair.item)])
        _, (weight_L,) = run_ids(student, tokenizer, [(query, item)])

        assert np.concatenate(words.query).tolist() == query.tolist()
        assert np.concatenate(words.item).tolist() == item.tolist()
        assert all(len(ids) for ids in (*words.query, *words.item))
        assert words.weights["query"].sum() == pytest.approx(weight_L[1 : 1 + len(query)].sum(), abs=1e-5)
        assert words.weights["item"].sum() == pytest.approx(weight_L[2 + len(query) : -1].sum(), abs=1e-5)


def test_dropping_words_leaves_the_other_side_whole():
    """The second word of three is gone, with both its tokens."""
    words = PairWords([np.array([1])], [np.array([2]), np.array([3, 4]), np.array([5])], {})
    query, item = words.without("item", np.array([1]))

    assert query.tolist() == [1]
    assert item.tolist() == [2, 5]


def test_the_study_needs_prototypes_and_then_writes_its_tables(run):
    """Without the stage it says what to run; with it, every perspective, control and deletion has figures."""
    command = ["faithfulness", *arguments(run), "--pairs", "40"]
    with pytest.raises(InputError, match="expected at least 1, found 0"):
        main([*command, "--pairs", "0"])
    assert stage.main(arguments(run)) == 0
    assert main(command) == 0
    result = json.loads((run / "studies" / "faithfulness" / "result.json").read_text())
    table = (run / "studies" / "faithfulness" / "table.md").read_text()

    assert set(result["perspectives"]) == {"user", "struct", "rule"}
    assert result["n_pairs"] == 90
    for rows in result["perspectives"].values():
        assert set(rows["all"]) == set(rows["close_only"]) == set(MEASURES)
        assert rows["spoken"]["value"] <= rows["close"]["value"]
        for clause, row in rows["clauses"].items():
            assert f"| {clause} | {row['n_pairs']} |" in table
        for found in rows["all"].values():
            assert found["over_random"]["value"] == pytest.approx(found[NEAREST]["value"] - found["random"]["value"])
    assert set(result["deletion"]) == {f"{side}, {n} dropped" for side in ("query", "item") for n in (1, 3)}
    assert result["deletion"]["item, 1 dropped"]["score_change"]["weighted"]["value"] >= 0
    assert "Perspective `rule`" in table
    assert "| query, 1 dropped |" in table
    assert json.loads((run / "test_reads.jsonl").read_text().splitlines()[-1])["study"] == "faithfulness"


def test_a_split_without_rationales_is_an_error(run, tmp_path):
    """Evidence cannot be held against an annotator who wrote none."""
    again = tmp_path / "run"
    shutil.copytree(run, again, ignore=shutil.ignore_patterns("studies"))
    assert stage.main(arguments(again)) == 0
    (again / "rationales" / "rationales.test.jsonl").unlink()
    with pytest.raises(InputError, match=r"rationales.test.jsonl.*see rationales.splits"):
        main(["faithfulness", *arguments(again)])


def test_prototypes_of_another_student_are_refused(run, tmp_path):
    """Their maps are of other latents, though the stage is marked as finished."""
    again = tmp_path / "run"
    shutil.copytree(run, again, ignore=shutil.ignore_patterns("studies"))
    assert stage.main(arguments(again)) == 0
    (again / "student" / "config.json").write_text((again / "student" / "config.json").read_text() + "\n")
    with pytest.raises(RunError, match=r"expected the prototypes of the student in .*run `relevance prototypes`"):
        main(["faithfulness", *arguments(again)])


def test_a_long_item_without_blanks_loses_no_word_and_stops_nothing(make_student):
    """One word of an item, longer than the budget, is cut off: the query's words are dropped as ever."""
    student, tokenizer = make_student()
    pairs = [
        LabelledPair(Pair(Query(f"blue lamp {n}", f"q{n}"), Item("x" * 4000, f"i{n}")), "E", "s") for n in range(4)
    ]

    def score(rows, logits_NK):
        """Give scored rows of these pairs."""
        made = predictions_of(list(rows), logits_NK, ESCI)
        n = len(rows)
        flat = {name: np.zeros(n) for name in ("score",)} | {name: np.zeros(n, int) for name in ("predicted", "tier")}
        return SimpleNamespace(query_id=made.query_id, **flat)

    found = deletion_test(student, tokenizer, pairs, score, bootstrap=Bootstrap(draws=20))

    assert found["query, 1 dropped"]["n_pairs"] == 4
    assert found["item, 1 dropped"]["n_pairs"] == 0
