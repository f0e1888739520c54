"""Stage `student`: fine-tuning on labels, from the warm-up where there is one, and predictions of each split."""

from __future__ import annotations

import logging
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from accelerate.utils import set_seed
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from relevance.errors import RunError
from relevance.labels import LabelScheme
from relevance.pairs import LabelledPair, Pair, read_labelled_pairs
from relevance.tokenization import PairTokenizer
from training.cot_store import MATRIX as COT_MATRIX
from training.cot_store import CotStore
from training.predictions import predictions_of, write_predictions
from training.recipe import FitRecipe, Recipe, StudentRecipe
from training.runs import Run, hash_file, stage_arguments
from training.soft_labels import FILE as SOFT_LABELS
from training.soft_labels import SoftLabels, read_soft_labels
from training.student.batches import Batches, TrainingSet, readable
from training.student.encoder import load_encoder, load_tokenizer
from training.student.fit import Fit, FitPlan, finished_once
from training.student.model import WEIGHTS, Student, StudentConfig
from training.student.predict import predict, selection_figure
from training.student.rounding import snap_encoder

log = logging.getLogger("relevance.training")
WARM_UP = "warm_up"
OPTIONAL_INPUTS = (f"embed/{COT_MATRIX}", f"annotate/{SOFT_LABELS}", f"{WARM_UP}/{WEIGHTS}")


def main(argv: list[str]) -> int:
    """Train the recipe's student; see `training.recipe.StudentRecipe`."""
    run = stage_arguments(argv, "student", __doc__)
    data = run.require("data")
    inputs = {
        "student": run.recipe.student.model_dump(mode="json"),
        **shared_inputs(run),
        "files": {p.name: hash_file(p) for p in sorted(data.glob("pairs.*.parquet"))},
        "read": {name: hash_file(run.path / name) for name in OPTIONAL_INPUTS if run.finished(Path(name).parts[0])},
    }
    with run.stage("student", inputs, resumable=True) as folder:
        if folder is not None:
            StudentTraining(run, folder).fine_tune()
    return 0


def shared_inputs(run: Run) -> dict[str, object]:
    """Give what decides the result of every stage that trains a student, beside its own recipe section."""
    recipe = run.recipe
    return {
        "seed": recipe.seed,
        "scheme": recipe.label_scheme.to_dict(),
        "template": recipe.template.model_dump(mode="json"),
        "tokens": [recipe.max_query_tokens, recipe.max_pair_tokens],
    }


