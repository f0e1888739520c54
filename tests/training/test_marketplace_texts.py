"""The marketplace's words: its catalogue, titles, queries, their reading, and the vocabulary trained on them."""

import re
from collections import defaultdict
from dataclasses import replace
from random import Random

import pytest
from tokenizers import Tokenizer

from relevance.pairs import Item
from relevance.tokenization import PairTokenizer
from training.data.marketplace.items import ItemDrawer, Pool
from training.data.marketplace.queries import MAX_WORDS, draw_query
from training.data.marketplace.titles import write_title
from training.data.marketplace.vocabulary import MAX_VOCABULARY, SPECIAL, make_tokenizer
from training.marketplace.catalogue import CATEGORY, load_catalogue
from training.marketplace.reading import facts_of_page, facts_of_title, read_mentions

CATALOGUE = load_catalogue()


@pytest.fixture
def drawer():
    """Draw from the whole catalogue."""
    return ItemDrawer(Random(0), CATALOGUE, Pool(tuple(CATALOGUE.categories), CATALOGUE.brands, CATALOGUE.brands))


def forms():
    """Give every form of the catalogue's titles with what it stands for."""
    for dim, values in CATALOGUE.forms.items():
        for value, written in values.items():
            yield from ((form, (dim, value)) for form in written)
    yield from ((brand, ("brand", brand)) for brand in CATALOGUE.brands)
    yield from ((name, ("series", name)) for names in CATALOGUE.series.values() for name in names)
    for category in CATALOGUE.categories.values():
        yield from ((feature, ("feature", category.name)) for feature in category.features)


def test_no_form_means_two_things():
    """Otherwise no reader could tell what a title says."""
    meanings = defaultdict(set)
    for form, meaning in forms():
        meanings[form].add(meaning)

    assert [form for form, found in meanings.items() if len(found) > 1] == []


def test_the_catalogue_is_large_and_whole():
    """At least 40 categories of few words; hosts, materials, sizes and use cases exist; everything has kin."""
    categories = CATALOGUE.categories
    words = {word for form, _ in forms() for word in form.split()}

    assert len(categories) >= 40
    assert len(words) <= 2500
    for category in categories.values():
        assert set(category.hosts) <= categories.keys()
        assert set(category.materials) <= CATALOGUE.forms["material"].keys()
        assert not category.size or category.size in CATALOGUE.sizes
        assert len(CATALOGUE.use_cases[category.department]) >= 3
        assert len(category.features) >= 3
        assert category.hosts or CATALOGUE.accessories(category.name), category.name


def test_titles_have_six_to_sixteen_words_and_tell_no_lies_but_stuffing(drawer):
    """Without stuffing, whatever 500 titles tell is true of their items; attributes are told at their rates."""
    honest = replace(CATALOGUE, reveal={**CATALOGUE.reveal, "stuffing": 0.0})
    told = dict.fromkeys(("brand", "colour", "material"), 0)
    for _ in range(500):
        facts = drawer.draw(drawer.rng.choice(drawer.pool.categories))
        title = write_title(drawer.rng, honest, facts, drawer.pool)
        read = facts_of_title(title)

        assert 6 <= len(title.split()) <= 16
        assert all(set(values) <= set(facts.get(dim, ())) for dim, values in read.items()), (title, facts)
        for dim in told:
            told[dim] += bool(read[dim])
    for dim, count in told.items():
        assert CATALOGUE.reveal[dim] == pytest.approx(count / 500, abs=0.1)


def test_stuffed_words_are_not_true_of_the_item(drawer):
    """With stuffing always on, some titles name another category, colour or brand than the item's."""
    stuffing = replace(CATALOGUE, reveal={**CATALOGUE.reveal, "stuffing": 1.0})
    untrue = set()
    for _ in range(200):
        facts = drawer.draw(drawer.rng.choice(drawer.pool.categories))
        for mention in read_mentions(write_title(drawer.rng, stuffing, facts, drawer.pool)):
            if mention.dim in facts and mention.value not in facts[mention.dim]:
                untrue.add(mention.dim)

    assert {CATEGORY, "colour", "brand"} == untrue


