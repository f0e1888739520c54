"""Preferences: which answers are set against which, and the stage that draws, matches, caps and counts them."""

import dataclasses
import itertools
import json
import math
import shutil

import pytest
from preference_makers import sample, save_policies

from relevance.errors import InputError, RowError, RunError
from relevance.labels import ESCI
from relevance.pairs import Item, LabelledPair, Pair, Query, write_labelled_pairs
from training.rationale_rows import Evidence
from training.recipe import DataRecipe, Recipe
from training.runs import DONE, Run
from training.teacher.parts import asked_pairs, split_parts
from training.teacher.preference_rows import Preference, read_preferences
from training.teacher.preferences import (
    Builder,
    Size,
    build_preferences,
    cap_balanced,
    choose_preferences,
    samples_per_view,
    size_of,
)
from training.teacher.prompts import PromptBook
from training.teacher.samples import read_samples, sample_line
from training.teacher_recipe import PreferencesRecipe, PromptRecipe, SamplingRecipe, TeacherRecipe
from training.words import query_unit


def test_a_preference_row_refuses_a_wrong_chosen_label_and_equal_texts(tmp_path):
    """What DPO must never see cannot be written, and is found in a file with its line."""
    fields = {
        "pair_id": "q\t1",
        "label": "E",
        "view": "unified",
        "prompt": ({"role": "user", "content": "?"},),
        "chosen": "yes\nlabel: E",
        "rejected": "no\nlabel: S",
        "chosen_label": "E",
        "rejected_label": "S",
        "chosen_view": "user",
        "rejected_view": "rule",
        "chosen_tokens": 3,
        "rejected_tokens": 3,
        "chosen_score": 1.0,
        "rejected_score": 0.0,
    }
    row = Preference(**fields)
    with pytest.raises(ValueError, match="chosen label"):
        Preference(**fields | {"chosen_label": "S"})
    with pytest.raises(ValueError, match="same text twice"):
        Preference(**fields | {"rejected": fields["chosen"]})
    path = tmp_path / "preferences.jsonl"
    path.write_text(row.model_dump_json() + "\n" + json.dumps(fields | {"chosen_label": "S"}) + "\n")
    rows = read_preferences(path)
    assert next(rows) == row
    with pytest.raises(RowError, match="row 2"):
        next(rows)
    with pytest.raises(InputError, match="found none"):
        next(read_preferences(tmp_path / "nowhere.jsonl"))


def builder(view="unified", **recipe):
    """Give a builder with the compact prompts, whose tokens are words."""
    return Builder(
        recipe=PreferencesRecipe(**{"length_ratio": 1.5} | recipe),
        scheme=ESCI,
        book=PromptBook.load(PromptRecipe(version="compact", shots=0), ESCI),
        count_tokens=lambda text: len(text.split()),
        view=view,
        fields=("brand",),
        seed=0,
    )


def kettles(labels):
    """Give labelled pairs of one query each."""
    return [
        LabelledPair(Pair(Query(f"kettle {n}", f"q{n}", "us"), Item(f"Kettle {n}", str(n), brand="Acorn")), label)
        for n, label in enumerate(labels)
    ]


def answers_of(labelled, labels_by_view):
    """Give samples of one pair: view → labels, in five words that differ by view and sample."""
    return [
        sample(view, number, label, f"{view} {number} speaks of this", pair_id=labelled.pair.pair_id)
        for view, labels in labels_by_view.items()
        for number, label in enumerate(labels)
    ]


def test_preferences_are_set_under_the_unified_prompt_and_told_by_perspective():
    """Pair 0 conflicts, pair 1 agrees, pair 2 is all wrong: one row; its texts end in their labels."""
    pairs = kettles(["E", "E", "S"])
    samples = [
        *answers_of(pairs[0], {"user": ["E", "E"], "struct": ["S", None], "rule": ["E", "E"]}),
        *answers_of(pairs[1], {"user": ["E", "E"], "struct": ["E", "E"], "rule": ["E", "E"]}),
        *answers_of(pairs[2], {"user": ["E", "E"], "struct": ["E", "I"], "rule": ["C", "E"]}),
    ]
    made = builder()
    rows, report = choose_preferences(made, pairs, samples, 2, None)
    (row,) = rows
    assert list(row.prompt) == made.book.messages(pairs[0].pair, "unified")
    assert (row.chosen_label, row.rejected_label, row.rejected_view) == ("E", "S", "struct")
    assert row.rejected.rstrip().endswith("label: S")
    assert report["dropped"] | {"agreed": 1, "no_right_answer": 1} == report["dropped"]
    assert sum(report["dropped"].values()) + report["matched"] == report["pairs"] == 3
    assert report["conflicts"]["E"] == {"pairs": 2, "conflicts": 1, "rate": 0.5}
    assert report["conflicts"]["S"] == {"pairs": 1, "conflicts": 1, "rate": 1.0}
    assert report["unreadable"] == 1
    assert report["answers_per_pair"] == 6