class StudentTraining:
    """The stages that train, over one run directory; each fit is resumable and is skipped once finished."""

    def __init__(self, run: Run, folder: Path) -> None:
        self._run, self._folder, self._recipe = run, folder, run.recipe
        self._accelerator = Accelerator(mixed_precision="bf16" if run.recipe.student.bf16 else "no")
        self._accelerator.wait_for_everyone()
        scheme = run.recipe.label_scheme
        data = run.require("data")
        self._pairs = {
            split: read_labelled_pairs(data / f"pairs.{split}.parquet", scheme)
            for split in ("train", "dev", "cal", "test")
        }
        self._dev = [p for p in self._pairs["dev"] if not p.exact_only]
        self._soft = (
            read_soft_labels(run.path / "annotate" / SOFT_LABELS, scheme.n_classes)
            if run.finished("annotate")
            else None
        )
        self._cot_store = CotStore.load(run.path / "embed") if run.finished("embed") else None
        self._tokenizer = make_tokenizer(run.recipe)
        self._template = run.recipe.template

    def warm_up(self) -> None:
        """Train on annotated pairs without labels; save the weights that every fine-tuning starts from.

        Raises: RunError: if the recipe has no warm-up or nothing was annotated.
        """
        recipe = self._recipe.student.warm_up
        if recipe is None or self._soft is None:
            raise RunError("expected student.warm_up in the recipe and soft labels; run `relevance annotate` first")
        labelled = {p.pair.pair_id for p in self._pairs["train"]}
        data = soft_training_set(self._soft, labelled)
        self._template = self._recipe.student.warm_up_template or self._template
        self._fit(self._folder, data, recipe, self._recipe.seed, store=None, start=None)

    def fine_tune(self) -> None:
        """Fine-tune each seed, average the weights, save the student and its predictions.

        Raises: RunError: if an earlier stage that the recipe asks for has not run.
        """
        self._check()
        recipe = self._recipe.student
        start = self._run.path / WARM_UP if recipe.warm_up is not None else None
        store = self._cot_store if self._guided else None
        fits = []
        for seed in recipe.seeds:
            fits.append(self._folder / "fits" / f"seed_{seed}")
            data = labelled_training_set(self._pairs["train"], self._soft, self._recipe, seed)
            self._fit(fits[-1], data, recipe.fit, seed, store=store, start=start)
        student = self._new_student()
        student.load_state_dict(average_weights([fit / WEIGHTS for fit in fits]))
        student.eval().to(self._accelerator.device)
        if not self._accelerator.is_main_process:
            return
        if recipe.round_weights:
            self._note_dev_figure(student, "dev_figure_before_rounding")
            snap_encoder(student.encoder)
        self._note_dev_figure(student, "dev_figure")
        student.save(self._folder, self._tokenizer)
        for split, pairs in self._pairs.items():
            if split != "train":
                logits = predict(student, self._tokenizer, [p.pair for p in pairs])
                path = self._folder / f"predictions.{split}.parquet"
                write_predictions(path, predictions_of(pairs, logits, self._recipe.label_scheme))

    def _fit(
        self,
        folder: Path,
        data: TrainingSet,
        recipe: FitRecipe,
        seed: int,
        *,
        store: CotStore | None,
        start: Path | None,
    ) -> None:
        student_recipe = self._recipe.student
        with finished_once(folder) as needed:
            if not needed:
                return
            set_seed(seed)
            student = self._new_student()
            if start is not None:
                student.load_state_dict(load_file(start / WEIGHTS))
            tokenizer = self._tokenizer
            if recipe.max_pair_tokens is not None:
                tokenizer = make_tokenizer(self._recipe, recipe.max_pair_tokens)
            fits = readable(data.pairs, self._template, tokenizer)
            if not fits.all():
                log.warning("%s: left out %d pairs with a query over the limit", folder.name, int((~fits).sum()))
            batches = Batches(
                data.rows(fits),
                self._template,
                tokenizer,
                batch_size=recipe.batch_size,
                field_dropout=student_recipe.field_dropout,
                cot_store=store,
            )
            plan = FitPlan(
                recipe=recipe,
                seed=seed,
                class_weight_K=class_weights(data, self._recipe.label_scheme, student_recipe),
                guidance_weight=student_recipe.guidance_weight,
                embedding_width=store.width if store is not None else 0,
                feature_weight=student_recipe.feature_weight,
                n_features=data.features_NF.shape[1],
                checkpoint_steps=student_recipe.checkpoint_steps,
                evaluate=self._dev_logits if self._dev else None,
                figure=self._dev_figure,
            )
            note = partial(self._run.note, "student")
            Fit(student, batches, plan, folder=folder, note=note, accelerator=self._accelerator).run()
            if self._accelerator.is_main_process:
                state = {name: tensor.detach().cpu().contiguous() for name, tensor in student.state_dict().items()}
                save_file(state, folder / WEIGHTS)
            self._accelerator.wait_for_everyone()
            self._accelerator.free_memory()

    @property
    def _guided(self) -> bool:
        recipe = self._recipe.student
        return recipe.guidance_weight > 0 and recipe.extractor.kind != "none"

    def _check(self) -> None:
        if not self._pairs["train"]:
            raise RunError(f"{self._run.path / 'data'}: expected training pairs, found none")
        if self._guided and self._cot_store is None:
            raise RunError(
                "expected CoT embeddings for guidance; run `relevance rationales` and `relevance embed` first, or set "
                "student.guidance_weight=0"
            )
        if self._recipe.student.fit.soft_label_weight > 0 and self._soft is None:
            raise RunError("expected soft labels (student.fit.soft_label_weight > 0); run `relevance annotate` first")
        if self._recipe.student.warm_up is not None:
            self._run.require(WARM_UP)

    def _new_student(self) -> Student:
        recipe = self._recipe
        encoder = load_encoder(recipe.student.encoder, self._tokenizer.vocabulary_size)
        config = StudentConfig(
            encoder=encoder.config.to_dict(),
            extractor=recipe.student.extractor,
            pooling=recipe.student.pooling,
            head_width=recipe.student.head_width,
            scheme=recipe.label_scheme.to_dict(),
            template=recipe.template,
            max_query_tokens=recipe.max_query_tokens,
            max_pair_tokens=recipe.max_pair_tokens,
        )
        return Student(config, encoder)

    def _note_dev_figure(self, student: Student, name: str) -> None:
        if self._dev:
            self._run.note("student", **{name: round(self._dev_figure(self._dev_logits(student)), 5)})

    def _dev_logits(self, student: Student) -> NDArray[np.float64]:
        return predict(student, self._tokenizer, [p.pair for p in self._dev])

    def _dev_figure(self, logits_NK: NDArray[np.float64]) -> float:
        scheme = self._recipe.label_scheme
        label_N = np.array([scheme.index(p.label) for p in self._dev], dtype=np.int64)
        return selection_figure(label_N, logits_NK, scheme)


