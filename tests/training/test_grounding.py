"""Spans of evidence are held to the texts that the teacher saw, and labels to their evidence."""

import pytest

from relevance.errors import LabelError
from relevance.labels import ALIEXPRESS, ESCI
from relevance.pairs import Item, Pair, Query
from training.rationale_rows import Evidence
from training.teacher.grounding import SpanCount, consistent, is_there, list_pieces, shown_fields, spans_found

PAIR = Pair(
    Query("red running shoes size 8", id="q"),
    Item(
        "Fleetrun Racer, scarlet trainers",
        id="i",
        brand="Fleetrun",
        color="scarlet",
        text="a long text that no prompt shows",
        attributes={"size": "EU 39", "use": "road, track", "blank": "  "},
    ),
)


def evidence(query_span, item_span, verdict="match"):
    """Give one row of evidence."""
    return Evidence(dim="terms", query_span=query_span, item_span=item_span, verdict=verdict)


@pytest.mark.parametrize(
    ("span", "text", "there"),
    [
        ("running shoes", "Red RUNNING  Shoes", True),
        ("ｒｅｄ", "red shoes", True),
        ("red", "a bored cat", False),
        ("14", "holds 14oz", True),
        ("runing shoes", "red running shoes", True),
        ("res", "red shoes", False),
        ("running shoes for women", "running shoes", False),
        ("水筒", "ステンレス水筒500ml", True),
        ("black, grey", "grey bag with black straps", True),
        ("black, pink", "grey bag with black straps", False),
        ("", "anything", False),
    ],
)
def test_a_span_is_there_as_whole_words_or_nearly_so(span, text, there):
    """NFKC and case fold away, one wrong letter of a long word too; parts of words and longer spans do not count."""
    assert is_there(span, [text]) is there


def test_only_what_the_prompt_shows_counts():
    """`attributes` stands for all of them, blank ones leave no trace, and the text field was not asked for."""
    assert shown_fields(PAIR.item, ("brand", "attributes")) == {
        "title": "Fleetrun Racer, scarlet trainers",
        "brand": "Fleetrun",
        "attributes.size": "EU 39",
        "attributes.use": "road, track",
    }
    told = [evidence("size 8", "EU 39", "mismatch")]

    assert spans_found(told, "", PAIR, ("attributes.size",)) == SpanCount(2, 2)
    assert spans_found(told, "", PAIR, ("brand",)) == SpanCount(1, 2)


def test_spans_of_either_side_are_looked_for_on_their_own_side():
    """`scarlet` is the item's and `red` the query's; "" of a missing attribute is no span."""
    swapped = [evidence("scarlet", "red"), evidence("size 8", "", "missing")]

    assert spans_found(swapped, "", PAIR, ()) == SpanCount(1, 3)


def test_without_evidence_the_quoted_words_are_the_spans():
    """Either side will do; without a quote there is nothing to find, and the share is unknown."""
    text = "The shopper wants “red running shoes”, the item is \"scarlet\" and 'plain', not “blue”."

    assert spans_found([], text, PAIR, ()) == SpanCount(2, 3)
    assert spans_found([], text, PAIR, ()).share == pytest.approx(2 / 3)
    assert str(spans_found([], "no quotes here", PAIR, ()).share) == "nan"


def test_a_comma_inside_a_number_splits_no_list():
    """1,5 l is one piece."""
    assert list_pieces("1,5 l; steel, matt") == ["1,5 l", "steel", "matt"]


@pytest.mark.parametrize(
    ("label", "verdicts", "expected"),
    [
        ("E", ["match", "match"], True),
        ("E", ["match", "missing"], True),
        ("E", ["match", "mismatch"], False),
        ("S", ["match", "mismatch"], True),
        ("C", ["missing"], True),
        ("I", ["match"], False),
        ("E", [], None),
    ],
)
def test_a_label_follows_from_its_evidence(label, verdicts, expected):
    """The most relevant class has no mismatch, any other has one or something missing; no evidence says nothing."""
    assert consistent(label, [evidence("a", "b", verdict) for verdict in verdicts], ESCI) is expected


def test_consistency_is_the_same_rule_in_any_scheme_and_refuses_foreign_labels():
    """`strong` is the most relevant class of six."""
    assert consistent("strong", [evidence("a", "b")], ALIEXPRESS) is True
    assert consistent("brand", [evidence("a", "b")], ALIEXPRESS) is False
    with pytest.raises(LabelError, match="found 'E'"):
        consistent("E", [evidence("a", "b")], ALIEXPRESS)
