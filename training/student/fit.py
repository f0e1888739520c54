"""The training loop: one fit of a student on a training set, with checkpoints, early stopping and a collapse alarm."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from relevance.calibration import expected_gain, softmax
from relevance.errors import CollapseError, RecipeError
from training.student.batches import Batch, Batches
from training.student.losses import feature_loss, rank_loss, soft_label_loss, task_loss
from training.student.model import Student, StudentOutput
from training.student.terms import Term
from training.student_recipe import FitRecipe

log = logging.getLogger("relevance.training")
NOTE_STEPS = 20
COLLAPSED = 1e-4
"""A standard deviation of the score below this on dev means that the student gives every pair the same answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitPlan:
    """What a fit needs beside the student and the batches.

    Args: recipe: schedule; seed: of order and dropout; class_weight_K: None for all ones; terms: of the loss, beside
        the task's and the annotated ones; feature_weight: of the regression on features; n_features: F, 0 for no
        regression; freeze_layers: lowest layers that keep their weights; checkpoint_steps: between checkpoints;
        evaluate: dev logits of a student, None to train all epochs; figure: dev logits → what to maximise.
    """

    recipe: FitRecipe
    seed: int
    class_weight_K: NDArray[np.float32] | None
    terms: tuple[Term, ...]
    feature_weight: float
    n_features: int
    freeze_layers: int
    checkpoint_steps: int
    evaluate: Callable[[Student], NDArray[np.float64]] | None
    figure: Callable[[NDArray[np.float64]], float]


@dataclass(slots=True)
class Progress:
    """How far a fit has come; what a checkpoint stores beside the weights."""

    epoch: int = 0
    batch: int = 0
    best: float = -math.inf
    best_epoch: int = -1


