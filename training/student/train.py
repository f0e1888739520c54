"""Stage `student`: fine-tuning on labels, from the warm-up where there is one, and predictions of each split."""

from __future__ import annotations

import logging
import os
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from relevance.errors import RunError
from relevance.pairs import read_labelled_pairs
from training.cot_store import MATRIX as COT_MATRIX
from training.model_source import weights_hash
from training.predictions import predictions_of, write_predictions
from training.runs import Run, hash_file, stage_arguments
from training.soft_labels import read_soft_labels, soft_labels_file
from training.student.batches import Batches, TrainingSet, readable
from training.student.encoder import SCRATCH, load_encoder
from training.student.extra_terms import (
    RATIONALES,
    ExtraTerms,
    guidance_terms,
    make_terms,
    needs_rationales,
    rationales_of,
)
from training.student.fit import Fit, FitPlan, finished_once
from training.student.frozen import FrozenStates
from training.student.inputs import (
    average_weights,
    class_weights,
    labelled_training_set,
    learned_pairs,
    make_tokenizer,
    soft_training_set,
)
from training.student.model import WEIGHTS, Student, StudentConfig
from training.student.predict import predict, selection_figure
from training.student.rounding import snap_encoder
from training.student_recipe import FitRecipe, hashed_student

log = logging.getLogger("relevance.training")
WARM_UP = "warm_up"
FROZEN = "frozen"
PRETRAIN, ENCODER = "pretrain", "encoder.safetensors"
_ENCODER = "encoder."


def main(argv: list[str]) -> int:
    """Train the recipe's student; see `training.recipe.StudentRecipe`."""
    train(stage_arguments(argv, "student", __doc__))
    return 0


def train(run: Run) -> None:
    """Train the student of a run, unless it has finished with the same inputs."""
    data = run.require("data")
    inputs = {
        "student": hashed_student(run.recipe.student),
        **shared_inputs(run),
        "files": {p.name: hash_file(p) for p in sorted(data.glob("pairs.*.parquet"))},
        "read": {f"{stage}/{file}": hash_file(run.folder(stage) / file) for stage, file in _optional_inputs(run)},
    }
    with run.stage("student", inputs, resumable=True) as folder:
        if folder is not None:
            StudentTraining(run, folder).fine_tune()


def _optional_inputs(run: Run) -> list[tuple[str, str]]:
    """Give stage and file of everything read beside the pairs, of the stages that have finished."""
    recipe = run.recipe.student
    read = [(recipe.guidance.store, COT_MATRIX), ("annotate", soft_labels_file(recipe)), (WARM_UP, WEIGHTS)]
    read.append((PRETRAIN, ENCODER))
    if needs_rationales(recipe):
        read.append(("rationales", RATIONALES))
    if recipe.guidance.pairs != "all":
        read.append((rationales_of(recipe.guidance.store), RATIONALES))
    return [(stage, file) for stage, file in read if (run.folder(stage) / file).is_file()]


def shared_inputs(run: Run) -> dict[str, object]:
    """Give what decides the result of every stage that trains a student, beside its own recipe section."""
    recipe = run.recipe
    encoder = recipe.student.encoder
    # A hub name and a package are what their names say; a folder's content may change under its name.
    folders = [Path(name) for name in (encoder.name, encoder.tokenizer) if name not in {None, SCRATCH}]
    local = {str(folder): weights_hash(folder) for folder in folders if folder.is_dir()}
    return {
        **({"local_models": local} if local else {}),
        "seed": recipe.seed,
        "scheme": recipe.label_scheme.to_dict(),
        "template": recipe.template.model_dump(mode="json"),
        "tokens": [recipe.max_query_tokens, recipe.max_pair_tokens],
    }


