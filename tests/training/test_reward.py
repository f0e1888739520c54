"""The reward of CRSD's teacher, part by part, against cases worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relevance.labels import ESCI
from relevance.pairs import Item, LabelledPair, Pair, Query
from training.rationale_rows import Evidence
from training.teacher.reward import GOVERNED, Reward, brevity, coverage, reward_answer
from training.teacher.samples import Sample

KETTLE = Pair(
    Query("red acorn kettle", "q", "us"),
    Item("Acorn Steel Kettle 2 L", "1", brand="Acorn", color="red", attributes={"size": "2 L"}),
)
BRAND = Evidence(dim="brand", query_span="acorn", item_span="Acorn", verdict="match")
TYPE = Evidence(dim="type", query_span="kettle", item_span="Kettle", verdict="match")
COLOUR = Evidence(dim="colour", query_span="red", item_span="red", verdict="match")
NOT_THERE = Evidence(dim="colour", query_span="red", item_span="purple", verdict="mismatch")


def sample(label="E", rationale="The kettle is what the shopper names.", evidence=(BRAND, TYPE, COLOUR)):
    """Give an answer about the kettle."""
    return Sample(
        pair_id=KETTLE.pair_id,
        view="struct",
        sample=0,
        text="",
        label=label,
        rationale=rationale,
        evidence=tuple(evidence),
        problems=(),
        prompt_tokens=0,
        completion_tokens=0,
        finish_reason="stop",
        generator="hand",
        error=None,
    )


def reward(given_sample, label="E", fields=("brand", "color")):
    """Give the reward of an answer about the kettle under a gold label."""
    return reward_answer(given_sample, LabelledPair(KETTLE, label), ESCI, fields)


def test_an_answer_with_nothing_to_blame_is_worth_one():
    """All spans found, no mismatch under Exact, all query words covered, rules kept, seven words."""
    found = reward(sample())
    assert found == Reward(True, 1.0, 1.0, 1.0, 1.0, 1.0)
    assert found.total == pytest.approx(1.0)


def test_a_wrong_label_is_worth_nothing_however_good_the_rest_is():
    """The gate multiplies: parts are still told, the total is 0."""
    found = reward(sample(), label="S")
    assert (found.right, found.grounding, found.total) == (False, 1.0, 0.0)


def test_an_answer_without_a_label_is_worth_nothing():
    """None is no class; its consistency is undecided."""
    found = reward(sample(label=None))
    assert (found.consistency, found.total) == (0.5, 0.0)


def test_the_total_is_the_weighted_sum_of_the_parts():
    """0.35·0.5 + 0.25·0 + 0.2·0.5 + 0.1·1 + 0.1·0.5 = 0.425."""
    assert Reward(True, 0.5, 0.0, 0.5, 1.0, 0.5).total == pytest.approx(0.425)


def test_grounding_is_the_share_of_spans_that_are_there():
    """Of red, purple, acorn, Acorn the item does not hold purple: 3 of 4; without spans it is 0."""
    assert reward(sample(evidence=(NOT_THERE, BRAND))).grounding == pytest.approx(0.75)
    assert reward(sample(evidence=())).grounding == 0.0


def test_only_fields_that_the_prompt_shows_ground_a_span():
    """The colour red stands in the item's colour field alone."""
    assert reward(sample(evidence=(COLOUR,)), fields=("brand",)).grounding == pytest.approx(0.5)


def test_a_label_follows_from_its_evidence():
    """Exact wants no mismatch, another class wants one; without evidence it is undecided."""
    assert reward(sample(evidence=(BRAND, NOT_THERE))).consistency == 0.0
    assert reward(sample("S", evidence=(BRAND, NOT_THERE)), "S").consistency == 1.0
    assert reward(sample("S", evidence=(BRAND,)), "S").consistency == 0.0
    assert reward(sample(evidence=())).consistency == 0.5


def test_coverage_counts_query_words_in_evidence_or_else_in_the_rationale():
    """Acorn and kettle are two of three query words; a rationale counts only where there is no evidence."""
    assert coverage(KETTLE, (BRAND, TYPE), "red red red") == pytest.approx(2 / 3)
    assert coverage(KETTLE, (), "It is a red thing.") == pytest.approx(1 / 3)
    assert coverage(Pair(Query("!!!"), KETTLE.item), (), "anything") == 0.0


@pytest.mark.parametrize(
    ("evidence", "label", "complies"),
    [
        (BRAND, "E", 1.0),
        (Evidence(dim="brand", query_span="acorn", item_span="", verdict="match"), "E", 0.0),
        (Evidence(dim="brand", query_span="acorn", item_span="", verdict="missing"), "S", 1.0),
        (Evidence(dim="brand", query_span="acorn", item_span="Birch", verdict="missing"), "S", 0.0),
        (Evidence(dim="brand", query_span="acorn", item_span="Birch", verdict="mismatch"), "E", 0.0),
        (Evidence(dim="brand", query_span="acorn", item_span="Birch", verdict="mismatch"), "S", 1.0),
        (NOT_THERE, "E", 1.0),
    ],
)
def test_compliance_holds_each_evidence_to_the_rules(evidence, label, complies):
    """A verdict names its words, and a mismatch in a governed dimension is never Exact; colour is not governed."""
    assert "colour" not in GOVERNED
    assert reward(sample(label, evidence=(evidence,)), label).compliance == complies


def test_brevity_falls_evenly_from_sixty_to_two_hundred_and_forty_words():
    """150 words are half way; none at all are worth nothing."""
    assert [brevity("word " * count) for count in (0, 1, 60, 150, 240, 500)] == [0.0, 1.0, 1.0, 0.5, 0.0, 0.0]


@given(
    st.lists(
        st.builds(
            Evidence,
            dim=st.sampled_from(["brand", "colour", "type"]),
            query_span=st.text(max_size=12),
            item_span=st.text(max_size=12),
            verdict=st.sampled_from(["match", "mismatch", "missing"]),
        ),
        max_size=4,
    ),
    st.text(max_size=80),
    st.sampled_from([None, *ESCI.classes]),
)
def test_every_part_of_any_answer_lies_between_zero_and_one(evidence, rationale, label):
    """Whatever a policy writes."""
    found = reward(sample(label, rationale, evidence), label or "E")
    parts = (found.grounding, found.consistency, found.coverage, found.compliance, found.brevity, found.total)
    assert all(0.0 <= part <= 1.0 for part in parts)
    assert found.total == 0.0 or label is not None