class Fit:
    """One resumable fit: `run` trains, keeps the best epoch's weights and gives them back in the student.

    Args: student: trained in place; batches: of the training set; plan: see `FitPlan`; folder: for checkpoints,
        progress and the best weights; note: called with figures worth a ledger line; accelerator: device and processes.
    """

    def __init__(
        self,
        student: Student,
        batches: Batches,
        plan: FitPlan,
        *,
        folder: Path,
        note: Callable[..., None],
        accelerator: Accelerator,
    ) -> None:
        set_seed(plan.seed)
        self._plan, self._batches, self._folder, self._note = plan, batches, folder, note
        self._accelerator = accelerator
        self._student = student
        freeze(student, plan.recipe.freeze_embeddings, plan.freeze_layers)
        losses = StudentLosses(student, plan)
        optimizer = torch.optim.AdamW(
            parameter_groups(losses, plan.recipe), lr=plan.recipe.learning_rate * plan.recipe.rate_factor
        )
        self._module, self._optimizer = accelerator.prepare(losses, optimizer)
        self._base_rates = [group["lr"] for group in self._optimizer.param_groups]
        processes = accelerator.num_processes
        self._steps_per_epoch = -(-len(batches) // processes)

    def run(self) -> float:
        """Train to the end of the schedule or of the patience.

        Returns: the best dev figure, nan without `evaluate`.
        Raises: CollapseError: if a loss is not finite, or an epoch ends with the same score for every dev pair.
        """
        recipe = self._plan.recipe
        progress = self._resume()
        total = recipe.epochs * self._steps_per_epoch
        with tqdm(
            total=total,
            initial=progress.epoch * self._steps_per_epoch + progress.batch,
            unit="batch",
            desc=self._folder.name,
            disable=not self._accelerator.is_main_process,
        ) as bar:
            while progress.epoch < recipe.epochs and not self._out_of_patience(progress):
                self._train_epoch(progress, total, bar)
                progress.epoch, progress.batch = progress.epoch + 1, 0
                self._end_epoch(progress)
                self._checkpoint(progress)
        if self._student.frozen is not None:
            self._student.frozen.close()
        best = self._folder / "best.safetensors"
        if best.is_file():
            self._student.load_state_dict(load_file(best))
        return progress.best if self._plan.evaluate else math.nan

    def _out_of_patience(self, progress: Progress) -> bool:
        waited = progress.epoch - max(progress.best_epoch, 0)
        return self._plan.evaluate is not None and waited >= self._plan.recipe.patience

    def _train_epoch(self, progress: Progress, total: int, bar: Any) -> None:  # noqa: ANN401 - tqdm is generic
        self._module.train()
        started, first = time.monotonic(), progress.batch
        index, processes = self._accelerator.process_index, self._accelerator.num_processes
        batches = self._batches.epoch(
            self._plan.seed,
            progress.epoch,
            skip=progress.batch * processes,
            by_query=self._plan.recipe.rank_weight > 0,
        )
        for batch in _share(batches, index, processes):
            step = progress.epoch * self._steps_per_epoch + progress.batch
            for group, rate in zip(self._optimizer.param_groups, self._base_rates, strict=True):
                group["lr"] = rate * rate_factor(step, total, self._plan.recipe.warmup_fraction)
            with self._accelerator.autocast():
                loss, parts = self._module(batch.to(self._accelerator.device))
            self._accelerator.backward(loss)
            self._accelerator.clip_grad_norm_(self._module.parameters(), 1.0)
            self._optimizer.step()
            self._optimizer.zero_grad()
            progress.batch += 1
            bar.update(1)
            if step % NOTE_STEPS == 0 or step == total - 1:
                figures = {name: round(float(value), 6) for name, value in parts.items()}
                bar.set_postfix(figures)
                self._record(step=step, **figures)
                if not math.isfinite(sum(figures.values())):
                    raise CollapseError(f"{self._folder.name}, step {step}: expected finite losses, found {figures}")
            if progress.batch % self._plan.checkpoint_steps == 0:
                self._checkpoint(progress)
        seconds = max(time.monotonic() - started, 1e-9)
        pairs = (progress.batch - first) * self._accelerator.num_processes * self._plan.recipe.batch_size
        if pairs:
            self._record(pairs_per_second=round(pairs / seconds, 2), seconds=round(seconds, 2))

    def _end_epoch(self, progress: Progress) -> None:
        if self._plan.evaluate is None:
            return
        logits = self._plan.evaluate(self._student)
        probabilities = softmax(logits)
        spread = float(expected_gain(probabilities, self._student.config.label_scheme).std())
        figure = self._plan.figure(logits)
        self._record(epoch=progress.epoch, figure=round(figure, 5), score_spread=round(spread, 6))
        log.info("%s: epoch %d, dev figure %.4f, score spread %.3f", self._folder.name, progress.epoch, figure, spread)
        if not spread >= COLLAPSED:
            raise CollapseError(
                f"{self._folder.name}, epoch {progress.epoch}: expected scores that differ between dev pairs, found a "
                f"standard deviation of {spread:.1e}; lower the learning rate"
            )
        if figure > progress.best:
            progress.best, progress.best_epoch = figure, progress.epoch
            if self._accelerator.is_main_process:
                state = {
                    name: tensor.detach().cpu().contiguous() for name, tensor in self._student.state_dict().items()
                }
                save_file(state, self._folder / "best.safetensors")
        self._accelerator.wait_for_everyone()

    def _record(self, **figures: float) -> None:
        if self._accelerator.is_main_process:
            self._note(fit=self._folder.name, **figures)

    def _checkpoint(self, progress: Progress) -> None:
        new, kept = self._folder / "checkpoint.new", self._folder / "checkpoint"
        if self._accelerator.is_main_process:
            shutil.rmtree(new, ignore_errors=True)
        self._accelerator.wait_for_everyone()
        self._accelerator.save_state(str(new))
        if self._student.frozen is not None:
            self._student.frozen.save()
        if self._accelerator.is_main_process:
            state = {name: getattr(progress, name) for name in Progress.__slots__}
            (new / "progress.json").write_text(json.dumps(state))
            shutil.rmtree(kept, ignore_errors=True)
            os.replace(new, kept)
        self._accelerator.wait_for_everyone()

    def _resume(self) -> Progress:
        kept = self._folder / "checkpoint"
        new = self._folder / "checkpoint.new"
        if self._accelerator.is_main_process and not kept.is_dir() and (new / "progress.json").is_file():
            os.replace(new, kept)
        self._accelerator.wait_for_everyone()
        if not (kept / "progress.json").is_file():
            return Progress()
        self._accelerator.load_state(str(kept))
        progress = Progress(**json.loads((kept / "progress.json").read_text()))
        log.info("%s: resuming at epoch %d, batch %d", self._folder.name, progress.epoch, progress.batch)
        return progress


class StudentLosses(nn.Module):
    """The student, its losses and their training-only maps in one module: data parallelism sees one forward pass."""

    class_weight_K: Tensor | None
    gain_K: Tensor

    def __init__(self, student: Student, plan: FitPlan) -> None:
        super().__init__()
        self.student = student
        self._plan = plan
        self.terms = nn.ModuleList(plan.terms)
        self.features: nn.Linear | None = None
        if plan.n_features > 0 and plan.feature_weight > 0:
            self.features = nn.Linear(student.head.out_features, plan.n_features)
        weight_K = None if plan.class_weight_K is None else torch.from_numpy(plan.class_weight_K)
        self.register_buffer("class_weight_K", weight_K, persistent=False)
        gain_K = torch.tensor(student.config.label_scheme.gain_K, dtype=torch.float32)
        self.register_buffer("gain_K", gain_K, persistent=False)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Give the total loss (arXiv:2601.21611, eq. 9, and the distillation terms) and its parts."""
        plan, recipe = self._plan, self._plan.recipe
        output: StudentOutput = self.student(batch.input_ids_BL, batch.attention_mask_BL, batch.token_type_ids_BL)
        logits_BK = output.logits_BK.float()
        task = task_loss(logits_BK, batch.label_B, batch.label_weight_B, self.class_weight_K, recipe.label_smoothing)
        total, parts = task, {"task": task.detach()}
        if recipe.soft_label_weight > 0:
            soft = soft_label_loss(logits_BK, batch.soft_BK, batch.soft_weight_B)
            total, parts["soft"] = total + recipe.soft_label_weight * soft, soft.detach()
        if recipe.rank_weight > 0:
            unlabelled = torch.full_like(batch.label_weight_B, torch.nan)
            label_gain_B = torch.where(batch.label_weight_B > 0, self.gain_K[batch.label_B], unlabelled)
            rank = rank_loss(logits_BK, self.gain_K, label_gain_B, batch.query_B)
            total, parts["rank"] = total + recipe.rank_weight * rank, rank.detach()
        if self.features is not None:
            feature = feature_loss(self.features(nn.functional.gelu(output.head_BH)).float(), batch.features_BF)
            total, parts["feature"] = total + plan.feature_weight * feature, feature.detach()
        for term in plan.terms:
            value = term(self.student, output, batch)
            total, parts[term.name] = total + term.weight * value, value.detach()
        return total, parts


def freeze(student: Student, embeddings: bool, layers: int) -> None:
    """Keep the word embeddings, or all embeddings and the lowest layers, as they are.

    Raises: RecipeError: if the encoder has fewer layers.
    """
    found = len(student.encoder.encoder.layer)
    if layers > found:
        raise RecipeError(
            f"student.encoder.freeze_layers: expected at most {found}, the encoder's layers; found {layers}"
        )
    student.encoder.embeddings.requires_grad_(layers == 0)
    student.encoder.embeddings.word_embeddings.weight.requires_grad_(layers == 0 and not embeddings)
    for layer in student.encoder.encoder.layer[:layers]:
        layer.requires_grad_(False)


def rate_factor(step: int, total: int, warmup_fraction: float) -> float:
    """Give the learning-rate factor of a step: linear warm-up to 1, then linear decay to 0 at `total`."""
    warmup = max(1, round(total * warmup_fraction))
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (total - step) / max(1, total - warmup))


def parameter_groups(losses: nn.Module, recipe: FitRecipe) -> list[dict[str, Any]]:
    """Give AdamW's groups: one a layer with its decayed rate, one for the rest; no decay on biases and LayerNorm."""
    prefix = "student.encoder."
    named = [(name, parameter) for name, parameter in losses.named_parameters() if parameter.requires_grad]
    numbers = [int(name.split(".")[4]) for name, _ in named if name.startswith(f"{prefix}encoder.layer.")]
    layers = 1 + max(numbers, default=0)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        if name.startswith(f"{prefix}encoder.layer."):
            rate = recipe.learning_rate * recipe.layer_decay ** (layers - 1 - int(name.split(".")[4]))
        elif name.startswith(prefix):
            rate = recipe.learning_rate * recipe.layer_decay**layers
        else:
            rate = recipe.head_learning_rate
        decay = 0.0 if parameter.ndim < 2 or "LayerNorm" in name else recipe.weight_decay
        groups.setdefault((rate, decay), []).append(parameter)
    factor = recipe.rate_factor
    return [{"params": p, "lr": factor * rate, "weight_decay": decay} for (rate, decay), p in groups.items()]


def _share(batches: Iterator[Batch], index: int, processes: int) -> Iterator[Batch]:
    """Give every process its own batches and all of them equally many: the last ones go round again."""
    group: list[Batch] = []
    for batch in batches:
        group.append(batch)
        if len(group) == processes:
            yield group[index]
            group = []
    if group:
        yield group[index % len(group)]


@contextmanager
def finished_once(folder: Path) -> Iterator[bool]:
    """Open a fit's folder; yields False when an earlier run already finished it, else marks it when the block ends."""
    marker = folder / "finished"
    if marker.is_file():
        yield False
        return
    folder.mkdir(parents=True, exist_ok=True)
    yield True
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    (folder / "best.safetensors").unlink(missing_ok=True)
    marker.touch()
