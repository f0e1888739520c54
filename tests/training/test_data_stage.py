"""The data stage on small files of every source."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from relevance.errors import InputError, RecipeError, RowError
from relevance.labels import ESCI, WANDS
from relevance.pairs import BadRows, read_labelled_pairs
from training.data import esci, esci_mini, wands
from training.data.stage import main
from training.recipe import DataRecipe
from training.words import query_unit

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
WORDS = ("kettle", "lamp", "scarf", "rug", "drill", "mug", "tent", "vase", "bench", "clock")


def mini_rows(n_queries=40):
    """Give rows of the mini layout: each query once as E and once as I."""
    rows = []
    for i in range(n_queries):
        query = f"{WORDS[i % 10]} number {i}"
        for label in "EI":
            rows.append(
                {
                    "query_id": f"q{i}",
                    "query": query,
                    "query_locale": "us",
                    "product_id": f"p{i}{label}",
                    "product_locale": "us",
                    "product_title": f"{WORDS[i % 10] if label == 'E' else WORDS[(i + 5) % 10]} model {i}",
                    "product_brand": "Acorn" if i % 2 else None,
                    "product_color": None,
                    "product_bullet_point": f"Short points {i}",
                    "product_description": None,
                    "esci_label": label,
                    "source": "invented",
                    "exact_only_source": False,
                    "split": ("train", "train", "dev", "test")[i % 4],
                }
            )
    return rows


def write_table(path, rows):
    """Write rows as Parquet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def run_stage(tmp_path, *, source="esci-mini", options=(), extra=""):
    """Run the stage on tmp_path/source and give the stage's folder."""
    recipe = tmp_path / "recipe.toml"
    path = tmp_path / "source"
    recipe.write_text(f'name = "t"\n[data]\nsource = "{source}"\npath = "{path}"\n{extra}')
    assert main(["--recipe", str(recipe), "--out", str(tmp_path / "run"), *options]) == 0
    return tmp_path / "run" / "data"


def card_of(folder):
    """Read the card."""
    return json.loads((folder / "card.json").read_text())


def test_mini_keeps_its_splits_and_hides_long_texts_in_attributes(tmp_path):
    """Train queries go to train or cal, dev and test stay; `text` stays empty, bullets become an attribute."""
    write_table(tmp_path / "source" / esci_mini.PAIRS, mini_rows())

    folder = run_stage(tmp_path)
    card = card_of(folder)
    splits = {s: read_labelled_pairs(folder / f"pairs.{s}.parquet", ESCI) for s in ("train", "dev", "cal", "test")}

    assert (card["splits"]["dev"]["pairs"], card["splits"]["test"]["pairs"]) == (20, 20)
    assert card["splits"]["train"]["pairs"] + card["splits"]["cal"]["pairs"] == 40
    assert card["splits"]["dev"]["labels_by_locale"]["us"] == {"I": 10, "E": 10}
    assert {None} == {p.pair.item.text for p in splits["train"]}
    assert {"bullets"} == set(splits["train"][0].pair.item.attributes)
    assert all(query_unit(p.pair.query.text, "cal:") < 0.15 for p in splits["cal"])
    assert all(query_unit(p.pair.query.text, "cal:") >= 0.15 for p in splits["train"])


def test_longer_product_texts_are_joined_by_product(tmp_path):
    """The longer text replaces the short one, the category is added, a text that is null there stays as it was."""
    write_table(tmp_path / "source" / esci_mini.PAIRS, mini_rows(4))
    product = {
        "product_id": "p0E",
        "product_locale": "us",
        "product_bullet_point": "Much longer points",
        "product_description": None,
        "category": "Home > Kettles",
    }
    write_table(tmp_path / "more" / esci_mini.PRODUCTS, [product])
    recipe = DataRecipe(source="esci-mini", path=str(tmp_path / "source"), products=str(tmp_path / "more"))

    attributes = {
        str(p.labelled.pair.item.id): dict(p.labelled.pair.item.attributes)
        for p in esci_mini.read_pairs(recipe, ESCI, BadRows())
    }

    assert attributes["p0E"] == {"bullets": "Much longer points", "category": "Home > Kettles"}
    assert attributes["p1E"] == {"bullets": "Short points 1"}


