"""Stage `annotate`: soft labels for pairs without labels, from a teacher that reads more of the item than the student.

The teacher is an average of logistic regression, gradient boosting and extremely randomised trees over the features of
`training.teacher.features`, fitted on labelled pairs. Labelled pairs get out-of-fold probabilities (folds by query), so
that no pair is annotated by a model that saw its label. The marketplace has a teacher of its own, see
`training.teacher.facts`; an LLM teacher's part is in `training.teacher.policy_annotate`.
Suffixes: N pairs, F features, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from relevance.errors import InputError, RecipeError
from relevance.labels import LabelScheme
from relevance.pairs import Item, LabelledPair, Pair, Query, parquet_rows, read_labelled_pairs
from training.marketplace.facts import INTENTS, TRUTH
from training.model_source import resolve_model, weights_hash
from training.predictions import Predictions, predictions_of, write_predictions
from training.recipe import SPLITS, AnnotateRecipe
from training.runs import Run, hash_file, log, stage_arguments
from training.soft_labels import FILE, SoftLabels, write_soft_labels
from training.teacher.facts import TITLE_READER, annotate_by_facts
from training.teacher.features import FEATURES, OF_TITLE, TAUGHT, PairFeatures, TokenEncoder
from training.teacher.policy_annotate import annotate_by_policy
from training.words import query_unit, same_words_key

MAX_TOKENS = 64
FAR_RANK = 300
FAR_IRRELEVANT = 0.4
"""Items ranked this far away are blended with so much certainty of irrelevance: the teacher saw few such pairs."""

_FLOOR = 1e-9
Ranks = tuple[tuple[int, int, int], ...]


def main(argv: list[str]) -> int:
    """Fit the feature-based teacher and annotate pairs; see `training.recipe.AnnotateRecipe`."""
    run = stage_arguments(argv, "annotate", __doc__)
    recipe = run.recipe.annotate
    if recipe.teacher == "policy":
        annotate_by_policy(run)
        return 0
    data = run.require("data")
    by_facts = recipe.teacher == "facts"
    told = [path for name in (INTENTS, TRUTH) if by_facts and (path := data / name).is_file()]
    files = {p.name: hash_file(p) for p in (*sorted(data.glob("pairs.*.parquet")), *told)}
    for folder_name, name in ((recipe.items, "esci_products.parquet"), (recipe.queries, "esci_label_ids.parquet")):
        if folder_name is not None:
            path = Path(folder_name) / name
            if not path.is_file():
                raise InputError(f"{path}: expected the file that the recipe's section annotate names, found none")
            files[name] = hash_file(path)
    inputs = {
        "annotate": recipe.model_dump(mode="json"),
        "seed": run.recipe.seed,
        "scheme": run.recipe.label_scheme.to_dict(),
        "files": files,
    }
    # A hub name and a package are what their names say; a folder's content may change under its name.
    if recipe.teacher == "features" and Path(recipe.model).is_dir():
        inputs["model"] = weights_hash(Path(recipe.model))
    with run.stage("annotate", inputs) as folder:
        if folder is not None and by_facts:
            annotate_by_facts(data, folder, run.recipe.label_scheme, folds=recipe.folds, seed=run.recipe.seed)
        elif folder is not None:
            soft, teacher = annotate(run, data)
            write_soft_labels(folder / FILE, soft)
            for name, predictions in teacher.items():
                write_predictions(folder / f"{name}.parquet", predictions)
            log.info("annotate: %d pairs", len(soft.pairs))
    return 0


def annotate(run: Run, data: Path) -> tuple[SoftLabels, dict[str, Predictions]]:
    """Give soft labels of sampled pairs without labels, then of the labelled training pairs (out of fold).

    Returns: them, and predictions of every other split by file: the teacher's own, the ceiling of what learns from it,
        and those of the same ensemble on the features of query and title alone.
    """
    recipe, scheme = run.recipe.annotate, run.recipe.label_scheme
    labelled = read_labelled_pairs(data / "pairs.train.parquet", scheme)
    others = {split: read_labelled_pairs(data / f"pairs.{split}.parquet", scheme) for split in SPLITS[1:]}
    held_out = {same_words_key(pair.pair.query.text) for pairs in others.values() for pair in pairs}
    items = _items(recipe, labelled)
    queries, extra = _queries(run, labelled, held_out)
    try:
        model = SentenceTransformer(resolve_model(recipe.model))
    except (OSError, ValueError) as error:
        raise RecipeError(f"annotate.model {recipe.model!r}: expected a sentence encoder: {error}") from error
    model.max_seq_length = MAX_TOKENS
    encoder = TokenEncoder(model)
    drawn = sample_pairs(encoder, items, [(queries, recipe.ranks), (extra, recipe.extra_ranks)], run.recipe.seed)
    own = {pair.pair.pair_id for pair in labelled}
    sampled = [(pair, rank) for pair, rank in drawn if pair.pair_id not in own]
    features = PairFeatures(encoder, [item.title for item in items])
    labelled_NF = features.of([p.pair for p in labelled])
    sampled_NF = features.of([pair for pair, _ in sampled]) if sampled else labelled_NF[:0]
    teacher = CrossFittedTeacher(scheme, labelled, labelled_NF, folds=recipe.folds, seed=run.recipe.seed)
    sampled_NK = teacher.probabilities(sampled_NF) if sampled else teacher.out_of_fold_NK[:0]
    far_N1 = np.array([rank >= FAR_RANK for _, rank in sampled])[:, None]
    irrelevant_K = np.eye(scheme.n_classes, dtype=np.float32)[scheme.irrelevant]
    sampled_NK = np.where(far_N1, (1 - FAR_IRRELEVANT) * sampled_NK + FAR_IRRELEVANT * irrelevant_K, sampled_NK)
    chosen = [FEATURES.index(name) for name in TAUGHT]
    mean_F, deviation_F = np.nanmean(labelled_NF, axis=0), np.nanstd(labelled_NF, axis=0)
    all_NF = np.clip((np.concatenate([sampled_NF, labelled_NF]) - mean_F) / np.maximum(deviation_F, 1e-6), -4, 4)
    of_title = [FEATURES.index(name) for name in OF_TITLE]
    title_NF = labelled_NF[:, of_title]
    title_reader = CrossFittedTeacher(scheme, labelled, title_NF, folds=recipe.folds, seed=run.recipe.seed)
    predictions = {}
    for split, pairs in others.items():
        if pairs:
            own_NF = features.of([p.pair for p in pairs])
            for name, reader, read_NF in (
                ("predictions", teacher, own_NF),
                (TITLE_READER, title_reader, own_NF[:, of_title]),
            ):
                logits_NK = np.log(np.maximum(reader.probabilities(read_NF), _FLOOR))
                predictions[f"{name}.{split}"] = predictions_of(pairs, logits_NK, scheme)
    soft = SoftLabels(
        [pair for pair, _ in sampled] + [p.pair for p in labelled],
        np.concatenate([sampled_NK, teacher.out_of_fold_NK]).astype(np.float32),
        all_NF[:, chosen].astype(np.float32),
    )
    return soft, predictions


class _Classifier(Protocol):
    classes_: NDArray[np.int64]

    def predict_proba(self, features_NF: NDArray[np.float32], /) -> NDArray[np.float64]: ...


class CrossFittedTeacher:
    """The ensemble, fitted on labelled pairs without exact-only sources; each pair of a query of n weighs 1 / √n."""

    def __init__(
        self,
        scheme: LabelScheme,
        labelled: Sequence[LabelledPair],
        features_NF: NDArray[np.float32],
        *,
        folds: int,
        seed: int,
    ) -> None:
        self._n_classes, self._seed = scheme.n_classes, seed
        label_N = np.array([scheme.index(p.label) for p in labelled])
        query_N = np.array([p.pair.query.id for p in labelled])
        _, inverse, counts = np.unique(query_N, return_inverse=True, return_counts=True)
        weight_N = counts[inverse] ** -0.5
        usable_N = np.array([not p.exact_only for p in labelled], dtype=bool)
        fold_N = np.array([int(query_unit(p.pair.query.text, "fold:") * folds) for p in labelled])
        self.out_of_fold_NK = np.zeros((len(labelled), self._n_classes))
        for fold in range(folds):
            fitted, given = usable_N & (fold_N != fold), fold_N == fold
            if given.any():
                n_classes = len(np.unique(label_N[fitted]))
                if n_classes < 2:
                    raise InputError(
                        f"annotate: expected pairs of two classes outside each of {folds} folds of queries, found "
                        f"{int(fitted.sum())} pairs of {n_classes} outside fold {fold}"
                    )
                models = self._fit(features_NF[fitted], label_N[fitted], weight_N[fitted])
                self.out_of_fold_NK[given] = self._mean(models, features_NF[given])
        self._models = self._fit(features_NF[usable_N], label_N[usable_N], weight_N[usable_N])

    def probabilities(self, features_NF: NDArray[np.float32]) -> NDArray[np.float64]:
        """Give the ensemble's probabilities of new pairs, float64 of shape (N, K)."""
        return self._mean(self._models, features_NF)

    def _fit(
        self, features_NF: NDArray[np.float32], label_N: NDArray[np.int64], weight_N: NDArray[np.float64]
    ) -> list[_Classifier]:
        weight_N = weight_N / weight_N.mean()
        linear = make_pipeline(
            SimpleImputer(keep_empty_features=True), StandardScaler(), LogisticRegression(max_iter=3000)
        )
        linear.fit(features_NF, label_N, logisticregression__sample_weight=weight_N)
        boosted = HistGradientBoostingClassifier(
            max_iter=150,
            learning_rate=0.04,
            max_leaf_nodes=12,
            min_samples_leaf=30,
            l2_regularization=5.0,
            max_features=0.4,
            random_state=self._seed,
        )
        empty_F = np.isnan(features_NF).all(axis=0)
        boosted.fit(np.where(empty_F, np.float32(0), features_NF), label_N, sample_weight=weight_N)
        trees = make_pipeline(
            SimpleImputer(keep_empty_features=True),
            ExtraTreesClassifier(400, min_samples_leaf=8, max_features=0.4, n_jobs=-1, random_state=self._seed),
        )
        trees.fit(features_NF, label_N, extratreesclassifier__sample_weight=weight_N)
        return [linear, boosted, trees]

    def _mean(self, models: list[_Classifier], features_NF: NDArray[np.float32]) -> NDArray[np.float64]:
        total_NK = np.zeros((len(features_NF), self._n_classes))
        for model in models:
            total_NK[:, model.classes_] += model.predict_proba(features_NF)
        return total_NK / len(models)


