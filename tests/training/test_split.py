"""Splits by query, and what leaks between them."""

from hashlib import sha256
from pathlib import Path

import pytest

from relevance.errors import RunError
from relevance.pairs import Item, LabelledPair, Pair, Query, parquet_rows
from training.data.near_duplicates import MAX_TITLES, near_duplicates
from training.data.rows import SourcedPair
from training.data.split import assign_splits, check_leaks, hashed_together, leak_report, plan_splits
from training.recipe import SPLITS, DataRecipe
from training.words import normalise_query, query_unit, stem, stems

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "esci-mini"
MINI = DataRecipe(source="esci-mini", path=".")
OWN = DataRecipe(source="pairs", path=".")
OFFICIAL = DataRecipe(source="esci", path=".")
QUERIES = [f"blue kettle {i}" for i in range(2000)]


def labelled(query, title="a kettle", item="1", *, exact_only=False):
    """Give one labelled pair."""
    return LabelledPair(Pair(Query(query, query), Item(title, item)), "E", exact_only=exact_only)


def test_the_hash_is_the_one_the_shared_data_was_split_by():
    """u = the first 13 hex digits of SHA-256 of the normalised query, over 16¹³."""
    expected = int(sha256(b"cal:blue kettle").hexdigest()[:13], 16) / 16**13

    assert expected == query_unit("  BLUE\u3000kettle ", "cal:")
    assert normalise_query("  BLUE\u3000kettle ") == "blue kettle"
    assert normalise_query("nike\u200e shoes\x00") == "nike shoes"


@pytest.mark.shared_data
def test_the_shared_mini_set_follows_its_readme():
    """w = (u − 0.15) / 0.85: below 0.7 train, below 0.8 dev, else test; the vespa sample is test whatever its hash."""
    path = SHARED / "esci_mini.parquet"
    if not path.is_file():
        pytest.skip("shared/data/esci-mini is not there")
    frozen = set()
    found, expected = {}, {}
    for _, row in parquet_rows(path, ("query", "split", "source")):
        w = (query_unit(row["query"]) - 0.15) / 0.85
        expected[row["query"]] = "train" if w < 0.7 else "dev" if w < 0.8 else "test"
        found[row["query"]] = row["split"]
        if row["source"] == "vespa_sample":
            frozen.add(row["query"])

    assert {q: s for q, s in expected.items() if q not in frozen} == {q: s for q, s in found.items() if q not in frozen}


def test_a_source_without_splits_is_split_by_hash_in_the_shares_asked_for():
    """Of 2,000 queries about 10 % are dev, 20 % test, and 15 % of the other 70 % cal (3.5 standard errors)."""
    plan = plan_splits(((q, None) for q in QUERIES), OWN)
    share = {split: sum(s == split for s in plan.values()) / 2000 for split in SPLITS}

    assert pytest.approx(0.1, abs=0.025) == share["dev"]
    assert pytest.approx(0.2, abs=0.032) == share["test"]
    assert pytest.approx(0.7 * 0.15, abs=0.025) == share["cal"]


def test_cal_is_carved_from_train_queries_only():
    """A dev query stays dev whatever its cal hash; a train query goes to cal iff its hash is below the share."""
    plan = plan_splits([*((q, "train") for q in QUERIES), *((f"dev {q}", "dev") for q in QUERIES)], MINI)

    assert {"dev"} == {plan[(f"dev {q}", "dev")] for q in QUERIES}
    assert {q for q in QUERIES if query_unit(q, "cal:") < 0.15} == {q for q in QUERIES if plan[(q, "train")] == "cal"}


def test_the_official_test_split_is_never_touched():
    """Dev comes out of train."""
    plan = plan_splits([*((q, "train") for q in QUERIES), *((f"test {q}", "test") for q in QUERIES)], OFFICIAL)

    assert {"test"} == {plan[(f"test {q}", "test")] for q in QUERIES}
    assert {"train", "dev", "cal"} == {plan[(q, "train")] for q in QUERIES}


def test_the_same_words_in_another_order_never_part():
    """Every query and its reversal share a split, under hash splits and under cal."""
    both = [(q, " ".join(reversed(q.split()))) for q in QUERIES]
    for own, recipe in ((None, OWN), ("train", MINI), ("train", OFFICIAL)):
        plan = plan_splits(((q, own) for pair in both for q in pair), recipe)

        assert all(plan[(a, own)] == plan[(b, own)] for a, b in both)


