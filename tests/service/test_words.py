"""Words with weights: cut where the tokenizer cuts; put together they are the text; weights are sums of tokens'."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relevance.bundle import open_bundle
from relevance.text import clean
from relevance.tokenization import PairTokenizer
from service.words import Reading, Words, cut

SCRIPTS = st.sampled_from(
    [chr(code) for first, last in ((33, 126), (192, 255), (0x3041, 0x30FE), (0x4E00, 0x4E40), (0xAC00, 0xAC20))
     for code in range(first, last)] + list(" " * 60) + ["々", "゙", "\u0301", "𠀀", "🥿", "½", "ﬁ", "\u00a0", "\t"]
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tiny_bundle: Path) -> PairTokenizer:
    """A BERT tokenizer."""
    return open_bundle(tiny_bundle).tokenizer


def words_of(
    tokenizer: PairTokenizer, query: str, items: list[str], weight_BL, *, room: int = 1000
) -> list[list[dict]]:
    """Give the words of pairs of which at most so many tokens of each item were read."""
    ids = tokenizer.encode_texts([query, *items])
    n_item_B = np.minimum([len(item) for item in ids[1:]], room)
    reading = Reading(Words(tokenizer), query, items, n_query=len(ids[0]), n_item_B=n_item_B)
    weighed = reading.weighed(range(len(items)), np.asarray(weight_BL, dtype=np.float32))
    return [json.loads(b"[%b]" % members) for members in weighed]


@given(text=st.text(SCRIPTS, max_size=60))
def test_words_put_together_are_the_text_and_have_its_tokens(tokenizer, text):
    """In any mixture of scripts: alone the words have as many tokens as together."""
    text = clean(text, 1000)
    words = cut(text)

    assert "".join(words) == text
    assert Words(tokenizer).fits([text])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("iPhone 13, case", ["iPhone ", "13, ", "case"]),
        ("", []),
        ("a | b", ["a ", "| ", "b"]),
        ("a  b", ["a ", " ", "b"]),
        ("funda de móvil", ["funda ", "de ", "móvil"]),
        ("電気ケトル 1.2L 大容量", ["電気", "ケトル ", "1.2L ", "大容量"]),
    ],
)
def test_a_word_ends_at_a_blank_or_where_ideographs_end(text, words):
    """What is written without blanks is cut between scripts."""
    assert cut(text) == words


def test_the_weight_of_a_word_is_that_of_its_tokens(tokenizer):
    """`[CLS] red kettle [SEP] …`: weights 0.00, 0.01, 0.02 … make a token's place readable from its weight."""
    places = np.arange(40) / 100
    (words,) = words_of(tokenizer, "red kettle", ["unbelievablekettles red, new"], [places])
    n_first = len(tokenizer.encode_texts(["unbelievablekettles"])[0])
    assert n_first > 2

    assert [(word["text"], word["side"]) for word in words] == [
        ("red ", "query"), ("kettle", "query"), ("unbelievablekettles ", "item"), ("red, ", "item"), ("new", "item"),
    ]  # fmt: skip
    after = 4 + n_first
    expected = [0.01, 0.02, places[4:after].sum(), places[after] + places[after + 1], places[after + 2]]
    assert [word["weight"] for word in words] == pytest.approx(expected, abs=1e-4)


def test_pairs_of_other_lengths_do_not_mix(tokenizer):
    """Three items in one call are what they are one by one, an empty one among them."""
    rng = np.random.default_rng(0)
    items = ["steel kettle with a long spout", "", "電気ケトル red"]
    weight_BL = rng.random((3, 30)) / 30

    together = words_of(tokenizer, "kettle", items, weight_BL)

    assert together == [words_of(tokenizer, "kettle", [i], [w])[0] for i, w in zip(items, weight_BL, strict=True)]


def test_texts_without_a_word_leave_the_other_side(tokenizer):
    """A query or a title of nothing that can be seen is cleaned to nothing, and is read all the same."""
    weight_BL = np.full((2, 12), 0.05)

    assert words_of(tokenizer, clean("\u200b", 9), ["red kettle", "red"], weight_BL) == [
        words_of(tokenizer, "", [item], weight_BL[:1])[0] for item in ("red kettle", "red")
    ]
    assert [[word["side"] for word in words] for words in words_of(tokenizer, "", ["red kettle", ""], weight_BL)] == [
        ["item", "item"], [],
    ]  # fmt: skip
    assert [[word["text"] for word in words] for words in words_of(tokenizer, "red", ["", ""], weight_BL)] == [
        ["red"]
    ] * 2


@pytest.mark.parametrize("room", range(8))
def test_words_that_were_not_read_are_left_out(tokenizer, room):
    """A word that was read in part is there with the weight of that part."""
    text = "one two, unbelievablekettles end"
    (words,) = words_of(tokenizer, "q", [text], [np.full(40, 0.01)], room=room)
    shown = [word for word in words if word["side"] == "item"]

    assert text.startswith("".join(word["text"] for word in shown))
    assert sum(word["weight"] for word in shown) == pytest.approx(0.01 * room, abs=1e-6)
    assert all(word["weight"] > 0 for word in shown)


def test_what_is_remembered_of_words_does_not_grow_without_end(tokenizer):
    """Long words never, others until there are too many; the answer is the same either way."""
    words = Words(tokenizer)
    many = " ".join(f"w{number}" for number in range(20_500))
    for text in (many, "x" * 65, many):
        assert words.fits([text])

    assert len(words._known) <= 20_501
    assert "x" * 65 not in words._known


def test_a_tokenizer_that_does_not_go_word_by_word_is_found_out(tokenizer):
    """One that joins words has fewer tokens together than alone."""

    class Joining:
        """Gives as many tokens as every third character."""

        def encode_texts(self, texts):
            """Encode texts."""
            return [np.zeros(len(text) // 3) for text in texts]

    assert not Words(Joining()).fits(["one two three"])
