"""The session: one onnxruntime handle on one graph of a bundle. Suffixes: B pairs, L tokens, K classes."""

from __future__ import annotations

import io
import logging
import tempfile
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from relevance.bundle import CPU_ORDER, CUDA_ORDER, LATENT, TENSORRT_ORDER, Bundle, Precision, graph_file
from relevance.errors import BundleError, SettingsError
from relevance.tokenization import PairBatch
from service.latents import WEIGHTS_OUTPUT, Latents
from service.placement import CPU, TENSORRT, Placement, placement, watch
from service.tensorrt import Profile, builder, engine_folder, open_kept, profiles, provider_options

log = logging.getLogger("relevance.service")
Provider = Literal["cpu", "cuda", "tensorrt"]
_PROVIDERS = {"cpu": CPU, "cuda": "CUDAExecutionProvider", "tensorrt": TENSORRT}
ORDERS: dict[Provider, tuple[Precision, ...]] = {"cpu": CPU_ORDER, "cuda": CUDA_ORDER, "tensorrt": TENSORRT_ORDER}
"""The graphs that a provider serves unless another is named, best first."""
LOGITS = "logits"
LEAST_SHARE = 0.99
"""Of the graph's FLOPs on the provider asked for; a session with less is refused."""
_SAME_AS_REQUESTED = 1
_WATCHED_PAIRS, _WATCHED_TOKENS = 2, 8
"""Of the batch whose nodes are counted; no bundle reads fewer tokens."""


