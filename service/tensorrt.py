"""TensorRT by onnxruntime: one engine a length, its options, and the folder that keeps built engines.

An engine is built for a range of shapes, and outside of it onnxruntime would build it anew, which takes minutes. Its
provider uses the first profile of an engine only, so each length has a session with an engine and a profile of its own;
batches are padded to the next of these lengths and cut to the rows that the profile allows.
"""

from __future__ import annotations

import ctypes
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import onnxruntime as ort

from relevance.errors import BundleError, SettingsError

log = logging.getLogger("relevance.service")
Opened = TypeVar("Opened")
LENGTHS = (32, 64, 128, 256)
MOST_TOKENS = 16_384
"""Rows × length of one engine's largest batch: more than a GPU needs to be busy, and memory for it is set aside."""
_ON = "True"
"""As its provider reads options from Python; `1` would be refused."""
_INFERENCE = "libnvinfer.so.10"
_PARSER = "libnvonnxparser.so.10"
_DRIVER = "libcuda.so.1"
_NAME_BYTES = 256
_MARK = ".writable"


@dataclass(frozen=True, slots=True)
class Profile:
    """The batches that one engine takes: 1 to `rows` pairs of exactly `length` tokens."""

    length: int
    rows: int


def profiles(max_pair_tokens: int) -> tuple[Profile, ...]:
    """Give the profiles of a bundle, shortest first; the last holds its longest pair."""
    lengths = [length for length in LENGTHS if length < max_pair_tokens]
    return tuple(Profile(length, max(1, MOST_TOKENS // length)) for length in (*lengths, max_pair_tokens))


def provider_options(inputs: Iterable[str], profile: Profile, folder: Path | None) -> dict[str, str]:
    """Give the options of onnxruntime's TensorRT provider for one engine.

    Args: inputs: names of the graph's, all of shape (pairs, tokens); folder: keeps engine and timings, None keeps none.
    """
    names = list(inputs)

    def shapes(rows: int) -> str:
        return ",".join(f"{name}:{rows}x{profile.length}" for name in names)

    options = {
        "trt_fp16_enable": _ON,
        "trt_layer_norm_fp32_fallback": _ON,
        "trt_profile_min_shapes": shapes(1),
        "trt_profile_opt_shapes": shapes(max(1, profile.rows // 2)),
        "trt_profile_max_shapes": shapes(profile.rows),
    }
    if folder is not None:
        options |= {
            "trt_engine_cache_enable": _ON,
            "trt_engine_cache_path": str(folder),
            "trt_timing_cache_enable": _ON,
            "trt_timing_cache_path": str(folder),
        }
    return options


def engine_folder(cache: Path, bundle_id: str, built_by: str, profile: Profile) -> Path:
    """Make and give the folder of one engine: it fits one graph, one build of the libraries, one GPU and one profile.

    Raises: SettingsError: if it cannot be written.
    """
    folder = cache / bundle_id / re.sub(r"[^\w.+-]+", "-", built_by) / f"{profile.rows}x{profile.length}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _MARK).touch()
    except OSError as error:
        raise SettingsError(f"engine_cache: expected a folder that can be written at {folder}: {error}") from error
    return folder


def open_kept(folder: Path | None, open_engine: Callable[[], Opened]) -> Opened:
    """Open an engine; where that fails on what its folder keeps, empty the folder and open it, so build it, once more.

    A process that was killed while it wrote leaves part of a file, which no later start could read.

    Args: folder: of this engine alone, None keeps none.
    Raises: BundleError: from the second try, or from the first if the folder kept nothing; SettingsError: if a file
        cannot be removed.
    """
    kept = [] if folder is None else [path for path in folder.iterdir() if path.is_file() and path.name != _MARK]
    try:
        return open_engine()
    except BundleError as error:
        if not kept:
            raise
        fields = {"folder": str(folder), "files": sorted(path.name for path in kept), "error": str(error)}
        log.warning("a kept TensorRT engine cannot be opened and is built anew", extra={"fields": fields})
    for path in kept:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise SettingsError(f"engine_cache: expected a file that can be removed at {path}: {error}") from error
    return open_engine()


def builder() -> str:
    """Name what an engine depends on beside graph and profile: onnxruntime, TensorRT and the GPU.

    Raises: SettingsError: naming the library or device that is missing.
    """
    inference = _library(_INFERENCE)
    _library(_PARSER)
    return f"onnxruntime-{ort.__version__}_tensorrt-{inference.getInferLibVersion()}_{_gpu_name()}"


def _gpu_name() -> str:
    driver = _library(_DRIVER)
    device = ctypes.c_int()
    name = ctypes.create_string_buffer(_NAME_BYTES)
    for status in (
        driver.cuInit(0),
        driver.cuDeviceGet(ctypes.byref(device), 0),
        driver.cuDeviceGetName(name, _NAME_BYTES, device),
    ):
        if status:
            raise SettingsError(f"provider 'tensorrt': expected a GPU that {_DRIVER} knows, found its error {status}")
    return name.value.decode()


def _library(name: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise SettingsError(f"provider 'tensorrt': expected the library {name}, found {error}") from error
