"""Which answers are set against which: right and wrong, of like length, unlike words, and no view favoured."""

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from preference_makers import sample

from relevance.labels import ESCI
from training.teacher.pairing import (
    Answer,
    MatchRule,
    balanced_quotas,
    in_seeded_order,
    jaccard,
    length_ratio,
    match_answers,
)

VIEWS = ("user", "struct", "rule")
RULE = MatchRule(margin=1.0, length_ratio=1.25, max_jaccard=0.9, seed=0)
LABELS = st.sampled_from(ESCI.classes)


def answer(view, number, label, rationale, *, tokens, gold="E", **changes):
    """Give one scored answer about a pair of gold label E."""
    right = label == gold
    return Answer(sample(view, number, label, rationale, **changes), tokens, float(right), right)


RIGHT = answer("user", 0, "E", "the kettle is red as asked", tokens=20)
WRONG = answer("struct", 0, "S", "another brand of pan was wanted", tokens=22)


def test_a_wrong_answer_is_rejected_for_a_right_one_of_another_perspective():
    """The order in which they come does not matter."""
    assert match_answers([RIGHT, WRONG], RULE) == (RIGHT, WRONG)
    assert match_answers([WRONG, RIGHT], RULE) == (RIGHT, WRONG)


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([], "unreadable"),
        ([RIGHT], "agreed"),
        ([WRONG], "no_right_answer"),
        ([RIGHT, answer("rule", 0, "S", "other words", tokens=26)], "length"),
        ([RIGHT, answer("rule", 0, "S", "the kettle is red as asked", tokens=20)], "same_words"),
        ([RIGHT, answer("rule", 0, "S", "other words", tokens=20, problems=("repaired",))], "malformed"),
        ([RIGHT, answer("rule", 0, "S", "other words", tokens=20, finish_reason="length")], "malformed"),
        ([RIGHT, answer("rule", 0, "S", "other words", tokens=20, problems=("cut_off",))], "malformed"),
    ],
)
def test_a_pair_without_a_preference_says_why(answers, reason):
    """26 tokens are more than 1.25 times 20, 25 are not."""
    assert match_answers(answers, RULE) == reason


def test_the_right_answer_closest_in_tokens_is_chosen():
    """Of 18, 20 and 24 tokens, 20 are the closest to 21."""
    rejected = answer("rule", 0, "I", "nothing fits here", tokens=21)
    candidates = [answer("user", n, "E", f"it is what was asked {n}", tokens=t) for n, t in enumerate((18, 20, 24))]
    assert match_answers([*candidates, rejected], RULE) == (candidates[1], rejected)


def test_a_rejected_answer_that_no_right_one_matches_gives_way_to_the_next():
    """A wrong answer of 90 tokens has no match among 20-token ones, whichever is tried first."""
    long = [answer("rule", n, "I", f"so very long {n}", tokens=90) for n in range(5)]
    assert match_answers([RIGHT, WRONG, *long], RULE) == (RIGHT, WRONG)


def test_the_rejected_answer_favours_no_perspective():
    """Over 300 pairs with one wrong answer under each of three prompts each is rejected about 100 times."""
    rejected = Counter()
    for number in range(300):
        wrong = [answer(v, 0, "S", f"{v} says other things", tokens=20, pair_id=f"q\t{number}") for v in VIEWS]
        right = answer("user", 1, "E", "the kettle is red as asked", tokens=20, pair_id=f"q\t{number}")
        rejected[match_answers([right, *wrong], RULE)[1].sample.view] += 1
    assert set(rejected) == set(VIEWS)
    assert min(rejected.values()) > 70


def test_the_seeded_order_changes_with_the_seed_and_not_with_the_given_order():
    """The same seed sorts any permutation alike; of ten seeds some sort otherwise."""
    answers = [answer(v, n, "E", "x", tokens=1) for v in VIEWS for n in range(2)]
    orders = {tuple(id(a) for a in in_seeded_order(list(p), 3)) for p in itertools.permutations(answers)}
    assert len(orders) == 1
    assert len({tuple(id(a) for a in in_seeded_order(answers, seed)) for seed in range(10)}) > 1


def test_a_reward_sets_answers_apart_by_its_margin():
    """0.85 and 0.65 are 0.2 apart in decimals, though not in binary; 0.7 is not; nothing wrong is ever chosen."""
    rule = MatchRule(0.2, 1.25, 0.9, 0)
    better = Answer(RIGHT.sample, 20, 0.85, True)
    assert match_answers([better, Answer(WRONG.sample, 20, 0.65, True)], rule) == (
        better,
        Answer(WRONG.sample, 20, 0.65, True),
    )
    assert match_answers([better, Answer(WRONG.sample, 20, 0.7, True)], rule) == "agreed"


@given(
    st.lists(
        st.tuples(LABELS, st.integers(0, 60), st.text("abcd ", max_size=12), st.sampled_from(VIEWS)),
        max_size=9,
    )
)
def test_any_match_keeps_all_the_rules_and_none_is_missed(drawn):
    """Against brute force over all pairs of answers: a match is found exactly where one exists."""
    answers = [answer(view, n, label, text, tokens=t) for n, (label, t, text, view) in enumerate(drawn)]
    possible = [
        (c, r)
        for c, r in itertools.product(answers, answers)
        if c.right and not r.right
        if length_ratio(c, r) <= 1.25 and jaccard(c.sample.rationale, r.sample.rationale) < 0.9
    ]
    found = match_answers(answers, RULE)
    assert isinstance(found, tuple) == bool(possible)
    if isinstance(found, tuple):
        chosen, rejected = found
        assert found in possible
        assert abs(chosen.tokens - rejected.tokens) == min(
            abs(c.tokens - r.tokens) for c, r in possible if r is rejected
        )


def test_the_overlap_of_words_counts_each_word_once():
    """{a, b, c} and {b, c, d} share two of four words; two empty texts say the same."""
    assert jaccard("a b b c", "B c d!") == 0.5
    assert jaccard("", "...") == 1.0


@given(st.dictionaries(LABELS, st.integers(0, 40), min_size=1), st.integers(0, 120))
def test_quotas_are_as_equal_as_what_is_there_allows(available, total):
    """Sum and bounds hold, and a group is behind another by more than one only where it gave all it had."""
    quotas = balanced_quotas(available, total)
    assert sum(quotas.values()) == min(total, sum(available.values()))
    for group, quota in quotas.items():
        assert 0 <= quota <= available[group]
        assert quota == available[group] or quota >= max(quotas.values()) - 1
