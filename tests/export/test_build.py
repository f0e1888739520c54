"""The export stage, from a finished run to a bundle that opens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from export.build import main
from export.card import quality_figures, render_card
from export.golden import GOLDEN_PAIRS, read_golden_pairs
from export.parity import open_graph
from relevance.bundle import GOLDEN, open_bundle
from relevance.errors import BundleIntegrityError, InputError, ParityError, RecipeError, RunError
from relevance.labels import ESCI
from relevance.pairs import LabelledPair
from service.settings import DEFAULT_BUNDLE
from training.predictions import read_predictions, write_predictions

REPORT = {
    "split": "test",
    "confidence": 0.95,
    "primary": "without_exact_only",
    "views": {
        "without_exact_only": {
            "n_pairs": 90,
            "figures": {
                "accuracy": {"value": 0.5, "low": 0.4, "high": 0.6},
                "auc_exact": {"value": 0.7, "low": None, "high": None},
            },
        }
    },
    "locales": {"us": {"n_pairs": 30, "figures": {"accuracy": {"value": 0.55, "low": 0.3, "high": 0.8}}}},
}


def stage(run: Path, *overrides: str) -> int:
    """Start the export stage on a run directory."""
    extra = [part for override in overrides for part in ("--set", override)]
    return main(["--recipe", str(run / "recipe.toml"), "--out", str(run), *extra])


@pytest.fixture
def copied_run(tiny_run: Path, tmp_path: Path) -> Path:
    """The tiny run without its export."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("export")))


def test_the_bundle_opens_with_both_graphs(tiny_bundle: Path):
    """What the stage wrote passes its own verification, with names, types and limits as trained."""
    manifest = open_bundle(tiny_bundle).manifest

    assert {"fp32", "int8w"} == set(manifest.graphs)
    assert dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), "int64") == manifest.graphs["fp32"].inputs
    assert manifest.graphs["int8w"].outputs == {"logits": "float32"}
    assert (manifest.limits.max_query_tokens, manifest.limits.max_pair_tokens) == (32, 96)
    assert manifest.locales == {"us": "supported", "es": "supported"}
    assert ESCI.to_dict() == manifest.scheme


@pytest.mark.parametrize("name", ["model.int8w.onnx", "tokenizer.json", "policy.toml", "golden.jsonl", "manifest.json"])
def test_a_flipped_byte_is_refused(tiny_bundle: Path, tmp_path: Path, name: str):
    """One bit of one byte in the middle of any file."""
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)

    with pytest.raises(BundleIntegrityError):
        open_bundle(copy)


def test_a_finished_export_is_left_alone(tiny_run: Path, tiny_bundle: Path):
    """Started again with the same inputs, the stage changes no file."""
    before = (tiny_bundle / "manifest.json").stat().st_mtime_ns

    assert stage(tiny_run) == 0
    assert before == (tiny_bundle / "manifest.json").stat().st_mtime_ns


def test_golden_pairs_cover_the_hard_texts():
    """Four languages, brands that are empty, emoji, capitals, digits, fields and one item over any limit."""
    pairs = read_golden_pairs(GOLDEN_PAIRS)
    titles = [pair.title for pair in pairs]

    assert len(pairs) >= 40
    assert {"us", "es", "jp", "de", None} <= {pair.locale for pair in pairs}
    assert any(pair.brand == "" for pair in pairs)
    assert any(title.isupper() for title in titles)
    assert any("🏆" in title for title in titles)
    assert any("90°" in title for title in titles)
    assert max(map(len, titles)) > 600


def test_golden_pairs_are_of_lengths_that_each_engine_of_a_gpu_is_made_for():
    """As the shipped tokenizer counts them: some near 32, 64 and 128 tokens, where engines end, not just padded."""
    bundle = open_bundle(DEFAULT_BUNDLE)
    tokenizer, template = bundle.tokenizer, bundle.template
    lengths = [
        tokenizer.collate(
            [tokenizer.encode_query(template.query_text(pair.query))],
            tokenizer.encode_items([template.item_text(pair.item)]),
        ).input_ids_BL.shape[1]
        for pair in read_golden_pairs(GOLDEN_PAIRS)
    ]

    for least, most in ((24, 32), (48, 64), (96, 127), (128, 128)):
        assert [length for length in lengths if least <= length <= most]


def test_golden_logits_are_those_of_each_graph(tiny_bundle: Path):
    """Alone, each golden pair gives its frozen logits within the graph's tolerance; ids are exact, cut at the limit."""
    bundle = open_bundle(tiny_bundle)
    tokenizer, template = bundle.tokenizer, bundle.template
    for precision, graph in bundle.manifest.graphs.items():
        run = open_graph(bundle.graph_path(precision), precision)
        for pair in bundle.golden:
            query_ids = tokenizer.encode_query(template.query_text(pair.query))
            batch = tokenizer.collate([query_ids], tokenizer.encode_items([template.item_text(pair.item)]))

            assert pair.input_ids == tuple(batch.input_ids_BL[0].tolist())
            assert pair.logits[precision] == pytest.approx(run(batch)[0], abs=graph.tolerance)
    assert max(len(pair.input_ids) for pair in bundle.golden) == 96
    assert np.ptp([pair.logits["fp32"] for pair in bundle.golden], axis=0).min() > 0.1


def test_the_baseline_counts_every_pair_of_dev_and_cal(tiny_bundle: Path):
    """Of 75 queries two fifths are dev or cal: 180 pairs, 60 a locale, jp under no policy locale of its own."""
    locales = open_bundle(tiny_bundle).baseline.locales
    counts = {name: (sum(b.score.counts), sum(b.tier), sum(b.tokens.counts)) for name, b in locales.items()}

    assert counts == {"pooled": (180, 180, 180), "us": (60, 60, 60), "es": (60, 60, 60)}


