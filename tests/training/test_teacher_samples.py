"""Asking and parsing: order, resampling, empty titles, and a file that a kill does not spoil."""

import dataclasses

import pytest
from fake_teacher import FakeTeacher, KilledError, answer, drawn

from relevance.errors import InputError, RecipeError, RowError, RunError
from relevance.labels import ESCI
from relevance.pairs import Item
from training.recipe import PERSPECTIVES
from training.teacher import samples as samples_module
from training.teacher.generator import Completion
from training.teacher.parts import fold_of, parts_of
from training.teacher.prompts import PromptBook
from training.teacher.samples import (
    EMPTY_TITLE,
    read_samples,
    sample_line,
    sample_pairs,
    sample_until_right,
    write_samples,
)
from training.teacher_recipe import PromptRecipe, TeacherRecipe
from training.words import normalise_query


@pytest.fixture(scope="module")
def book():
    """The shipped prompt book."""
    return PromptBook.load(PromptRecipe(), ESCI)


@pytest.fixture
def pairs(tiny_pairs):
    """Twenty pairs."""
    return [one.pair for one in tiny_pairs[:20]]


def test_samples_come_in_the_order_of_pairs_views_and_numbers(book, pairs):
    """However the generator orders its completions, and wherever a chunk ends."""
    expected = [(p.pair_id, v, n) for p in pairs for v in PERSPECTIVES for n in range(3)]

    found = list(sample_pairs(FakeTeacher(drawn), book, ESCI, pairs, PERSPECTIVES, samples=3))

    assert expected == [(s.pair_id, s.view, s.sample) for s in found]


def test_chunks_change_nothing(book, pairs, monkeypatch):
    """Asked two pairs at a time or all at once, the samples are the same."""
    whole = list(sample_pairs(FakeTeacher(drawn), book, ESCI, pairs, ("user", "rule"), samples=2))
    monkeypatch.setattr(samples_module, "_ANSWERS_AT_ONCE", 8)

    assert whole == list(sample_pairs(FakeTeacher(drawn), book, ESCI, pairs, ("user", "rule"), samples=2))


def test_a_second_answer_is_drawn_only_where_the_first_was_wrong_or_unreadable(book, tiny_pairs):
    """Of three pairs the first answer is right, wrong and garbage: 1 + 4 + 4 answers."""
    labelled = tiny_pairs[:3]
    first = {labelled[0].pair.pair_id: "E", labelled[1].pair.pair_id: "I", labelled[2].pair.pair_id: None}
    teacher = FakeTeacher(
        lambda pair_id, view, n: answer("E") if n or first[pair_id] == "E" else answer("I") if first[pair_id] else "?"
    )

    found = list(sample_until_right(teacher, book, ESCI, labelled, ("user",), samples=4))

    assert [one.label for one in labelled] == ["E", "E", "E"]
    assert [sum(s.pair_id == one.pair.pair_id for s in found) for one in labelled] == [1, 4, 4]
    assert [s.label for s in found] == ["E", "I", "E", "E", "E", None, "E", "E", "E"]
    assert len(found) == len(teacher.asked)


def test_a_right_answer_that_was_cut_off_is_asked_for_again(book, tiny_pairs):
    """It names its label first and has half a rationale: nothing to learn from."""
    cut = '{"label": "E", "evidence": [], "rationale": "the title names the'
    teacher = FakeTeacher(lambda pair_id, view, n: answer("E") if n else cut)
    one = tiny_pairs[0]

    found = list(sample_until_right(teacher, book, ESCI, [one], ("user",), samples=2))

    assert [(s.label, s.whole) for s in found] == [("E", False), ("E", True)]


def test_an_empty_title_is_a_row_that_was_never_asked(book, pairs):
    """One row a view says why; the pairs around it are asked."""
    nameless = dataclasses.replace(pairs[1], item=Item("  ", id="nameless"))
    teacher = FakeTeacher(drawn)

    found = list(sample_pairs(teacher, book, ESCI, [pairs[0], nameless, pairs[2]], ("user", "rule"), samples=2))

    assert [s.error for s in found if s.pair_id == nameless.pair_id] == [EMPTY_TITLE] * 2
    assert nameless.pair_id not in {pair_id for pair_id, _, _ in teacher.asked}
    assert len(found) == 2 * 2 + 2 + 2 * 2


def test_a_failed_request_is_a_row_with_its_error(book, pairs):
    """It has no label and is not readable."""
    (sample,) = sample_pairs(FakeTeacher(lambda *_: None), book, ESCI, pairs[:1], ("user",), samples=1)

    assert (sample.error, sample.label, sample.readable) == ("connection refused", None, False)


def test_a_label_outside_the_scheme_is_a_problem_not_a_label(book, pairs):
    """The text is kept as it came."""
    (sample,) = sample_pairs(FakeTeacher(lambda *_: answer("Z")), book, ESCI, pairs[:1], ("user",), samples=1)

    assert (None, ("unknown_label",), answer("Z")) == (sample.label, sample.problems, sample.text)


def test_a_generator_that_skips_a_sample_is_refused(book, pairs):
    """Silence is not an answer."""

    class Silent(FakeTeacher):
        def complete(self, prompts, *, total=None):
            """Answer sample 0 only."""
            for prompt in prompts:
                yield Completion(prompt.key, 0, answer("E"), None, None, "stop", None, None)

    with pytest.raises(RunError, match=r"expected samples \[0, 1\] of .* found \[0\]"):
        list(sample_pairs(Silent(drawn), book, ESCI, pairs[:2], ("user",), samples=2))