def test_preferences_are_counted_by_the_perspectives_of_both_answers():
    """Two of three rows are of unlike perspectives; sums over either side are the counts of that side."""
    pairs = kettles(["E", "E", "S"])
    samples = [
        *answers_of(pairs[0], {"user": ["E", "E"], "struct": ["S", "S"], "rule": [None, None]}),
        *answers_of(pairs[1], {"user": ["E", "I"], "struct": [None, None], "rule": [None, None]}),
        *answers_of(pairs[2], {"user": ["E", "E"], "struct": [None, None], "rule": ["S", "S"]}),
    ]
    rows, report = choose_preferences(builder(), pairs, samples, 2, None)

    assert len(rows) == 3
    assert report["chosen_rejected_views"] == {
        "user": {"user": 1, "struct": 1, "rule": 0},
        "struct": {"user": 0, "struct": 0, "rule": 0},
        "rule": {"user": 1, "struct": 0, "rule": 0},
    }
    assert report["crossing"] == pytest.approx(2 / 3, abs=1e-4)
    assert choose_preferences(builder(), pairs, [], 2, None)[1]["crossing"] is None


def test_pass_at_k_is_told_for_each_perspective_and_for_all():
    """Of two answers one is right under user and none elsewhere: pass@1 = 1/2 and pass@2 = 1, with all the same."""
    pairs = kettles(["E"])
    samples = answers_of(pairs[0], {"user": ["E", "S"], "struct": ["S", "S"], "rule": ["S", "I"]})
    _, report = choose_preferences(builder(), pairs, samples, 2, None)
    assert report["pass_at_k"] == {"user": [0.5, 1.0], "struct": [0.0, 0.0], "rule": [0.0, 0.0], "all": [0.5, 1.0]}


def test_pass_at_k_of_all_perspectives_draws_k_answers_of_each():
    """User has 1 of 3 right and rule 2 of 3: by enumeration of all draws of k answers of each prompt."""
    pairs = kettles(["E"])
    drawn = {"user": ["E", "S", "S"], "struct": ["S", "S", "S"], "rule": ["E", "E", "I"]}
    _, report = choose_preferences(builder(), pairs, answers_of(pairs[0], drawn), 3, None)
    for k in (1, 2, 3):
        draws = list(itertools.product(*(itertools.combinations(labels, k) for labels in drawn.values())))
        expected = sum(any("E" in part for part in draw) for draw in draws) / len(draws)
        assert report["pass_at_k"]["all"][k - 1] == pytest.approx(expected, abs=1e-4)


def test_the_same_text_drawn_twice_counts_once():
    """One distinct right answer however often it came."""
    pair = kettles(["E"])[0]
    twice = [sample("user", n, "E", "the same words", pair_id=pair.pair.pair_id) for n in range(3)]
    assert len(builder().answers(pair, twice)) == 1


def test_lengths_are_told_before_and_after_matching():
    """A right answer of 6 words and its label's 2 against wrong ones; the long one makes no row."""
    pairs = kettles(["E", "E"])
    first, second = (one.pair.pair_id for one in pairs)
    samples = [
        sample("user", 0, "E", "six words of a kettle here", pair_id=first),
        sample("rule", 0, "S", "six other words about some pan", pair_id=first),
        sample("user", 0, "E", "six words of a kettle here", pair_id=second),
        sample("rule", 0, "S", "word " * 28, pair_id=second),
    ]
    _, report = choose_preferences(builder(), pairs, samples, 1, None)
    assert report["tokens"] == {
        "unmatched": {"pairs": 2, "chosen": 8.0, "rejected": 19.0},
        "matched": {"pairs": 1, "chosen": 8.0, "rejected": 8.0},
    }
    assert report["dropped"]["length"] == 1


