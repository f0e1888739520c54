"""Parity and gates: torch against fp32 against every precision, and what a graph must show before it may be served.

Suffixes: N pairs, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from relevance.bundle import Gate, Precision
from relevance.calibration import Calibrator, expected_gain
from relevance.errors import ParityError
from relevance.labels import LabelScheme
from relevance.metrics.intervals import query_bootstrap
from relevance.metrics.ranking import by_query, ndcg
from relevance.metrics.reliability import top_label_ece
from relevance.pairs import LabelledPair
from relevance.policy import TierPolicy
from relevance.text import TextTemplate
from relevance.tokenization import PairBatch, PairTokenizer, TokenIds
from training.student.model import Student

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Run = Callable[[PairBatch], NDArray[np.floating]]
"""A graph or a torch student: batch → logits of shape (B, K)."""

MAX_TORCH_DIFFERENCE = 1e-3
MAX_BATCH_DIFFERENCE = 1e-4
MAX_TIER_FLIPS = 0.05
MAX_NDCG_LOSS = 0.01
MAX_ECE_RISE = 0.01
MAX_LATENT_DIFFERENCE = 0.05
"""Largest relative distance of a latent from the torch student's: weights stored as int8 move it by about 1 %."""
MAX_WEIGHT_DIFFERENCE = 1e-3
OUTPUT_PAIRS = 256
"""Gate pairs on which latents and token weights are compared."""
ONE_SIDED = 0.90
"""Confidence of a two-sided interval whose upper end is a one-sided 95 % bound."""
BATCH_SIZE = 32


@dataclass(frozen=True, slots=True)
class GatePairs:
    """The labelled pairs that precisions are compared on, tokenised."""

    pairs: tuple[LabelledPair, ...]
    queries: tuple[TokenIds, ...]
    items: tuple[TokenIds, ...]
    tokenizer: PairTokenizer

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def query_ids(self) -> NDArray[np.str_]:
        """Query id of each pair."""
        return np.array([p.pair.query.id for p in self.pairs], dtype=np.str_)

    def lengths(self) -> Ints:
        """Give the tokens of each pair before truncation, specials left out."""
        return np.array([len(q) + len(i) for q, i in zip(self.queries, self.items, strict=True)], dtype=np.int64)

    def logits(self, run: Run, order: Ints, batch_size: int) -> Floats:
        """Run the pairs in an order, in batches; the logits come back in the pairs' own order, shape (N, K)."""
        parts = []
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            parts.append(run(self.tokenizer.collate([self.queries[i] for i in rows], [self.items[i] for i in rows])))
        together = np.concatenate(parts).astype(np.float64)
        logits_NK = np.empty_like(together)
        logits_NK[order] = together
        return logits_NK


def draw_gate_pairs(
    pairs: Sequence[LabelledPair], tokenizer: PairTokenizer, template: TextTemplate, *, limit: int, seed: int
) -> GatePairs:
    """Draw whole queries until the next would pass the limit; pairs of Exact-only sources are left out.

    Raises: ParityError: if no pair is left; QueryTooLongError: if a query has more tokens than the student reads.
    """
    fair = [p for p in pairs if not p.exact_only]
    groups: dict[str, list[LabelledPair]] = {}
    for pair in fair:
        groups.setdefault(pair.pair.query.id, []).append(pair)
    chosen: list[LabelledPair] = []
    names = sorted(groups)
    for index in np.random.default_rng(seed).permutation(len(names)):
        group = groups[names[index]]
        if len(chosen) + len(group) <= limit:
            chosen.extend(group)
    if not chosen:
        raise ParityError(f"gate: expected labelled pairs of dev and cal, found none among {len(pairs)} rows")
    queries = tuple(tokenizer.encode_query(template.query_text(p.pair.query.text)) for p in chosen)
    items = tuple(tokenizer.encode_items([template.item_text(p.pair.item) for p in chosen]))
    return GatePairs(tuple(chosen), queries, items, tokenizer)


