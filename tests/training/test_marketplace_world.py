"""The synthetic marketplace: its rules, its noise, its splits and the parts held out of training."""

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from relevance.errors import InputError, RecipeError, RunError
from relevance.labels import ESCI, WANDS
from relevance.pairs import BadRows, Item, LabelledPair, Pair, Query, read_labelled_pairs
from training.data import marketplace
from training.data.marketplace.checks import check_held_out, check_titles
from training.data.marketplace.items import ItemDrawer, Pool, catalogue_record
from training.data.marketplace.title_index import TitleIndex
from training.data.marketplace.world import (
    CLASSES,
    MAIN,
    NEIGHBOURS,
    NEW_BRAND,
    NEW_CATEGORY,
    PRIORS,
    clean_priors,
    hold_out,
    make_world,
)
from training.data.near_duplicates import near_duplicates
from training.data.split import check_leaks, hashed_together, leak_report
from training.data.stage import main
from training.marketplace.catalogue import CATEGORY, DIMS, load_catalogue
from training.marketplace.facts import Intent, compare, facts_of_item, label_of, read_intents, read_truth
from training.recipe import SPLITS, DataRecipe, MarketplaceRecipe

CATALOGUE = load_catalogue()
SMALL = {"train": 30, "dev": 8, "cal": 8, "test": 10}
RECIPE = """\
name = "t"
[data]
source = "marketplace"
[data.marketplace]
queries = { train = 30, dev = 8, cal = 8, test = 10 }
"""


@pytest.fixture(scope="module")
def world():
    """56 queries and the held-out slices."""
    return make_world(MarketplaceRecipe(queries=SMALL))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The data stage's folder of the same world, its source named on the command line."""
    path = tmp_path_factory.mktemp("world")
    (path / "recipe.toml").write_text(RECIPE.replace('"marketplace"', '"pairs"'))
    assert main(["--recipe", str(path / "recipe.toml"), "--out", str(path / "run"), "--source", "marketplace"]) == 0
    return path / "run" / "data"


def drawer(seed=0, *, categories=None):
    """Draw from the whole catalogue."""
    names = tuple(CATALOGUE.categories)
    return ItemDrawer(Random(seed), CATALOGUE, Pool(categories or names, CATALOGUE.brands, CATALOGUE.brands))


def kettle(**facts):
    """Give the true facts of a kettle."""
    plain = {CATEGORY: "kettle", "brand": "velmora", "colour": "red", "use_case": "camping"}
    return {dim: (value,) for dim, value in {**plain, **facts}.items()}


@pytest.mark.parametrize(
    ("facts", "label"),
    [
        (kettle(), "E"),
        (kettle(colour="blue"), "S"),
        (kettle(brand="halden", colour="blue"), "S"),
        (kettle(**{CATEGORY: "kettle filter"}), "C"),
        (kettle(**{CATEGORY: "toaster"}), "I"),
    ],
)
def test_the_rules_name_the_class_of_an_item(facts, label):
    """The thing with all that was asked, with something else, its accessory, another thing."""
    intent = Intent("q", "train", "kettle", {"brand": "velmora", "colour": "red"}, {})

    assert label == label_of(compare(intent, facts, CATALOGUE))


def test_stand_ins_and_the_things_of_accessories_have_classes_of_their_own():
    """A headset for in-ear buds stands in; a phone for who asks for its case complements; no condition changes that."""
    earbuds, case = (Intent("q", "train", name, {"colour": "red"}, {}) for name in ("earbuds", "phone case"))

    assert label_of(compare(earbuds, {CATEGORY: ("headphones",), "colour": ("blue",)}, CATALOGUE)) == "S"
    assert label_of(compare(case, {CATEGORY: ("phone",), "colour": ("red",)}, CATALOGUE)) == "C"
    assert label_of(compare(case, {CATEGORY: ("phone charger",)}, CATALOGUE)) == "I"


def test_two_processes_write_the_same_bytes_and_another_seed_others(tmp_path):
    """Whatever order their sets have; every file of the stage but its times."""
    digests = []
    for name, hash_seed, seed in (("one", "1", 0), ("two", "2", 0), ("three", "1", 5)):
        (tmp_path / "recipe.toml").write_text(RECIPE + f"seed = {seed}\n")
        options = ["--recipe", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / name)]
        script = f"from training.data.stage import main; main({options!r})"
        subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "PYTHONHASHSEED": hash_seed})
        files = sorted(p for p in (tmp_path / name / "data").iterdir() if p.name not in {"DONE.json", "inputs.json"})
        digests.append({p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files})

    assert digests[0] == digests[1]
    assert {"queries.parquet", "truth.parquet", "tokenizer.json"} <= set(digests[0])
    assert not set(digests[0].values()) & set(digests[2].values())


