"""The rerank dialects read by the real clients, each in an environment of its own.

CI asks those of IN_CI; `make contracts` asks all of them.
"""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from client_environments import CLIENTS as HERE
from client_environments import environment

CLIENTS = sorted(path.stem.removeprefix("with_") for path in HERE.glob("with_*.py"))
IN_CI = {"cohere", "langchain_cohere", "rerankers"}
ASK_ALL = "RELEVANCE_ALL_CLIENTS" in os.environ
KEY = "an-invented-key-0123456789"
QUERY = "red shoe"
DOCUMENTS = ["Blue kettle 2 l", "Red running shoe", "Red shoe laces, 2 pairs", "Garden chair"]


@pytest.fixture(scope="module")
def served(launch_shared, tmp_path_factory):
    """A server that asks for a key, and what it answers to a plain call: (index, score), best first."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(KEY)
    server = launch_shared(api_keys=str(keys))
    body = {"query": QUERY, "documents": DOCUMENTS}
    answer = server.client.post("/v1/rerank", json=body, headers={"X-API-Key": KEY}).json()
    return server, [(row["index"], row["relevance_score"]) for row in answer["results"]]


@pytest.fixture(scope="module")
def busy(launch_shared):
    """A server that admits one call at a time and whose engine does not come back soon."""
    server = launch_shared(faulty=True, max_queued_requests="1", hang_s="300")
    server.set_engine("slow:300")
    return server


def ask(name: str, server, busy=None) -> list[dict]:
    """Run a client's script against a server, and one that has no room, and give what it told."""
    environ = {**os.environ, "RERANK_KEY": KEY, "RERANK_CALL": json.dumps([QUERY, DOCUMENTS])}
    environ["RERANK_URL"] = str(server.client.base_url).rstrip("/")
    environ["RERANK_BUSY_URL"] = str(busy.client.base_url).rstrip("/") if busy else ""
    command = [str(environment(name)), str(HERE / f"with_{name}.py")]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_reads_our_ranking(served, name):
    """Unchanged but for the address, it gives our order and our scores."""
    if not (name in IN_CI or ASK_ALL):
        pytest.skip("asked by `make contracts`")
    server, expected = served
    told = ask(name, server)
    rankings = [entry for entry in told if "rows" in entry]

    assert rankings
    for ranking in rankings:
        n = 2 if ranking["name"] == "best two" else len(DOCUMENTS)
        assert [index for index, _ in ranking["rows"]] == [index for index, _ in expected[:n]], ranking["name"]
        assert [score for _, score in ranking["rows"]] == pytest.approx([score for _, score in expected[:n]], abs=1e-6)


@pytest.mark.timeout(600)
def test_coheres_client_turns_our_refusals_into_its_own_errors(served, busy, fresh_body):
    """No documents, a wrong key, no room: three types of its errors, each with our message in its body."""
    environment("cohere")
    held = busy.post_apart([fresh_body(1)])
    busy.wait_for("relevance_queue_requests", 1)
    refusals = [entry["refusal"].split(":")[0] for entry in ask("cohere", served[0], busy) if "refusal" in entry]

    assert not held[0].done()
    assert refusals == ["documents", "expected an API key as Authorization", "Overloaded"]


def test_every_client_has_its_requirements():
    """All pinned, so that no release of somebody else's breaks a build; none without a script."""
    assert {path.stem for path in HERE.glob("*.txt")} == set(CLIENTS)
    for path in HERE.glob("*.txt"):
        assert all("==" in line for line in path.read_text().splitlines()), path.name
