"""What scoring costs on a GPU: one BERT with and without each extractor, by three ways of running it; then `/score`.

The rows of the paper's Table 2 at its sizes with random weights: bert-base-multilingual alone and with the MLP, Poly
and GAT extractor, 100 pairs of 128 tokens. Every way is timed from token ids in memory to logits in memory, the models
of one way in turn, round after round, so that the ratio to BERT alone comes from neighbouring moments. The utilisation
is the model's matrix FLOPs over what a large square product reached just before. `/score` is timed on titles that the
service has never seen, for which the bound holds, and on titles whose tokens it keeps. What fails costs its own row
only; the report is written after each part. Ends with 1 if a bound is missed.
"""

from __future__ import annotations

import asyncio
import io
import os
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.gpu_models import QUICK, Device, Files, Run, Size, batch_of, make_files, open_graph, open_torch
from benchmarks.load import Call, connected, score_call
from benchmarks.measure import block_ratio, figure, options, p99, report_path, requests_of, write_report
from benchmarks.servers import Server
from benchmarks.two_layer import RandomModel, random_bundle
from relevance.bundle import open_bundle
from relevance.errors import RelevanceError
from service.placement import graph_flops
from service.session import OnnxSession, Provider

NOT_RUN = "not run"
NO_GPU = f"{NOT_RUN}: expected a GPU that torch can use, found none"
KINDS = {"none": "BERT", "mlp": "BERT + MLP", "poly": "BERT + Poly", "gat": "BERT + GAT"}
TORCH, ORT, TENSORRT = "torch fp32, eager mode", "onnxruntime fp16, fused graph", "TensorRT fp16, unfused graph"
WAYS = (TORCH, ORT, TENSORRT)
GPU_PROVIDERS: tuple[Provider, ...] = ("cuda", "tensorrt")
COLD, WARM = "cold titles", "warm titles"
BOUND_MS, BOUND_RATIO, BOUND_SCORE_MS = 5.0, 1.01, 40.0
BLOCK = 10
"""Rounds that are resampled as one for the ratio of 99th percentiles."""
WARM_UP = 20
"""Calls before those that are timed on cold titles."""
_ALONE = {True: "1", False: NOT_RUN}
"""Over BERT alone, where no ratio was measured: BERT alone itself, and a model without it."""
_REASON = 300
"""Characters kept of why a row was not run."""
_ONNXRUNTIME = tuple(
    kind
    for kind in vars(ort.capi.onnxruntime_pybind11_state).values()
    if isinstance(kind, type) and issubclass(kind, Exception)
)
FAILURES = (RelevanceError, RuntimeError, OSError, *_ONNXRUNTIME)
Made = TypeVar("Made")


def attempt(what: str, make: Callable[[], Made]) -> Made | str:
    """Give what is made, or `not run` with the reason, which is told too."""
    try:
        return make()
    except FAILURES as error:
        reason = f"{NOT_RUN}: {' '.join(str(error).split())[:_REASON]}"
        sys.stderr.write(f"{what}: {reason}\n")
        return reason