def test_the_splits_are_the_worlds_own(folder):
    """As many queries of 20 candidates as the recipe says, and both held-out slices on top of test."""
    splits = {name: read_labelled_pairs(folder / f"pairs.{name}.parquet", ESCI) for name in SMALL}
    intents, truth = read_intents(folder / "queries.parquet"), read_truth(folder / "truth.parquet")

    for name, number in SMALL.items():
        counts = Counter(pair.pair.query.id for pair in splits[name] if pair.source == MAIN)
        assert {20} == set(counts.values())
        assert number == len(counts)
    slices = Counter(pair.source for pair in splits["test"])
    assert slices == {MAIN: 200, NEW_CATEGORY: 40, NEW_BRAND: 40}
    pairs = [pair.pair for members in splits.values() for pair in members]
    assert {pair.query.id for pair in pairs} == intents.keys()
    assert {pair.pair_id for pair in pairs} == truth.keys()
    assert all(intents[pair.query.id].split == name for name, members in splits.items() for pair in [members[0].pair])


def test_the_card_says_what_training_never_saw(folder, world):
    """Held-out parts, the noise that came of it, and the test slices."""
    card = json.loads((folder / "card.json").read_text())["marketplace"]

    assert (sorted(world.held_out.categories), sorted(world.held_out.brands)) == (
        card["held_out_categories"],
        card["held_out_brands"],
    )
    assert card["share_of_moved_labels"] == pytest.approx(0.08, abs=0.03)
    assert card["test_pairs"] == {MAIN: 200, NEW_CATEGORY: 40, NEW_BRAND: 40}


def test_the_card_of_a_capped_world_is_of_what_was_written(tmp_path):
    """Three queries a split: the card counts their pairs alone."""
    (tmp_path / "recipe.toml").write_text(RECIPE)
    main(["--recipe", str(tmp_path / "recipe.toml"), "--out", str(tmp_path), "--set", "data.max_queries=3"])
    card = json.loads((tmp_path / "data" / "card.json").read_text())
    pairs = {s: read_labelled_pairs(tmp_path / "data" / f"pairs.{s}.parquet", ESCI) for s in SMALL}

    assert card["marketplace"]["test_pairs"] == dict(Counter(pair.source for pair in pairs["test"]))
    assert card["not_used"]["beyond_max_queries"] == 20 * sum(SMALL.values()) + 80 - sum(map(len, pairs.values()))
    truth = read_truth(tmp_path / "data" / "truth.parquet")
    moved = [truth[p.pair.pair_id][0] != p.label for own in pairs.values() for p in own]
    assert card["marketplace"]["share_of_moved_labels"] == pytest.approx(np.mean(moved), abs=1e-4)


def test_a_world_that_holds_out_one_category_says_what_it_needs():
    """No item would be irrelevant to its queries; the recipe's key is named."""
    seeds = iter(range(6))
    with pytest.raises(RecipeError, match=r"data\.marketplace\.held_out"):
        [make_world(MarketplaceRecipe(queries=SMALL, held_out=0.01, seed=seed)) for seed in seeds]


def test_the_card_says_which_classes_the_noise_is_in(folder):
    """By class as labelled, recounted from the files: about a third of C is none, as expected of its neighbours."""
    told = json.loads((folder / "card.json").read_text())["marketplace"]["share_of_moved_labels_by_class"]
    truth = read_truth(folder / "truth.parquet")
    pairs = [pair for name in SMALL for pair in read_labelled_pairs(folder / f"pairs.{name}.parquet", ESCI)]
    clean = dict(zip(CLASSES, clean_priors(0.08), strict=True))
    into_c = 0.08 * (clean["I"] + clean["S"] * PRIORS[2] / (PRIORS[0] + PRIORS[2]))

    for name in CLASSES:
        moved = [truth[pair.pair.pair_id][0] != name for pair in pairs if pair.label == name]
        assert told[name] == pytest.approx(np.mean(moved), abs=1e-4)
    assert 0.25 < into_c / PRIORS[2] < 0.4
    assert min(told["C"], told["S"]) > 0.1 > max(told["E"], told["I"])


