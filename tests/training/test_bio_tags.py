"""Evidence spans on the student's tokens, and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from training.rationale_rows import Evidence
from training.student.bio_tags import N_TAGS, TaggedSpan, spans_in_text, spans_of_tags, tagged_dim, tags_of_spans


def look(text, *spans, dim="brand", verdict="match"):
    """The pieces of a text that some spans of evidence are found at."""
    rows = [(Evidence(dim=dim, query_span=span, item_span="", verdict=verdict), span) for span in spans]
    return [[text[found.start : found.end] for found in each] for each in spans_in_text(text, rows)]


@pytest.fixture(scope="module")
def tokenizer(minilm_path):
    """The WordPiece tokenizer that the tiny student uses, without its padding."""
    tokenizer = Tokenizer.from_file(str(minilm_path / "tokenizer.json"))
    tokenizer.no_padding()
    return tokenizer


@pytest.mark.parametrize(
    ("text", "span", "found"),
    [
        ("Fleetrun Running Shoes", "running shoes", ["Running Shoes"]),
        ("STRASSE lamp", "straße", ["STRASSE"]),
        ("Straße lamp", "STRASSE", ["Straße"]),
        ("ＵＳＢ cable", "usb", ["ＵＳＢ"]),
        ("desk lamps, white", "desk lamp", ["desk lamps"]),
        ("ps4 controller", "ps", ["ps"]),
        ("freidora 5,5l", "5,5", ["5,5"]),
        ("Nature’s lamp", "nature's lamp", ["Nature’s lamp"]),
        ("great sam smith", "im sam smith", ["sam smith"]),
        ("赤いスニーカー 26cm", "スニーカー", ["スニーカー"]),
        ("shredded wheat, red bowl", "red", ["red"]),
        ("shredded wheat", "red", []),
        ("oak desk", "walnut", []),
        ("ab", "a much longer span than the text", []),
        ("", "lamp", []),
    ],
)
def test_spans_are_found_where_a_reader_would(text, span, found):
    """Case, width, ß and plural endings do not matter; parts of other words and absent words are not matches."""
    assert look(text, span) == [found]


def test_lists_and_scattered_terms_are_found_piece_by_piece():
    """A list gives each of its members that is there; terms may stand apart; other spans must stand together."""
    text = "grey cotton cover, washable, black"

    assert look(text, "black, blue, grey", dim="colour") == [["black", "grey"]]
    assert look(text, "cover black", dim="terms") == [["cover", "black"]]
    assert look(text, "cover black", dim="brand") == [[]]
    assert look("14oz gloves", "14 ounce", "14 oz", dim="size") == [["14"], ["14", "oz"]]
    assert look("5l fryer, 5 baskets", "5,5 litre", dim="size") == [[]]


def test_every_dim_and_verdict_has_a_tag():
    """Unknown properties count as attributes; what is missing is tagged as a mismatch; 5 dims × 2 verdicts × BI + O."""
    assert N_TAGS == 21
    assert [tagged_dim(dim) for dim in ("colour", "size", "material", "category", "negation", "brand")] == [
        "attribute",
        "attribute",
        "attribute",
        "type",
        "attribute",
        "brand",
    ]
    row = Evidence(dim="colour", query_span="red", item_span="", verdict="missing")
    assert spans_in_text("red mug", [(row, "red")]) == [[TaggedSpan(0, 3, "attribute", "mismatch")]]


def test_tags_go_to_the_tokens_and_back_to_the_evidence(tokenizer):
    """Words that fall into several WordPieces are one span: B first, I after; decoding gives the same words back."""
    text = "Quietude noisecancelling headphones in anthracite"
    rows = [
        Evidence(dim="brand", query_span="", item_span="quietude", verdict="match"),
        Evidence(dim="type", query_span="", item_span="headphones", verdict="match"),
        Evidence(dim="colour", query_span="", item_span="anthracite", verdict="mismatch"),
    ]
    encoding = tokenizer.encode(text, add_special_tokens=False)

    tags = tags_of_spans(
        encoding.offsets, [s for each in spans_in_text(text, [(row, row.item_span) for row in rows]) for s in each]
    )

    back = [
        (span.dim, span.verdict, text[encoding.offsets[span.start][0] : encoding.offsets[span.end - 1][1]].lower())
        for span in spans_of_tags(tags.tolist())
    ]
    assert len(encoding.ids) > len(text.split())
    assert sorted(back) == [
        ("attribute", "mismatch", "anthracite"),
        ("brand", "match", "quietude"),
        ("type", "match", "headphones"),
    ]


def test_the_longest_of_overlapping_spans_wins():
    """`running shoes` beats `shoes` and `running`; a span beside them keeps its tag."""
    offsets = [(0, 3), (4, 11), (12, 17)]
    spans = [
        TaggedSpan(12, 17, "type", "match"),
        TaggedSpan(4, 17, "accessory", "mismatch"),
        TaggedSpan(4, 11, "brand", "match"),
        TaggedSpan(0, 3, "attribute", "match"),
    ]

    assert spans_of_tags(tags_of_spans(offsets, spans).tolist()) == [
        TaggedSpan(0, 1, "attribute", "match"),
        TaggedSpan(1, 3, "accessory", "mismatch"),
    ]


def test_terms_take_only_what_no_other_span_has():
    """Terms over four words of which the second is the brand: the brand stays, and what is left are two spans."""
    offsets = [(0, 3), (4, 11), (12, 17), (18, 22)]
    spans = [TaggedSpan(0, 22, "terms", "match"), TaggedSpan(4, 11, "brand", "mismatch")]

    assert spans_of_tags(tags_of_spans(offsets, spans).tolist()) == [
        TaggedSpan(0, 1, "terms", "match"),
        TaggedSpan(1, 2, "brand", "mismatch"),
        TaggedSpan(2, 4, "terms", "match"),
    ]


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.integers(1, 3),
            st.sampled_from(["type", "brand", "attribute", "accessory", "terms"]),
            st.sampled_from(["match", "mismatch"]),
        ),
        max_size=6,
    )
)
def test_spans_that_do_not_overlap_survive_the_round_trip(pieces):
    """Whatever their kinds and however close they stand: spans → tags → the same spans."""
    spans, place = [], 0
    for gap, length, dim, verdict in pieces:
        spans.append(TaggedSpan(place + gap, place + gap + length, dim, verdict))
        place += gap + length
    offsets = [(token, token + 1) for token in range(place + 1)]

    assert spans_of_tags(tags_of_spans(offsets, spans).tolist()) == spans


def test_an_inside_that_continues_nothing_is_no_span():
    """I after O, and I of another kind than its B, stand for nothing."""
    assert spans_of_tags([0, 2, 0]) == []
    assert spans_of_tags([1, 4]) == [TaggedSpan(0, 1, "type", "match")]