def test_two_pairs_of_one_id_are_refused(book, pairs):
    """Their answers could not be told apart."""
    with pytest.raises(InputError, match="ids of their own, found 1 repeated"):
        list(sample_pairs(FakeTeacher(drawn), book, ESCI, [pairs[0], pairs[0]], ("user",), samples=1))


@pytest.mark.parametrize("dies_after", [0, 1, 25, 77, 119])
def test_a_killed_file_goes_on_to_the_same_bytes(book, pairs, tmp_path, dies_after, monkeypatch):
    """Wherever the kill falls, and with half a line at the end; whole chunks are not asked again."""
    monkeypatch.setattr(samples_module, "_ANSWERS_AT_ONCE", 12)

    def ask(teacher):
        return lambda rest: sample_pairs(teacher, book, ESCI, rest, PERSPECTIVES, samples=2)

    write_samples(tmp_path / "whole.jsonl", pairs, ask(FakeTeacher(drawn)))
    with pytest.raises(KilledError):
        write_samples(tmp_path / "killed.jsonl", pairs, ask(FakeTeacher(drawn, dies_after=dies_after)))
    with (tmp_path / "killed.partial").open("ab") as file:
        file.write(b'{"pair_id": "half a li')
    again = FakeTeacher(drawn)
    write_samples(tmp_path / "killed.jsonl", pairs, ask(again))

    assert (tmp_path / "whole.jsonl").read_bytes() == (tmp_path / "killed.jsonl").read_bytes()
    done = dies_after // 12 * 2
    assert 6 * (len(pairs) - max(0, done - 1)) == len(again.asked)
    assert write_samples(tmp_path / "killed.jsonl", pairs, ask(FakeTeacher(drawn, dies_after=0))) == 0


def test_a_partial_file_of_other_pairs_is_refused(book, pairs, tmp_path):
    """Rather than mixed with this run's."""
    rows = sample_pairs(FakeTeacher(drawn), book, ESCI, pairs[:3], ("user",), samples=1)
    (tmp_path / "s.partial").write_text("".join(map(sample_line, rows)))

    with pytest.raises(RunError, match="samples of this run's pairs, found others"):
        write_samples(tmp_path / "s.jsonl", pairs[3:6], lambda rest: [])


def test_samples_are_read_back_equal_and_a_bad_line_is_named(book, pairs, tmp_path):
    """JSONL keeps every field; what is no sample names line and field."""
    rows = list(sample_pairs(FakeTeacher(drawn), book, ESCI, pairs, PERSPECTIVES, samples=1))
    path = tmp_path / "s.jsonl"
    path.write_text("".join(map(sample_line, rows)))

    assert rows == list(read_samples(path))

    path.write_text(sample_line(rows[0]) + sample_line(rows[1]).replace('"sample":0', '"sample":"first"'))
    with pytest.raises(RowError, match=r"s\.jsonl, row 2, column 'sample'"):
        list(read_samples(path))
    with pytest.raises(InputError, match="expected a file of samples"):
        list(read_samples(tmp_path / "none.jsonl"))


def recipe_of(**changes):
    """Give a teacher's recipe with other folds."""
    return TeacherRecipe.model_validate({"folds": 3, **changes})


def test_parts_split_by_query_and_lose_no_pair(tiny_pairs):
    """Every pair is in one part, every query's pairs in the same one, and no part is empty."""
    parts = parts_of(tiny_pairs, recipe_of(fold=1))
    queries = [
        {normalise_query(one.pair.query.text) for one in part} for part in (parts.fit, parts.reserved, parts.held_out)
    ]

    assert len(tiny_pairs) == len(parts.fit) + len(parts.reserved) + len(parts.held_out)
    assert all(queries)
    assert len(set.union(*queries)) == sum(map(len, queries))
    assert {1} == {fold_of(one.pair.query.text, 3) for one in parts.held_out}


def test_each_pair_is_held_out_by_one_fold(tiny_pairs):
    """Together the folds' held-out parts are all pairs, each once."""
    held_out = [one.pair.pair_id for fold in range(3) for one in parts_of(tiny_pairs, recipe_of(fold=fold)).held_out]

    assert sorted(one.pair.pair_id for one in tiny_pairs) == sorted(held_out)


def test_parts_do_not_depend_on_other_pairs_or_their_labels(tiny_pairs):
    """A pair is in the same part when it is alone, and whatever its label is."""
    recipe = recipe_of()
    whole = parts_of(tiny_pairs, recipe)
    alone = [one for one in tiny_pairs if parts_of([dataclasses.replace(one, label="I")], recipe).fit]

    assert list(whole.fit) == alone


def test_one_fold_holds_nothing_out_and_an_impossible_fold_is_refused(tiny_pairs):
    """With folds = 1 a teacher sees all but its reserved pairs."""
    parts = parts_of(tiny_pairs, recipe_of(folds=1))

    assert parts.held_out == ()
    assert 0.1 < len(parts.reserved) / len(tiny_pairs) < 0.5
    with pytest.raises(RecipeError, match=r"below teacher\.folds = 3, found 3"):
        parts_of(tiny_pairs, recipe_of(fold=3))
