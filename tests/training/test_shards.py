"""Shards and Ray give the rows of a single process."""

import json
import shutil
import sys
import warnings
from pathlib import Path

import pytest
from fake_teacher import FakeTeacher, KilledError, drawn
from llm_servers import LlmServer
from test_collect import asking, make_run

from relevance.errors import InputError, RunError
from training.teacher import samples as samples_module
from training.teacher.collect import KEPT, OPTIONS, REPORT, SAMPLES, SHARDS, answer_shard, generate, main
from training.teacher.shards import LOCAL, Shard

FILES = (SAMPLES, KEPT, REPORT)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_pairs):
    """The files of a run that one process made."""
    path = tmp_path_factory.mktemp("whole")
    generate(make_run(path, tiny_pairs), make=asking(FakeTeacher(drawn)))
    return {name: (path / "generate" / name).read_bytes() for name in FILES}


def test_shards_are_unbroken_ranges_of_nearly_equal_size():
    """Joined in order they are the rows, for any number of rows and shards."""
    for rows in (range(0), range(1), range(7), range(100)):
        for count in (1, 2, 3, 8):
            parts = [Shard(number, count).of(rows) for number in range(1, count + 1)]

            assert list(rows) == [row for part in parts for row in part]
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "a/b", "-1/2", "1/2/3", ""])
def test_a_shard_that_is_none_is_refused(text):
    """The message shows what was given."""
    with pytest.raises(InputError, match=r"--shard: expected i/n with 1 ≤ i ≤ n"):
        Shard.parse(text)


@pytest.mark.parametrize("count", [2, 5])
def test_shards_in_any_order_give_the_same_bytes_as_one_process(tiny_pairs, tmp_path, whole, count):
    """And the call that joins them asks nothing."""
    run = make_run(tmp_path, tiny_pairs)
    for number in reversed(range(1, count + 1)):
        answer_shard(run, Shard(number, count), make=asking(FakeTeacher(drawn)))
    teacher = FakeTeacher(drawn)
    generate(run, make=asking(teacher))

    assert teacher.asked == []
    assert whole == {name: (tmp_path / "generate" / name).read_bytes() for name in FILES}


def test_a_finished_shard_is_not_asked_again_and_a_killed_one_goes_on(tiny_pairs, tmp_path, whole, monkeypatch):
    """What the killed shard had written is not asked again either."""
    monkeypatch.setattr(samples_module, "_ANSWERS_AT_ONCE", 60)
    run = make_run(tmp_path, tiny_pairs)
    answer_shard(run, Shard(1, 2), make=asking(FakeTeacher(drawn)))
    with pytest.raises(KilledError):
        answer_shard(run, Shard(2, 2), make=asking(FakeTeacher(drawn, dies_after=200)))
    finished, again, unbroken = FakeTeacher(drawn), FakeTeacher(drawn), FakeTeacher(drawn)
    answer_shard(run, Shard(1, 2), make=asking(finished))
    answer_shard(run, Shard(2, 2), make=asking(again))
    answer_shard(make_run(tmp_path / "other", tiny_pairs), Shard(2, 2), make=asking(unbroken))
    generate(run, make=asking(FakeTeacher(drawn, dies_after=0)))

    assert finished.asked == []
    assert 0 < len(again.asked) < len(unbroken.asked)
    assert whole == {name: (tmp_path / "generate" / name).read_bytes() for name in FILES}


def test_joining_names_the_shards_that_are_missing(tiny_pairs, tmp_path):
    """Nothing is asked in their place: two processes could be paying for the same answers."""
    run = make_run(tmp_path, tiny_pairs)
    for number in (1, 3):
        answer_shard(run, Shard(number, 4), make=asking(FakeTeacher(drawn)))

    with pytest.raises(RunError, match=r"found these unfinished: 2/4, 4/4"):
        generate(run, make=asking(FakeTeacher(drawn, dies_after=0)))