def test_a_query_or_its_words_in_two_splits_fails_the_stage(world):
    """The checks of the marketplace's stage together: the same words of a test query asked before, in either order."""
    splits = {name: [s.labelled for s in world.pairs if s.own_split == name] for name in SPLITS}
    hashed = hashed_together(DataRecipe(source="marketplace"))
    query = splits["test"][0].pair.query.text
    check_leaks(leak_report(splits), hashed)

    for text in (query, " ".join(reversed(query.split()))):
        planted = LabelledPair(Pair(Query(text, "z"), Item("Words Of No Other Title", "z")), "E")
        with pytest.raises(RunError, match="expected no query in both dev and test, found 1"):
            check_leaks(leak_report({**splits, "dev": [*splits["dev"], planted]}), hashed)


def test_classes_have_about_the_shares_of_the_priors():
    """4,000 pairs, whose shares vary by query as Dirichlet draws do: ± 4 points."""
    world = make_world(MarketplaceRecipe(queries={"train": 194, "dev": 1, "cal": 1, "test": 4}))
    counts = Counter(sourced.labelled.label for sourced in world.pairs)

    for name, share in zip(CLASSES, PRIORS, strict=True):
        assert share == pytest.approx(counts[name] / counts.total(), abs=0.04)


@pytest.mark.parametrize("noise", [0.0, 0.08, 0.2])
def test_noise_moves_labels_to_adjacent_classes_and_leaves_the_priors(noise):
    """The moves applied to the clean shares give the priors; the share of moved labels is binomial."""
    clean = dict(zip(CLASSES, clean_priors(noise), strict=True))
    after = {name: (1 - noise) * share for name, share in clean.items()}
    for name, share in clean.items():
        weights = [PRIORS[CLASSES.index(other)] for other in NEIGHBOURS[name]]
        for other, weight in zip(NEIGHBOURS[name], weights, strict=True):
            after[other] += noise * share * weight / sum(weights)
    world = make_world(MarketplaceRecipe(queries=SMALL, label_noise=noise))
    moved = [
        (clean_label, sourced.labelled.label)
        for (_, clean_label, _), sourced in zip(world.truth, world.pairs, strict=True)
    ]
    changed = [pair for pair in moved if pair[0] != pair[1]]

    assert list(PRIORS) == pytest.approx(list(after.values()), abs=0.03 if noise > 0.1 else 1e-6)
    assert all(abs(CLASSES.index(a) - CLASSES.index(b)) == 1 for a, b in changed)
    assert noise == pytest.approx(len(changed) / len(moved), abs=4 * np.sqrt(noise * (1 - noise) / len(moved)) + 1e-9)


def test_so_many_catalogue_facts_are_wrong_as_the_recipe_says():
    """Each of 800 items' facts is another value with chance 0.1, none with chance 0; the title stays."""
    source = drawer()
    wrong = Counter()
    for number in range(800):
        facts = source.draw(source.rng.choice(source.pool.categories))
        assert facts == {d: v for d, v in facts_of_item(catalogue_record(facts, "T", "i", source, 0.0)).items() if v}
        record = catalogue_record(facts, f"Title {number}", "i", source, 0.1)
        held = facts_of_item(record)
        wrong.update((dim, held[dim] != facts[dim]) for dim in facts)
        assert f"Title {number}" == record.title

    for dim in (CATEGORY, *DIMS):
        total = wrong[dim, True] + wrong[dim, False]
        assert wrong[dim, True] / total == pytest.approx(0.1, abs=4 * np.sqrt(0.09 / total))


def test_changing_an_attribute_breaks_its_condition_and_meeting_them_keeps_all():
    """Of 400 drawn items each: every wanted attribute matches, and the one made to differ does not."""
    source = drawer(1)
    for _ in range(400):
        category = source.rng.choice(source.pool.categories)
        wanted = {dim: values[0] for dim, values in source.draw(category).items() if dim != CATEGORY}
        dim = source.rng.choice(list(wanted))
        intent = Intent("q", "train", category, {dim: wanted[dim]}, {})
        facts = source.draw_meeting(category, {d: wanted[d] for d in ("brand", dim)})

        assert label_of(compare(intent, facts, CATALOGUE)) == "E"
        assert label_of(compare(intent, source.differ(facts, dim), CATALOGUE)) == "S"