@dataclass(frozen=True, slots=True)
class Judge:
    """Turns logits into what a client sees, with the calibrator and policy that the bundle will carry."""

    calibrator: Calibrator
    policy: TierPolicy
    scheme: LabelScheme
    template: TextTemplate

    def probabilities(self, pairs: Sequence[LabelledPair], logits_NK: Floats) -> Floats:
        """Give calibrated probabilities, shape (N, K), each pair by its own locale."""
        locales = np.array([self.policy.resolve(p.pair.query.locale) for p in pairs], dtype=np.str_)
        probabilities_NK = np.empty_like(logits_NK)
        for locale in np.unique(locales).tolist():
            rows = locales == locale
            probabilities_NK[rows] = self.calibrator.probabilities(logits_NK[rows], locale)
        return probabilities_NK

    def tiers(self, pairs: Sequence[LabelledPair], probabilities_NK: Floats) -> Ints:
        """Give the tier of each pair, business rules applied, shape (N,)."""
        groups: dict[tuple[str, str], list[int]] = {}
        for row, labelled in enumerate(pairs):
            query = labelled.pair.query
            key = (self.template.query_text(query.text), self.policy.resolve(query.locale))
            groups.setdefault(key, []).append(row)
        tier_N = np.empty(len(pairs), dtype=np.int64)
        for (text, locale), rows in groups.items():
            part = probabilities_NK[rows]
            score = expected_gain(part, self.scheme)
            tier_N[rows] = self.policy.decide(score, part, self.scheme, policy_locale=locale, query=text).tier_B
        return tier_N


@dataclass(frozen=True, slots=True)
class Reference:
    """Logits that precisions are held against: the torch student's and the fp32 graph's, each of shape (N, K)."""

    torch_NK: Floats
    fp32_NK: Floats


def gate_graph(run: Run, gate_pairs: GatePairs, reference: Reference, judge: Judge) -> Gate:
    """Measure a graph: logits alone, sorted and randomly batched, and quality against fp32, bootstrapped by query.

    Returns: a gate; `passed` says whether every bound holds. A figure that is not a number fails.
    """
    alone_NK, sorted_NK, random_NK = batchings(run, gate_pairs)
    # np.max, because Python's max(0.0, nan) is 0.0.
    batch = float(np.max([_largest(sorted_NK - alone_NK), _largest(random_NK - alone_NK)]))
    flips, loss, rise = _quality_bounds(gate_pairs, reference.fp32_NK, sorted_NK, judge)
    bounds = [
        (batch, MAX_BATCH_DIFFERENCE),
        (flips, MAX_TIER_FLIPS),
        (loss, MAX_NDCG_LOSS),
        (rise, MAX_ECE_RISE),
    ]
    return Gate(
        passed=all(figure <= bound for figure, bound in bounds),
        batch_max_abs_difference=batch,
        torch_max_abs_difference=_largest(sorted_NK - reference.torch_NK),
        tier_flip_upper=flips,
        ndcg_loss_upper=loss,
        ece_rise_upper=rise,
        n_pairs=len(gate_pairs),
    )


def batchings(run: Run, gate_pairs: GatePairs) -> tuple[Floats, Floats, Floats]:
    """Give the logits alone, in batches sorted by length and in random batches of mixed lengths, each (N, K)."""
    n = len(gate_pairs)
    by_length = np.argsort(gate_pairs.lengths(), kind="stable")
    shuffled = np.random.default_rng(0).permutation(n)
    return (
        gate_pairs.logits(run, np.arange(n), 1),
        gate_pairs.logits(run, by_length, BATCH_SIZE),
        gate_pairs.logits(run, shuffled, BATCH_SIZE),
    )


def reference_logits(torch_run: Run, fp32_run: Run, gate_pairs: GatePairs) -> Reference:
    """Run the torch student and its fp32 graph over the gate pairs in batches of mixed lengths.

    Raises: ParityError: if they differ by more than `MAX_TORCH_DIFFERENCE` anywhere; the export is then wrong.
    """
    order = np.random.default_rng(0).permutation(len(gate_pairs))
    torch_NK, fp32_NK = (gate_pairs.logits(run, order, BATCH_SIZE) for run in (torch_run, fp32_run))
    difference = _largest(torch_NK - fp32_NK)
    if not difference <= MAX_TORCH_DIFFERENCE:
        raise ParityError(
            f"export: expected fp32 logits within {MAX_TORCH_DIFFERENCE:g} of the torch student on "
            f"{len(gate_pairs)} pairs, found a difference of {difference:g}"
        )
    return Reference(torch_NK, fp32_NK)


def open_graph(path: Path, precision: Precision) -> Run:
    """Open a graph on the CPU as the service does: int8w weights are folded to fp32 at load."""
    session = _open_session(path, precision)

    def run(batch: PairBatch) -> NDArray[np.floating]:
        logits: NDArray[np.floating] = session.run(["logits"], batch.inputs())[0]
        return logits

    return run


