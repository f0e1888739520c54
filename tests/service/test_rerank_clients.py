"""The rerank dialects read by the real clients, each in an environment of its own: they do not install together.

CI asks those that clients.toml says; `make contracts` asks all of them. Environments are kept between runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "clients"
ENVIRONMENTS = Path(__file__).parents[2] / ".venv-clients"
CLIENTS = tomllib.loads((HERE / "clients.toml").read_text(encoding="utf-8"))
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


def environment(name: str) -> Path:
    """Make a client's environment, or find the one made before, and give its interpreter."""
    requirements = CLIENTS[name]["requirements"]
    digest = hashlib.sha256(json.dumps([sys.version, requirements]).encode()).hexdigest()[:12]
    folder = ENVIRONMENTS / f"{name}-{digest}"
    python = folder / "bin" / "python"
    if not (folder / "whole").exists():
        venv.create(folder, with_pip=True, clear=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
        assert done.returncode == 0, done.stderr[-2000:]
        (folder / "whole").touch()
    return python


def ask(name: str, url: str) -> list[dict]:
    """Run a client's script against a server and give what it told."""
    environ = {**os.environ, "RERANK_URL": url, "RERANK_KEY": KEY, "RERANK_CALL": json.dumps([QUERY, DOCUMENTS])}
    command = [str(environment(name)), str(HERE / f"with_{name}.py")]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("name", sorted(CLIENTS))
def test_a_client_reads_our_ranking(served, name):
    """Unchanged but for the address, it gives our order and our scores, and turns our refusals into its own errors."""
    if not (CLIENTS[name]["ci"] or ASK_ALL):
        pytest.skip("asked by `make contracts`")
    server, expected = served
    told = ask(name, str(server.client.base_url).rstrip("/"))
    rankings = [entry for entry in told if "rows" in entry]

    assert rankings
    for ranking in rankings:
        n = 2 if ranking["name"] == "best two" else len(DOCUMENTS)
        assert [index for index, _ in ranking["rows"]] == [index for index, _ in expected[:n]], ranking["name"]
        assert [score for _, score in ranking["rows"]] == pytest.approx([score for _, score in expected[:n]], abs=1e-6)
    refusals = [entry["refusal"] for entry in told if "refusal" in entry]
    if name == "cohere":
        assert [refusal.split(":")[0] for refusal in refusals] == ["documents", "expected an API key as Authorization"]


def test_every_client_has_its_script():
    """No script without its requirements, none without its script."""
    assert {path.stem.removeprefix("with_") for path in HERE.glob("with_*.py")} == set(CLIENTS)
