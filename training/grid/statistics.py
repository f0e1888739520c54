"""Statistics of systems × seeds × queries: hierarchical bootstrap, McNemar, Holm, detectable differences.

Every seed is tested on the same queries, so seeds and queries are crossed: a draw takes queries with replacement and,
apart from that, seeds with replacement, and both sides of a difference see the same draw. The draws give the standard
error; interval, p and detectable difference come from a t distribution whose degrees of freedom say how few seeds that
error rests on (the draws of three seeds have too few distinct values for percentiles). Pure functions.
Suffixes: D draws, S seeds, Q queries, K classes, N pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Counts = NDArray[np.uint8]

POWER_Z = float(stats.norm.ppf(0.975) + stats.norm.ppf(0.8))
"""A two-sided test at 5 % has 80 % power for a difference of so many standard errors that are known."""
_NOT_KNOWN = float("nan")
_CHUNK_CELLS = 4_000_000
_NO_CLASS = 1e-12


@dataclass(frozen=True, slots=True)
class Sample:
    """One system's figures: on all queries, and on each draw of queries.

    Args: seeds: of the S finished runs; constant: an untrained system, whose one run stands beside any seed of another;
        value: name → (S,); drawn: name → (D, S), the draws in the same order for every system; queries: name → how
        many queries the figure is of.
    """

    seeds: tuple[int, ...]
    constant: bool
    value: Mapping[str, Floats]
    drawn: Mapping[str, Floats]
    queries: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds with its t interval.

    Args: sd: over seeds, nan for fewer than two; error: standard error, the spread of the draws; df: degrees of freedom
        of the error, nan where it cannot be known: one query, or one seed of a trained system; low, high, p: nan too in
        that case; p: two-sided, of "no different from 0"; seeds: how many were averaged.
    """

    value: float
    low: float
    high: float
    sd: float
    error: float
    df: float
    p: float
    seeds: int

    def detectable(self, level: float = 0.05) -> float:
        """Give the smallest true difference that such data would call significant in 80 of 100 tries.

        Args: level: of the two-sided test; in a family of m, Holm's first step has 0.05 / m.
        """
        return float(stats.t.ppf(1 - level / 2, self.df) + stats.t.ppf(0.8, self.df)) * self.error


@dataclass(frozen=True, slots=True)
class PairedAccuracy:
    """Two scorers' hits on the same pairs.

    Args: only_ours, only_theirs: pairs that one of the two alone got right; mid_p: McNemar's; discordance: share of
        such pairs; design_effect: how many times the variance of independent pairs; detectable: the closed form.
    """

    only_ours: int
    only_theirs: int
    mid_p: float
    discordance: float
    design_effect: float
    detectable: float


def confusion_by_query(label_N: Ints, predicted_SN: Ints, query_N: Ints, *, n_classes: int) -> Floats:
    """Count pairs by seed, query, label and predicted class.

    Args: query_N: index of each pair's query, 0 to Q - 1.
    Returns: float64 of shape (S, Q, K, K), as the matrix products of the bootstrap want it.
    """
    n_queries = int(query_N.max(initial=-1)) + 1
    size = n_queries * n_classes * n_classes
    counts = [
        np.bincount((query_N * n_classes + label_N) * n_classes + predicted_N, minlength=size)
        for predicted_N in predicted_SN
    ]
    return np.array(counts, dtype=np.float64).reshape(len(predicted_SN), n_queries, n_classes, n_classes)


def confusion_figures(count_KK: Floats, codes: Sequence[str]) -> dict[str, Floats]:
    """Give accuracy, macro-F1, F1 of each class and quadratic weighted kappa of confusion matrices.

    Args: count_KK: labels down, predictions across, of shape (…, K, K); codes: of the classes in order of gain, which
        is the order that kappa uses.
    Returns: name → (…,); F1 is 0 where a class is neither present nor predicted, kappa nan where it is undefined.
    """
    total = count_KK.sum(axis=(-2, -1))
    label_K, predicted_K = count_KK.sum(axis=-1), count_KK.sum(axis=-2)
    hits_K = np.diagonal(count_KK, axis1=-2, axis2=-1)
    f1_K = 2 * hits_K / np.maximum(label_K + predicted_K, _NO_CLASS)
    rank_K = np.arange(len(codes))
    weight_KK = (rank_K[:, None] - rank_K) ** 2.0
    by_chance = np.einsum("...i,ij,...j->...", label_K, weight_KK, predicted_K)
    apart = np.einsum("...ij,ij->...", count_KK, weight_KK) * total
    disagreement = np.divide(apart, by_chance, out=np.full(apart.shape, np.nan), where=by_chance > 0)
    return {
        "macro_f1": f1_K.mean(axis=-1),
        "accuracy": hits_K.sum(axis=-1) / np.maximum(total, _NO_CLASS),
        **{f"f1_{code}": f1_K[..., k] for k, code in enumerate(codes)},
        "qwk": 1 - disagreement,
    }


