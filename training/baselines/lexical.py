"""Word-matching baselines: BM25 and TF-IDF cosine, each mapped to classes by two scores a pair, and the lexical one.

Both scores look at one pair at a time, as a student does: the raw score, and the score as a share of what the query
could reach, so that long queries do not look relevant by their length. Statistics of words come from train items alone.

Suffixes: N pairs, F scores, V words of the vocabulary, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from sklearn.preprocessing import normalize

from relevance.pairs import LabelledPair
from relevance.text import TextTemplate
from training.baselines.score_map import Floats, fit_score_map, labelled_splits, map_scores
from training.lexical_baseline import split_features
from training.recipe import Split
from training.runs import Run
from training.words import stems

K1 = 1.2
"""BM25: how soon a repeated word counts no more."""
B = 0.75
"""BM25: how much a long item is discounted."""


class TermIndex:
    """Word counts of queries and items, with the document frequencies of train items.

    Args: train_items: distinct texts, the documents that statistics are taken from; texts: every text to be counted.
    """

    def __init__(self, train_items: Sequence[str], texts: Sequence[str]) -> None:
        self._vectorizer = CountVectorizer(analyzer=stems).fit([*train_items, *texts])
        self._train = self._vectorizer.transform(train_items)

    def bm25(self, queries: Sequence[str], items: Sequence[str]) -> Floats:
        """Give BM25 of each (query, item) and its share of the query's ceiling; shape (N, 2).

        score = Σ_t idf(t) f (k₁ + 1) / (f + k₁ (1 − b + b |d| / mean |d|)) over the query's distinct words t, with
        idf(t) = ln(1 + (n − n_t + ½) / (n_t + ½)); the ceiling Σ_t idf(t) (k₁ + 1) is never reached.
        Source: Robertson and Zaragoza, The Probabilistic Relevance Framework (2009), with the idf that stays positive.
        """
        n_documents = self._train.shape[0]
        frequency_V = self._train.getnnz(axis=0)
        idf_V = np.log1p((n_documents - frequency_V + 0.5) / (frequency_V + 0.5))
        query_NV = self._counts(queries).sign()
        item_NV = self._counts(items)
        length_N = np.asarray(item_NV.sum(axis=1)).ravel() / self._train.sum(axis=1).mean()
        damping_N = np.repeat(K1 * (1 - B + B * length_N), np.diff(item_NV.indptr))
        item_NV.data = item_NV.data * (K1 + 1) / (item_NV.data + damping_N)
        score_N = _row_products(query_NV, item_NV.multiply(idf_V).tocsr())
        ceiling_N = (K1 + 1) * (query_NV @ idf_V)
        return np.stack([score_N, score_N / np.maximum(ceiling_N, 1e-9)], axis=1)

    def tfidf(self, queries: Sequence[str], items: Sequence[str]) -> Floats:
        """Give the query's TF-IDF vector times the item's unit vector, and the cosine of both; shape (N, 2).

        Weights are (1 + ln f) (1 + ln((1 + n) / (1 + n_t))).
        """
        weighting = TfidfTransformer(norm=None, sublinear_tf=True).fit(self._train)
        query_NV = weighting.transform(self._counts(queries))
        item_NV = normalize(weighting.transform(self._counts(items)))
        norm_N = np.sqrt(_row_products(query_NV, query_NV))
        score_N = _row_products(query_NV, item_NV)
        return np.stack([score_N, score_N / np.maximum(norm_N, 1e-9)], axis=1)

    def _counts(self, texts: Sequence[str]) -> csr_matrix:
        return self._vectorizer.transform(texts).astype(np.float64)


def predict_bm25(run: Run) -> dict[Split, Floats]:
    """Give logits from BM25, mapped by a regression on train; see `training.baselines.predict_baseline`.

    Raises: as `predict_baseline`.
    """
    return _predict(run, TermIndex.bm25)


def predict_tfidf(run: Run) -> dict[Split, Floats]:
    """Give logits from the TF-IDF cosine, mapped by a regression on train; see `training.baselines.predict_baseline`.

    Raises: as `predict_baseline`.
    """
    return _predict(run, TermIndex.tfidf)


def predict_overlap(run: Run) -> dict[Split, Floats]:
    """Give logits from a bi-encoder's cosine and four lexical overlaps, mapped as the other scores are.

    Unlike stage `baseline`, whose classes weigh alike, it has the recipe's weights, as every system beside it.
    Raises: as `predict_baseline`, and RecipeError if the bi-encoder's package is not installed.
    """
    pairs = labelled_splits(run)
    return _mapped(run, pairs, split_features(pairs, run.recipe.template))


def _predict(run: Run, scores: Callable[[TermIndex, Sequence[str], Sequence[str]], Floats]) -> dict[Split, Floats]:
    pairs = labelled_splits(run)
    texts = {split: _texts(rows, run.recipe.template) for split, rows in pairs.items()}
    every = dict.fromkeys(text for queries, items in texts.values() for text in (*queries, *items))
    index = TermIndex(list(dict.fromkeys(texts["train"][1])), list(every))
    return _mapped(run, pairs, {split: scores(index, *own) for split, own in texts.items()})


def _mapped(
    run: Run, pairs: Mapping[Split, Sequence[LabelledPair]], features: Mapping[Split, Floats]
) -> dict[Split, Floats]:
    model = fit_score_map(features["train"], pairs["train"], run.recipe)
    n_classes = run.recipe.label_scheme.n_classes
    return {split: map_scores(model, own_NF, n_classes) for split, own_NF in features.items() if split != "train"}


def _texts(pairs: Sequence[LabelledPair], template: TextTemplate) -> tuple[list[str], list[str]]:
    """Give the queries and the items as the student reads them."""
    queries = [template.query_text(p.pair.query.text) for p in pairs]
    return queries, [template.item_text(p.pair.item) for p in pairs]


def _row_products(left_NV: csr_matrix, right_NV: csr_matrix) -> Floats:
    """Give the inner product of each row with the same row of the other matrix."""
    return np.asarray(left_NV.multiply(right_NV).sum(axis=1), dtype=np.float64).ravel()