def check_runtime(provider: Provider) -> None:
    """Refuse a machine on which both onnxruntime builds are installed, or whose build lacks the provider.

    For a GPU it also loads the libraries of CUDA and cuDNN, which onnxruntime finds in NVIDIA's wheels only if asked.

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
    if provider != "cpu":
        _load_cuda()


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


def check_placement(placed: Placement, provider: Provider) -> None:
    """Refuse a session that runs, but too little of it where it was asked to.

    Raises: SettingsError: naming the share and the nodes of each provider.
    """
    share = placed.share(_PROVIDERS[provider])
    if not share >= LEAST_SHARE:
        raise SettingsError(
            f"provider {provider!r}: expected at least {LEAST_SHARE:.0%} of the graph's FLOPs on "
            f"{_PROVIDERS[provider]}, found {share:.1%}; nodes run: {placed.nodes}"
        )


@dataclass(frozen=True, slots=True)
class _Opened:
    """A session that was watched through its first batch; profile: the only batches it takes, None = any."""

    session: ort.InferenceSession
    placed: Placement
    profile: Profile | None = None


class OnnxSession:
    """One graph, loaded and ready to run; `run` may be called from any thread.

    The CPU arena grows by what is asked for, not by powers of two, and memory patterns are off, so that a long batch
    does not pin memory for ever. In an int8w graph the weights are folded to fp32 at load, never multiplied as int8.
    onnxruntime's own fallback is off: it would go on with another provider when one fails, at load or later.

    Args: bundle: opened and verified; precision: auto takes the first that passed its gate; threads: intra-op;
        engine_cache: folder for TensorRT's engines, None builds them each time.
    Raises: BundleError: if the precision is missing, failed its gate, or onnxruntime refuses the graph;
        SettingsError: if the provider is not available, or the session or too much of its work does not run on it.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        precision: Literal["auto"] | Precision,
        provider: Provider,
        threads: int,
        engine_cache: Path | None = None,
    ) -> None:
        self.precision = resolve(bundle, precision, provider)
        check_runtime(provider)
        self.provider = provider
        self.n_classes = bundle.scheme.n_classes
        self._bundle, self._threads = bundle, threads
        self._path = bundle.graph_path(self.precision)
        self._inputs = tuple(bundle.manifest.graphs[self.precision].inputs)
        if provider == "tensorrt":
            self._opened = self._open_profiles(engine_cache)
        else:
            self._opened = (self._open(_providers(provider)),)

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """The only shapes that batches are run in, shortest first; none where any shape is."""
        return tuple(opened.profile for opened in self._opened if opened.profile is not None)

    @property
    def flops_share(self) -> float:
        """The share of the graph's FLOPs that the provider asked for runs; the least over the profiles."""
        return min(opened.placed.share(_PROVIDERS[self.provider]) for opened in self._opened)

    @property
    def nodes(self) -> dict[str, int]:
        """Nodes run by each provider in a batch; a subgraph that TensorRT compiled is one."""
        return self._opened[0].placed.nodes

    @property
    def outputs(self) -> frozenset[str]:
        """The names of what the graph gives."""
        return frozenset(output.name for output in self._opened[0].session.get_outputs())

    def run(self, batch: PairBatch) -> NDArray[np.float32]:
        """Give the logits of a batch; float32 of shape (B, K)."""
        (logits_BK,) = self._run(batch, [LOGITS])
        return logits_BK

    def run_with_latents(self, batch: PairBatch) -> tuple[NDArray[np.float32], Latents]:
        """Give the same logits, and what the graph gives beside them; it must have the output `latent`."""
        names = [LOGITS, LATENT, *({WEIGHTS_OUTPUT} & self.outputs)]
        logits_BK, latent_BR, *weights = self._run(batch, names)
        weight_BL = weights[0] if weights else np.empty((len(logits_BK), 0), dtype=np.float32)
        return logits_BK, Latents(latent_BR, weight_BL)

    def _run(self, batch: PairBatch, names: list[str]) -> list[NDArray[np.float32]]:
        """Give the outputs of these names."""
        arrays = {name: batch.inputs()[name] for name in self._inputs}
        n, length = batch.input_ids_BL.shape
        opened = next(o for o in self._opened if o.profile is None or o.profile.length >= length)
        if opened.profile is None:
            return _run(opened.session, arrays, names)
        profile = opened.profile
        padded = {name: np.pad(array, ((0, 0), (0, profile.length - length))) for name, array in arrays.items()}
        cuts = range(0, n, profile.rows)
        parts = [{name: array[start : start + profile.rows] for name, array in padded.items()} for start in cuts]
        found = [_run(opened.session, part, names) for part in parts]
        return [np.concatenate(column) for column in zip(*found, strict=True)]

    def _open_profiles(self, engine_cache: Path | None) -> tuple[_Opened, ...]:
        """Open a session a profile; where no engine is kept that takes minutes, so the log tells how far it is."""
        built_by, bundle_id = builder(), self._bundle.manifest.bundle_id
        wanted = profiles(self._bundle.manifest.limits.max_pair_tokens)
        opened = []
        for number, profile in enumerate(wanted, start=1):
            fields: dict[str, Any] = {"engine": f"{number} of {len(wanted)}", "tokens": profile.length}
            log.info("opening a TensorRT engine", extra={"fields": {**fields, "rows": profile.rows}})
            began = perf_counter()
            folder = None if engine_cache is None else engine_folder(engine_cache, bundle_id, built_by, profile)
            chosen = [(TENSORRT, provider_options(self._inputs, profile, folder)), *_providers("cuda")]
            opened.append(open_kept(folder, partial(self._open, chosen, profile)))
            seconds = round(perf_counter() - began, 3)
            log.info("opened a TensorRT engine", extra={"fields": {**fields, "seconds": seconds}})
        return tuple(opened)

    def _open(self, chosen: list[tuple[str, dict[str, str]]], profile: Profile | None = None) -> _Opened:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.enable_mem_pattern = False
        options.log_severity_level = 3
        if self.precision == "int8w":
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        if self.provider == "cpu":
            _register_arena()
            options.add_session_config_entry("session.use_env_allocators", "1")
        with _own_folder() as folder:
            watch(options, folder)
            try:
                session = ort.InferenceSession(str(self._path), options, providers=chosen, enable_fallback=0)
            except Exception as error:
                raise BundleError(f"{self._path}: expected a graph that onnxruntime loads: {error}") from error
            check_session(session, self.provider)
            self._check_tensors(session)
            shape = (_WATCHED_PAIRS, _WATCHED_TOKENS)
            if profile is not None:
                shape = (min(_WATCHED_PAIRS, profile.rows), profile.length)
            ones = {name: np.full(shape, int(name == "attention_mask"), dtype=np.int64) for name in self._inputs}
            try:
                placed = placement(session, ones, self._path)
            except Exception as error:
                raise BundleError(f"{self._path}: expected a graph that runs a batch of {shape}: {error}") from error
        check_placement(placed, self.provider)
        return _Opened(session, placed, profile)

    def _check_tensors(self, session: ort.InferenceSession) -> None:
        found = {i.name for i in session.get_inputs()}
        if found != set(self._inputs) or LOGITS not in {o.name for o in session.get_outputs()}:
            raise BundleError(
                f"{self._path}: expected the inputs {sorted(self._inputs)} and the output {LOGITS!r}, found {found}"
            )


