"""The bag-of-words rationale encoder: unit vectors of a width, the same for the same texts, and errors by name."""

import numpy as np
import pytest

from relevance.errors import RecipeError
from training.teacher.lsa import LsaEncoder

TEXTS = [f"The {colour} {kind} is wanted and a {kind} is offered." for colour in ("red", "blue") for kind in "abcdefgh"]
TEXTS += [f"A {thing} of {stuff}." for thing in ("lamp", "shirt", "kettle") for stuff in ("steel", "wool", "glass")]


def test_vectors_have_the_width_and_length_one():
    """Texts that share words lie nearer to each other than texts that share none."""
    encoder = LsaEncoder("lsa:6", TEXTS)
    vectors = encoder.encode(["A lamp of steel.", "A lamp of wool.", "The red offered wanted."])

    assert vectors.shape == (3, 6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]


def test_the_same_texts_make_the_same_encoder_and_others_another():
    """The name tells them apart, so that a cache never mixes them."""
    first, again, other = (LsaEncoder("lsa:4", texts) for texts in (TEXTS, TEXTS, TEXTS[:-1]))

    assert first.model == again.model != other.model
    np.testing.assert_array_equal(first.encode(TEXTS), again.encode(TEXTS))


def test_a_text_of_unknown_words_is_nought_and_not_nan():
    """There is nothing to normalise."""
    assert not LsaEncoder("lsa:4", TEXTS).encode(["zzz"]).any()


@pytest.mark.parametrize("name", ["lsa:", "lsa:wide", "lsa:0"])
def test_a_name_without_a_width_is_refused(name):
    """The message shows what was expected."""
    with pytest.raises(RecipeError, match="expected lsa:WIDTH"):
        LsaEncoder(name, TEXTS)


def test_fewer_words_than_dimensions_are_refused():
    """An SVD cannot make dimensions that are not there."""
    with pytest.raises(RecipeError, match="expected more words than 300 dimensions"):
        LsaEncoder("lsa:300", TEXTS)
