"""What scoring costs on a GPU: one BERT with and without each extractor, by three ways of running it; then `/score`.

The rows of the paper's Table 2 at its sizes with random weights: bert-base-multilingual alone and with the MLP, Poly
and GAT extractor, 100 pairs of 128 tokens. Every way is timed from token ids in memory to logits in memory, the models
of one way in turn, round after round, so that the ratio to BERT alone comes from neighbouring moments. The utilisation
is the model's matrix FLOPs over what a large square product reached just before.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
import psutil
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.load import connected, score_call
from benchmarks.measure import block_ratio, figure, options, p99, requests_of, write_report
from benchmarks.servers import Server
from benchmarks.two_layer import RandomModel, random_bundle
from export.onnx_graph import export_graph, fuse_graph
from export.precision import write_fp16
from relevance.bundle import open_bundle
from relevance.errors import SettingsError
from relevance.labels import ESCI
from relevance.text import TextTemplate
from service.placement import graph_flops, placement, watch
from service.session import OnnxSession, Provider, check_placement, check_runtime, check_session
from service.tensorrt import Profile, builder, provider_options
from training.student.encoder import load_encoder
from training.student.model import Student, StudentConfig
from training.student_recipe import EncoderRecipe, ExtractorRecipe

NOT_RUN = "not run"
KINDS = {"none": "BERT", "mlp": "BERT + MLP", "poly": "BERT + Poly", "gat": "BERT + GAT"}
TORCH, ORT, TENSORRT = "torch fp32, eager mode", "onnxruntime fp16, fused graph", "TensorRT fp16, unfused graph"
WAYS = (TORCH, ORT, TENSORRT)
BOUND_MS, BOUND_RATIO, BOUND_SCORE_MS = 5.0, 1.01, 40.0
BLOCK = 10
"""Rounds that are resampled as one for the ratio of 99th percentiles."""
TITLES = 1000
Inputs = dict[str, NDArray[np.int64]]
Run = Callable[[Inputs], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Size:
    """What is measured: the encoder, the batch, and the matrix of the square product."""

    layers: int = 12
    width: int = 768
    heads: int = 12
    vocabulary: int = 105_879
    pairs: int = 100
    tokens: int = 128
    matrix: int = 8192
    titles: int = TITLES


QUICK = Size(layers=2, width=64, heads=4, vocabulary=30_522, pairs=4, tokens=16, matrix=128, titles=20)


@dataclass(frozen=True, slots=True)
class Files:
    """One model: in torch, as the graph of standard operators, and as the fused graph in half precision."""

    student: Student
    unfused: Path
    fp16: Path


class Device:
    """Where everything runs: `cuda`, or `cpu` to see that the program works."""

    def __init__(self, name: Literal["cpu", "cuda"]) -> None:
        self.name = name
        self.on_gpu = name == "cuda"
        if self.on_gpu:
            ort.preload_dlls()

    def require(self, provider: Provider) -> None:
        """Refuse a provider of onnxruntime that cannot be had here.

        Raises: SettingsError: saying what is missing.
        """
        if provider == "tensorrt" and not self.on_gpu:
            raise SettingsError("provider 'tensorrt': expected a GPU, found that none is asked for")
        check_runtime(provider)
        if provider == "tensorrt":
            builder()

    def used_bytes(self) -> int:
        """Give the memory in use: of the GPU, else of this process."""
        if not self.on_gpu:
            return int(psutil.Process().memory_info().rss)
        free, total = torch.cuda.mem_get_info()
        return int(total - free)

    def described(self) -> dict[str, str]:
        """Name device and libraries."""
        device = torch.cuda.get_device_name() if self.on_gpu else "cpu"
        return {"device": device, "torch": torch.__version__, "onnxruntime": ort.__version__}

    def matrix_rate(self, size: int, dtype: torch.dtype) -> float:
        """Give the FLOPs a second of a square product: the median of many, as long as a model runs."""
        left, right = (torch.randn(size, size, device=self.name).to(dtype) for _ in range(2))
        taken = []
        for _ in range(30):
            self.wait()
            began = perf_counter()
            left @ right
            self.wait()
            taken.append(perf_counter() - began)
        return 2 * size**3 / float(np.median(taken[5:]))

    def settle(self) -> None:
        """Give memory back that nothing uses, so that what a model takes can be seen."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()

    def wait(self) -> None:
        """Return when the GPU has nothing left to do."""
        if self.on_gpu:
            torch.cuda.synchronize()


