"""Reference distributions of score, tier and length: what drift is measured against. Suffixes: N pairs, K classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from export.parity import Floats, Ints, Judge
from relevance.bundle import Baseline, Histogram, LocaleBaseline
from relevance.calibration import expected_gain
from relevance.labels import N_TIERS
from relevance.pairs import LabelledPair
from relevance.policy import POOLED
from relevance.tokenization import N_SPECIAL, PairTokenizer

SCORE_EDGES = tuple(round(0.05 * i, 2) for i in range(21))
N_TOKEN_BINS = 16


def reference_distributions(
    pairs: Sequence[LabelledPair], logits_NK: Floats, judge: Judge, tokenizer: PairTokenizer
) -> Baseline:
    """Count scores, tiers and pair lengths of each policy locale; `pooled` holds all pairs.

    Args: pairs: of dev and cal; logits_NK: the student's, in the pairs' order.
    Raises: QueryTooLongError: if a query has more tokens than the student reads.
    """
    probabilities_NK = judge.probabilities(pairs, logits_NK)
    score_N = expected_gain(probabilities_NK, judge.scheme)
    tier_N = judge.tiers(pairs, probabilities_NK)
    tokens_N = pair_lengths(pairs, judge, tokenizer)
    edges = tuple(float(e) for e in np.unique(np.linspace(0, tokenizer.max_pair_tokens + 1, N_TOKEN_BINS + 1).round()))
    locale_N = np.array([judge.policy.resolve(p.pair.query.locale) for p in pairs], dtype=np.str_)

    def of_rows(rows: NDArray[np.bool_]) -> LocaleBaseline:
        return LocaleBaseline(
            score=_histogram(score_N[rows], SCORE_EDGES),
            tier=tuple(np.bincount(tier_N[rows], minlength=N_TIERS).tolist()),
            tokens=_histogram(tokens_N[rows], edges),
        )

    locales = {name: of_rows(locale_N == name) for name in np.unique(locale_N).tolist() if name != POOLED}
    return Baseline(locales={POOLED: of_rows(np.ones(len(pairs), dtype=bool)), **locales})


def pair_lengths(pairs: Sequence[LabelledPair], judge: Judge, tokenizer: PairTokenizer) -> Ints:
    """Give the tokens of each pair as the graph sees it: cut to the limit, specials included, shape (N,)."""
    items = tokenizer.encode_items([judge.template.item_text(p.pair.item) for p in pairs])
    queries = [tokenizer.encode_query(judge.template.query_text(p.pair.query.text)) for p in pairs]
    whole = [len(q) + len(i) + N_SPECIAL for q, i in zip(queries, items, strict=True)]
    return np.minimum(np.array(whole, dtype=np.int64), tokenizer.max_pair_tokens)


def _histogram(values: NDArray[np.number], edges: tuple[float, ...]) -> Histogram:
    counts, _ = np.histogram(values, bins=np.asarray(edges))
    return Histogram(edges=edges, counts=tuple(counts.tolist()))