def measure_way(way: str, files: dict[str, Files], device: Device, size: Size, rounds: int) -> dict[str, Any]:
    """Time the models of one way in turn, BERT alone twice, and describe each; a model that fails is told why.

    Raises: any of FAILURES: if the way cannot be run here, or a model fails while it is timed.
    """
    provider: Provider | None = None if way == TORCH else "tensorrt" if way == TENSORRT else device.name
    if provider is not None:
        device.require(provider)
    inputs = batch_of(size)
    opened: dict[str, Run] = {}
    found: dict[str, Any] = {}

    def open_one(kind: str) -> dict[str, Any]:
        """Open a model, run it and describe it."""
        device.settle()
        before = device.used_bytes()
        if provider is None:
            run, share = open_torch(files[kind], device)
        else:
            run, share = open_graph(provider, files[kind], device, size)
        logits = [run(inputs) for _ in range(3)][-1]
        device.wait()
        opened[kind] = run
        return {"memory_mb": (device.used_bytes() - before) / 1e6, "flops_share": share, "logits": logits}

    for kind in KINDS:
        found[kind] = attempt(f"{KINDS[kind]}, {way}", lambda kind=kind: open_one(kind))
    ms = _time_in_turn(way, opened, inputs, rounds)
    blocks = {name: np.array_split(values, max(1, rounds // BLOCK)) for name, values in ms.items()}
    bound = None if way == TORCH else device.bound(BOUND_MS)
    for kind in opened:
        found[kind]["latency_ms_median"] = asdict(figure(ms[kind], at_most=bound))
        found[kind]["latency_ms_p99"] = asdict(figure(ms[kind], statistic=p99))
        if kind != "none" and "none" in opened:
            most = device.bound(BOUND_RATIO) if kind == "gat" else None
            found[kind]["over_bert_median"] = asdict(figure(ms[kind] / ms["none"], at_most=most))
            found[kind]["over_bert_p99"] = asdict(block_ratio(blocks[kind], blocks["none"]))
    if "none" in opened:
        found["aa_bert_over_bert"] = asdict(figure(ms["again"] / ms["none"]))
    return found


def _time_in_turn(
    way: str, opened: dict[str, Run], inputs: dict[str, NDArray[np.int64]], rounds: int
) -> dict[str, NDArray[np.float64]]:
    """Give the milliseconds of each model, and of BERT alone once more as `again`."""
    runs = opened | ({"again": opened["none"]} if "none" in opened else {})
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for number in tqdm(range(rounds), file=sys.stderr, desc=way):
        for name in runs if number % 2 else reversed(runs):
            began = perf_counter()
            runs[name](inputs)
            taken[name].append(1000 * (perf_counter() - began))
    return {name: np.array(values) for name, values in taken.items()}


def measure_rows(device: Device, size: Size, rounds: int, figures: dict[str, Any]) -> Iterator[None]:
    """Run every way that can run here, and add utilisation and how far its logits are from torch's; yields after each.

    Args: figures: filled as the ways are done.
    """
    half = torch.float16 if device.on_gpu else torch.float32
    rates = {"fp32": device.matrix_rate(size.matrix, torch.float32), "fp16": device.matrix_rate(size.matrix, half)}
    figures["matrix_tflops"] = {name: rate / 1e12 for name, rate in rates.items()}
    with tempfile.TemporaryDirectory() as name:
        files = {kind: make_files(kind, size, Path(name)) for kind in KINDS}
        flops = {k: size.pairs * graph_flops(f.unfused, batch_of(size, pairs=1)) for k, f in files.items()}
        figures["model_gflops"] = {k: f / 1e9 for k, f in flops.items()}
        expected: dict[str, NDArray[np.float32]] = {}
        for way in WAYS:
            found = attempt(way, lambda way=way: measure_way(way, files, device, size, rounds))
            rows: dict[str, Any] = dict.fromkeys(KINDS, found) if isinstance(found, str) else found
            for kind in KINDS:
                row = rows[kind]
                if isinstance(row, str):
                    continue
                logits = row.pop("logits")
                row["max_abs_difference"] = float(np.abs(logits - expected.setdefault(kind, logits)).max())
                seconds = row["latency_ms_median"]["value"] / 1000
                row["utilisation"] = flops[kind] / seconds / rates["fp32" if way == TORCH else "fp16"]
            figures["rows"][way] = rows
            for file in files.values():
                attempt(f"{way}, its memory given back", lambda file=file: file.student.to("cpu"))
            yield


def measure_score(arguments: Namespace, device: Device, size: Size, provider: Provider, titles: str) -> dict[str, Any]:
    """Time `/score` calls of many titles, one after the other, on a real server.

    Args: titles: COLD: nothing of a title is kept between calls; WARM: the tokens of all of them are kept.
    Raises: any of FAILURES: if it cannot be run here.
    """
    device.require(provider)
    if arguments.bundle is None:
        name = "quick-gpu" if arguments.quick else "bert-base-gpu"
        model = RandomModel(name, size.layers, size.width, size.heads, size.vocabulary, ("fp32", "fp16", "unfused"))
        arguments.bundle = random_bundle(arguments.work, model)
    cache = arguments.work / "engines"
    if provider == "tensorrt":
        # Building engines takes longer than a server is waited for: here they are built, there they are found.
        OnnxSession(open_bundle(arguments.bundle), precision="auto", provider="tensorrt", threads=1, engine_cache=cache)
    requests = requests_of(arguments.data, [size.titles] * (arguments.requests + WARM_UP))
    others, timed = ([score_call(*request) for request in part] for part in (requests[:WARM_UP], requests[WARM_UP:]))
    settings: dict[str, object] = {"item_cache_entries": 0} if titles == COLD else {}
    with Server(arguments.bundle, provider=provider, pair_cache_bytes=0, engine_cache=cache, **settings) as server:
        first = others if titles == COLD else [*others, *timed]
        ms = np.array(asyncio.run(_latencies(server.port, first, timed, f"/score, {provider}, {titles}")))
        described = server.description()
    bound = device.bound(BOUND_SCORE_MS) if titles == COLD else None
    return {
        "server": described,
        "latency_ms_median": asdict(figure(ms)),
        "latency_ms_p99": asdict(figure(ms, statistic=p99, at_most=bound)),
        "titles": size.titles,
    }


async def _latencies(port: int, first: list[Call], timed: list[Call], what: str) -> list[float]:
    """Make calls to warm up, then those to be timed; in milliseconds.

    Raises: RuntimeError: if one is not answered in full.
    """
    taken = []
    async with connected(port) as client:
        for number, call in enumerate(tqdm([*first, *timed], file=sys.stderr, desc=what)):
            reply = await client.call(call)
            if (reply.status, reply.scored) != (200, call.n_items):
                raise RuntimeError(f"expected {call.n_items} scored pairs, found {reply.status} and {reply.scored}")
            if number >= len(first):
                taken.append(1000 * reply.latency_s)
    return taken


def table(figures: dict[str, Any]) -> Iterator[str]:
    """Give the lines of a table, one a way and model, two a server."""
    yield "| | ms, median | ms, p99 | over BERT alone | utilisation | memory, MB |"
    yield "|---|---|---|---|---|---|"
    for way, rows in figures["rows"].items():
        for kind, label in KINDS.items():
            of = rows[kind]
            cells = [NOT_RUN] * 5
            if not isinstance(of, str):
                cells = [_cell(of["latency_ms_median"]), _cell(of["latency_ms_p99"])]
                cells += [
                    _cell(of["over_bert_median"], digits=3) if "over_bert_median" in of else _ALONE[kind == "none"]
                ]
                cells += [f"{of['utilisation']:.1%}", f"{of['memory_mb']:.0f}"]
            yield f"| {label}, {way} | {' | '.join(cells)} |"
    for provider, rows in figures["score"].items():
        for titles, of in rows.items():
            cells = [NOT_RUN] * 2
            if not isinstance(of, str):
                cells = [_cell(of["latency_ms_median"]), _cell(of["latency_ms_p99"])]
            yield f"| `/score` of {figures['size']['titles']:,} {titles}, {provider} | {' | '.join(cells)} | | | |"


def _cell(found: dict[str, Any], digits: int = 2) -> str:
    value, low, high = (f"{found[name]:.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def missed(figures: Any) -> bool:
    """Say whether any figure among these misses its bound."""
    if not isinstance(figures, dict):
        return False
    return figures.get("verdict") == "missed" or any(missed(value) for value in figures.values())


def main(argv: list[str]) -> int:
    """Measure and write results/gpu.json; without a GPU say so, and leave results that are there alone."""
    parser = options(__doc__, "gpu")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--requests", type=int, default=300, help="different calls of /score")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/benchmarks"), help="folder that keeps bundle and engines"
    )
    arguments = parser.parse_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    size = QUICK if arguments.quick else Size()
    if arguments.quick:
        arguments.rounds, arguments.requests = 4, 2
    device = Device(arguments.device)
    providers: tuple[Provider, ...] = GPU_PROVIDERS if device.on_gpu else ("cpu",)
    figures: dict[str, Any] = {
        "rows": {way: dict.fromkeys(KINDS, NOT_RUN) for way in WAYS},
        "score": {provider: dict.fromkeys((COLD, WARM), NOT_RUN) for provider in providers},
        "size": asdict(size),
    }
    if device.on_gpu and not torch.cuda.is_available():
        return _skip(arguments, argv, figures)
    figures |= {"rounds": arguments.rounds, "requests": arguments.requests}
    described = device.described()

    def keep() -> None:
        """Write what there is by now; shown at the end only."""
        with redirect_stdout(io.StringIO()):
            write_report(arguments, argv, server=described, figures=figures)

    for _ in measure_rows(device, size, arguments.rounds, figures):
        keep()
    for provider, rows in figures["score"].items():
        for titles in rows:
            what = f"/score, {provider}, {titles}"
            rows[titles] = attempt(what, lambda p=provider, t=titles: measure_score(arguments, device, size, p, t))
            keep()
    sys.stderr.write("\n".join(table(figures)) + "\n")
    write_report(arguments, argv, server=described, figures=figures)
    return 1 if missed(figures) and not arguments.quick else 0


def _skip(arguments: Namespace, argv: list[str], figures: dict[str, Any]) -> int:
    sys.stderr.write(f"gpu: {NO_GPU}\n")
    path = report_path(arguments)
    if path.exists():
        sys.stderr.write(f"{path} stays as it is\n")
        return 0
    for rows in (*figures["rows"].values(), *figures["score"].values()):
        rows |= dict.fromkeys(rows, NO_GPU)
    sys.stderr.write("\n".join(table(figures)) + "\n")
    write_report(arguments, argv, server={"device": NOT_RUN}, figures=figures)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