def draw_queries(n_queries: int, n_draws: int, seed: int) -> Counts:
    """Draw queries with replacement; uint8 of shape (D, Q), how often each query is in each draw.

    A count is Poisson with mean 1 in the limit: 255 is out of reach.
    """
    rng = np.random.default_rng([seed, 0])
    count_DQ = np.empty((n_draws, n_queries), dtype=np.uint8)
    for d in range(n_draws):
        count_DQ[d] = np.bincount(rng.integers(0, n_queries, n_queries), minlength=n_queries)
    return count_DQ


def seed_weights(n_seeds: int, n_draws: int, seed: int) -> Floats:
    """Draw seeds with replacement; float64 of shape (D, S), each row summing to 1.

    Plain drawing gives the mean of S seeds a variance too small by (S - 1) / S, a third for three seeds, so the
    weights' distance from 1 / S is stretched by √(S / (S - 1)) (Rao and Wu, JASA 1988). One seed has the weight 1.
    """
    if n_seeds == 1:
        return np.ones((n_draws, 1))
    rng = np.random.default_rng([seed, 1])
    count_DS = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), size=n_draws)
    stretched: Floats = 1 / n_seeds + np.sqrt(n_seeds / (n_seeds - 1)) * (count_DS - 1) / n_seeds
    return stretched


def draw_confusions(count_SQKK: Floats, count_DQ: Counts) -> Floats:
    """Add up the confusion matrices of each draw's queries; shape (D, S, K, K)."""
    n_seeds, n_queries, n_classes, _ = count_SQKK.shape
    flat = count_SQKK.transpose(1, 0, 2, 3).reshape(n_queries, -1)
    parts = [chunk.astype(np.float64) @ flat for chunk in _chunks(count_DQ, n_queries)]
    return np.concatenate(parts).reshape(-1, n_seeds, n_classes, n_classes)


def draw_means(value_SQ: Floats, count_DQ: Counts) -> Floats:
    """Give the mean over each draw's queries, nan values left out; shape (D, S), nan where nothing is left."""
    known = ~np.isnan(value_SQ)
    filled_QS, known_QS = np.where(known, value_SQ, 0.0).T, known.astype(np.float64).T
    parts = []
    for chunk in _chunks(count_DQ, value_SQ.shape[1]):
        weight = chunk.astype(np.float64)
        among = weight @ known_QS
        parts.append(np.divide(weight @ filled_QS, among, out=np.full(among.shape, np.nan), where=among > 0))
    return np.concatenate(parts)


def draw_auc(positive_N: Bools, score_N: Floats, query_N: Ints, count_DQ: Counts) -> Floats:
    """Give the area under the ROC curve over each draw's pairs, ties counted half; nan for one kind only; (D,)."""
    order = np.argsort(score_N, kind="stable")
    _, start, inverse, size = np.unique(score_N[order], return_index=True, return_inverse=True, return_counts=True)
    positive, query = positive_N[order], query_N[order]
    first, last = start[inverse][positive], (start + size)[inverse][positive]
    parts = []
    for chunk in _chunks(count_DQ, len(score_N)):
        weight = chunk[:, query].astype(np.int32)
        below = np.zeros((len(chunk), len(score_N) + 1), dtype=np.int32)
        np.cumsum(np.where(positive, 0, weight), axis=1, out=below[:, 1:])
        wins_twice = (weight[:, positive] * (below[:, first] + below[:, last])).sum(axis=1, dtype=np.int64)
        pairs = weight[:, positive].sum(axis=1, dtype=np.int64) * below[:, -1].astype(np.int64)
        parts.append(np.divide(wins_twice / 2, pairs, out=np.full(len(chunk), np.nan), where=pairs > 0))
    return np.concatenate(parts)


