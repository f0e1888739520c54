"""The facts teacher of the synthetic marketplace: gradient boosting on how a page and its record answer the query.

It reads no words: title and catalogue record are held against the query's intent attribute by attribute. It is the
privileged teacher of label distillation there. The same classifier on the true facts is the ceiling that label noise
leaves. Suffixes: N pairs, F features, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier

from relevance.errors import InputError
from relevance.labels import LabelScheme
from relevance.pairs import LabelledPair, Pair, read_labelled_pairs
from training.marketplace.catalogue import load_catalogue
from training.marketplace.facts import (
    INTENTS,
    TRUTH,
    Intent,
    Match,
    compare,
    facts_of_item,
    match_features,
    read_intents,
    read_truth,
)
from training.marketplace.reading import facts_of_title
from training.predictions import predictions_of, write_predictions
from training.recipe import PERSPECTIVES, Perspective, Split
from training.soft_labels import FILE, SoftLabels, write_soft_labels
from training.words import query_unit

SCORED: tuple[Split, ...] = ("dev", "cal", "test")
ORACLE = "oracle"
TITLE_READER = "title_reader"
"""The same classifier on what titles tell: how far one comes who sees no more than the student and reads perfectly."""
_SMALLEST = 1e-6
"""Probability below which a logit falls no further."""


class FactsClassifier:
    """Gradient boosting on comparison features, with out-of-fold probabilities of its own training pairs.

    Raises: InputError: if all queries fall into one fold.
    """

    def __init__(
        self,
        labelled: Sequence[LabelledPair],
        features_NF: NDArray[np.float32],
        scheme: LabelScheme,
        *,
        folds: int,
        seed: int,
    ) -> None:
        self._n_classes, self._seed = scheme.n_classes, seed
        label_N = np.array([scheme.index(p.label) for p in labelled])
        fold_N = np.array([int(query_unit(p.pair.query.text, "fold:") * folds) for p in labelled])
        if len(np.unique(fold_N)) < 2:
            raise InputError(f"facts teacher: expected queries for at least two folds, found {len(labelled)} pairs")
        self.out_of_fold_NK = np.zeros((len(labelled), self._n_classes))
        for fold in np.unique(fold_N):
            given = fold_N == fold
            model = self._fit(features_NF[~given], label_N[~given])
            self.out_of_fold_NK[given] = self._probabilities(model, features_NF[given])
        self._model = self._fit(features_NF, label_N)

    def probabilities(self, features_NF: NDArray[np.float32]) -> NDArray[np.float64]:
        """Give the probabilities of other pairs, float64 of shape (N, K)."""
        return self._probabilities(self._model, features_NF)

    def _fit(self, features_NF: NDArray[np.float32], label_N: NDArray[np.int64]) -> HistGradientBoostingClassifier:
        model = HistGradientBoostingClassifier(
            max_iter=120, learning_rate=0.06, max_leaf_nodes=15, l2_regularization=2.0, random_state=self._seed
        )
        return model.fit(features_NF, label_N)

    def _probabilities(
        self, model: HistGradientBoostingClassifier, features_NF: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        probabilities_NK = np.zeros((len(features_NF), self._n_classes))
        probabilities_NK[:, model.classes_] = model.predict_proba(features_NF)
        return probabilities_NK


PageMatches = tuple[list[Match], list[Match]]
"""The same pairs compared by catalogue record and by title."""


def page_matches(pairs: Sequence[Pair], intents: Mapping[str, Intent]) -> PageMatches:
    """Hold what each query asks for against the item's record and against its title.

    Raises: InputError: if a query is none of the marketplace's.
    """
    catalogue = load_catalogue()
    unknown = next((p.query.id for p in pairs if p.query.id not in intents), None)
    if unknown is not None:
        raise InputError(f"facts teacher: expected queries of the data stage, found {unknown!r:.60}")
    return (
        [compare(intents[p.query.id], facts_of_item(p.item), catalogue) for p in pairs],
        [compare(intents[p.query.id], facts_of_title(p.item.title), catalogue) for p in pairs],
    )


def page_features(matches: PageMatches, perspective: Perspective | None = None) -> NDArray[np.float32]:
    """Give the comparison features of record and title side by side, float32 of shape (N, F)."""
    return np.concatenate([match_features(part, perspective) for part in matches], axis=1)


def annotate_by_facts(data: Path, folder: Path, scheme: LabelScheme, *, folds: int, seed: int) -> None:
    """Write the teacher's soft labels of the train pairs, and predictions of the other splits: its own, and ceilings.

    Files: `soft_labels.parquet` of all perspectives, `soft_labels.PERSPECTIVE.parquet`, `predictions.SPLIT.parquet`,
    `oracle.SPLIT.parquet`, `title_reader.SPLIT.parquet`. Soft labels are out of fold, so no pair is annotated by a
    model that saw its label.

    Args: data: the data stage's folder; folder: to write to.
    Raises: InputError: if the data stage's source was not the marketplace.
    """
    if not (data / INTENTS).is_file() or not (data / TRUTH).is_file():
        raise InputError(f"{data}: annotate.teacher = 'facts' expects data.source = 'marketplace', found no {INTENTS}")
    intents, truth = read_intents(data / INTENTS), read_truth(data / TRUTH)
    train = read_labelled_pairs(data / "pairs.train.parquet", scheme)
    train_pairs = [p.pair for p in train]
    others = {split: read_labelled_pairs(data / f"pairs.{split}.parquet", scheme) for split in SCORED}
    others = {split: labelled for split, labelled in others.items() if labelled}
    matches = page_matches(train_pairs, intents)
    views: tuple[Perspective | None, ...] = (None, *PERSPECTIVES)
    for view in views:
        teacher = FactsClassifier(train, page_features(matches, view), scheme, folds=folds, seed=seed)
        probabilities_NK = teacher.out_of_fold_NK.astype(np.float32)
        soft = SoftLabels(train_pairs, probabilities_NK, np.zeros((len(train), 0), dtype=np.float32))
        write_soft_labels(folder / (FILE if view is None else FILE.replace(".", f".{view}.")), soft)
        if view is None:
            for split, labelled in others.items():
                features_NF = page_features(page_matches([p.pair for p in labelled], intents))
                _write(folder / f"predictions.{split}.parquet", labelled, teacher.probabilities(features_NF), scheme)

    def true_features(labelled: Sequence[LabelledPair]) -> NDArray[np.float32]:
        """Give the features of the true comparisons."""
        return match_features([truth[p.pair.pair_id][1] for p in labelled])

    def title_features(labelled: Sequence[LabelledPair]) -> NDArray[np.float32]:
        """Give the features of titles alone."""
        return match_features(page_matches([p.pair for p in labelled], intents)[1])

    for name, features_of in ((ORACLE, true_features), (TITLE_READER, title_features)):
        ceiling = FactsClassifier(train, features_of(train), scheme, folds=folds, seed=seed)
        for split, labelled in others.items():
            found_NK = ceiling.probabilities(features_of(labelled))
            _write(folder / f"{name}.{split}.parquet", labelled, found_NK, scheme)


def _write(
    path: Path, labelled: list[LabelledPair], probabilities_NK: NDArray[np.float64], scheme: LabelScheme
) -> None:
    logits_NK = np.log(np.maximum(probabilities_NK, _SMALLEST))
    write_predictions(path, predictions_of(labelled, logits_NK, scheme))
