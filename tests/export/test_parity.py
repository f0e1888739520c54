"""Parity and gates: which graphs are let through, and why others are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.build import torch_run
from export.parity import (
    GatePairs,
    Judge,
    Reference,
    Run,
    draw_gate_pairs,
    gate_graph,
    open_graph,
    reference_logits,
)
from relevance.bundle import Bundle, open_bundle
from relevance.errors import ParityError
from relevance.pairs import LabelledPair
from relevance.tokenization import PairBatch
from training.student.model import load_student


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    """The opened tiny bundle."""
    return open_bundle(tiny_bundle)


@pytest.fixture(scope="module")
def judge(bundle: Bundle) -> Judge:
    """Calibrator and policy of the tiny bundle."""
    return Judge(bundle.calibrator, bundle.policy, bundle.scheme, bundle.template)


@pytest.fixture(scope="module")
def gate_pairs(bundle: Bundle, tiny_pairs: list[LabelledPair]) -> GatePairs:
    """Sixty pairs of ten queries."""
    return draw_gate_pairs(tiny_pairs, bundle.tokenizer, bundle.template, limit=60, seed=0)


@pytest.fixture(scope="module")
def fp32(bundle: Bundle) -> Run:
    """The fp32 graph of the tiny bundle."""
    return open_graph(bundle.graph_path("fp32"), "fp32")


@pytest.fixture(scope="module")
def reference(tiny_run: Path, fp32: Run, gate_pairs: GatePairs) -> Reference:
    """Logits of the torch student and of its fp32 graph."""
    student, _ = load_student(tiny_run / "student")
    return reference_logits(torch_run(student), fp32, gate_pairs)


def test_gate_pairs_are_whole_queries_without_exact_only_rows(bundle: Bundle, tiny_pairs: list[LabelledPair]):
    """Six pairs a query and a limit of 20 make three queries; rows of Exact-only sources are left out."""
    marked = [LabelledPair(p.pair, p.label, p.source, exact_only=p.pair.query.locale == "us") for p in tiny_pairs]
    drawn = draw_gate_pairs(marked, bundle.tokenizer, bundle.template, limit=20, seed=1)
    _, counts = np.unique(drawn.query_ids, return_counts=True)

    assert counts.tolist() == [6, 6, 6]
    assert {"es", "jp"} >= {p.pair.query.locale for p in drawn.pairs}


def test_a_gate_without_pairs_is_an_error(bundle: Bundle):
    """There is nothing to compare the graphs on."""
    with pytest.raises(ParityError, match="expected labelled pairs of dev and cal, found none"):
        draw_gate_pairs([], bundle.tokenizer, bundle.template, limit=50, seed=0)


def test_the_tiny_graphs_pass(bundle: Bundle):
    """fp32 against itself flips nothing; both graphs are far inside every bound."""
    gates = {precision: graph.gate for precision, graph in bundle.manifest.graphs.items()}

    assert all(gate.passed for gate in gates.values())
    assert (gates["fp32"].tier_flip_upper, gates["fp32"].ndcg_loss_upper) == (0.0, 0.0)
    assert gates["int8w"].torch_max_abs_difference < 1e-4


def test_a_graph_that_gives_no_numbers_under_one_batching_alone_is_refused(
    fp32: Run, gate_pairs: GatePairs, reference: Reference, judge: Judge
):
    """As a half-precision mask can under the padding of mixed lengths: the last batching is the random one."""
    calls = []

    def late(batch: PairBatch) -> np.ndarray:
        calls.append(batch)
        logits = fp32(batch)
        return logits if len(calls) <= len(gate_pairs) + 2 else np.full_like(logits, np.nan)

    gate = gate_graph(late, gate_pairs, reference, judge)

    assert np.isnan(gate.batch_max_abs_difference)
    assert not gate.passed


def test_a_graph_that_swaps_two_classes_is_refused(
    fp32: Run, gate_pairs: GatePairs, reference: Reference, judge: Judge
):
    """Exact and Irrelevant exchanged: tiers flip and ranking suffers, though batching changes nothing."""
    gate = gate_graph(lambda batch: fp32(batch)[:, [3, 1, 2, 0]], gate_pairs, reference, judge)

    assert not gate.passed
    assert gate.batch_max_abs_difference <= 1e-4
    assert gate.tier_flip_upper > 0.05
    assert gate.ndcg_loss_upper > 0.01


def test_a_graph_that_is_too_sure_of_itself_is_refused(
    fp32: Run, gate_pairs: GatePairs, reference: Reference, judge: Judge
):
    """Logits times twenty keep the ranking's head but not the calibration."""
    gate = gate_graph(lambda batch: 20 * fp32(batch), gate_pairs, reference, judge)

    assert not gate.passed
    assert gate.ece_rise_upper > 0.01


def test_a_graph_whose_scores_depend_on_the_batch_is_refused(
    fp32: Run, gate_pairs: GatePairs, reference: Reference, judge: Judge
):
    """A shift of 1e-3 by the longest pair beside one flips no tier here, and yet the graph is not served."""

    def dynamic(batch: PairBatch):
        return fp32(batch) + 1e-5 * batch.input_ids_BL.shape[1] * np.array([1, 0, 0, 0], dtype=np.float32)

    gate = gate_graph(dynamic, gate_pairs, reference, judge)

    assert not gate.passed
    assert gate.batch_max_abs_difference > 1e-4
    assert gate.tier_flip_upper <= 0.05


def test_a_graph_that_gives_nan_is_refused(fp32: Run, gate_pairs: GatePairs, reference: Reference, judge: Judge):
    """No bound holds for what is not a number."""
    gate = gate_graph(lambda batch: fp32(batch) * np.float32("nan"), gate_pairs, reference, judge)

    assert not gate.passed
    assert np.isnan(gate.batch_max_abs_difference)


def test_an_export_that_differs_from_torch_is_refused(tiny_run: Path, fp32: Run, gate_pairs: GatePairs):
    """2e-3 on one class is beyond the 1e-3 that rounding explains."""
    student, _ = load_student(tiny_run / "student")

    with pytest.raises(ParityError, match=r"expected fp32 logits within 0.001 of the torch student on 60 pairs"):
        reference_logits(torch_run(student), lambda batch: fp32(batch) + np.float32(2e-3), gate_pairs)


@pytest.fixture(scope="module")
def score_int8w(bundle: Bundle, gate_pairs: GatePairs):
    """A function (indices of gate pairs, padding) → logits of one batch on the shipped int8w graph."""
    run = open_graph(bundle.graph_path("int8w"), "int8w")

    def score(rows: list[int], pad_to: int = 0):
        queries, items = [gate_pairs.queries[i] for i in rows], [gate_pairs.items[i] for i in rows]
        return run(bundle.tokenizer.collate(queries, items, pad_to=pad_to))

    return score


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.integers(0, 59), min_size=1, max_size=12), pad_to=st.integers(0, 96))
def test_a_pair_scores_the_same_in_any_batch_order_or_padding(score_int8w, rows: list[int], pad_to: int):
    """Drawn: which pairs stand beside each other, in which order, padded how far; tolerance 1e-4, as shipped."""
    alone_BK = np.concatenate([score_int8w([row]) for row in rows])

    assert alone_BK == pytest.approx(score_int8w(rows, pad_to), abs=1e-4)
