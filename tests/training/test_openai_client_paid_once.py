"""Servers and clients that die, and answers that are never paid twice: a real server on loopback."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from client_makers import asked, generator, prompt, texts
from llm_server import answer_to
from llm_servers import LlmServer, free_port

from relevance.errors import InputError, RunError
from training.teacher import openai_client


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server without a key."""
    with LlmServer(tmp_path_factory.mktemp("server")) as server:
        yield server


def test_a_run_survives_the_death_and_return_of_its_server(tmp_path):
    """Killed after twenty answers and started again while requests go on: all answered, none paid that was stored."""
    path = tmp_path / "store.jsonl"
    with LlmServer(tmp_path, delay_s=0.01) as server:
        client = generator(server.url, path, concurrency=8, retries=8)
        found = {}
        for completion in client.complete(prompt(str(n), f"ok bag-{n}") for n in range(80)):
            found[completion.key] = completion
            if len(found) == 20:
                server.kill()
                stored = {json.loads(line)["text"] for line in path.read_text().splitlines()}
                server.spawn()
        rows = server.requests()

    assert [c.error for c in found.values()] == [None] * 80
    assert client.ledger.retries > 0
    counts = Counter(answer_to(row["asked"]["messages"][-1]["content"].split()[1], row["seed"]) for row in rows)
    assert len(counts) == 80
    assert {counts[text] for text in stored} == {1}


def test_a_server_that_is_gone_ends_the_run_with_the_way_to_resume(tmp_path):
    """Nobody listens: twenty prompts without an answer are enough, the other 480 are not tried."""
    read = []
    client = generator(f"http://127.0.0.1:{free_port()}/v1", tmp_path / "store.jsonl", retries=0, concurrency=4)

    with pytest.raises(
        RunError, match=r"20 requests in a row without one.*0 answers are kept in .*run the same command"
    ):
        texts(client.complete((read.append(n) or prompt(str(n), f"ok {n}")) for n in range(500)))

    assert len(read) <= openai_client.FAILURES_IN_A_ROW + 2 * 4


def test_refused_requests_are_no_sign_of_a_server_that_is_gone(server, tmp_path):
    """Forty prompts in a row that are too long, after one answer; the last prompt is answered all the same."""
    client = generator(server.url, tmp_path / "store.jsonl", concurrency=1)
    prompts = [prompt("first", "ok towel"), *(prompt(str(n), f"refuse 9 towel-{n}") for n in range(40))]

    found = {c.key: c.error for c in client.complete([*prompts, prompt("last", "ok towel-last")])}

    assert len(found) == 42
    assert found["first"] is found["last"] is None
    assert client.ledger.errors == {"status 400": 40}


def test_a_server_that_refuses_everything_ends_the_run(server, tmp_path):
    """As one that knows none of the settings does; nothing was ever answered."""
    client = generator(server.url, tmp_path / "store.jsonl", concurrency=1)

    with pytest.raises(RunError, match=r"20 requests in a row without one, the last: .*too many tokens"):
        list(client.complete(prompt(str(n), f"refuse 9 curtain-{n}") for n in range(500)))
    assert len(asked(server, "curtain")) == 20


def test_what_is_in_flight_when_a_run_ends_with_an_error_is_stored(tmp_path):
    """Two requests are on their way when the third prompt cannot be made: their answers are not paid for twice."""

    def prompts():
        yield prompt("a", "ok apron")
        yield prompt("b", "ok bib")
        raise InputError("no such pair")

    path = tmp_path / "store.jsonl"
    with LlmServer(tmp_path, delay_s=0.2) as server:
        client = generator(server.url, path, concurrency=3)
        with pytest.raises(InputError, match="no such pair"):
            texts(client.complete(prompts()))
    again = generator(server.url, path)

    assert set(texts(again.complete([prompt("a", "ok apron"), prompt("b", "ok bib")]))) == {("a", 0), ("b", 0)}
    assert (again.ledger.requests, again.ledger.stored) == (0, 2)


def test_another_policy_under_the_same_name_gives_answers_of_its_own(server, tmp_path):
    """A server's name stays when what it serves was trained again; the answers of the first are kept beside."""
    path = tmp_path / "store.jsonl"
    ledgers = []
    for identity in ("sft@1", "sft@2", "sft@1"):
        client = generator(server.url, path, identity=identity)
        list(client.complete([prompt("a", "ok glove")]))
        assert identity in client.name
        ledgers.append((client.ledger.requests, client.ledger.stored))

    assert ledgers == [(1, 0), (1, 0), (0, 1)]


def test_answers_in_other_files_are_found_and_not_paid_again(tmp_path):
    """Another shard's file, with a line that is still being written, and a file that is not there."""
    other, own = tmp_path / "other.jsonl", tmp_path / "own.jsonl"
    with LlmServer(tmp_path) as server:
        first = texts(generator(server.url, other).complete(prompt(str(n), f"ok vest-{n}") for n in range(3)))
        with other.open("ab") as file:
            file.write(b'{"key": "00')
        before = other.read_bytes()
        client = generator(server.url, own, known=(other, own, tmp_path / "none.jsonl"))
        list(client.complete([prompt("0", "ok vest-0")]))
        found = texts(client.complete(prompt(str(n), f"ok vest-{n}") for n in range(4)))

    assert {place: found[place] for place in first} == first
    assert (client.ledger.stored, client.ledger.answers) == (4, 1)
    assert other.read_bytes() == before
    assert own.read_text().count("\n") == 1


CLIENT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_openai_client import generator, prompt
client = generator(sys.argv[1], Path(sys.argv[2]), concurrency=4)
for _ in client.complete(prompt(str(n), f"ok sock-{n}", samples=2) for n in range(100)):
    pass
"""


def test_after_the_client_was_killed_only_what_is_missing_is_asked(tmp_path):
    """SIGKILL amid 200 requests, four in flight; what the store held is never asked again, half a line is no answer."""
    path = tmp_path / "store.jsonl"
    with LlmServer(tmp_path, delay_s=0.02) as server:
        command = [sys.executable, "-c", CLIENT, server.url, str(path), str(Path(__file__).parent)]
        process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
        give_up = time.monotonic() + 60
        while not path.is_file() or path.read_bytes().count(b"\n") < 40:
            assert time.monotonic() < give_up, "waited for in vain"
            assert process.poll() is None
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        before = path.read_bytes()
        stored = [json.loads(line)["text"] for line in before.split(b"\n")[:-1]]
        with path.open("ab") as file:
            file.write(b'{"key": "00ff')
        client = generator(server.url, path, concurrency=4)
        found = texts(client.complete(prompt(str(n), f"ok sock-{n}", samples=2) for n in range(100)))
        rows = server.requests()

    assert 40 <= len(stored) < 200
    assert client.ledger.answers == 200 - len(stored)
    counts = Counter(answer_to(row["asked"]["messages"][-1]["content"].split()[1], row["seed"]) for row in rows)
    assert set(counts) == set(found.values())
    assert {counts[text] for text in stored} == {1}
    assert len(rows) <= 200 + 4
    assert len({json.loads(line)["key"] for line in path.read_bytes().splitlines()}) == 200
