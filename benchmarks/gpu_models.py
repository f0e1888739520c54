"""What the GPU bench times: random models at the paper's sizes, each as a function from token ids to logits."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Literal

import numpy as np
import onnxruntime as ort
import psutil
import torch
from numpy.typing import NDArray

from export.onnx_graph import export_graph, fuse_graph
from export.precision import write_fp16
from relevance.errors import SettingsError
from relevance.labels import ESCI
from relevance.text import TextTemplate
from service.placement import placement, watch
from service.session import Provider, check_placement, check_runtime, check_session
from service.tensorrt import Profile, builder, provider_options
from training.student.encoder import load_encoder
from training.student.model import Student, StudentConfig
from training.student_recipe import EncoderRecipe, ExtractorRecipe

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
    titles: int = 1000


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

    def require(self, provider: Provider) -> None:
        """Refuse a provider of onnxruntime that cannot be had here.

        Raises: SettingsError: saying what is missing.
        """
        if provider == "tensorrt" and not self.on_gpu:
            raise SettingsError("provider 'tensorrt': expected a GPU, found that none is asked for")
        check_runtime(provider)
        if provider == "tensorrt":
            builder()

    def bound(self, at_most: float) -> float | None:
        """Give a bound where it holds: on a GPU."""
        return at_most if self.on_gpu else None

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


def open_graph(provider: Provider, files: Files, device: Device, size: Size) -> tuple[Run, float]:
    """Give a session as a function, and the share of its FLOPs that run where they should.

    Raises: SettingsError: where the service would refuse it too; onnxruntime's own errors.
    """
    graph = files.unfused if provider == "tensorrt" else files.fp16
    names = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
    profile = Profile(size.tokens, size.pairs)
    chosen: list[tuple[str, dict[str, str]]] = [("CPUExecutionProvider", {})]
    if device.on_gpu:
        chosen = [("CUDAExecutionProvider", {"arena_extend_strategy": "kSameAsRequested"}), *chosen]
    if provider == "tensorrt":
        chosen = [(names[provider], provider_options(batch_of(size), profile, None)), *chosen]
    session_options = ort.SessionOptions()
    session_options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        watch(session_options, folder)
        session = ort.InferenceSession(str(graph), session_options, providers=chosen, enable_fallback=0)
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