@pytest.mark.parametrize("seed", [0, 3])
def test_a_fifth_of_categories_and_brands_is_held_out_with_their_kin(seed):
    """No stand-in or accessory of a held-out category is trained on."""
    held_out = hold_out(CATALOGUE, seed, 0.2)
    kin = {
        other
        for name in held_out.categories
        for other in (
            *CATALOGUE.siblings(name),
            *CATALOGUE.accessories(name),
            *CATALOGUE.categories[name].hosts,
        )
    }

    assert kin <= held_out.categories
    assert 0.2 <= len(held_out.categories) / len(CATALOGUE.categories) < 0.27
    assert len(held_out.brands) == round(0.2 * len(CATALOGUE.brands))


def test_nothing_held_out_is_seen_before_test(world):
    """By plain search for the words: brands in no text of train, dev or cal, categories in no fact and no intent."""
    seen = [s.labelled.pair for s in world.pairs if s.own_split != "test"]
    words = {word for pair in seen for word in f"{pair.query.text} {pair.item.title}".lower().split()}
    facts = {value for pair in seen for values in facts_of_item(pair.item).values() for value in values}
    sliced = [s.labelled.pair for s in world.pairs if s.labelled.source == NEW_CATEGORY]

    assert not words & world.held_out.brands
    assert not facts & (world.held_out.categories | world.held_out.brands)
    assert not {i.category for i in world.intents if i.split != "test"} & world.held_out.categories
    assert {pair.item.attributes["category"] for pair in sliced} <= world.held_out.categories


def test_a_planted_held_out_name_fails_the_stage(world):
    """In a title, in a fact, and in what a query asks for."""
    brand, category = min(world.held_out.brands), min(world.held_out.categories)
    main_brand = min(set(CATALOGUE.brands) - world.held_out.brands)
    items = [Item(f"{brand.title()} Thing", "i"), Item("Thing", "i", attributes={"category": category})]
    items.append(Item("Thing", "i", brand=main_brand, attributes={"compatible_with": f"{brand} arc"}))

    for item in items:
        with pytest.raises(RunError, match="item i: expected no held-out category or brand"):
            check_held_out(world.held_out, [LabelledPair(Pair(Query("x", "q"), item), "E")], [])
    with pytest.raises(RunError, match="query q: expected no held-out"):
        check_held_out(world.held_out, [], [Intent("q", "train", "kettle", {"brand": brand}, {})])
    check_held_out(world.held_out, [LabelledPair(Pair(Query("x", "q"), Item("Thing", "i", main_brand)), "E")], [])


def test_no_title_is_nearly_repeated_in_another_split_and_a_planted_one_fails(world):
    """The MinHash report of the stage is the judge."""
    splits = {
        name: [s.labelled for s in world.pairs if s.own_split == name] for name in ("train", "dev", "cal", "test")
    }
    clean = leak_report(splits)
    train = splits["train"][0].pair
    planted = replace(train.item, id="other", title=train.item.title.upper())
    leaky = leak_report({**splits, "dev": [*splits["dev"], LabelledPair(Pair(Query("z", "z"), planted), "E")]})

    check_titles(clean)
    assert sum(counts["same_query"] + counts["same_words"] for counts in clean.values()) == 0
    with pytest.raises(RunError, match=r"train\|dev: expected no items in common"):
        check_titles(leaky)


def test_the_title_index_finds_what_comparing_all_titles_finds(rng):
    """Against the Jaccard similarity of every pair of 300 titles of few words; the MinHash count agrees."""
    words = ["kettle", "lamp", "scarf", "rug", "drill", "mug", "tent", "vase", "bench", "clock", "sofa", "bowl"]
    titles = [" ".join(rng.choice(words, size=rng.integers(4, 10), replace=False)) for _ in range(300)]
    known, asked = titles[:150], titles[150:]
    index = TitleIndex()
    index.add(known)
    sets = [frozenset(title.split()) for title in known]
    expected = [any(len(s & t) >= 0.8 * len(s | t) for t in sets) for s in (frozenset(a.split()) for a in asked)]

    assert expected == [index.nearly_has(title) for title in asked]
    assert 10 < sum(expected) < 140
    assert near_duplicates(known, asked)[0] == len(
        {frozenset(a.split()) for a, e in zip(asked, expected, strict=True) if e}
    )


def test_another_label_scheme_is_refused():
    """The rules name ESCI's classes."""
    with pytest.raises(InputError, match="source 'marketplace': expected the classes"):
        marketplace.read_pairs(DataRecipe(source="marketplace"), WANDS, BadRows())