def test_a_second_run_does_nothing_and_changed_options_start_over(tmp_path):
    """The stage is skipped on equal inputs; another cal share writes another train file."""
    write_table(tmp_path / "source" / esci_mini.PAIRS, mini_rows())
    folder = run_stage(tmp_path)
    written = (folder / "card.json").stat().st_mtime_ns
    first = card_of(folder)["fingerprint"]

    run_stage(tmp_path)
    untouched = (folder / "card.json").stat().st_mtime_ns
    run_stage(tmp_path, options=["--set", "data.cal_fraction=0.6"])

    assert written == untouched
    assert first != card_of(folder)["fingerprint"]


def test_max_queries_keeps_the_same_queries_whatever_the_order_of_rows(tmp_path):
    """The cap goes by hash."""
    write_table(tmp_path / "source" / esci_mini.PAIRS, mini_rows())
    folder = run_stage(tmp_path, options=["--set", "data.max_queries=3"])
    first = {p.pair.query.text for p in read_labelled_pairs(folder / "pairs.train.parquet", ESCI)}
    write_table(tmp_path / "source" / esci_mini.PAIRS, mini_rows()[::-1])

    folder = run_stage(tmp_path, options=["--set", "data.max_queries=3"])

    assert first == {p.pair.query.text for p in read_labelled_pairs(folder / "pairs.train.parquet", ESCI)}
    assert [card_of(folder)["splits"][s]["queries"] for s in ("train", "dev", "test")] == [3, 3, 3]


def test_only_the_locales_asked_for_are_kept(tmp_path):
    """Rows of another locale are left out."""
    rows = mini_rows()
    for row in rows[::2]:
        row["query_locale"] = "es"
    write_table(tmp_path / "source" / esci_mini.PAIRS, rows)

    folder = run_stage(tmp_path, extra='locales = ["es"]')

    assert {"es"} == {p.pair.query.locale for p in read_labelled_pairs(folder / "pairs.train.parquet", ESCI)}