def _load_cuda() -> None:
    """Load CUDA from NVIDIA's wheels, else from the system; what cannot be found is logged, the session refuses it."""
    told = io.StringIO()
    with redirect_stdout(told):
        ort.preload_dlls()
    for line in told.getvalue().splitlines():
        log.warning("onnxruntime looked for a library of CUDA", extra={"fields": {"found": line}})


def _run(
    session: ort.InferenceSession, arrays: dict[str, NDArray[np.int64]], names: list[str]
) -> list[NDArray[np.float32]]:
    return [np.asarray(found, dtype=np.float32) for found in session.run(names, arrays)]


def _providers(provider: Literal["cpu", "cuda"]) -> list[tuple[str, dict[str, str]]]:
    """Give onnxruntime's providers in order: the one asked for, then the CPU for what it cannot run."""
    cuda = [(_PROVIDERS["cuda"], {"arena_extend_strategy": "kSameAsRequested"})] if provider == "cuda" else []
    return [*cuda, (CPU, {})]


def resolve(bundle: Bundle, precision: Literal["auto"] | Precision, provider: Provider) -> Precision:
    """Give the graph to run.

    Raises: BundleError: if the bundle has none that passed its gate; SettingsError: if the provider cannot read it.
    """
    if provider == "tensorrt":
        _check_unfused(bundle, precision)
        precision = "unfused"
    if precision == "auto":
        return bundle.choose_precision(ORDERS[provider])
    graph = bundle.manifest.graphs.get(precision)
    if graph is not None and not graph.gate.passed:
        raise BundleError(f"{bundle.path}: expected a graph that passed its gate, found {precision} which failed it")
    return precision


def _check_unfused(bundle: Bundle, precision: str) -> None:
    if precision not in ("auto", "unfused"):
        raise SettingsError(f"provider 'tensorrt': expected precision 'auto' or 'unfused', found {precision!r}")
    if "unfused" not in bundle.manifest.graphs:
        raise BundleError(
            f"{bundle.path}: provider 'tensorrt': expected {graph_file('unfused')}, found graphs "
            f"{sorted(bundle.manifest.graphs)}; export it: name 'unfused' in export.precisions and export.ship"
        )


def _own_folder() -> tempfile.TemporaryDirectory[str]:
    """Give a folder for the profile of the first batch; raises SettingsError: if no folder can be written to."""
    try:
        return tempfile.TemporaryDirectory(prefix="relevance-")
    except OSError as error:
        raise SettingsError(f"expected a folder for temporary files (TMPDIR or /tmp) to write to: {error}") from error


def _register_arena() -> None:
    info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(info, ort.OrtArenaCfg({"arena_extend_strategy": _SAME_AS_REQUESTED}))