def test_shards_of_another_recipe_are_left_aside(tiny_pairs, tmp_path, whole):
    """They are not joined, and not deleted."""
    answer_shard(make_run(tmp_path, tiny_pairs, generate={"samples": 1}), Shard(1, 1), make=asking(FakeTeacher(drawn)))
    answer_shard(make_run(tmp_path, tiny_pairs, generate={"samples": 2}), Shard(1, 2), make=asking(FakeTeacher(drawn)))
    generate(make_run(tmp_path, tiny_pairs), make=asking(FakeTeacher(drawn)))

    assert whole == {name: (tmp_path / "generate" / name).read_bytes() for name in FILES}
    assert (tmp_path / SHARDS / "shard-1-of-2" / SAMPLES).is_file()


def test_the_manifest_of_a_shard_says_what_it_was_made_from(tiny_pairs, tmp_path):
    """Pairs, prompt, sampling and shard, by hash or by value; never the address of a server or the name of its key."""
    answer_shard(make_run(tmp_path, tiny_pairs), Shard(1, 2), make=asking(FakeTeacher(drawn)))
    manifest = json.loads((tmp_path / SHARDS / "shard-1-of-2" / "inputs.json").read_text())["inputs"]

    assert manifest["shard"] == "shard-1-of-2"
    assert len(manifest["files"]["pairs.train.parquet"]) == len(manifest["prompt"]) == 64
    assert not {"base_url", "key_variable"} & manifest["sampling"].keys()


def test_options_stand_beside_those_of_every_stage(tmp_path, capsys):
    """`--shard` is read and checked before anything is asked, and `--help` shows it."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('name = "t"\n[data]\nsource = "pairs"\npath = "unused.jsonl"\n')
    arguments = ["--recipe", str(recipe), "--out", str(tmp_path / "run")]

    assert Shard(2, 3) == OPTIONS.parse_known_args([*arguments, "--shard", "2/3"])[0].shard
    with pytest.raises(RunError, match="expected a finished stage"):
        main([*arguments, "--shard", "2/3"])
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--shard i/n" in capsys.readouterr().out


def test_a_local_ray_gives_the_rows_of_one_process(tiny_pairs, tmp_path, whole, monkeypatch):
    """The stage's files are the same bytes, and Ray is gone afterwards."""
    ray = pytest.importorskip("ray", reason="the extra 'scale' is not installed")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    run = make_run(tmp_path, tiny_pairs)
    with warnings.catch_warnings():
        # Ray leaves sockets and files of its own processes to the collector, and warns of its own deprecations.
        warnings.simplefilter("ignore")
        generate(run, ray=LOCAL, make=asking(FakeTeacher(drawn)))

    assert whole == {name: (tmp_path / "generate" / name).read_bytes() for name in FILES}
    assert not ray.is_initialized()


def test_what_was_paid_for_in_shards_is_not_paid_again_in_another_number_of_them(tiny_pairs, tmp_path):
    """One of eight shards has been asked; the folder that the message names is removed, and all pairs are asked."""
    with LlmServer(tmp_path) as server:
        sampling = {"kind": "openai", "model": "m", "base_url": server.url, "retries": 0, "concurrency": 8}
        run = make_run(tmp_path, tiny_pairs[:40], sampling=sampling, generate={"samples": 1})
        answer_shard(run, Shard(1, 8))
        with pytest.raises(
            RunError, match=r"generate_shards: .*or remove this folder .*answers are kept in .*/answers"
        ):
            generate(run)
        before = len(server.requests())
        shutil.rmtree(tmp_path / SHARDS)
        generate(run)
        asked = [json.dumps(row["asked"]["messages"]) for row in server.requests()]
    ledger = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    stored = [row["stored"] for row in ledger if "stored" in row]

    assert before > 0
    assert stored == [0, before]
    assert len(asked) == len(set(asked)) > before


def test_without_ray_the_option_says_what_to_install(tiny_pairs, tmp_path, monkeypatch):
    """An import that is blocked stands for a missing package."""
    monkeypatch.setitem(sys.modules, "ray", None)

    with pytest.raises(InputError, match=r"pip install 'relevance-tiers\[scale\]'"):
        generate(make_run(tmp_path, tiny_pairs), ray=LOCAL, make=asking(FakeTeacher(drawn)))