def computes_bf16() -> bool:
    """Say whether the device has instructions for bf16: a CPU without them emulates it, tens of times slower."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    supported = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if not supported:
        log.warning("student.bf16: expected a processor with bf16 instructions, found none; training in float32")
    return supported


class StudentTraining:
    """The stages that train, over one run directory; each fit is resumable and is skipped once finished."""

    def __init__(self, run: Run, folder: Path) -> None:
        self._run, self._folder, self._recipe = run, folder, run.recipe
        precision = "bf16" if run.recipe.student.bf16 and computes_bf16() else "no"
        # On CPUs accelerate joins the processes of a launcher only when told that the CPU is meant.
        on_cpus = not torch.cuda.is_available() and int(os.environ.get("WORLD_SIZE", "1")) > 1
        self._accelerator = Accelerator(mixed_precision=precision, cpu=on_cpus)
        self._accelerator.wait_for_everyone()
        scheme = run.recipe.label_scheme
        data = run.require("data")
        self._pairs = {
            split: read_labelled_pairs(data / f"pairs.{split}.parquet", scheme)
            for split in ("train", "dev", "cal", "test")
        }
        self._dev = [p for p in self._pairs["dev"] if not p.exact_only]
        self._soft = (
            read_soft_labels(run.folder("annotate") / soft_labels_file(run.recipe.student), scheme.n_classes)
            if run.finished("annotate")
            else None
        )
        self._tokenizer = make_tokenizer(run)
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
        self._fit(self._folder, data, recipe, self._recipe.seed, start=None, on_labels=False)

    def fine_tune(self) -> None:
        """Fine-tune each seed, average the weights, save the student and its predictions.

        Raises: RunError: if an earlier stage that the recipe asks for has not run.
        """
        self._check()
        recipe = self._recipe.student
        start = self._run.folder(WARM_UP) if recipe.warm_up is not None else None
        fits = []
        labelled = learned_pairs(self._pairs["train"], recipe)
        for seed in recipe.seeds:
            fits.append(self._folder / "fits" / f"seed_{seed}")
            data = labelled_training_set(labelled, self._soft, self._recipe, seed)
            if self._needs_soft and not data.soft_weight_N.any():
                raise RunError(
                    "expected soft labels of the training pairs, found none of theirs; annotate this run's data"
                )
            self._fit(fits[-1], data, recipe.fit, seed, start=start, on_labels=True)
        student = self._new_student()
        student.load_state_dict(average_weights([fit / WEIGHTS for fit in fits]))
        student.eval().to(self._accelerator.device)
        if not self._accelerator.is_main_process:
            return
        if recipe.round_weights:
            self._note_dev_figure(student, "dev_figure_before_rounding")
            snap_encoder(student.encoder)
        self._keep_states(student)
        self._note_dev_figure(student, "dev_figure")
        student.save(self._folder, self._tokenizer)
        for split in recipe.predicted:
            pairs = self._pairs[split]
            logits = predict(student, self._tokenizer, [p.pair for p in pairs])
            path = self._folder / f"predictions.{split}.parquet"
            write_predictions(path, predictions_of(pairs, logits, self._recipe.label_scheme))
        if student.frozen is not None:
            student.frozen.close()

    def _fit(
        self,
        folder: Path,
        data: TrainingSet,
        recipe: FitRecipe,
        seed: int,
        *,
        start: Path | None,
        on_labels: bool,
    ) -> None:
        student_recipe = self._recipe.student
        with finished_once(folder) as needed:
            if not needed:
                return
            set_seed(seed)
            student = self._new_student()
            if start is not None:
                self._start_from(student, start)
            if on_labels:
                self._keep_states(student)
            tokenizer = self._tokenizer
            if recipe.max_pair_tokens is not None:
                tokenizer = make_tokenizer(self._run, recipe.max_pair_tokens)
            fits = readable(data.pairs, self._template, tokenizer)
            if not fits.all():
                log.warning("%s: left out %d pairs with a query over the limit", folder.name, int((~fits).sum()))
            data = data.rows(fits)
            class_weight_K = class_weights(data, self._recipe.label_scheme, student_recipe)
            extra = ExtraTerms()
            if on_labels:
                extra = make_terms(self._run, student, data, tokenizer, class_weight_K=class_weight_K, seed=seed)
            elif student_recipe.warm_up_guidance:
                extra = guidance_terms(self._run, student, data, seed)
            batches = Batches(
                data,
                self._template,
                tokenizer,
                batch_size=recipe.batch_size,
                field_dropout=student_recipe.field_dropout,
                side=extra.side,
            )
            plan = FitPlan(
                recipe=recipe,
                seed=seed,
                class_weight_K=class_weight_K,
                terms=extra.terms,
                feature_weight=student_recipe.feature_weight,
                n_features=data.features_NF.shape[1],
                freeze_layers=student_recipe.encoder.freeze_layers if on_labels else 0,
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
    def _needs_soft(self) -> bool:
        recipe = self._recipe.student
        return "mkd" in recipe.rationale_terms or recipe.fit.soft_label_weight > 0

    def _check(self) -> None:
        if not self._pairs["train"]:
            raise RunError(f"{self._run.path / 'data'}: expected training pairs, found none")
        if self._needs_soft and self._soft is None:
            raise RunError(
                "expected soft labels for MKD or student.fit.soft_label_weight; run `relevance annotate` first"
            )
        if self._recipe.student.warm_up is not None:
            self._run.require(WARM_UP)
        for split in {"dev", *self._recipe.student.predicted}:
            pairs = [p.pair for p in self._pairs[split]]
            fits_N = readable(pairs, self._template, self._tokenizer)
            if not fits_N.all():
                first = pairs[int(np.flatnonzero(~fits_N)[0])].query.text
                raise RunError(
                    f"{split}: expected queries of at most {self._tokenizer.max_query_tokens} tokens, found "
                    f"{int((~fits_N).sum())} pairs with longer ones, such as {first!r:.80}; raise max_query_tokens"
                )

    def _new_student(self) -> Student:
        recipe = self._recipe
        encoder = load_encoder(recipe.student.encoder, self._tokenizer.vocabulary_size)
        if recipe.student.pretrain is not None:
            encoder.load_state_dict(load_file(self._run.require(PRETRAIN) / ENCODER))
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

    def _start_from(self, student: Student, warm_up: Path) -> None:
        """Load what the warm-up learned, or its encoder alone.

        Raises: RunError: if the whole of a student of another build is to be loaded.
        """
        state = load_file(warm_up / WEIGHTS)
        if self._recipe.student.warm_up_start == "student":
            if differing := state.keys() ^ student.state_dict().keys():
                raise RunError(
                    f"{warm_up / WEIGHTS}: expected a student of this recipe's build, found that one of the two has no "
                    f"{min(differing)}; student.warm_up_start = 'encoder' takes the encoder alone"
                )
            student.load_state_dict(state)
            return
        own = {name.removeprefix(_ENCODER): tensor for name, tensor in state.items() if name.startswith(_ENCODER)}
        student.encoder.load_state_dict(own)

    def _keep_states(self, student: Student) -> None:
        recipe = self._recipe.student.encoder
        if recipe.keep_states:
            folder = (self._run.shared or self._run.path) / FROZEN
            student.frozen = FrozenStates(folder, student.encoder, recipe.freeze_layers)

    def _note_dev_figure(self, student: Student, name: str) -> None:
        if self._dev:
            self._run.note("student", **{name: round(self._dev_figure(self._dev_logits(student)), 5)})

    def _dev_logits(self, student: Student) -> NDArray[np.float64]:
        return predict(student, self._tokenizer, [p.pair for p in self._dev])

    def _dev_figure(self, logits_NK: NDArray[np.float64]) -> float:
        scheme = self._recipe.label_scheme
        label_N = np.array([scheme.index(p.label) for p in self._dev], dtype=np.int64)
        return selection_figure(label_N, logits_NK, scheme)
