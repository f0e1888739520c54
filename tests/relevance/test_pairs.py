"""Pairs files: round trips and what a bad row is told."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relevance.errors import InputError, RowError
from relevance.labels import ESCI
from relevance.pairs import (
    BadRows,
    Item,
    LabelledPair,
    Pair,
    Query,
    parquet_rows,
    parse_labelled_pair,
    parse_pair,
    read_labelled_pairs,
    read_pairs,
    write_labelled_pairs,
)

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
NAME = TEXT.filter(lambda t: bool(t.strip()))
LABELLED = st.builds(
    LabelledPair,
    pair=st.builds(
        Pair,
        query=st.builds(Query, text=NAME, id=NAME, locale=st.none() | NAME),
        item=st.builds(
            Item,
            title=NAME,
            id=NAME,
            brand=st.none() | TEXT,
            color=st.none() | TEXT,
            text=st.none() | TEXT,
            attributes=st.dictionaries(NAME, TEXT, max_size=3),
        ),
    ),
    label=st.sampled_from(ESCI.classes),
    source=TEXT,
    exact_only=st.booleans(),
)


def write_lines(path, *rows):
    """Write rows as JSONL; a row that is a str is written as it is."""
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=st.lists(LABELLED, max_size=5))
def test_labelled_pairs_survive_a_file(tmp_path, ending, pairs):
    """What is written is read back equal, whatever the texts hold."""
    path = tmp_path / f"pairs{ending}"
    write_labelled_pairs(path, pairs)
    assert pairs == read_labelled_pairs(path, ESCI)


def test_an_integer_item_id_stays_an_integer_in_jsonl(tmp_path):
    """Ids are echoed unchanged."""
    path = write_lines(tmp_path / "pairs.jsonl", {"query": "mug", "title": "Tin mug", "item_id": 7})
    assert [pair.item.id for pair in read_pairs(path)] == [7]


def test_ids_default_to_the_query_text_and_the_row_number(tmp_path):
    """A file with nothing but query and title is enough."""
    path = write_lines(tmp_path / "pairs.jsonl", {"query": "mug", "title": "Tin mug"})
    assert [pair.pair_id for pair in read_pairs(path)] == ["mug\t1"]


@pytest.mark.parametrize(
    ("row", "column", "problem"),
    [
        ({"title": "Tin mug"}, "query", "expected a text, found nothing"),
        ({"query": "mug", "title": "  "}, "title", "only white space"),
        ({"query": "mug", "title": 3}, "title", "found int 3"),
        ({"query": "mug", "title": "Tin mug", "item_id": True}, "item_id", "expected a text or an integer"),
        ({"query": "mug", "title": "Tin mug", "brand": ["x"]}, "brand", "found list"),
        ({"query": "mug", "title": "Tin mug", "attributes": {"size": 3}}, "attributes", "object of texts"),
        ({"query": "mug", "title": "Tin mug", "attributes": "{"}, "attributes", "JSON object"),
    ],
)
def test_a_bad_row_is_told_row_column_and_what_was_expected(row, column, problem):
    """The error names the place and the fault."""
    with pytest.raises(RowError, match=problem) as caught:
        parse_pair(row, 4, "shop.jsonl")
    assert ("shop.jsonl", 4, column) == (caught.value.where, caught.value.row, caught.value.column)


@pytest.mark.parametrize("label", [None, 3, "X"])
def test_a_bad_label_lists_the_classes(tmp_path, label):
    """Labels outside the scheme are refused with the codes expected."""
    path = write_lines(tmp_path / "pairs.jsonl", {"query": "mug", "title": "Tin mug", "label": label})
    with pytest.raises(RowError, match=r"row 1, column 'label': expected one of E, S, C, I"):
        read_labelled_pairs(path, ESCI)


def test_bad_rows_are_counted_under_skip_and_the_rest_is_read(tmp_path):
    """Not JSON, not an object and a wrong type are three bad rows of four."""
    good = {"query": "mug", "title": "Tin mug", "label": "E"}
    path = write_lines(tmp_path / "pairs.jsonl", "{broken", "[1]", {**good, "title": 1}, good)
    bad = BadRows("skip")
    assert len(read_labelled_pairs(path, ESCI, bad)) == 1
    assert (bad.count, [error.row for error in bad.first]) == (3, [1, 2, 3])


def test_invalid_utf8_is_a_bad_row(tmp_path):
    """Bytes that are not UTF-8 are reported with their row."""
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b'{"query": "mug", "title": "\xff\xfe"}\n')
    with pytest.raises(RowError, match=r"row 1.*UTF-8"):
        list(read_pairs(path))


def test_a_parquet_file_without_a_column_names_it(tmp_path):
    """The message lists what is missing."""
    path = tmp_path / "pairs.parquet"
    pq.write_table(pa.table({"query": ["mug"]}), path)
    with pytest.raises(InputError, match=r"missing: \['title'\]"):
        list(read_pairs(path))


def test_a_file_of_another_kind_is_refused(tmp_path):
    """Neither a wrong ending, a missing file nor a text under .parquet is read."""
    text = tmp_path / "pairs.parquet"
    text.write_text("query,title\n")
    with pytest.raises(InputError, match="expected a Parquet file"):
        list(parquet_rows(text, ()))
    with pytest.raises(InputError, match="found none"):
        list(read_pairs(tmp_path / "missing.jsonl"))
    other = tmp_path / "pairs.csv"
    other.write_text("query,title\n")
    with pytest.raises(InputError, match=r"\.jsonl or \.parquet"):
        list(read_pairs(other))
    with pytest.raises(InputError, match=r"\.jsonl or \.parquet"):
        write_labelled_pairs(other, [])


@pytest.mark.parametrize(("value", "expected"), [(True, True), (False, False), (None, False), (float("nan"), False)])
def test_exact_only_is_a_truth_value_or_missing(tmp_path, value, expected):
    """As pandas writes a gap into JSON lines: NaN."""
    path = write_lines(tmp_path / "a.jsonl", {"query": "mug", "title": "mug", "label": "E", "exact_only": value})
    assert [pair.exact_only for pair in read_labelled_pairs(path, ESCI)] == [expected]


@pytest.mark.parametrize("value", ["false", "true", 1])
def test_another_value_of_exact_only_is_a_bad_row(tmp_path, value):
    """The text "false" is no falsehood."""
    path = write_lines(tmp_path / "a.jsonl", {"query": "mug", "title": "mug", "label": "E", "exact_only": value})
    with pytest.raises(RowError, match=r"exact_only.*expected true or false"):
        read_labelled_pairs(path, ESCI)


def test_half_a_character_in_a_text_becomes_a_mark_and_in_an_id_a_bad_row(tmp_path):
    """An emoji cut by an exporter is valid JSON, but no file can hold it."""
    row = {"query": "mug", "title": "abc\ud83d", "label": "E", "attributes": {"size": "\ude00 2 l"}}
    path = write_lines(tmp_path / "a.jsonl", row)
    (pair,) = read_labelled_pairs(path, ESCI)
    assert (pair.pair.item.title, dict(pair.pair.item.attributes)) == ("abc\ufffd", {"size": "\ufffd 2 l"})
    write_labelled_pairs(tmp_path / "b.parquet", [pair])
    for column in ("item_id", "query_id"):
        write_lines(path, row | {column: "x\ud83d"})
        with pytest.raises(RowError, match=f"{column}.*expected whole characters"):
            read_labelled_pairs(path, ESCI)


def test_parquet_fills_attributes_that_a_row_lacks_with_nulls_which_are_none(tmp_path):
    """Two rows with attributes of different names: each keeps its own."""
    rows = [
        {"query": "mug", "title": "Tin mug", "item_id": n, "attributes": own}
        for n, own in enumerate(({"size": "L"}, {"material": "wool"}))
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pairs.parquet")

    assert [dict(pair.item.attributes) for pair in read_pairs(tmp_path / "pairs.parquet")] == [
        {"size": "L"},
        {"material": "wool"},
    ]


@pytest.mark.parametrize("line", ["[" * 100_000, '{"query": "mug", "title": "Tin mug", "item_id": ' + "9" * 5000 + "}"])
def test_json_beyond_the_parser_is_a_bad_row(tmp_path, line):
    """Brackets without end, and a number of five thousand digits: named, and left out under skip."""
    path = tmp_path / "pairs.jsonl"
    path.write_text(line + '\n{"query": "mug", "title": "Tin mug", "item_id": "1"}\n')
    with pytest.raises(RowError, match="row 1"):
        list(read_pairs(path))
    bad = BadRows("skip")
    assert len(list(read_pairs(path, bad))) == bad.count == 1


def test_half_a_character_in_a_source_can_be_written():
    """As in a title: a source is written into every file of pairs."""
    row = {"query": "mug", "title": "Tin mug", "label": "E", "source": "\ud83d"}
    assert parse_labelled_pair(row, 1, "x", ESCI).source == "\ufffd"