def estimate(sample: Sample, name: str, seed: int) -> Estimate:
    """Give a system's mean over seeds with its interval; `seed` is that of the draws."""
    constant, queries = sample.constant, sample.queries[name]
    return estimate_drawn(sample.value[name], sample.drawn[name], seed, constant=constant, queries=queries)


def difference(ours: Sample, theirs: Sample, name: str, seed: int) -> Estimate | None:
    """Give ours - theirs over the seeds that both finished, from the same draws; None if they share no seed."""
    aligned = _aligned((ours, theirs), name)
    if aligned is None:
        return None
    (value_S, other_S), (drawn_DS, other_DS) = aligned
    constant, queries = ours.constant and theirs.constant, min(ours.queries[name], theirs.queries[name])
    return estimate_drawn(value_S - other_S, drawn_DS - other_DS, seed, constant=constant, queries=queries)


def estimate_drawn(value_S: Floats, drawn_DS: Floats, seed: int, *, constant: bool, queries: int) -> Estimate:
    """Give a mean over seeds with its interval, of figures and their values on each draw of queries.

    Args: seed: of the draws of seeds; constant: the one run stands for every seed; queries: how many were drawn from.
    """
    mean_D = (drawn_DS * seed_weights(len(value_S), len(drawn_DS), seed)).sum(axis=1)
    known_D = mean_D[~np.isnan(mean_D)]
    value = float(value_S.mean())
    sd = float(value_S.std(ddof=1)) if len(value_S) > 1 else _NOT_KNOWN
    error = float(known_D.std(ddof=1)) if len(known_D) > 1 else _NOT_KNOWN
    df = _degrees_of_freedom(value_S, error, constant=constant, queries=queries)
    reach = float(stats.t.ppf(0.975, df)) * error
    return Estimate(value, value - reach, value + reach, sd, error, df, _two_sided(value, error, df), len(value_S))


def gap_closed(system: Sample, base: Sample, ceiling: Sample, name: str, *, seed: int) -> Estimate | None:
    """Give (system - base) / (ceiling - base), the share of a teacher's lead that a student has.

    Returns: None without a common seed, or where the ceiling is not above the base; the ratio is of means over seeds,
        its interval Fieller's, with nan ends where the lead itself is not told from 0; `sd` is nan.
    Source: Fieller, Journal of the Royal Statistical Society B 16 (1954).
    """
    aligned = _aligned((system, base, ceiling), name)
    if aligned is None:
        return None
    (own_S, base_S, top_S), (own_DS, base_DS, top_DS) = aligned
    gain_S, room_S = own_S - base_S, top_S - base_S
    gain, room = float(gain_S.mean()), float(room_S.mean())
    if not room > 0:
        return None
    share = gain / room
    weight_DS = seed_weights(len(own_S), len(own_DS), seed)
    gain_D, room_D = (((side - base_DS) * weight_DS).sum(axis=1) for side in (own_DS, top_DS))
    covariance = np.cov(gain_D, room_D)
    (of_gain, both), (_, of_room) = covariance.tolist()
    error = float(np.sqrt(max(0.0, of_gain - 2 * share * both + share**2 * of_room)))
    constant = system.constant and base.constant and ceiling.constant
    queries = min(side.queries[name] for side in (system, base, ceiling))
    df = _degrees_of_freedom(gain_S - share * room_S, error, constant=constant, queries=queries)
    reach = float(stats.t.ppf(0.975, df)) ** 2
    square, middle, level = room**2 - reach * of_room, gain * room - reach * both, gain**2 - reach * of_gain
    low = high = _NOT_KNOWN
    if square > 0:
        half = float(np.sqrt(max(0.0, middle**2 - square * level)))
        low, high = (middle - half) / square, (middle + half) / square
    p = _two_sided(gain, float(np.sqrt(of_gain)), df)
    return Estimate(share, low, high, _NOT_KNOWN, error / room, df, p, len(own_S))


