"""Perturbations: what each does to a pair, when it does nothing, and that it depends on the pair and the seed alone."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relevance.pairs import Item, Pair, Query
from training.studies.perturbations import (
    NEIGHBOURS,
    code_switching,
    language,
    negation,
    neighbour_typo,
    number_swap,
    paraphrase,
    perturbed,
    query_brand_swap,
    stuffed_title,
    suites,
    swapped_letters,
    title_brand_swap,
    title_with_query,
    truncated_title,
    unit_swap,
)

BRANDS = ("Fleetrun", "Morningside", "Voltry")


def pair_of(query, title, brand=None, locale="us"):
    """Give a pair of invented texts."""
    return Pair(Query(query, id="q", locale=locale), Item(title, id="i", brand=brand))


def all_of(perturb, pair, n=40, **options):
    """Give the outcomes of many seeds."""
    return [perturb(pair, np.random.default_rng(seed), **options) for seed in range(n)]


@pytest.mark.parametrize(
    ("locale", "spoken"), [("us", "en"), (None, "en"), ("es", "es"), ("es-MX", "es"), ("jp", "ja"), ("ja-JP", "ja")]
)
def test_a_locale_speaks_its_language(locale, spoken):
    """Marketplaces and language tags alike; English where nothing is known."""
    assert language(locale) == spoken


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_a_neighbour_typo_changes_one_letter_to_a_key_beside_it(seed):
    """One place differs, it is not the first letter of a word, and the number stays."""
    before = "steel bottle 750"
    after = neighbour_typo(pair_of(before, "bottle"), np.random.default_rng(seed)).query.text
    places = [i for i in range(len(before)) if before[i] != after[i]]
    assert len(after) == len(before)
    assert len(places) == 1
    assert after[places[0]] in NEIGHBOURS[before[places[0]]]
    assert places[0] not in {0, 6, 13, 14, 15}


def test_neighbours_are_symmetric():
    """q beside w means w beside q; every key has one or two."""
    assert all(a in NEIGHBOURS[b] for a, keys in NEIGHBOURS.items() for b in keys)
    assert {len(keys) for keys in NEIGHBOURS.values()} == {1, 2}


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_swapped_letters_stand_side_by_side(seed):
    """The letters are the same ones, two neighbouring places differ."""
    before = "desk lamp"
    after = swapped_letters(pair_of(before, "lamp"), np.random.default_rng(seed)).query.text
    places = [i for i in range(len(before)) if before[i] != after[i]]
    assert sorted(after) == sorted(before)
    assert places == [places[0], places[0] + 1]


def test_short_words_numbers_and_japanese_get_no_typo():
    """There is no key beside a number's or a Japanese character's that this keyboard knows."""
    for query in ("tv 55", "4k", "水筒"):
        assert set(all_of(neighbour_typo, pair_of(query, "x"), 3)) == {None}
        assert set(all_of(swapped_letters, pair_of(query, "x"), 3)) == {None}


def test_stuffing_appends_and_keeps_the_title():
    """Six words of the language follow the title; the query is untouched."""
    pair = pair_of("lámpara", "Lámpara de mesa", locale="es")
    for after in all_of(stuffed_title, pair, 5):
        assert after.item.title.startswith("Lámpara de mesa ")
        assert len(after.item.title.split()) == 3 + 6
        assert after.query == pair.query


def test_the_query_is_stuffed_only_into_titles_without_it():
    """In any case of letters."""
    after = title_with_query(pair_of("desk lamp", "Voltry LED light"), np.random.default_rng(0))
    assert after.item.title == "Voltry LED light desk lamp"
    assert title_with_query(pair_of("desk lamp", "Voltry Desk Lamp"), np.random.default_rng(0)) is None


def test_a_paraphrase_replaces_whole_words_only():
    """Sofa may become couch; "sofabed" and a query that holds both words stay."""
    assert {p.query.text for p in all_of(paraphrase, pair_of("grey sofa", "x"))} == {"grey couch", "gray sofa"}
    assert set(all_of(paraphrase, pair_of("sofabed", "x"), 3)) == {None}
    assert set(all_of(paraphrase, pair_of("sofa couch", "x"), 3)) == {None}
    assert paraphrase(pair_of("子供用スマホ", "x", locale="jp"), np.random.default_rng(0)) is not None


def test_code_switching_replaces_at_most_two_words():
    """Of three known words one stays."""
    outcomes = {p.query.text for p in all_of(code_switching, pair_of("red water bottle", "x"))}
    assert outcomes == {"rojo agua bottle", "rojo water botella", "red agua botella"}
    assert code_switching(pair_of("voltry 9", "x"), np.random.default_rng(0)) is None


def test_a_long_title_is_cut_in_half_and_a_short_one_is_not():
    """By words; a Japanese title by characters."""
    rng = np.random.default_rng(0)
    assert truncated_title(pair_of("q", "a b c d e f g h i"), rng).item.title == "a b c d"
    assert truncated_title(pair_of("q", "a b c"), rng) is None
    assert truncated_title(pair_of("q", "水" * 30, locale="jp"), rng).item.title == "水" * 15


def test_the_title_s_brand_is_swapped_only_when_no_word_of_it_is_asked_for():
    """Title and record change together, to a brand that is not there yet."""
    pair = pair_of("desk lamp", "Voltry desk lamp", brand="Voltry")
    for after in all_of(title_brand_swap, pair, 10, brands=BRANDS):
        assert after.item.brand in {"Fleetrun", "Morningside"}
        assert after.item.title == f"{after.item.brand} desk lamp"
    asked = replace(pair, query=replace(pair.query, text="voltry lamp"))
    assert set(all_of(title_brand_swap, asked, 3, brands=BRANDS)) == {None}
    assert set(all_of(title_brand_swap, pair, 3, brands=("Voltry",))) == {None}


def test_a_brand_that_is_asked_for_is_swapped_in_the_query():
    """The item stays; without a brand, or where it is not asked for, nothing happens."""
    pair = pair_of("voltry lamp", "Voltry desk lamp", brand="Voltry")
    assert {p.query.text for p in all_of(query_brand_swap, pair, brands=BRANDS)} == {
        "Fleetrun lamp",
        "Morningside lamp",
    }
    for other in (pair_of("desk lamp", "Voltry lamp", brand="Voltry"), pair_of("voltry lamp", "Voltry lamp")):
        assert set(all_of(query_brand_swap, other, 3, brands=BRANDS)) == {None}


def test_a_number_is_swapped_for_one_the_title_does_not_hold():
    """2 may become 3 or 4 (2 + 2 and 2 · 2), but 3 stands in the title; a number the title lacks is left alone."""
    pair = pair_of("2 pack of 9", "bottle 2 pack, 3 colours")
    assert {p.query.text for p in all_of(number_swap, pair)} == {"4 pack of 9"}
    assert number_swap(pair_of("2.5 mm cable", "cable 2.5 mm"), np.random.default_rng(0)) is None


def test_a_unit_is_swapped_for_another_and_never_for_its_own_spelling():
    """Ounce is oz; the title must hold the number."""
    pair = pair_of("12 ounce bottle", "bottle 12 oz")
    assert {p.query.text for p in all_of(unit_swap, pair)} == {"12 lb bottle", "12 kg bottle"}
    assert {p.query.text for p in all_of(unit_swap, pair_of("64gb stick", "Stick 64 GB"))} == {
        "64tb stick",
        "64mb stick",
    }
    assert unit_swap(pair_of("12 oz bottle", "bottle 120 oz"), np.random.default_rng(0)) is None
    assert unit_swap(pair_of("2 in 1 laptop", "2 in 1 laptop"), np.random.default_rng(0)) is None


def test_a_negation_turns_against_a_shared_word_that_is_not_the_head():
    """Only `wireless` is both shared and not the head; Spanish heads stand first; a negated query is left alone."""
    pair = pair_of("wireless desk lamp", "Voltry wireless lamp")
    assert {p.query.text for p in all_of(negation, pair, 5)} == {"desk lamp without wireless"}
    spanish = pair_of("lámpara roja", "lámpara roja de mesa", locale="es")
    assert {p.query.text for p in all_of(negation, spanish, 5)} == {"lámpara sin roja"}
    assert negation(pair_of("wireless lamp without cord", "wireless lamp"), np.random.default_rng(0)) is None
    assert negation(pair_of("lamp", "lamp"), np.random.default_rng(0)) is None
    possessive = pair_of("men's wool shoes", "men's wool shoes")
    assert {p.query.text for p in all_of(negation, possessive, 5)} == {"men's shoes without wool"}


def test_a_perturbed_pair_depends_on_suite_pair_and_seed_alone(tiny_pairs):
    """The same again in another order; ids and labels' texts that are not named stay."""
    every = suites(BRANDS)
    assert len({suite.name for suite in every}) == len(every)
    pairs = [p.pair for p in tiny_pairs[::7]]
    for suite in every:
        once = [perturbed(suite, pair, 3) for pair in pairs]
        again = [perturbed(suite, pair, 3) for pair in reversed(pairs)][::-1]
        assert once == again
        for pair, after in zip(pairs, once, strict=True):
            if after is not None:
                assert after != pair
                assert after.pair_id == pair.pair_id
                assert after.query.locale == pair.query.locale
    typos = [tuple(perturbed(every[0], pair, seed) for pair in pairs) for seed in range(3)]
    assert len(set(map(str, typos))) == 3
