"""The bundle: the one directory that crosses from training to serving. No other module knows its file names."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from relevance.calibration import Calibrator
from relevance.errors import BundleError, BundleIntegrityError, BundleVersionError, LabelError
from relevance.labels import LabelScheme
from relevance.pairs import Item
from relevance.policy import TierPolicy
from relevance.prototypes import Prototypes
from relevance.text import TextTemplate
from relevance.tokenization import PairTokenizer

SCHEMA_VERSION = 1
Precision = Literal["fp32", "fp16", "int8w", "int8", "unfused"]
"""How a graph's weights are stored; `unfused` is fp32 in standard operators alone, which TensorRT reads."""
CPU_ORDER: tuple[Precision, ...] = ("int8", "int8w", "fp32")
CUDA_ORDER: tuple[Precision, ...] = ("fp16", "fp32")
TENSORRT_ORDER: tuple[Precision, ...] = ("unfused",)

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
TEMPLATE = "template.json"
CALIBRATION = "calibration.json"
POLICY = "policy.toml"
GOLDEN = "golden.jsonl"
BASELINE = "baseline.json"
CARD = "CARD.md"
PROTOTYPES = "rationales.npz"
"""Optional: typical rationales, for explanations; the graphs then give the latent too."""
LATENT = "latent"
"""Name of the graph output that the prototypes' maps take."""
_REQUIRED = (TOKENIZER, TEMPLATE, CALIBRATION, POLICY, GOLDEN, BASELINE, CARD)


def graph_file(precision: Precision) -> str:
    """Give the file name of a graph."""
    return f"model.{precision}.onnx"