def mcnemar_mid_p(only_ours: int, only_theirs: int) -> float:
    """Give McNemar's two-sided mid-p (Fagerland, Lydersen and Laake, 2013); 1 without a discordant pair.

    Outcomes less likely than the seen one count in full, those as likely count half.
    """
    n, low = only_ours + only_theirs, min(only_ours, only_theirs)
    if n == 0:
        return 1.0
    here = float(stats.binom.pmf(low, n, 0.5))
    if only_ours == only_theirs:
        return 1 - here / 2
    return 2 * float(stats.binom.cdf(low - 1, n, 0.5)) + here


def paired_accuracy(ours_N: Bools, theirs_N: Bools, query_N: Ints) -> PairedAccuracy:
    """Compare two scorers' hits on the same pairs, and say what accuracy difference so many pairs could show.

    The closed form is (z.975 + z.8) √(discordance / N · design effect); the design effect is the variance of the mean
    difference when whole queries are drawn over that of independent pairs, and at least 1.
    """
    change_N = ours_N.astype(np.float64) - theirs_N.astype(np.float64)
    n, n_queries = len(change_N), int(query_N.max(initial=-1)) + 1
    only_ours, only_theirs = int((change_N > 0).sum()), int((change_N < 0).sum())
    residual_N = change_N - change_N.mean()
    spread = float(residual_N @ residual_N)
    residual_Q = np.bincount(query_N, weights=residual_N, minlength=n_queries)
    clustered = float(residual_Q @ residual_Q) * n_queries / max(1, n_queries - 1)
    design_effect = max(1.0, clustered / spread) if spread > 0 else 1.0
    discordance = (only_ours + only_theirs) / n
    return PairedAccuracy(
        only_ours=only_ours,
        only_theirs=only_theirs,
        mid_p=mcnemar_mid_p(only_ours, only_theirs),
        discordance=discordance,
        design_effect=design_effect,
        detectable=POWER_Z * float(np.sqrt(discordance / n * design_effect)),
    )


def median_seed(value_S: Floats) -> int:
    """Give the index of the seed with the median value, the lower of the two middle ones for an even number."""
    return int(np.argsort(value_S, kind="stable")[(len(value_S) - 1) // 2])


def common_seeds(*samples: Sample) -> tuple[int, ...]:
    """Give the seeds that every trained system finished; for untrained systems alone, those of the first."""
    trained = [set(s.seeds) for s in samples if not s.constant]
    return tuple(sorted(set.intersection(*trained))) if trained else samples[0].seeds


def column(sample: Sample, seed: int) -> int:
    """Give the column of a seed in a sample's arrays; an untrained system has one column for all."""
    return 0 if sample.constant else sample.seeds.index(seed)


def _aligned(samples: Sequence[Sample], name: str) -> tuple[list[Floats], list[Floats]] | None:
    seeds = common_seeds(*samples)
    if not seeds:
        return None
    columns = [[column(s, seed) for seed in seeds] for s in samples]
    pairs = list(zip(samples, columns, strict=True))
    return [s.value[name][c] for s, c in pairs], [s.drawn[name][:, c] for s, c in pairs]


def _degrees_of_freedom(value_S: Floats, error: float, *, constant: bool, queries: int) -> float:
    """Give Satterthwaite's degrees of freedom of an error with a part of S - 1 and a part of Q - 1 of them.

    Source: Satterthwaite, Biometrics Bulletin 2 (1946); the part of the seeds is s² / S, the rest is the queries'.
    """
    if queries < 2 or (len(value_S) < 2 and not constant):
        return _NOT_KNOWN
    if len(value_S) < 2 or not error > 0:
        return float(queries - 1)
    of_seeds = min(1.0, float(value_S.var(ddof=1)) / len(value_S) / error**2)
    return float(1 / (of_seeds**2 / (len(value_S) - 1) + (1 - of_seeds) ** 2 / (queries - 1)))


def _two_sided(value: float, error: float, df: float) -> float:
    """Give the p of a value; without any spread 1 for 0 itself, else 0."""
    if np.isnan(error + df):
        return _NOT_KNOWN
    return float(2 * stats.t.sf(abs(value) / error, df)) if error > 0 else float(value == 0)


def _chunks(count_DQ: Counts, width: int) -> list[Counts]:
    rows = max(1, _CHUNK_CELLS // max(1, width))
    return [count_DQ[start : start + rows] for start in range(0, len(count_DQ), rows)]
