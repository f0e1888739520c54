"""The servers that are compared: how each is installed, started, asked, and what its answer holds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
from numpy.typing import NDArray

from benchmarks.load import Call, rerank_call, score_call
from benchmarks.peers.weights import Weights
from benchmarks.servers import START_TIMEOUT_S, Server, ServerProcess, free_port

HERE = Path(__file__).parent
OURS = ("ours_fp32", "ours_int8")
PEERS = ("infinity_torch", "infinity_onnx", "cross_encoder")
WITHOUT_SEGMENTS = ("infinity_onnx",)
"""Peers that leave token types out, so that a pair reads as one text: their scores differ by design."""
_MAX_ITEMS = {"infinity_torch": 2048, "infinity_onnx": 2048}
_ENGINES = {"infinity_torch": "torch", "infinity_onnx": "optimum"}
_STOP_TIMEOUT_S = 5.0
"""A peer that is still busy with what nobody waits for any more is killed."""


@dataclass(frozen=True, slots=True)
class Running:
    """A started server.

    Args: process: of either kind; ours: the same server if it is ours, for its metrics; ready_s: from the start of the
        process to the first scored pair.
    """

    process: ServerProcess
    ours: Server | None
    ready_s: float


@dataclass(frozen=True, slots=True)
class Arm:
    """One server of the comparison.

    Args: name: one of `OURS` or `PEERS`; weights: what it serves; python: interpreter of a peer's environment; home:
        folder for a peer's caches; cores: that it may use; cached: ours with its pair cache.
    """

    name: str
    weights: Weights
    python: Path
    home: Path
    cores: int
    cached: bool = False

    @contextmanager
    def started(self) -> Iterator[Running]:
        """Start the server, wait until it scores, stop it after."""
        ours = self._ours() if self.name in OURS else None
        process = self._peer() if ours is None else ours.served
        with process:
            self.scores(process.port, "steel kettle", ["steel kettle"])
            yield Running(process, ours, process.age_s)

    def calls(
        self, query: str, titles: Sequence[str], *, deadline_s: float | None = None, told: bool = False
    ) -> list[Call]:
        """Prepare one request: one call, or several where the server takes fewer items.

        Args: deadline_s: held against the answer; told: to a server that takes one, which is ours.
        """
        if self.name in OURS:
            call = score_call(query, titles, deadline_s=deadline_s if told else None)
            return [replace(call, deadline_s=deadline_s)]
        most = _MAX_ITEMS.get(self.name, len(titles))
        parts = [titles[start : start + most] for start in range(0, len(titles), most)]
        return [rerank_call(query, part, deadline_s=deadline_s) for part in parts]

    def scores(self, port: int, query: str, titles: Sequence[str]) -> NDArray[np.float64]:
        """Give the score of each title, in their order.

        Raises: SystemExit: if an answer does not hold every title once.
        """
        (call,) = self.calls(query, titles)
        path, body = ("/score" if self.name in OURS else "/rerank"), call.payload.partition(b"\r\n\r\n")[2]
        request = Request(f"http://127.0.0.1:{port}{path}", body, {"Content-Type": "application/json"})
        with urlopen(request, timeout=START_TIMEOUT_S) as answer:
            rows: list[dict[str, Any]] = json.load(answer)["results"]
        found = {int(row["index"]): float(row["score" if self.name in OURS else "relevance_score"]) for row in rows}
        if sorted(found) != list(range(len(titles))) or len(rows) != len(titles):
            raise SystemExit(f"{self.name}: expected a score for each of {len(titles)} items, found {len(rows)}")
        return np.array([found[i] for i in range(len(titles))])

    def _ours(self) -> Server:
        precision = self.name.removeprefix("ours_")
        if self.cached:
            return Server(self.weights.bundle, precision=precision)
        return Server(self.weights.bundle, precision=precision, pair_cache_bytes=0)

    def _peer(self) -> ServerProcess:
        port = free_port()
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("RELEVANCE_", "INFINITY_", "PYTHON"))}
        environment |= {"HF_HOME": str(self.home), "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
        environment |= {"OMP_NUM_THREADS": str(self.cores)}
        command, folder = _peer_command(self, port)
        return ServerProcess(
            command,
            port=port,
            environment=environment,
            folder=folder,
            ready="/health",
            stop_timeout_s=_STOP_TIMEOUT_S,
        )


def _peer_command(arm: Arm, port: int) -> tuple[list[str], Path]:
    """Give what starts a peer, and the folder it is started in.

    Infinity is given its model as the current folder: its ONNX engine passes the graph's path on as a file name, which
    optimum looks for inside the model folder.
    """
    if arm.name not in _ENGINES:
        server = HERE / "cross_encoder_server.py"
        options = ["--model", str(arm.weights.model), "--port", str(port), "--calls-at-once", str(arm.cores)]
        return [str(arm.python), str(server), *options], arm.home
    folder = arm.weights.onnx if arm.name == "infinity_onnx" else arm.weights.model
    options = ["--model-id", ".", "--served-model-name", "peers", "--engine", _ENGINES[arm.name], "--device", "cpu"]
    listening = ["--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"]
    return [str(arm.python.parent / "infinity_emb"), "v2", *options, *listening], folder


def environment(name: str, work: Path) -> Path:
    """Give the interpreter of a peer's own environment, installed unless it is there already.

    Args: work: kept between runs; up to 2 GB an environment.
    """
    pins = HERE / f"requirements-{name}.txt"
    folder = work / name
    stamp = folder / "installed.txt"
    python = folder / "bin" / "python"
    if not stamp.is_file() or stamp.read_bytes() != pins.read_bytes():
        shutil.rmtree(folder, ignore_errors=True)
        for command in (
            [sys.executable, "-m", "venv", str(folder)],
            [str(python), "-m", "pip", "install", "--quiet", "--requirement", str(pins)],
        ):
            subprocess.run(command, check=True, stdout=sys.stderr)
        stamp.write_bytes(pins.read_bytes())
    return python


def arms_of(
    names: Sequence[str], weights: Weights, work: Path, *, pythons: Mapping[str, Path], cores: int
) -> list[Arm]:
    """Give the servers of these names; environments are made here.

    Args: pythons: name → interpreter of a peer that needs no environment of its own.
    """
    home = work / "home"
    home.mkdir(parents=True, exist_ok=True)
    arms = []
    for name in names:
        python = Path(sys.executable)
        if name in PEERS:
            python = pythons[name] if name in pythons else environment(name, work / "environments")
        arms.append(Arm(name, weights, python, home, cores))
    return arms