def make_files(kind: str, size: Size, folder: Path) -> Files:
    """Write the graphs of a student with random weights."""
    torch.manual_seed(0)
    recipe = EncoderRecipe(name="scratch", layers=size.layers, width=size.width, heads=size.heads)
    encoder = load_encoder(recipe, size.vocabulary)
    config = StudentConfig(
        encoder=encoder.config.to_dict(),
        extractor=ExtractorRecipe(kind=kind),
        pooling="cls",
        scheme=ESCI.to_dict(),
        template=TextTemplate(),
        max_query_tokens=min(64, size.tokens - 8),
        max_pair_tokens=size.tokens,
    )
    student = Student(config, encoder).eval()
    unfused, fused, fp16 = (folder / f"{kind}.{name}.onnx" for name in ("unfused", "fused", "fp16"))
    export_graph(student, unfused)
    fuse_graph(unfused, fused, heads=size.heads, width=size.width)
    write_fp16(fused, fp16)
    fused.unlink()
    return Files(student, unfused, fp16)


def open_torch(files: Files, device: Device) -> tuple[Run, float]:
    """Give the torch student as a function; all of it runs where it is put."""
    student = files.student.to(device.name)

    def run(inputs: Inputs) -> NDArray[np.float32]:
        """Copy in, score, copy out."""
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(array).to(device.name) for name, array in inputs.items()}
            logits: NDArray[np.float32] = student(**tensors).logits_BK.float().cpu().numpy()
        return logits

    return run, 1.0


def open_graph(way: str, files: Files, device: Device, size: Size) -> tuple[Run, float]:
    """Give a session as a function, and the share of its FLOPs that run where they should.

    Raises: SettingsError: where the service would refuse it too.
    """
    provider: Provider = "tensorrt" if way == TENSORRT else device.name
    device.require(provider)
    graph = files.unfused if way == TENSORRT else files.fp16
    names = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
    profile = Profile(size.tokens, size.pairs)
    chosen: list[tuple[str, dict[str, str]]] = [("CPUExecutionProvider", {})]
    if device.on_gpu:
        chosen = [("CUDAExecutionProvider", {"arena_extend_strategy": "kSameAsRequested"}), *chosen]
    if way == TENSORRT:
        chosen = [(names[provider], provider_options(batch_of(size), profile, None)), *chosen]
    session_options = ort.SessionOptions()
    session_options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        watch(session_options, folder)
        try:
            session = ort.InferenceSession(str(graph), session_options, providers=chosen, enable_fallback=0)
        except Exception as error:
            raise SettingsError(f"{way}: expected a session, found {error}") from error
        check_session(session, provider)
        placed = placement(session, batch_of(size, pairs=1), graph)
    check_placement(placed, provider)

    def run(inputs: Inputs) -> NDArray[np.float32]:
        """Run the batch."""
        (logits,) = session.run(["logits"], inputs)
        return np.asarray(logits, dtype=np.float32)

    return run, placed.share(names[provider])