def output_differences(student: Student, path: Path, precision: Precision, gate_pairs: GatePairs) -> dict[str, float]:
    """Hold a graph's latents and token weights against the torch student's, in batches of mixed lengths.

    Returns: `latent`, the largest relative distance, and `token_weights`, the largest difference.
    Raises: ParityError: if one is over `MAX_LATENT_DIFFERENCE` or `MAX_WEIGHT_DIFFERENCE`.
    """
    session = _open_session(path, precision)
    found = {"latent": 0.0, "token_weights": 0.0}
    for start in range(0, min(len(gate_pairs), OUTPUT_PAIRS), BATCH_SIZE):
        rows = slice(start, start + BATCH_SIZE)
        batch = gate_pairs.tokenizer.collate(gate_pairs.queries[rows], gate_pairs.items[rows])
        latent_BR, weight_BL = session.run(["latent", "token_weights"], batch.inputs())
        with torch.inference_mode():
            own = student(**{name: torch.from_numpy(array) for name, array in batch.inputs().items()})
        if own.latent_BR is None:
            raise ParityError("export: expected a student with a latent beside prototypes, found one without")
        own_BR = own.latent_BR.numpy()
        distance_B = np.linalg.norm(latent_BR - own_BR, axis=1) / np.linalg.norm(own_BR, axis=1)
        weights = _largest(weight_BL - own.token_weights_BL.numpy())
        for name, value in (("latent", float(distance_B.max())), ("token_weights", weights)):
            found[name] = float(np.maximum(found[name], value))
    if not (found["latent"] <= MAX_LATENT_DIFFERENCE and found["token_weights"] <= MAX_WEIGHT_DIFFERENCE):
        raise ParityError(
            f"export, {precision}: expected latents within {MAX_LATENT_DIFFERENCE:g} and token weights within "
            f"{MAX_WEIGHT_DIFFERENCE:g} of the torch student, found {found}"
        )
    return found


def _open_session(path: Path, precision: Precision) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if precision == "int8w":
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _quality_bounds(
    gate_pairs: GatePairs, fp32_NK: Floats, other_NK: Floats, judge: Judge
) -> tuple[float, float, float]:
    if not np.isfinite(other_NK).all():
        return float("nan"), float("nan"), float("nan")
    pairs = gate_pairs.pairs
    label_N = np.array([judge.scheme.index(p.label) for p in pairs], dtype=np.int64)
    first_NK, second_NK = judge.probabilities(pairs, fp32_NK), judge.probabilities(pairs, other_NK)
    flipped_N = judge.tiers(pairs, first_NK) != judge.tiers(pairs, second_NK)
    query_ids = gate_pairs.query_ids
    flips = query_bootstrap(query_ids, lambda rows: float(flipped_N[rows].mean()), confidence=ONE_SIDED)

    def ece_rise(rows: Ints) -> float:
        return top_label_ece(second_NK[rows], label_N[rows]) - top_label_ece(first_NK[rows], label_N[rows])

    rise = query_bootstrap(query_ids, ece_rise, confidence=ONE_SIDED)
    return flips.high, _ndcg_loss_upper(gate_pairs, label_N, (first_NK, second_NK), judge.scheme), rise.high


def _ndcg_loss_upper(
    gate_pairs: GatePairs, label_N: Ints, probabilities: tuple[Floats, Floats], scheme: LabelScheme
) -> float:
    gain_N = scheme.gain_K[label_N]
    item_ids = np.array([str(p.pair.item.id) for p in gate_pairs.pairs], dtype=np.str_)
    query_ids = gate_pairs.query_ids

    def of_queries(probabilities_NK: Floats) -> dict[str, float]:
        score_N = expected_gain(probabilities_NK, scheme)
        return by_query(query_ids, lambda rows: ndcg(gain_N[rows], score_N[rows], item_ids[rows], k=10))

    first, second = (of_queries(p) for p in probabilities)
    loss_Q = np.array([first[query] - second[query] for query in first])
    if not len(loss_Q):
        return float("nan")
    return query_bootstrap(list(first), lambda rows: float(loss_Q[rows].mean()), confidence=ONE_SIDED).high


def _largest(difference_NK: Floats) -> float:
    return float(np.abs(difference_NK).max())