def test_a_missing_column_is_named(tmp_path):
    """A Parquet file without titles is refused with the column's name."""
    rows = [{k: v for k, v in row.items() if k != "product_title"} for row in mini_rows(4)]
    write_table(tmp_path / "source" / esci_mini.PAIRS, rows)

    with pytest.raises(InputError, match=r"missing: \['product_title'\]"):
        run_stage(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    """No file, a clear error."""
    with pytest.raises(InputError, match=r"expected the files .*esci_mini\.parquet"):
        run_stage(tmp_path)


def spoiled_rows():
    """Give mini rows of which three are bad: a label, a blank title, a pair that was there before."""
    rows = mini_rows()
    rows[4]["esci_label"] = "Q"
    rows[7]["product_title"] = "  "
    rows[9] = dict(rows[8])
    return rows


def test_a_bad_row_stops_the_stage_by_default(tmp_path):
    """The error has file, row number, the source's column name, expected and found."""
    write_table(tmp_path / "source" / esci_mini.PAIRS, spoiled_rows())

    with pytest.raises(RowError, match=r"row 5, column 'esci_label': expected one of E, S, C, I .*found 'Q'"):
        run_stage(tmp_path)


def test_skipped_bad_rows_are_counted_in_the_card(tmp_path):
    """`--on-bad-row skip` overrides the recipe; row 8 lacks a title and row 10 repeats row 9."""
    write_table(tmp_path / "source" / esci_mini.PAIRS, spoiled_rows())

    card = card_of(run_stage(tmp_path, options=["--on-bad-row", "skip"]))

    assert card["bad_rows"]["count"] == 3
    assert sum(card["splits"][s]["pairs"] for s in card["splits"]) == 77
    assert "row 8, column 'product_title'" in card["bad_rows"]["first"][1]
    assert "found 'q4\\tp4E' in row 9 too" in card["bad_rows"]["first"][2]


def test_an_unknown_key_of_the_section_is_refused(tmp_path):
    """A typing mistake in the recipe does not pass silently."""
    with pytest.raises(RecipeError, match="max_querys"):
        run_stage(tmp_path, extra="max_querys = 3")


def official_tables(folder):
    """Write the official layout: 30 queries of two products, one of them small version, one product in two locales."""
    examples, products = [], []
    for i in range(30):
        for j, label in enumerate("ES"):
            examples.append(
                {
                    "example_id": 2 * i + j,
                    "query": f"{WORDS[i % 10]} {i}",
                    "query_id": i,
                    "product_id": f"B{i}{j}",
                    "product_locale": "es" if i == 29 else "us",
                    "esci_label": label,
                    "small_version": int(i < 10),
                    "large_version": 1,
                    "split": "test" if i % 3 == 0 else "train",
                }
            )
            for locale in ("us", "es"):
                products.append(
                    {
                        "product_id": f"B{i}{j}",
                        "product_title": f"{locale} title {i} {j}",
                        "product_description": "d" * 5000,
                        "product_bullet_point": None,
                        "product_brand": "Acorn",
                        "product_color": "red",
                        "product_locale": locale,
                    }
                )
    write_table(folder / esci.EXAMPLES, examples)
    write_table(folder / esci.PRODUCTS, products)
    return examples, products


def test_official_tables_are_joined_on_locale_and_product(tmp_path):
    """The Spanish query gets the Spanish title; long descriptions are cut."""
    official_tables(tmp_path)
    recipe = DataRecipe(source="esci", path=str(tmp_path))

    pairs = esci.read_pairs(recipe, ESCI, BadRows())

    assert len(pairs) == 60
    assert pairs[58].labelled.pair.item.title == "es title 29 0"
    assert pairs[56].labelled.pair.item.title == "us title 28 0"
    assert len(pairs[0].labelled.pair.item.attributes["description"]) == 1500
    assert (pairs[0].labelled.pair.pair_id, pairs[0].own_split) == ("0\tB00", "test")


def test_the_small_version_keeps_its_rows_only(tmp_path):
    """Ten queries are in the small version."""
    official_tables(tmp_path)
    recipe = DataRecipe(source="esci", path=str(tmp_path), large_version=False)

    assert len(esci.read_pairs(recipe, ESCI, BadRows())) == 20


def test_official_test_stays_and_dev_is_carved_from_train(tmp_path):
    """Ten of thirty queries are test; dev and cal come out of the other twenty."""
    official_tables(tmp_path / "source")

    card = card_of(run_stage(tmp_path, source="esci", extra="dev_fraction = 0.4"))
    queries = {split: figures["queries"] for split, figures in card["splits"].items()}

    assert queries["test"] == 10
    assert queries["train"] + queries["dev"] + queries["cal"] == 20
    assert queries["dev"] > 0
    assert card["leaks"]["train|dev"]["same_query"] == 0


def test_an_example_without_its_product_is_a_bad_row(tmp_path):
    """The join names the row, the column and the key that was looked for."""
    _, products = official_tables(tmp_path)
    write_table(tmp_path / esci.PRODUCTS, products[1:])

    with pytest.raises(RowError, match=r"row 1, column 'product_id': expected a product .*\('us', 'B00'\)"):
        esci.read_pairs(DataRecipe(source="esci", path=str(tmp_path)), ESCI, BadRows())


def test_capped_official_tables_join_only_the_queries_kept(tmp_path):
    """With two queries a split at most six queries of four splits are read."""
    official_tables(tmp_path)
    recipe = DataRecipe(source="esci", path=str(tmp_path), max_queries=2)

    assert 8 >= len({p.labelled.pair.query.id for p in esci.read_pairs(recipe, ESCI, BadRows())}) > 0


def wands_files(folder, labels):
    """Write WANDS' three files with one quoted field and a blank hierarchy."""
    folder.mkdir(parents=True, exist_ok=True)
    queries = "".join(f"{i}\t{WORDS[i % 10]} {i}\tThings\n" for i in range(20))
    (folder / wands.QUERIES).write_text(f"query_id\tquery\tquery_class\n{queries}")
    header = "product_id\tproduct_name\tproduct_class\tcategory hierarchy\tproduct_description\tproduct_features"
    products = (
        '7\toak vase\tVases\tDecor / Vases\t"a ""tall"" vase"\tcolor : oak|height : 30\n8\ttin lamp\tLamps\t\t\t\n'
    )
    (folder / wands.PRODUCTS).write_text(f"{header}\n{products}")
    (folder / wands.LABELS).write_text("id\tquery_id\tproduct_id\tlabel\n" + labels)


def test_wands_files_are_joined_and_split_by_hash(tmp_path):
    """Tab-separated files with quotes become pairs of the WANDS scheme."""
    labels = "".join(f"{i}\t{i}\t{7 + i % 2}\t{('Exact', 'Partial', 'Irrelevant')[i % 3]}\n" for i in range(20))
    wands_files(tmp_path / "source", labels)

    folder = run_stage(tmp_path, source="wands", options=["--set", "scheme=wands"])
    pairs = [
        p for s in ("train", "dev", "cal", "test") for p in read_labelled_pairs(folder / f"pairs.{s}.parquet", WANDS)
    ]
    vase = next(p.pair.item for p in pairs if p.pair.item.id == "7")

    assert len(pairs) == 20
    assert dict(vase.attributes) == {
        "description": 'a "tall" vase',
        "bullets": "color : oak. height : 30",
        "category": "Decor > Vases",
    }
    assert {"Lamps"} == {p.pair.item.attributes["category"] for p in pairs if p.pair.item.id == "8"}


def test_a_wands_label_of_an_unknown_product_is_a_bad_row(tmp_path):
    """The row is counted in label.csv."""
    wands_files(tmp_path, "0\t0\t7\tExact\n1\t1\t99\tExact\n")
    bad_rows = BadRows("skip")

    pairs = wands.read_pairs(DataRecipe(source="wands", path=str(tmp_path)), WANDS, bad_rows)

    assert len(pairs) == 1
    assert str(bad_rows.first[0]) == "label.csv, row 2, column 'product_id': expected an id of product.csv, found '99'"


def test_comma_separated_wands_files_are_refused(tmp_path):
    """A file with the wrong separator is reported by its columns."""
    wands_files(tmp_path, "")
    (tmp_path / wands.LABELS).write_text("id,query_id,product_id,label\n")

    with pytest.raises(InputError, match="expected tab-separated columns"):
        wands.read_pairs(DataRecipe(source="wands", path=str(tmp_path)), WANDS, BadRows())


def test_pairs_of_ours_are_read_from_jsonl_with_line_numbers(tmp_path):
    """A line that is no JSON and a repeated pair are named by their lines."""
    lines = [
        json.dumps({"query": f"{w} {i}", "title": f"a {w}", "item_id": i, "label": "E"}) for i, w in enumerate(WORDS)
    ]
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "own.jsonl").write_text("\n".join(["{broken", *lines, lines[2]]) + "\n")
    path = tmp_path / "source" / "own.jsonl"

    card = card_of(run_stage(tmp_path, source="pairs", options=["--set", f"data.path={path}", "--on-bad-row", "skip"]))

    assert sum(card["splits"][s]["pairs"] for s in card["splits"]) == 10
    assert [text.split(", column")[0] for text in card["bad_rows"]["first"]] == [
        "own.jsonl, row 1",
        "own.jsonl, row 12",
    ]


@pytest.mark.shared_data
def test_the_shared_mini_set_has_the_counts_of_its_readme(tmp_path):
    """README: dev 1,204 rows of 372 queries, test 2,464 of 742, train 7,275 of 2,568 (here train, cal and dropped)."""
    if not (SHARED / "esci-mini").is_dir():
        pytest.skip("shared/data/esci-mini is not there")
    (tmp_path / "source").symlink_to(SHARED / "esci-mini")

    splits = card_of(run_stage(tmp_path))["splits"]
    cal = {p.pair.query.text for p in read_labelled_pairs(tmp_path / "run/data/pairs.cal.parquet", ESCI)}

    assert (splits["dev"]["pairs"], splits["dev"]["queries"]) == (1204, 372)
    assert (splits["test"]["pairs"], splits["test"]["queries"]) == (2464, 742)
    assert splits["test"]["labels"] == {"C": 123, "E": 1427, "I": 382, "S": 532}
    assert (splits["train"]["pairs"], splits["cal"]["pairs"]) == (6225, 920)
    assert splits["cal"]["exact_only"] == 0
    assert 0.12 < len(cal) / 2568 < 0.16