def test_the_cap_balances_classes_as_far_as_they_go():
    """Of 20 E, 3 S and 9 C, twelve are kept: three S, and the rest shared by E and C; the order stays."""
    pairs = kettles(["E"] * 20 + ["S"] * 3 + ["C"] * 9)
    samples = [s for one in pairs for s in answers_of(one, {"user": [one.label], "rule": ["I"]})]
    rows, report = choose_preferences(builder(max_pairs=12), pairs, samples, 1, None)
    assert report["labels"] == {"E": 5, "S": 3, "C": 4, "I": 0}
    assert (report["matched"], report["preferences"]) == (32, 12)
    places = {one.pair.pair_id: n for n, one in enumerate(pairs)}
    assert [places[row.pair_id] for row in rows] == sorted(places[row.pair_id] for row in rows)
    assert cap_balanced(rows, 12, 5) == rows
    uncapped, _ = choose_preferences(builder(), pairs, samples, 1, None)
    assert cap_balanced(uncapped, 12, 0) == rows
    assert cap_balanced(uncapped, 12, 1) != rows


def test_a_size_matched_control_takes_rows_and_answers_from_the_other_run(tmp_path):
    """One perspective is asked 15 times where three were asked 5, and gives no more rows."""
    with pytest.raises(RunError, match="finished stage"):
        size_of(tmp_path)
    folder = tmp_path / "preferences"
    folder.mkdir()
    (folder / "DONE.json").write_text("{}")
    (folder / "report.json").write_text(json.dumps({"preferences": 2, "answers_per_pair": 15}))
    size = size_of(tmp_path)
    assert size == Size(rows=2, answers=15)
    single = PreferencesRecipe(perspectives=("user",))
    assert (samples_per_view(single, size), samples_per_view(single, None)) == (15, 5)
    assert samples_per_view(PreferencesRecipe(), size) == 5
    with pytest.raises(InputError, match="multiple"):
        samples_per_view(PreferencesRecipe(perspectives=("user", "rule")), size)
    pairs = kettles(["E"] * 5)
    samples = [s for one in pairs for s in answers_of(one, {"user": ["E", "S"]})]
    rows, report = choose_preferences(builder("user", perspectives=("user",)), pairs, samples, 15, size)
    assert (len(rows), report["matched"], report["answers_per_pair"]) == (2, 5, 15)
    assert rows[0].view == "user"


def test_the_reward_builder_may_prefer_one_right_answer_to_another():
    """Both labels are right; the one without a span that exists is worse by 0.35 of grounding."""
    (pair,) = kettles(["E"])
    good = Evidence(dim="type", query_span="kettle 0", item_span="Kettle 0", verdict="match")
    bad = Evidence(dim="type", query_span="teapot", item_span="Samovar", verdict="match")
    samples = [
        sample("user", 0, "E", "it is the kettle asked for", pair_id=pair.pair.pair_id, evidence=(good,)),
        sample("rule", 0, "E", "a samovar is the teapot then", pair_id=pair.pair.pair_id, evidence=(bad,)),
    ]
    (row,), _ = choose_preferences(builder(builder="reward"), [pair], samples, 1, None)
    assert (row.chosen_view, row.rejected_view, row.rejected_label) == ("user", "rule", "E")
    assert math.isclose(row.chosen_score, 1.0)
    assert row.rejected_score == pytest.approx(0.25 + 0.1 + 0.1)
    rows, report = choose_preferences(builder(builder="reward", margin=0.6), [pair], samples, 1, None)
    assert (rows, report["dropped"]["agreed"]) == ([], 1)


@pytest.fixture(scope="module")
def random_policy(tmp_path_factory):
    """The folder of a decoder of random weights, as if SFT had made it."""
    return save_policies(tmp_path_factory.mktemp("policies")) / "full"


def finished_run(path, policy, pairs, kind="local"):
    """Give a run whose data and SFT are finished."""
    teacher = TeacherRecipe(
        base="scratch",
        prompt=PromptRecipe(version="compact", shots=0),
        sampling=SamplingRecipe(kind=kind, max_new_tokens=3, batch_size=16),
        preferences=PreferencesRecipe(reserved=0.5, samples=2, length_ratio=2.0),
    )
    for stage in ("data", "sft"):
        (path / stage).mkdir()
        (path / stage / DONE).write_text('{"inputs": "by hand"}')
    write_labelled_pairs(path / "data" / "pairs.train.parquet", pairs)
    shutil.copytree(policy, path / "sft" / "policy")
    return Run(Recipe(name="t", data=DataRecipe(source="pairs", path="x"), teacher=teacher), path)


