"""Scoring a file: the same numbers as the service, and the same bytes after a kill."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from relevance.errors import InputError, RowError
from relevance.pairs import Item
from service.model import Model
from service.score_file import Part, main

QUERIES = ("steel kettle", "trail running shoes", "desk lamp usb", "taza de cerámica")


@pytest.fixture
def file(tmp_path) -> Path:
    """Four queries with five items each."""
    rows = [
        {"query": query, "item_id": i, "title": f"{query} model {i} " + "matte " * i, "locale": "us"}
        for query in QUERIES
        for i in range(5)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _run(file: Path, bundle: Path, *options: str) -> None:
    assert main([str(file), "--bundle", str(bundle), "--threads", "1", *options]) == 0


def test_the_file_gets_the_numbers_of_the_service(file, tiny_bundle, model: Model, server):
    """Score and tier of each row equal the scorer's and what /score answers, to 1e-4."""
    _run(file, tiny_bundle)

    rows = _rows(file.with_name("pairs.jsonl.out.jsonl"))
    assert len(rows) == 20
    for number, query in enumerate(QUERIES):
        group = rows[5 * number : 5 * number + 5]
        items = [{"id": i, "title": f"{query} model {i} " + "matte " * i} for i in range(5)]
        body = {"query": query, "items": items, "locale": "us", "min_tier": 0}
        answer = server.client.post("/score", json=body).json()["results"]
        assert [row["item_id"] for row in group] == [row["id"] for row in answer]
        assert [row["score"] for row in group] == pytest.approx([row["score"] for row in answer], abs=1e-4)
        assert [row["label"] for row in group] == [row["label"] for row in answer]
        kept = model.scorer.score(query, [Item(i["title"]) for i in items], locale="us").kept_B
        assert [row["kept"] for row in group] == kept.tolist()


@pytest.mark.parametrize("left", [0, 1, 7, 10, 20])
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(file, tiny_bundle, tmp_path, monkeypatch, left: int):
    """A part with `left` whole lines and half a line more: the finished file equals that of an unbroken run."""
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    _run(file, tiny_bundle, "--out", str(whole))
    lines = whole.read_bytes().splitlines(keepends=True)
    part = Part.beside(broken)

    class KilledError(Exception):
        """Stands for the kill."""

    def kill(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr("service.score_file._publish", kill)
        with pytest.raises(KilledError):
            _run(file, tiny_bundle, "--out", str(broken))
    part.lines.write_bytes(b"".join(lines[:left]) + b'{"query_id":"half a li')
    _run(file, tiny_bundle, "--out", str(broken))

    assert broken.read_bytes() == whole.read_bytes()
    assert not part.lines.exists()
    assert not part.origin.exists()


def test_a_part_of_another_input_is_thrown_away(file, tiny_bundle, tmp_path):
    """What a run on other rows left behind does not get into this one."""
    out = tmp_path / "out.jsonl"
    part = Part.beside(out)
    part.lines.write_text('{"query_id":"stale"}\n')
    part.origin.write_text('{"input":"another"}\n')

    _run(file, tiny_bundle, "--out", str(out))

    assert len(_rows(out)) == 20
    assert "stale" not in out.read_text()


def test_parquet_output_holds_the_same_rows(file, tiny_bundle, tmp_path):
    """Scores and tiers are those of the JSONL output; ids become texts."""
    _run(file, tiny_bundle, "--out", str(tmp_path / "a.jsonl"))
    _run(file, tiny_bundle, "--out", str(tmp_path / "a.parquet"))

    expected = [row | {"item_id": str(row["item_id"])} for row in _rows(tmp_path / "a.jsonl")]
    assert pq.read_table(tmp_path / "a.parquet").to_pylist() == expected


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_probabilities_are_written_where_they_are_asked_for(file, tiny_bundle, tmp_path, kind: str):
    """In the scheme's order: their expected gain is the score; a row without a score has none."""
    with file.open("a") as handle:
        handle.write(json.dumps({"query": "kettle " * 400, "title": "kettle"}) + "\n")
    out = tmp_path / f"out.{kind}"
    _run(file, tiny_bundle, "--on-bad-row", "skip", "--probabilities", "--out", str(out))

    *rows, refused = _rows(out) if kind == "jsonl" else pq.read_table(out).to_pylist()
    gains = [1.0, 0.1, 0.01, 0.0]
    for row in rows:
        assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-5)
        expected = sum(p * gain for p, gain in zip(row["probabilities"], gains, strict=True))
        assert row["score"] == pytest.approx(expected, abs=1e-5)
    assert (len(rows), refused["probabilities"]) == (20, None)


def test_a_bad_row_fails_with_its_number_or_is_skipped_and_counted(file, tiny_bundle, capsys):
    """Row 21 has no title."""
    with file.open("a") as handle:
        handle.write('{"query": "lamp"}\n')

    with pytest.raises(RowError, match=r"row 21, column 'title'"):
        _run(file, tiny_bundle)
    _run(file, tiny_bundle, "--on-bad-row", "skip")

    assert len(_rows(file.with_name("pairs.jsonl.out.jsonl"))) == 20
    assert "1 bad rows skipped" in capsys.readouterr().err


def test_a_query_over_the_limit_fails_or_comes_back_unscored(file, tiny_bundle):
    """Under skip its rows stay in the output, without a score, so that rows still line up."""
    with file.open("a") as handle:
        handle.write(json.dumps({"query": "kettle " * 400, "title": "kettle"}) + "\n")

    with pytest.raises(RowError, match="expected a query of at most"):
        _run(file, tiny_bundle)
    _run(file, tiny_bundle, "--on-bad-row", "skip")

    last = _rows(file.with_name("pairs.jsonl.out.jsonl"))[-1]
    assert (last["score"], last["tier"], last["reason"]) == (None, None, "error")


@pytest.mark.parametrize("name", ["none.jsonl", "pairs.csv"])
def test_a_missing_file_or_another_kind_is_refused(tmp_path, tiny_bundle, name: str):
    """The message says what was expected."""
    if name.endswith("csv"):
        (tmp_path / name).write_text("query,title\n")

    with pytest.raises(InputError, match="expected a"):
        _run(tmp_path / name, tiny_bundle)


def test_an_output_of_another_kind_is_refused(file, tiny_bundle, tmp_path):
    """Only .jsonl and .parquet are written."""
    with pytest.raises(InputError, match=r"\.jsonl or \.parquet"):
        _run(file, tiny_bundle, "--out", str(tmp_path / "out.csv"))