def batch_of(size: Size, pairs: int | None = None) -> Inputs:
    """Give random pairs without padding, as the paper's are."""
    shape = (pairs or size.pairs, size.tokens)
    segments = (np.arange(size.tokens) >= size.tokens // 4).astype(np.int64)
    return {
        "input_ids": np.random.default_rng(0).integers(999, size.vocabulary, shape),
        "attention_mask": np.ones(shape, dtype=np.int64),
        "token_type_ids": segments[None, :].repeat(shape[0], 0),
    }


def measure_way(way: str, files: dict[str, Files], device: Device, size: Size, rounds: int) -> dict[str, Any]:
    """Time the models of one way in turn, BERT alone twice, and describe each."""
    inputs = batch_of(size)
    opened: dict[str, Run] = {}
    facts: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        device.settle()
        before = device.used_bytes()
        if way == TORCH:
            opened[kind], share = open_torch(files[kind], device)
        else:
            opened[kind], share = open_graph(way, files[kind], device, size)
        logits = [opened[kind](inputs) for _ in range(3)][-1]
        device.wait()
        facts[kind] = {"memory_mb": (device.used_bytes() - before) / 1e6, "flops_share": share, "logits": logits}
    taken: dict[str, list[float]] = {name: [] for name in (*KINDS, "again")}
    for number in tqdm(range(rounds), file=sys.stderr, desc=way):
        for name in taken if number % 2 else reversed(taken):
            began = perf_counter()
            opened["none" if name == "again" else name](inputs)
            taken[name].append(1000 * (perf_counter() - began))
    ms = {name: np.array(values) for name, values in taken.items()}
    blocks = {name: np.array_split(values, max(1, rounds // BLOCK)) for name, values in ms.items()}
    found = {}
    for kind in KINDS:
        found[kind] = facts[kind] | {
            "latency_ms_median": asdict(figure(ms[kind], at_most=None if way == TORCH else BOUND_MS)),
            "latency_ms_p99": asdict(figure(ms[kind], statistic=p99)),
        }
        if kind != "none":
            bound = BOUND_RATIO if kind == "gat" else None
            found[kind]["over_bert_median"] = asdict(figure(ms[kind] / ms["none"], at_most=bound))
            found[kind]["over_bert_p99"] = asdict(block_ratio(blocks[kind], blocks["none"]))
    return found | {"aa_bert_over_bert": asdict(figure(ms["again"] / ms["none"]))}


def measure_rows(device: Device, size: Size, rounds: int) -> dict[str, Any]:
    """Run every way that can run here; add utilisation, and how far its logits are from torch's."""
    half = torch.float16 if device.on_gpu else torch.float32
    rates = {"fp32": device.matrix_rate(size.matrix, torch.float32), "fp16": device.matrix_rate(size.matrix, half)}
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        files = {kind: make_files(kind, size, Path(name)) for kind in KINDS}
        flops = {k: size.pairs * graph_flops(f.unfused, batch_of(size, pairs=1)) for k, f in files.items()}
        expected: dict[str, NDArray[np.float32]] = {}
        for way in WAYS:
            try:
                rows[way] = measure_way(way, files, device, size, rounds)
            except SettingsError as error:
                sys.stderr.write(f"{way}: {NOT_RUN}: {error}\n")
                rows[way] = NOT_RUN
                continue
            for kind in KINDS:
                row = rows[way][kind]
                logits = row.pop("logits")
                row["max_abs_difference"] = float(np.abs(logits - expected.setdefault(kind, logits)).max())
                seconds = row["latency_ms_median"]["value"] / 1000
                row["utilisation"] = flops[kind] / seconds / rates["fp32" if way == TORCH else "fp16"]
            for file in files.values():
                file.student.to("cpu")
    rates_tflops = {name: rate / 1e12 for name, rate in rates.items()}
    return {"rows": rows, "matrix_tflops": rates_tflops, "model_gflops": {k: f / 1e9 for k, f in flops.items()}}


def measure_score(arguments: Namespace, device: Device, size: Size, provider: Provider) -> Any:
    """Time `/score` calls of many titles, one after the other, on a real server; gives figures or `not run`."""
    try:
        device.require(provider)
    except SettingsError as error:
        sys.stderr.write(f"/score by {provider}: {NOT_RUN}: {error}\n")
        return NOT_RUN
    cache = arguments.work / "engines"
    if provider == "tensorrt":
        # Building engines takes longer than a server is waited for: here they are built, there they are found.
        OnnxSession(open_bundle(arguments.bundle), precision="auto", provider="tensorrt", threads=1, engine_cache=cache)
    requests = requests_of(arguments.data, [size.titles] * arguments.requests)
    calls = [score_call(query, titles) for query, titles in requests]

    async def latencies(port: int) -> list[float]:
        """Make every call once to warm up, then once to be timed; in milliseconds."""
        taken = []
        async with connected(port) as client:
            for number, call in enumerate(tqdm([*calls, *calls], file=sys.stderr, desc=f"/score {provider}")):
                reply = await client.call(call)
                if (reply.status, reply.scored) != (200, size.titles):
                    raise SystemExit(f"expected {size.titles} scored pairs, found {reply.status} and {reply.scored}")
                if number >= len(calls):
                    taken.append(1000 * reply.latency_s)
        return taken

    with Server(arguments.bundle, provider=provider, pair_cache_bytes=0, engine_cache=cache) as server:
        ms = np.array(asyncio.run(latencies(server.port)))
        described = server.description()
    return {
        "server": described,
        "latency_ms_median": asdict(figure(ms)),
        "latency_ms_p99": asdict(figure(ms, statistic=p99, at_most=BOUND_SCORE_MS)),
        "titles": size.titles,
    }


def table(figures: dict[str, Any]) -> Iterator[str]:
    """Give the lines of a table, one a way and model, one a server."""
    yield "| | ms, median | ms, p99 | over BERT alone | utilisation | memory, MB |"
    yield "|---|---|---|---|---|---|"
    for way, row in figures["rows"].items():
        for kind, label in KINDS.items():
            cells = [NOT_RUN] * 5
            if row != NOT_RUN:
                of = row[kind]
                cells = [_cell(of["latency_ms_median"]), _cell(of["latency_ms_p99"])]
                cells += [_cell(of["over_bert_median"], digits=3) if kind != "none" else "1"]
                cells += [f"{of['utilisation']:.1%}", f"{of['memory_mb']:.0f}"]
            yield f"| {label}, {way} | {' | '.join(cells)} |"
    for provider, row in figures["score"].items():
        cells = [NOT_RUN] * 2 if row == NOT_RUN else [_cell(row["latency_ms_median"]), _cell(row["latency_ms_p99"])]
        titles = TITLES if row == NOT_RUN else row["titles"]
        yield f"| `/score` of {titles:,} titles, {provider} | {' | '.join(cells)} | | | |"


def _cell(found: dict[str, Any], digits: int = 2) -> str:
    value, low, high = (f"{found[name]:.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


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
    if arguments.device == "cuda" and not torch.cuda.is_available():
        return _skip(arguments, argv)
    device = Device(arguments.device)
    figures = measure_rows(device, size, arguments.rounds)
    if arguments.bundle is None:
        name = "quick-gpu" if arguments.quick else "bert-base-gpu"
        precisions = ("fp32", "fp16", "unfused")
        model = RandomModel(name, size.layers, size.width, size.heads, size.vocabulary, precisions)
        arguments.bundle = random_bundle(arguments.work, model)
    providers: tuple[Provider, ...] = ("cuda", "tensorrt") if device.on_gpu else ("cpu",)
    figures |= {"score": {p: measure_score(arguments, device, size, p) for p in providers}}
    figures |= {"size": asdict(size), "rounds": arguments.rounds, "requests": arguments.requests}
    sys.stderr.write("\n".join(table(figures)) + "\n")
    write_report(arguments, argv, server=device.described(), figures=figures)
    return 0


def _skip(arguments: Namespace, argv: list[str]) -> int:
    sys.stderr.write("gpu: not run: expected a GPU that torch can use, found none\n")
    if arguments.out.exists():
        sys.stderr.write(f"{arguments.out} stays as it is\n")
        return 0
    figures = {"rows": dict.fromkeys(WAYS, NOT_RUN), "score": dict.fromkeys(("cuda", "tensorrt"), NOT_RUN)}
    sys.stderr.write("\n".join(table(figures)) + "\n")
    write_report(arguments, argv, server={"device": NOT_RUN}, figures=figures)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