@pytest.mark.parametrize("kind", ["local", "programmatic"])
def test_the_stage_asks_the_sft_policy_about_reserved_pairs_only(random_policy, tmp_path, kind):
    """Random weights read as nothing: every reserved pair is asked 3 × 2 times and dropped as unreadable.

    Where a programmatic generator stood in for the base model, the policy still answers for itself.
    """
    pairs = kettles(["E", "S", "C", "I"] * 4)
    run = finished_run(tmp_path, random_policy, pairs, kind)
    build_preferences(run)
    reserved = [one.pair.pair_id for one in split_parts(run).reserved]
    assert 0 < len(reserved) < len(pairs)
    samples = list(read_samples(tmp_path / "preference_answers" / "samples.jsonl"))
    assert [s.pair_id for s in samples[::6]] == reserved
    assert {s.generator.partition(":")[0] for s in samples} == {"local"}
    report = json.loads((tmp_path / "preferences" / "report.json").read_text())
    assert report["dropped"] | {"unreadable": len(reserved)} == report["dropped"]
    assert (report["answers"], report["preferences"]) == (6 * len(reserved), 0)
    assert (tmp_path / "preferences" / "preferences.jsonl").read_bytes() == b""
    assert (tmp_path / "preferences" / DONE).is_file()


def changed(run, **preferences):
    """Give the run with other settings of its preferences."""
    teacher = run.recipe.teacher
    recipe = teacher.preferences.model_copy(update=preferences)
    teacher = teacher.model_copy(update={"preferences": recipe})
    return Run(run.recipe.model_copy(update={"teacher": teacher}), run.path)


def test_other_rules_of_choosing_ask_nothing_again(random_policy, tmp_path):
    """Answers written by hand stay what is chosen from, cap after cap; a killed choice gives the same bytes."""
    pairs = kettles(["E", "S", "C", "I"] * 4)
    run = finished_run(tmp_path, random_policy, pairs)
    build_preferences(run)
    answers, chosen = tmp_path / "preference_answers" / "samples.jsonl", tmp_path / "preferences"
    reserved = split_parts(run).reserved
    drawn = [s for one in reserved for s in answers_of(one, {"user": [one.label] * 2, "rule": ["I", "E"]})]
    answers.write_text("".join(sample_line(s) for s in drawn))
    for most in (3, None):
        build_preferences(changed(run, max_pairs=most, max_jaccard=0.95))
        rows = list(read_preferences(chosen / "preferences.jsonl"))
        assert len(rows) == (most or len(reserved))
    assert [row.pair_id for row in rows] == [one.pair.pair_id for one in reserved]
    written = (chosen / "preferences.jsonl").read_bytes()
    (chosen / DONE).unlink()
    build_preferences(changed(run, max_jaccard=0.95))
    assert (chosen / "preferences.jsonl").read_bytes() == written
    assert len(answers.read_text().splitlines()) == len(drawn)


def test_a_cap_on_asked_pairs_takes_whole_queries_before_anything_is_asked(random_policy, tmp_path):
    """Four items a query: a cap of seven pairs leaves one reserved query, and the report counts only its four."""
    pairs = [
        LabelledPair(Pair(Query(f"kettle {q}", f"q{q}", "us"), Item(f"Kettle {q}", f"{q}-{i}")), "ESCI"[i])
        for q in range(12)
        for i in range(4)
    ]
    run = changed(finished_run(tmp_path, random_policy, pairs), asked_pairs=7)
    build_preferences(run)
    asked = {s.pair_id for s in read_samples(tmp_path / "preference_answers" / "samples.jsonl")}
    reserved = [one.pair for one in split_parts(run).reserved]
    assert len(asked) == 4 < len(reserved)
    assert len({pair.query.id for pair in reserved if pair.pair_id in asked}) == 1
    assert json.loads((tmp_path / "preferences" / "report.json").read_text())["pairs"] == 4
    with pytest.raises(RunError, match="'asked_pairs': 3"):
        build_preferences(changed(run, asked_pairs=3))


def test_exact_only_sources_are_neither_fitted_nor_asked_about(random_policy, tmp_path):
    """A source of Exact pairs alone has no wrong answer to prefer another to, and SFT would learn to say E."""
    pairs = kettles(["E", "S", "C", "I"] * 4)
    marked = [*pairs[:8], *(dataclasses.replace(one, exact_only=True) for one in pairs[8:])]
    run = finished_run(tmp_path, random_policy, marked)
    parts = split_parts(run)
    assert {one.pair.pair_id for one in (*parts.fit, *parts.reserved)} == {one.pair.pair_id for one in pairs[:8]}
    assert [one.pair.pair_id for one in asked_pairs(run)] == [one.pair.pair_id for one in parts.fit]


def test_a_run_without_reserved_pairs_says_so(random_policy, tmp_path):
    """One query, which falls into the part that SFT learns from."""
    pairs = [one for one in kettles(["E"] * 9) if query_unit(one.pair.query.text, "teacher-reserved:") >= 0.5][:1]
    with pytest.raises(RunError, match="expected reserved training pairs"):
        build_preferences(finished_run(tmp_path, random_policy, pairs))