class _Schema(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(_Schema):
    """Fingerprint of one bundle file."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class Gate(_Schema):
    """What a graph showed at export, and whether it may be served.

    Args: passed: all bounds held; batch_max_abs_difference: largest |Δlogit| of a pair alone, sorted and randomly
        batched; torch_max_abs_difference: against the torch student; the `_upper` ones are 95 % upper bounds against
        fp32, bootstrapped by query: share of tiers that differ, nDCG@10 loss, ECE rise; n_pairs: pairs compared.
    """

    passed: bool
    batch_max_abs_difference: float
    torch_max_abs_difference: float
    tier_flip_upper: float
    ndcg_loss_upper: float
    ece_rise_upper: float
    n_pairs: int


class Graph(_Schema):
    """One ONNX graph: tensor names and element types, the golden-pair tolerance and its gate."""

    inputs: dict[str, str]
    outputs: dict[str, str]
    tolerance: float = Field(gt=0)
    gate: Gate


class Limits(_Schema):
    """Token limits of a query and of a whole pair, specials included."""

    max_query_tokens: int = Field(ge=1)
    max_pair_tokens: int = Field(ge=8)


class Manifest(_Schema):
    """The bundle's self-description.

    Args: bundle_id: hash of all else in here, the file hashes included; scheme: a `LabelScheme`; locales: policy
        locale → supported, weak or unsupported; quality: figures on the test split; data_fingerprint: hash of the
        training pairs; licences: of weights and data.
    """

    schema_version: Literal[1] = 1
    bundle_id: str = ""
    model_id: str
    created: str
    commit: str
    scheme: dict[str, Any]
    graphs: dict[Precision, Graph] = Field(min_length=1)
    limits: Limits
    locales: dict[str, Literal["supported", "weak", "unsupported"]]
    quality: dict[str, float]
    data_fingerprint: str
    licences: dict[str, str]
    files: dict[str, FileEntry] = Field(default_factory=dict)

    def content_hash(self) -> str:
        """Give the bundle id that this manifest's content asks for."""
        content = self.model_dump(mode="json", exclude={"bundle_id"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


class GoldenPair(_Schema):
    """A pair of our own texts with frozen outputs: token ids (exact) and logits of each precision."""

    query: str
    locale: str | None = None
    title: str
    brand: str | None = None
    color: str | None = None
    text: str | None = None
    attributes: dict[str, str] = Field(default_factory=dict)
    input_ids: tuple[int, ...] = ()
    logits: dict[Precision, tuple[float, ...]] = Field(default_factory=dict)

    @property
    def item(self) -> Item:
        """The item of the pair."""
        return Item(self.title, brand=self.brand, color=self.color, text=self.text, attributes=self.attributes)


class Histogram(_Schema):
    """Counts between edges: `counts[i]` lies in [edges[i], edges[i + 1])."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


class LocaleBaseline(_Schema):
    """Reference distributions of one policy locale."""

    score: Histogram
    tier: tuple[int, ...]
    tokens: Histogram


class Baseline(_Schema):
    """Reference distributions per policy locale (`pooled` holds all rows): what drift is measured against."""

    locales: dict[str, LocaleBaseline]


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened, verified bundle; `prototypes` is None where it explains nothing."""

    path: Path
    manifest: Manifest
    scheme: LabelScheme
    template: TextTemplate
    tokenizer: PairTokenizer
    calibrator: Calibrator
    policy: TierPolicy
    golden: tuple[GoldenPair, ...]
    baseline: Baseline
    prototypes: Prototypes | None = None

    def graph_path(self, precision: Precision) -> Path:
        """Give the path of a graph.

        Raises: BundleError: if the bundle has no graph of this precision.
        """
        if precision not in self.manifest.graphs:
            raise BundleError(f"{self.path}: expected a graph of {sorted(self.manifest.graphs)}, found {precision!r}")
        return self.path / graph_file(precision)

    def choose_precision(self, order: tuple[Precision, ...]) -> Precision:
        """Give the first precision of an order that is present and passed its gate.

        Raises: BundleError: if there is none.
        """
        for precision in order:
            graph = self.manifest.graphs.get(precision)
            if graph is not None and graph.gate.passed:
                return precision
        raise BundleError(f"{self.path}: expected a graph of {order} that passed its gate, found none")


def open_bundle(path: Path, policy_path: Path | None = None) -> Bundle:
    """Read a bundle and verify every file of it before any is used.

    Args: policy_path: a policy.toml to use instead of the bundle's own.
    Raises: BundleVersionError: schema version unknown; BundleIntegrityError: a file is missing, truncated or edited;
        BundleError: a file contradicts the schema; PolicyError: the policy contradicts itself or the scheme.
    """
    manifest = _read_manifest(path)
    graphs = {graph_file(precision) for precision in manifest.graphs}
    contents = {name: _verified(path, name, entry, keep=name not in graphs) for name, entry in manifest.files.items()}
    expected = _expected_files(manifest, contents)
    if expected != set(contents):
        raise BundleIntegrityError(f"{path}: expected files {sorted(expected)}, manifest lists {sorted(contents)}")
    try:
        scheme = LabelScheme.from_dict(manifest.scheme)
        template = TextTemplate.model_validate_json(contents[TEMPLATE])
        calibrator = Calibrator.model_validate_json(contents[CALIBRATION])
        baseline = Baseline.model_validate_json(contents[BASELINE])
        golden = tuple(GoldenPair.model_validate_json(line) for line in contents[GOLDEN].splitlines() if line.strip())
    except (ValidationError, LabelError) as error:
        raise BundleError(f"{path}: {error}") from error
    if calibrator.n_classes != scheme.n_classes:
        raise BundleError(f"{path}: expected {scheme.n_classes} classes, calibrator has {calibrator.n_classes}")
    limits = manifest.limits
    return Bundle(
        path=path,
        manifest=manifest,
        scheme=scheme,
        template=template,
        tokenizer=PairTokenizer.from_bytes(
            contents[TOKENIZER],
            max_query_tokens=limits.max_query_tokens,
            max_pair_tokens=limits.max_pair_tokens,
        ),
        calibrator=calibrator,
        policy=TierPolicy.from_toml(policy_path.read_bytes() if policy_path else contents[POLICY], scheme),
        golden=golden,
        baseline=baseline,
        prototypes=_prototypes(path, manifest, contents, scheme),
    )


def write_bundle(path: Path, manifest: Manifest, files: Mapping[str, bytes | Path]) -> Manifest:
    """Write a bundle to a new directory: all files first, then the manifest, then one rename.

    Args: path: must not exist; manifest: without file entries and id; files: name → content, or a file to copy;
        `PROTOTYPES` may be among them.
    Returns: the manifest as written. Raises: BundleError: if the path exists or a required file is missing.
    """
    expected = _expected_files(manifest, files)
    if set(files) != expected:
        raise BundleError(f"expected the files {sorted(expected)}, found {sorted(files)}")
    if path.exists():
        raise BundleError(f"{path}: expected a path that does not exist yet")
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        entries = {}
        for name in sorted(files):
            content = files[name]
            data = content if isinstance(content, bytes) else content.read_bytes()
            (staging / name).write_bytes(data)
            entries[name] = FileEntry(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
        written = manifest.model_copy(update={"files": entries})
        written = written.model_copy(update={"bundle_id": written.content_hash()})
        (staging / MANIFEST).write_text(written.model_dump_json(indent=2) + "\n", encoding="utf-8")
        staging.chmod(0o755)
        os.replace(staging, path)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return written


def _read_manifest(path: Path) -> Manifest:
    file = path / MANIFEST
    try:
        raw = json.loads(file.read_bytes())
    except OSError as error:
        raise BundleIntegrityError(
            f"{path}: expected a bundle directory with a {MANIFEST}: {error.strerror}"
        ) from error
    except ValueError as error:
        raise BundleIntegrityError(f"{file}: expected JSON, the file is damaged: {error}") from error
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if version != SCHEMA_VERSION:
        raise BundleVersionError(
            f"{file}: expected schema_version {SCHEMA_VERSION}, found {version!r}; "
            "a newer bundle needs a newer relevance-tiers, an older one must be exported again"
        )
    try:
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        raise BundleIntegrityError(f"{file}: {error}") from error
    if manifest.bundle_id != manifest.content_hash():
        raise BundleIntegrityError(
            f"{file}: expected bundle_id {manifest.content_hash()}, found {manifest.bundle_id!r}; it was edited"
        )
    return manifest


def _expected_files(manifest: Manifest, found: Iterable[str]) -> set[str]:
    optional = {PROTOTYPES} & set(found)
    return {*_REQUIRED, *optional, *(graph_file(precision) for precision in manifest.graphs)}


def _prototypes(
    path: Path, manifest: Manifest, contents: Mapping[str, bytes], scheme: LabelScheme
) -> Prototypes | None:
    if PROTOTYPES not in contents:
        return None
    silent = sorted(precision for precision, graph in manifest.graphs.items() if LATENT not in graph.outputs)
    if silent:
        raise BundleError(
            f"{path}: expected graphs with output {LATENT!r} beside {PROTOTYPES}, found graphs {silent} without it"
        )
    return Prototypes.from_bytes(contents[PROTOTYPES], n_classes=scheme.n_classes)


def _verified(path: Path, name: str, entry: FileEntry, *, keep: bool) -> bytes:
    """Give a file's content once it is known to be the manifest's; of a graph, which may fill the memory, nothing."""
    if Path(name).name != name:
        raise BundleIntegrityError(f"{path}: expected a plain file name, found {name!r}")
    try:
        with (path / name).open("rb") as file:
            data = file.read() if keep else b""
            found = hashlib.sha256(data).hexdigest() if keep else hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
    except OSError as error:
        raise BundleIntegrityError(f"{path / name}: expected a file, {error.strerror}") from error
    if size != entry.size:
        raise BundleIntegrityError(f"{path / name}: expected {entry.size} bytes, found {size}; it was truncated")
    if found != entry.sha256:
        raise BundleIntegrityError(f"{path / name}: expected sha256 {entry.sha256}, found {found}; it was edited")
    return data