def test_queries_have_one_to_seven_words_that_say_all_they_mean(drawer):
    """Each span of 400 queries stands in the text, and each condition has a span; up to three conditions."""
    drawn = [query for n in range(400) if (query := draw_query(drawer, f"q{n}", "train")) is not None]
    numbers = {len(intent.wanted.keys() - {"series"}) for _, intent in drawn}

    for text, intent in drawn:
        assert 1 <= len(text.split()) <= MAX_WORDS
        assert {CATEGORY, *intent.wanted} == intent.spans.keys()
        assert all(re.search(rf"\b{re.escape(span)}\b", text) for span in intent.spans.values())
        assert "series" not in intent.wanted or "brand" in intent.wanted
    assert {0, 1, 2, 3} == numbers
    ways = {span for _, intent in drawn if intent.category == "kettle" for span in [intent.spans[CATEGORY]]}
    assert ways <= {"kettle", "water boiler", "boil water"}


def test_a_title_is_read_by_its_longest_phrases():
    """A phone case for a series is neither a phone nor of that brand; the span is as the title writes it."""
    title = "Halden Nimbus Phone Case Navy For Velmora Sky Shock Corners Also In Red"
    found = {mention.dim: mention for mention in reversed(read_mentions(title))}

    assert (found[CATEGORY].value, found[CATEGORY].span) == ("phone case", "Phone Case")
    assert (found["colour"].value, found["colour"].span) == ("blue", "Navy")
    assert (found["compatible_with"].value, found["compatible_with"].span) == ("velmora sky", "Velmora Sky")
    assert (found["brand"].value, found["series"].value) == ("halden", "nimbus")
    assert facts_of_title(title)["colour"] == ("blue", "red")
    assert facts_of_title("Shock Corners Card Slot Kettle")[CATEGORY] == ("phone case",)
    assert facts_of_title("words of no meaning here") == dict.fromkeys(facts_of_title(title), ())


def test_a_page_is_its_record_unless_the_title_contradicts():
    """The record alone gives the material; the title overrules the colour; both agree on the brand."""
    item = Item("Halden Kettle Navy", "i", "halden", "red", attributes={"material": "glass", "category": "kettle"})
    facts = facts_of_page(item)

    assert (facts["brand"], facts["colour"], facts["material"]) == (("halden",), ("blue",), ("glass",))
    assert (facts[CATEGORY], facts["size"]) == (("kettle",), ())


def test_the_vocabulary_spells_its_texts_without_unknown_words_in_any_order(drawer):
    """Whole words are one token; an unseen word is spelled; the file works in the student's pair tokeniser."""
    titles = [
        write_title(drawer.rng, CATALOGUE, drawer.draw(drawer.rng.choice(drawer.pool.categories)), drawer.pool)
        for _ in range(300)
    ]
    tokenizer, turned = make_tokenizer(titles), make_tokenizer(titles[::-1])
    reread = Tokenizer.from_str(tokenizer.to_str())
    pairs = PairTokenizer(reread, max_query_tokens=8, max_pair_tokens=40)

    assert tokenizer.to_str() == turned.to_str()
    assert list(range(len(SPECIAL))) == [tokenizer.token_to_id(name) for name in SPECIAL]
    assert tokenizer.get_vocab_size() <= MAX_VOCABULARY
    for title in titles:
        assert title.lower().split() == tokenizer.encode(title, add_special_tokens=False).tokens
    spelled = tokenizer.encode("quixotically", add_special_tokens=False).tokens
    assert "[UNK]" not in spelled
    assert "".join(piece.removeprefix("##") for piece in spelled) == "quixotically"
    batch = pairs.collate([pairs.encode_query("kettle")], pairs.encode_items(["red kettle"]))
    assert reread.encode("kettle", "red kettle").ids == batch.input_ids_BL[0].tolist()
    assert reread.encode("kettle", "red kettle").type_ids == batch.token_type_ids_BL[0].tolist()