def make_tokenizer(recipe: Recipe, max_pair_tokens: int | None = None) -> PairTokenizer:
    """Give the recipe's pair tokenizer, or one for shorter pairs."""
    return PairTokenizer(
        load_tokenizer(recipe.student.encoder),
        max_query_tokens=min(recipe.max_query_tokens, (max_pair_tokens or recipe.max_pair_tokens) - 4),
        max_pair_tokens=max_pair_tokens or recipe.max_pair_tokens,
    )


def labelled_training_set(
    labelled: list[LabelledPair], soft: SoftLabels | None, recipe: Recipe, seed: int
) -> TrainingSet:
    """Give the labelled pairs, their soft labels where annotated, and random negatives with a low weight.

    Random negatives are the items of other queries, labelled as the least relevant class; an item that the query has a
    label for is never drawn.
    """
    student, scheme = recipe.student, recipe.label_scheme
    per_query = Counter(p.pair.query.id for p in labelled)
    weight_N = np.array(
        [per_query[p.pair.query.id] ** -0.5 if student.query_weights == "sqrt_inverse" else 1.0 for p in labelled],
        dtype=np.float32,
    )
    weight_N /= weight_N.mean()
    n_features = 0 if soft is None else soft.features_NF.shape[1]
    row_of = {} if soft is None else {pair.pair_id: row for row, pair in enumerate(soft.pairs)}
    soft_NK = np.zeros((len(labelled), scheme.n_classes), dtype=np.float32)
    features_NF = np.full((len(labelled), n_features), np.nan, dtype=np.float32)
    for i, pair in enumerate(labelled):
        row = row_of.get(pair.pair.pair_id)
        if soft is not None and row is not None:
            soft_NK[i], features_NF[i] = soft.probabilities_NK[row], soft.features_NF[row]
    data = TrainingSet(
        [p.pair for p in labelled],
        np.array([scheme.index(p.label) for p in labelled], dtype=np.int64),
        weight_N,
        soft_NK,
        weight_N * (soft_NK.sum(axis=1) > 0),
        features_NF,
    )
    return data.extended(_random_negatives(labelled, student, scheme, seed=seed, n_features=n_features))


def _random_negatives(
    labelled: list[LabelledPair], student: StudentRecipe, scheme: LabelScheme, *, seed: int, n_features: int
) -> TrainingSet:
    rng = np.random.default_rng([seed, 17])
    judged = {(p.pair.query.id, p.pair.item.id) for p in labelled}
    pairs = []
    for i in rng.choice(len(labelled), size=round(student.random_negatives * len(labelled))):
        query, item = labelled[i].pair.query, labelled[int(rng.integers(len(labelled)))].pair.item
        if (query.id, item.id) not in judged:
            pairs.append(Pair(query, item))
    n = len(pairs)
    return TrainingSet(
        pairs,
        np.full(n, scheme.irrelevant, dtype=np.int64),
        np.full(n, student.random_negative_weight, dtype=np.float32),
        np.zeros((n, scheme.n_classes), dtype=np.float32),
        np.zeros(n, dtype=np.float32),
        np.full((n, n_features), np.nan, dtype=np.float32),
    )


def soft_training_set(soft: SoftLabels, without: set[str]) -> TrainingSet:
    """Give annotated pairs, without labels; pairs whose id is in `without` are left out."""
    n = len(soft.pairs)
    data = TrainingSet(
        soft.pairs,
        np.zeros(n, np.int64),
        np.zeros(n, np.float32),
        soft.probabilities_NK,
        np.ones(n, np.float32),
        soft.features_NF,
    )
    return data.rows(np.array([pair.pair_id not in without for pair in soft.pairs], dtype=bool))


def class_weights(data: TrainingSet, scheme: LabelScheme, recipe: StudentRecipe) -> NDArray[np.float32] | None:
    """Give one weight a class, mean 1 over the labelled pairs; None for all ones."""
    labelled = data.label_weight_N > 0
    if recipe.class_weights == "none" or not labelled.any():
        return None
    share_K = np.bincount(data.label_N[labelled], data.label_weight_N[labelled], minlength=scheme.n_classes)
    share_K = np.maximum(share_K / share_K.sum(), 1e-3)
    weight_K = share_K**-0.5
    balanced_K: NDArray[np.float32] = (weight_K / (weight_K @ share_K)).astype(np.float32)
    return balanced_K


def average_weights(files: list[Path]) -> dict[str, object]:
    """Give the uniform average of the weights of several fits of one start (arXiv:2203.05482)."""
    states = [load_file(file) for file in files]
    return {
        name: sum(state[name] for state in states) / len(states) if tensor.is_floating_point() else tensor
        for name, tensor in states[0].items()
    }