def sample_pairs(
    encoder: TokenEncoder, items: Sequence[Item], groups: Sequence[tuple[Sequence[Query], Ranks]], seed: int
) -> list[tuple[Pair, int]]:
    """Pair queries with items drawn from ranges of their ranking by cosine.

    Args: groups: queries with their ranges (first rank, end rank, how many), ends cut at the number of items.
    Returns: distinct pairs, each with the first rank of the range it was drawn from.
    """
    encoder.encode([item.title for item in items] + [query.text for queries, _ in groups for query in queries])
    titles = np.stack([encoder[item.title].sentence_D for item in items]).astype(np.float32)
    rng = np.random.default_rng([seed, 23])
    drawn: dict[tuple[str, str], tuple[Pair, int]] = {}
    for queries, ranks in groups:
        for query in queries:
            ranking = np.argsort(-(titles @ encoder[query.text].sentence_D.astype(np.float32)), kind="stable")
            for first, end, count in ranks:
                among = ranking[first : min(end, len(items))]
                for index in rng.choice(among, size=min(count, len(among)), replace=False):
                    pair = Pair(query, items[int(index)])
                    drawn.setdefault((query.id, str(pair.item.id)), (pair, first))
    return list(drawn.values())


def _items(recipe: AnnotateRecipe, labelled: Sequence[LabelledPair]) -> list[Item]:
    if recipe.items is None:
        return list({str(p.pair.item.id): p.pair.item for p in labelled}.values())
    path = Path(recipe.items) / "esci_products.parquet"
    texts = {"bullets": "product_bullet_point", "description": "product_description", "category": "category"}
    return [
        Item(
            title=row["product_title"],
            id=row["product_id"],
            brand=row["product_brand"],
            color=row["product_color"],
            attributes={name: row[column] for name, column in texts.items() if row[column]},
        )
        for _, row in parquet_rows(path, ("product_id", "product_title", "product_brand", "product_color"))
    ]


def _queries(run: Run, labelled: Sequence[LabelledPair], held_out: set[str]) -> tuple[list[Query], list[Query]]:
    """Give the training queries of the items' language, and further train queries that no split holds, in any order."""
    own = {p.pair.query.id: p.pair.query for p in labelled if run.recipe.annotate.items is None or _in_us(p)}
    if run.recipe.annotate.queries is None:
        return list(own.values()), []
    known = held_out | {same_words_key(query.text) for query in own.values()}
    extra = {}
    path = Path(run.recipe.annotate.queries) / "esci_label_ids.parquet"
    for _, row in parquet_rows(path, ("query_id", "query", "query_locale", "split")):
        words = same_words_key(row["query"])
        of_cal = query_unit(row["query"], "cal:") < run.recipe.data.cal_fraction
        if row["split"] == "train" and row["query_locale"] != "jp" and not of_cal and words not in known:
            extra[row["query_id"]] = Query(row["query"], row["query_id"], row["query_locale"])
    return list(own.values()), list(extra.values())


def _in_us(labelled: LabelledPair) -> bool:
    return labelled.pair.query.locale == "us"
