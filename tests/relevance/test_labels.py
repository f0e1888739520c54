"""Label schemes: gains, tiers, look-up, and schemes that contradict themselves."""

import numpy as np
import pytest

from relevance.errors import LabelError
from relevance.labels import ALIEXPRESS, ESCI, ESCI_LEGACY_SWAPPED, SCHEMES, WANDS, LabelScheme, load_scheme


def plain(**changes):
    """Give the parts of a small valid scheme, some of them changed."""
    parts = {"name": "two", "classes": ["y", "n"], "titles": ["Yes", "No"], "gains": [2.0, 0.0], "tiers": [4, 0]}
    return parts | changes


def test_esci_gains_are_those_of_the_shopping_queries_data():
    """E 1, S 0.1, C 0.01, I 0, with tiers 4, 2, 1, 0."""
    assert dict(zip("ESCI", (1.0, 0.1, 0.01, 0.0), strict=True)) == dict(zip(ESCI.classes, ESCI.gains, strict=True))
    assert ESCI.tiers == (4, 2, 1, 0)


def test_the_legacy_map_swaps_substitute_and_complement():
    """Only the two gains in the middle change places."""
    assert ESCI_LEGACY_SWAPPED.gains == (1.0, 0.01, 0.1, 0.0)


def test_the_built_in_schemes_have_four_six_and_three_classes():
    """ESCI 4, AliExpress 6, WANDS 3."""
    assert (ESCI.n_classes, ALIEXPRESS.n_classes, WANDS.n_classes) == (4, 6, 3)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=lambda s: s.name)
def test_gains_are_scaled_to_one_and_ends_are_exact_and_irrelevant(scheme):
    """The first class has gain 1 after scaling, the last the least."""
    assert scheme.gain_K[scheme.exact] == 1.0
    assert scheme.gain_K[scheme.irrelevant] == scheme.gain_K.min()


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=lambda s: s.name)
def test_a_scheme_survives_the_trip_through_plain_data(scheme):
    """to_dict and from_dict are inverse."""
    assert scheme == LabelScheme.from_dict(scheme.to_dict())


@pytest.mark.parametrize("label", ["S", "s", "Substitute", "SUBSTITUTE"])
def test_a_label_is_found_by_code_or_title_in_any_case(label):
    """S, s and Substitute are class 1."""
    assert ESCI.index(label) == 1


def test_an_unknown_label_is_refused_with_the_classes_expected():
    """The message lists the codes and what came."""
    with pytest.raises(LabelError, match=r"expected one of E, S, C, I .*found 'X'"):
        ESCI.index("X")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ["y"]}, "one length"),
        ({"classes": ["y", "y"]}, "unique"),
        ({"gains": [0.0, 1.0]}, "first the largest"),
        ({"gains": [1.0, -1.0]}, "gains ≥ 0"),
        ({"tiers": [0, 4]}, "do not increase"),
        ({"tiers": [5, 0]}, "tiers 0–4"),
        ({"gains": ["much", "little"]}, "numbers"),
        ({"colour": 1}, "keys"),
    ],
)
def test_a_scheme_that_contradicts_itself_is_refused(changes, message):
    """Each rule of a scheme has its own message."""
    with pytest.raises(LabelError, match=message):
        LabelScheme.from_dict(plain(**changes))


def test_a_custom_scheme_is_read_from_toml(tmp_path):
    """A file ending in .toml stands for a scheme of one's own."""
    path = tmp_path / "two.toml"
    path.write_text('name="two"\nclasses=["y","n"]\ntitles=["Yes","No"]\ngains=[2,0]\ntiers=[4,0]\n')
    scheme = load_scheme(str(path))
    assert np.array_equal([1.0, 0.0], scheme.gain_K)


@pytest.mark.parametrize(("text", "message"), [("name = ", "expected TOML"), ('name = "x"', "expected the keys")])
def test_a_broken_scheme_file_is_refused(tmp_path, text, message):
    """Neither half a TOML file nor a missing key becomes a scheme."""
    path = tmp_path / "broken.toml"
    path.write_text(text)
    with pytest.raises(LabelError, match=message):
        load_scheme(str(path))


def test_an_unknown_scheme_name_lists_the_known_ones():
    """The message names what could have been meant."""
    with pytest.raises(LabelError, match=r"aliexpress.*esci.*wands"):
        load_scheme("escy")