def test_a_precision_that_fails_its_gate_is_reported_and_not_shipped(
    copied_run: Path, make_student, fit_student_head, tiny_pairs: list[LabelledPair]
):
    """Word and position embeddings that cancel in one dimension leave int8 no steps for the others."""
    student, tokenizer = make_student()
    with torch.no_grad():
        student.encoder.embeddings.word_embeddings.weight[:, 0] = 100
        student.encoder.embeddings.position_embeddings.weight[:, 0] = -100
    fit_student_head(student, tokenizer, tiny_pairs)
    student.save(copied_run / "student", tokenizer)

    assert stage(copied_run) == 0
    gates = json.loads((copied_run / "export" / "export.json").read_text())["gates"]
    assert (gates["fp32"]["passed"], gates["int8w"]["passed"]) == (True, False)
    assert {"fp32"} == set(open_bundle(copied_run / "export" / "bundle").manifest.graphs)
    with pytest.raises(ParityError, match=r"expected a graph of .* to ship that passes its gate"):
        stage(copied_run, 'export.ship=["int8w"]')


@pytest.mark.parametrize(
    ("made_by", "noted"),
    [("calibrate", {"predictions": "of another student"}), ("evaluate", {"files": {"policy": "another"}})],
)
def test_what_was_made_for_another_student_is_not_shipped_with_this_one(copied_run: Path, made_by: str, noted: dict):
    """The student was trained again alone: its calibrator, policy and report are the old one's."""
    folder = copied_run / made_by
    folder.mkdir(exist_ok=True)
    (folder / "DONE.json").write_text("{}")
    (folder / "report.json").write_text(json.dumps(REPORT))
    (folder / "inputs.json").write_text(json.dumps({"hash": "", "inputs": noted}))
    with pytest.raises(RunError, match=f"{made_by}: expected what was made of the present .*run `relevance {made_by}`"):
        stage(copied_run)


def test_a_written_card_and_own_golden_pairs_are_used(copied_run: Path, tmp_path: Path):
    """The recipe may name both; the report of an earlier evaluation gives the manifest's figures."""
    (tmp_path / "card.md").write_text("# Ours\n", encoding="utf-8")
    golden = "".join(GOLDEN_PAIRS.read_text(encoding="utf-8").splitlines(keepends=True)[:3])
    (tmp_path / "golden.jsonl").write_text(golden, encoding="utf-8")
    (copied_run / "evaluate").mkdir()
    (copied_run / "evaluate" / "report.json").write_text(json.dumps(REPORT), encoding="utf-8")
    (copied_run / "evaluate" / "DONE.json").write_text("{}", encoding="utf-8")
    stage(copied_run, f"export.card={tmp_path / 'card.md'}", f"export.golden={tmp_path / 'golden.jsonl'}")
    bundle = open_bundle(copied_run / "export" / "bundle")

    assert (bundle.path / "CARD.md").read_text(encoding="utf-8") == "# Ours\n"
    assert len((bundle.path / GOLDEN).read_bytes().splitlines()) == 3
    assert bundle.manifest.quality["accuracy"] == 0.5


def test_shipping_a_graph_that_is_not_made_is_an_error(copied_run: Path):
    """fp16 is not among the tiny recipe's precisions."""
    with pytest.raises(RecipeError, match=r"export.ship: expected graphs of export.precisions"):
        stage(copied_run, 'export.ship=["fp16"]')


def test_predictions_of_other_pairs_are_an_error(copied_run: Path):
    """One row of cal is missing from the predictions."""
    path = copied_run / "student" / "predictions.cal.parquet"
    predictions = read_predictions(path)
    write_predictions(path, predictions.rows(np.arange(len(predictions) - 1)))

    with pytest.raises(InputError, match=r"expected the predictions of 90 pairs in the order of pairs.cal.parquet"):
        stage(copied_run)


def test_an_unfinished_student_is_an_error(copied_run: Path):
    """A stage folder without its marker was killed half-way."""
    (copied_run / "student" / "DONE.json").unlink()

    with pytest.raises(RunError, match="expected a finished stage"):
        stage(copied_run)


def test_golden_pairs_with_an_unknown_field_are_an_error(tmp_path: Path):
    """The row is named by its content, the file by its path."""
    (tmp_path / "golden.jsonl").write_text('{"query": "a", "title": "b", "price": 3}\n', encoding="utf-8")

    with pytest.raises(InputError, match=r"golden.jsonl: expected one golden pair a line"):
        read_golden_pairs(tmp_path / "golden.jsonl")


def test_the_made_card_shows_figures_with_intervals(tiny_bundle: Path):
    """One column a view; a figure without interval stands alone, one that a view lacks is a dash."""
    card = render_card(open_bundle(tiny_bundle).manifest, REPORT, 180, about={})

    assert "| figure | all locales (90 pairs) | us (30 pairs) |" in card
    assert "| accuracy | 0.500 (0.400–0.600) | 0.550 (0.300–0.800) |" in card
    assert "| auc_exact | 0.700 | – |" in card
    assert "Trained on 180 labelled pairs" in card


def test_quality_figures_are_flat_and_leave_out_what_is_missing():
    """Ends of intervals stand under `_low` and `_high`; null figures are left out."""
    assert quality_figures(REPORT) == {
        "accuracy": 0.5,
        "accuracy_low": 0.4,
        "accuracy_high": 0.6,
        "auc_exact": 0.7,
    }
