"""Scoring a file on a local Ray cluster: the bytes of the single process, also after a kill; one cluster at a time."""

import json
import sys
import warnings
from pathlib import Path

import pytest

from relevance.errors import EngineError, InputError
from service.model import load_model
from service.ray_scoring import LOCAL, Cluster, score_over_ray
from service.score_file import Part, main
from service.score_group import policy_hash
from service.settings import Settings

QUERIES = 60


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """Sixty queries with one to forty items each, one of them over the query limit."""
    rows = [
        {"query": f"steel kettle {number}", "item_id": i, "title": f"kettle {i} " + "matte " * (i % 7), "locale": "us"}
        for number in range(QUERIES)
        for i in range(1 + 13 * number % 40)
    ]
    rows.insert(5, {"query": "kettle " * 400, "item_id": "long", "title": "kettle", "locale": "us"})
    path = tmp_path_factory.mktemp("ray") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(file: Path, bundle: Path, out: Path, *options: str) -> None:
    """Score the file, with one thread a scorer; bad rows are skipped."""
    common = ["--bundle", str(bundle), "--threads", "1", "--on-bad-row", "skip", "--out", str(out)]
    with warnings.catch_warnings():
        if options:
            warnings.simplefilter("ignore")
        assert main([str(file), *common, *options]) == 0


def test_a_cluster_goes_on_after_a_killed_single_process_and_ends_with_its_bytes(file, tiny_bundle, tmp_path, capsys):
    """Part of the file is there from a killed run; two workers do the rest, in order, the unscored rows included."""
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    run(file, tiny_bundle, whole)
    told = capsys.readouterr().err
    part = Part.beside(broken)
    lines = whole.read_bytes().splitlines(keepends=True)

    class KilledError(Exception):
        """Stands for the kill."""

    def kill(*_: object) -> None:
        raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.score_file._publish", kill)
        with pytest.raises(KilledError):
            run(file, tiny_bundle, broken)
    part.lines.write_bytes(b"".join(lines[:333]) + b'{"query_id":"half a li')
    capsys.readouterr()

    run(file, tiny_bundle, broken, "--ray", LOCAL, "--workers", "2")

    assert broken.read_bytes() == whole.read_bytes()
    assert len(lines) > 1000
    assert not part.lines.exists()
    assert f"{len(lines)} rows" in told
    assert f"{len(lines)} rows" in capsys.readouterr().err


def test_a_worker_that_cannot_load_the_callers_model_ends_the_run_in_one_line(tiny_bundle):
    """Here another policy is expected on the node than the one found there."""
    settings = Settings(bundle=tiny_bundle, threads=1, engines=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(EngineError, match=r"--ray: expected every worker to score.*policy") as failure:
            list(score_over_ray([[]], Cluster(LOCAL, 1), settings, policy="another"))
    assert "\n" not in str(failure.value)
    assert policy_hash(load_model(settings)) != "another"


def test_without_ray_the_message_says_what_to_install(file, tiny_bundle, tmp_path, monkeypatch):
    """The package is hidden from the import system."""
    monkeypatch.setitem(sys.modules, "ray", None)

    with pytest.raises(InputError, match=r"relevance-tiers\[scale\]"):
        run(file, tiny_bundle, tmp_path / "out.jsonl", "--ray", LOCAL)


@pytest.mark.parametrize(
    ("options", "expected"),
    [(["--workers", "2"], "--workers: expected --ray"), (["--ray", LOCAL, "--workers", "0"], "--workers: expected at")],
)
def test_workers_need_a_cluster_and_at_least_one(file, tiny_bundle, tmp_path, options, expected):
    """The message names the option."""
    with pytest.raises(InputError, match=expected):
        run(file, tiny_bundle, tmp_path / "out.jsonl", *options)
