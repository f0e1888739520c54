"""Replay of a bundle's golden pairs: the proof that this session, on this machine, computes what was exported.

Suffixes: K classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from relevance.bundle import Bundle, GoldenPair, Precision
from relevance.calibration import expected_gain
from relevance.errors import ParityError
from relevance.tokenization import PairTokenizer, TokenIds
from service.scorer import Session
from service.tensorrt import Profile

_ALONE = "alone"
_PADDING = 7
_PROBE = 3
_BATCH = 8
"""Pairs of a replayed batch: enough to mix lengths, few enough that one long pair does not slow the start."""


@dataclass(frozen=True, slots=True)
class Replay:
    """What a replay showed.

    Args: n_pairs: golden pairs; max_abs_difference: largest |Δlogit| over all batchings; tolerance: from the manifest;
        n_tiers_compared: pairs whose score is farther than the tolerance from every cut point.
    """

    n_pairs: int
    max_abs_difference: float
    tolerance: float
    n_tiers_compared: int


def replay(bundle: Bundle, session: Session, precision: Precision, profiles: Sequence[Profile] = ()) -> Replay:
    """Check token ids exactly, then logits and tiers of each golden pair: alone, in mixed batches, reversed and padded.

    Args: precision: whose frozen logits to compare with; profiles: the only shapes that the session runs: each is also
        given its largest batch, golden pairs of all lengths in turn.
    Raises: ParityError: naming the first pair that differs, or if the bundle has fewer than two golden pairs.
    """
    pairs = bundle.golden
    if len(pairs) < 2:
        raise ParityError(f"{bundle.path}: expected at least 2 golden pairs, found {len(pairs)}")
    tokens = [_check_tokens(bundle, number, pair) for number, pair in enumerate(pairs, start=1)]
    for number, pair in enumerate(pairs, start=1):
        if len(pair.logits.get(precision, ())) != bundle.scheme.n_classes:
            raise ParityError(f"{bundle.path}: golden pair {number}: expected logits of {precision}, found none")
    expected_NK = np.asarray([pair.logits[precision] for pair in pairs])
    tolerance = bundle.manifest.graphs[precision].tolerance
    worst = 0.0
    compared: Counter[str] = Counter()
    for how, rows, found_nK in _batchings(bundle.tokenizer, session, tokens, profiles):
        difference_n = np.abs(found_nK - expected_NK[rows]).max(axis=1)
        for row, difference in zip(rows, difference_n.tolist(), strict=True):
            if not difference <= tolerance:
                raise ParityError(
                    f"{bundle.path}: golden pair {row + 1} {how}: expected {precision} logits within {tolerance:g}, "
                    f"found a difference of {difference:g}"
                )
        worst = max(worst, float(difference_n.max()))
        compared[how] += _check_tiers(bundle, rows, expected_NK[rows], found_nK, tolerance)
    return Replay(len(pairs), worst, tolerance, compared[_ALONE])


def probe(bundle: Bundle, session: Session, precision: Precision) -> None:
    """Run a few golden pairs as one batch: the quick proof that a session still computes what it should.

    Raises: ParityError: if a logit differs; whatever the session raises.
    """
    pairs = bundle.golden[:_PROBE]
    tokens = [_check_tokens(bundle, number, pair) for number, pair in enumerate(pairs, start=1)]
    found_NK = session.run(bundle.tokenizer.collate([query for query, _ in tokens], [item for _, item in tokens]))
    expected_NK = np.asarray([pair.logits[precision] for pair in pairs])
    difference = float(np.abs(found_NK - expected_NK).max())
    if not difference <= bundle.manifest.graphs[precision].tolerance:
        raise ParityError(f"{bundle.path}: expected the known {precision} logits, found a difference of {difference:g}")


def _check_tokens(bundle: Bundle, number: int, pair: GoldenPair) -> tuple[TokenIds, TokenIds]:
    tokenizer = bundle.tokenizer
    query_ids = tokenizer.encode_query(bundle.template.query_text(pair.query))
    (item_ids,) = tokenizer.encode_items([bundle.template.item_text(pair.item)])
    found = tokenizer.collate([query_ids], [item_ids]).input_ids_BL[0].tolist()
    if found != list(pair.input_ids):
        raise ParityError(
            f"{bundle.path}: golden pair {number}: expected {len(pair.input_ids)} token ids exactly, found "
            f"{len(found)} that differ; template or tokenizer do not belong to this model"
        )
    return query_ids, item_ids


def _batchings(
    tokenizer: PairTokenizer, session: Session, tokens: list[tuple[TokenIds, TokenIds]], profiles: Sequence[Profile]
) -> Iterator[tuple[str, list[int], NDArray[np.float32]]]:
    rows = list(range(len(tokens)))
    alone = [session.run(tokenizer.collate([query], [item])) for query, item in tokens]
    yield _ALONE, rows, np.concatenate(alone)
    for how, order, padding in (("in a batch", rows, 0), ("in a reversed, padded batch", rows[::-1], _PADDING)):
        for start in range(0, len(order), _BATCH):
            chosen = order[start : start + _BATCH]
            queries, items = _columns(tokens, chosen)
            width = tokenizer.collate(queries, items).input_ids_BL.shape[1]
            batch = tokenizer.collate(queries, items, pad_to=min(width + padding, tokenizer.max_pair_tokens))
            yield how, chosen, session.run(batch)
    for profile in profiles:
        fitting = [
            row for row in rows if tokenizer.collate(*_columns(tokens, [row])).input_ids_BL.size <= profile.length
        ]
        chosen = [fitting[number % len(fitting)] for number in range(profile.rows if fitting else 0)]
        if chosen:
            batch = tokenizer.collate(*_columns(tokens, chosen), pad_to=profile.length)
            yield f"in a batch of {profile.rows} × {profile.length} tokens", chosen, session.run(batch)


def _columns(tokens: list[tuple[TokenIds, TokenIds]], rows: list[int]) -> tuple[list[TokenIds], list[TokenIds]]:
    return [tokens[row][0] for row in rows], [tokens[row][1] for row in rows]


def _check_tiers(
    bundle: Bundle, rows: list[int], expected_NK: NDArray[np.float64], found_NK: NDArray[np.float32], tolerance: float
) -> int:
    compared = 0
    for row, expected_K, found_K in zip(rows, expected_NK, found_NK, strict=True):
        pair = bundle.golden[row]
        locale = bundle.policy.resolve(pair.locale)
        both_BK = bundle.calibrator.probabilities(np.stack([expected_K, found_K]), locale)
        score_B = expected_gain(both_BK, bundle.scheme)
        if np.abs(np.asarray(bundle.policy.cut_points(locale).values) - score_B[0]).min() <= tolerance:
            continue
        query = bundle.template.query_text(pair.query)
        tier_B = bundle.policy.decide(score_B, both_BK, bundle.scheme, policy_locale=locale, query=query).tier_B
        if tier_B[0] != tier_B[1]:
            raise ParityError(f"{bundle.path}: golden pair {row + 1}: expected tier {tier_B[0]}, found {tier_B[1]}")
        compared += 1
    return compared
