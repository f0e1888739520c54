"""Text cleaning and templates."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from relevance.pairs import Item
from relevance.text import TextTemplate, clean

ANY_TEXT = st.text(alphabet=st.characters(codec=None, exclude_categories=()), max_size=60)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  red \t mug\n", "red mug"),
        ("mug\x00with\x07bells", "mug with bells"),
        ("half \ud83d a pair", "half a pair"),
        ("zero\u200bwidth", "zero width"),
        ("\uff21\uff22\uff23 \u2460", "ABC 1"),
        ("\u202eright to left", "right to left"),
        ("\ufffd\ufffd", ""),
        ("マグカップ 赤", "マグカップ 赤"),
    ],
)
def test_a_text_loses_what_nobody_can_see(text, expected):
    """Control characters, lone surrogates and odd white space become one blank; NFKC folds wide forms."""
    assert expected == clean(text, 100)


def test_only_the_first_characters_are_looked_at():
    """A title of a megabyte costs no more than max_chars."""
    assert clean("ab" * 1_000_000, 5) == "ababa"


@given(ANY_TEXT)
def test_a_cleaned_text_is_valid_utf8_without_control_characters(text):
    """Whatever comes in, what goes to the tokenizer can be encoded and holds no run of blanks."""
    cleaned = clean(text, 1000)
    cleaned.encode("utf-8")
    assert "  " not in cleaned
    assert not any(ord(c) < 32 for c in cleaned)


@given(ANY_TEXT)
def test_cleaning_twice_changes_nothing(text):
    """A cleaned text is a fixed point."""
    cleaned = clean(text, 1000)
    assert cleaned == clean(cleaned, 10_000)


def test_fields_are_joined_in_order_and_blank_ones_leave_no_trace():
    """A missing brand and a blank colour add no separator."""
    template = TextTemplate(fields=("title", "brand", "color", "attributes.size"))
    item = Item("Tin mug", brand=None, color=" \x00", attributes={"size": "350 ml"})
    assert template.item_text(item) == "Tin mug | 350 ml"


@pytest.mark.parametrize("fields", [(), ("brand",), ("title", "title"), ("title", "price"), ("title", "attributes.")])
def test_a_template_of_unknown_repeated_or_no_fields_is_refused(fields):
    """The title comes first and the others are known."""
    with pytest.raises(ValidationError, match="title first"):
        TextTemplate(fields=fields)
