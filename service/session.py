"""The session: one onnxruntime handle on one graph of a bundle. Suffixes: B pairs, L tokens, K classes."""

from __future__ import annotations

from importlib import metadata
from typing import Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from relevance.bundle import CPU_ORDER, CUDA_ORDER, Bundle, Precision
from relevance.errors import BundleError, SettingsError
from relevance.tokenization import PairBatch

Provider = Literal["cpu", "cuda"]
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_SAME_AS_REQUESTED = 1


def check_runtime(provider: Provider) -> None:
    """Refuse a machine on which both onnxruntime builds are installed, or whose build lacks the provider.

    Raises: SettingsError: naming the builds or providers found.
    """
    found = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    if len(found) > 1:
        raise SettingsError(f"expected one onnxruntime build, found {' and '.join(found)}; uninstall one of them")
    available = ort.get_available_providers()
    if _PROVIDERS[provider] not in available:
        raise SettingsError(f"provider {provider!r}: expected {_PROVIDERS[provider]} in this build, found {available}")


def check_session(session: ort.InferenceSession, provider: Provider) -> None:
    """Refuse a session that runs elsewhere: onnxruntime falls back to the CPU where a device or its libraries fail.

    Raises: SettingsError: naming the providers found.
    """
    found = session.get_providers()
    if found[:1] != [_PROVIDERS[provider]]:
        raise SettingsError(
            f"provider {provider!r}: expected a session on {_PROVIDERS[provider]}, found {found}; look for a missing "
            "device, driver or library"
        )


class OnnxSession:
    """One graph, loaded and ready to run; `run` may be called from any thread.

    The CPU arena grows by what is asked for, not by powers of two, and memory patterns are off, so that a long batch
    does not pin memory for ever. In an int8w graph the weights are folded to fp32 at load, never multiplied as int8.

    Args: bundle: opened and verified; precision: auto takes the first that passed its gate; threads: intra-op.
    Raises: BundleError: if the precision is missing, failed its gate, or onnxruntime refuses the graph;
        SettingsError: if the provider is not available or the session does not run on it.
    """

    def __init__(
        self, bundle: Bundle, *, precision: Literal["auto"] | Precision, provider: Provider, threads: int
    ) -> None:
        check_runtime(provider)
        self.precision = _resolve(bundle, precision, provider)
        self.provider = provider
        self.n_classes = bundle.scheme.n_classes
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.enable_mem_pattern = False
        options.log_severity_level = 3
        if self.precision == "int8w":
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        if provider == "cpu":
            _register_arena()
            options.add_session_config_entry("session.use_env_allocators", "1")
            chosen: list[tuple[str, dict[str, str]]] = [(_PROVIDERS["cpu"], {})]
        else:
            chosen = [(_PROVIDERS["cuda"], {"arena_extend_strategy": "kSameAsRequested"}), (_PROVIDERS["cpu"], {})]
        path = bundle.graph_path(self.precision)
        try:
            self._session = ort.InferenceSession(str(path), options, providers=chosen)
        except Exception as error:
            raise BundleError(f"{path}: expected a graph that onnxruntime loads: {error}") from error
        check_session(self._session, provider)
        expected = bundle.manifest.graphs[self.precision].inputs
        found = {i.name for i in self._session.get_inputs()}
        if found != set(expected) or "logits" not in {o.name for o in self._session.get_outputs()}:
            raise BundleError(f"{path}: expected the inputs {sorted(expected)} and the output 'logits', found {found}")
        self._inputs = tuple(found)

    def run(self, batch: PairBatch) -> NDArray[np.float32]:
        """Give the logits of a batch; float32 of shape (B, K)."""
        arrays = batch.inputs()
        (logits_BK,) = self._session.run(["logits"], {name: arrays[name] for name in self._inputs})
        out_BK: NDArray[np.float32] = np.asarray(logits_BK, dtype=np.float32)
        return out_BK


def _resolve(bundle: Bundle, precision: Literal["auto"] | Precision, provider: Provider) -> Precision:
    if precision == "auto":
        return bundle.choose_precision(CUDA_ORDER if provider == "cuda" else CPU_ORDER)
    graph = bundle.manifest.graphs.get(precision)
    if graph is not None and not graph.gate.passed:
        raise BundleError(f"{bundle.path}: expected a graph that passed its gate, found {precision} which failed it")
    return precision


def _register_arena() -> None:
    info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(info, ort.OrtArenaCfg({"arena_extend_strategy": _SAME_AS_REQUESTED}))