def test_the_order_of_rows_does_not_matter():
    """A plan is a function of the set of queries."""
    capped = OWN.model_copy(update={"max_queries": 50})

    assert plan_splits(((q, None) for q in QUERIES), capped) == plan_splits(((q, None) for q in QUERIES[::-1]), capped)


def test_exact_only_rows_of_cal_queries_are_dropped():
    """They are neither in cal nor in train."""
    in_cal = next(q for q in QUERIES if query_unit(q, "cal:") < 0.15)
    pairs = [
        SourcedPair(labelled(in_cal, item="1", exact_only=True), "train"),
        SourcedPair(labelled(in_cal, item="2"), "train"),
    ]

    splits, dropped = assign_splits(pairs, MINI)

    assert [p.pair.item.id for p in splits["cal"]] == ["2"]
    assert splits["train"] == []
    assert dropped == 1


def test_the_leak_report_counts_each_kind():
    """One same query, one reordered, one shared item, one near-duplicate title of another item."""
    long = "stainless steel kettle with a wooden handle and a whistle 2 litre red"
    train = [labelled("red kettle", long, "1"), labelled("tall oak vase", "oak vase", "2"), labelled("mug", "mug", "3")]
    test = [
        labelled("Red  Kettle", "something", "9"),
        labelled("oak tall vase", long.upper() + " !", "8"),
        labelled("cup", "mug", "3"),
    ]

    counts = leak_report({"train": train, "dev": [], "cal": [], "test": test})["train|test"]

    assert counts == {
        "same_query": 1,
        "same_words": 1,
        "shared_items": 1,
        "near_duplicate_titles": 1,
        "titles_compared": 2,
    }


def test_two_orders_of_the_same_words_hide_no_third_one():
    """Train has both orders, test one of them: the other is told, whatever order a set has."""
    train = [labelled("red shoes"), labelled("shoes red", item="2")]
    for text in ("red shoes", "shoes red"):
        counts = leak_report({"train": train, "dev": [], "cal": [], "test": [labelled(text, item="3")]})
        assert counts["train|test"]["same_words"] == 1


def test_a_leak_between_splits_of_ours_is_an_error_and_between_a_sources_own_is_a_count():
    """The same report is refused for hash splits and accepted for esci-mini's own dev."""
    report = leak_report({"train": [labelled("mug")], "dev": [labelled("MUG")], "cal": [], "test": []})

    check_leaks(report, hashed_together(MINI))
    with pytest.raises(RunError, match="expected no query in both train and dev, found 1"):
        check_leaks(report, hashed_together(OWN))


def test_near_duplicates_ignore_case_plurals_and_order_but_not_content():
    """Nine of ten words shared is near (Jaccard 9/11 > 0.8); five of ten is not."""
    words = ["oak", "table", "round", "garden", "outdoor", "folding", "white", "wooden", "small", "patio"]
    near = " ".join([*reversed(words[:9]), "metal"])
    far = " ".join([*words[:5], "steel", "blue", "desk", "office", "corner"])

    assert near_duplicates([" ".join(words)], [near])[0] == 1
    assert near_duplicates([" ".join(words)], [" ".join(w.upper() + "S" for w in words)])[0] == 1
    assert near_duplicates([" ".join(words)], [far])[0] == 0
    assert near_duplicates([], [far])[0] == 0


def test_near_duplicates_see_japanese_titles():
    """Character pairs stand for words where there are no blanks."""
    title = "北欧デザイン木製キッチンタイマー磁石付き大音量"

    assert near_duplicates([title], [title + "!"])[0] == 1
    assert near_duplicates([title], ["防水スマートフォンケース首掛けストラップ"])[0] == 0


def test_a_large_split_is_sampled():
    """The count comes with the number of titles looked up."""
    titles = [f"model {n}" for n in range(MAX_TITLES + 50)]

    assert near_duplicates([], titles) == (0, MAX_TITLES)


@pytest.mark.parametrize(
    ("one", "other"),
    [("dresses", "dress"), ("batteries", "battery"), ("zapatos", "zapato"), ("niños", "nino"), ("boxes", "box")],
)
def test_light_stems_join_singular_and_plural(one, other):
    """The key is the same for both forms."""
    assert stem(one) == stem(other)


def test_words_split_scripts_and_numbers():
    """A word, a number and a Japanese run written together are three chunks, and of the run the pairs count."""
    assert stems("iPhone11ケース") == ["iphon", "11", "ケー", "ース"]
