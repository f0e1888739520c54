"""What SFT and DPO ask of a TRL trainer: schedule, devices, checkpoints, one progress bar, and an end to divergence."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from transformers import (
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as transformers_logging

from relevance.errors import CollapseError, RecipeError, RunError
from training.teacher_recipe import TeacherFitRecipe

_STATE = "trainer_state.json"
_MIXED = "ACCELERATE_MIXED_PRECISION"
_ASIDE = {"device_batch_size", "gradient_checkpointing", "save_steps"}
"""Settings of a fit that fit it to a machine: the batch of a step, and so the weights, stay the recipe's."""


def processes() -> PartialState:
    """Give the processes of this training; on a CPU accelerate finds the others only when told that it is one."""
    return PartialState(cpu=not torch.cuda.is_available())


def fit_inputs(recipe: TeacherFitRecipe, *, without: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Give what a recipe says about the weights that a fit ends with, for the inputs of its stage.

    Args: without: further keys that say nothing about them.
    """
    return recipe.model_dump(mode="json", exclude=_ASIDE | without)


def trainer_options(
    recipe: TeacherFitRecipe, folder: Path, *, seed: int, epochs: float | None = None
) -> dict[str, Any]:
    """Give the fields of TrainingArguments that a recipe decides; the batch is the same on any number of devices.

    Args: folder: for checkpoints; seed: of order and dropout; epochs: None for the recipe's.
    Raises: RecipeError: if the devices cannot share the batch evenly; RunError: if there are several GPUs and no
        launcher.
    """
    n_processes, cuda = processes().num_processes, torch.cuda.is_available()
    if n_processes == 1 and torch.cuda.device_count() > 1:
        raise RunError(
            f"expected `accelerate launch` on a machine with {torch.cuda.device_count()} GPUs, or one of them in "
            f"CUDA_VISIBLE_DEVICES"
        )
    device_batch = min(recipe.device_batch_size, max(recipe.batch_size // n_processes, 1))
    accumulation, rest = divmod(recipe.batch_size, device_batch * n_processes)
    if rest:
        raise RecipeError(
            f"expected a batch_size that {n_processes} processes of {device_batch} rows share evenly, found "
            f"{recipe.batch_size}"
        )
    return {
        "output_dir": str(folder),
        "num_train_epochs": recipe.epochs if epochs is None else epochs,
        "per_device_train_batch_size": device_batch,
        "per_device_eval_batch_size": device_batch,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": recipe.schedule,
        "warmup_ratio": recipe.warmup_fraction,
        "bf16": recipe.bf16 and cuda,
        "gradient_checkpointing": recipe.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "use_cpu": not cuda,
        "dataloader_pin_memory": cuda,
        "save_strategy": "steps",
        "save_steps": recipe.save_steps,
        "save_total_limit": 1,
        "logging_steps": 10,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "include_num_input_tokens_seen": "non_padding",
        "report_to": [],
        "seed": seed,
        "data_seed": seed,
        "log_level": "error",
    }


def last_checkpoint(folder: Path) -> str | None:
    """Give the newest whole checkpoint of a killed run, None without one; the first process removes broken ones.

    A trainer writes its state last, so a checkpoint without it was cut off.
    """
    whole = {}
    for path in folder.glob("checkpoint-*"):
        if _is_whole(path):
            whole[int(path.name.rpartition("-")[2])] = path
        elif processes().is_main_process:
            shutil.rmtree(path)
    processes().wait_for_everyone()
    return str(whole[max(whole)]) if whole else None


def resume_point(trainer: Trainer, folder: Path) -> str | None:
    """Give the newest whole checkpoint for a trainer to go on from, told the trainer's own rows of a forward pass.

    transformers takes that number from the checkpoint and the accumulation from the new arguments, so that another
    `device_batch_size`, or another number of processes, would change the batch of a step without a word.
    """
    checkpoint = last_checkpoint(folder)
    if checkpoint is not None and processes().is_main_process:
        path = Path(checkpoint) / _STATE
        state = json.loads(path.read_text(encoding="utf-8"))
        unfinished = path.with_suffix(".partial")
        unfinished.write_text(
            json.dumps(state | {"train_batch_size": trainer.args.train_batch_size}, indent=2) + "\n", encoding="utf-8"
        )
        unfinished.replace(path)
    processes().wait_for_everyone()
    return checkpoint


@contextmanager
def own_accelerator() -> Iterator[None]:
    """Keep what a trainer sets for its process, such as mixed precision, from what runs after it in the same one."""
    before = os.environ.get(_MIXED)
    try:
        with warnings.catch_warnings():
            # transformers counts the tokens it has seen by copying a tensor in a way that torch advises against.
            warnings.filterwarnings("ignore", message="To copy construct from a tensor")
            # It orders checkpoints by number where a file system's times are too coarse for fast steps, which is right.
            warnings.filterwarnings("ignore", message="mtime may not be reliable")
            yield
    finally:
        if before is None:
            os.environ.pop(_MIXED, None)
        else:
            os.environ[_MIXED] = before
        AcceleratorState._reset_state(reset_partial_state=False)
        GradientState._reset_state()


def quiet(trainer: Trainer, name: str, note: Callable[..., None]) -> None:
    """Leave of a trainer's chatter one progress bar with the loss, and give the losses to the ledger.

    Args: name: of the bar; note: called on the first process with step, loss and learning rate.
    """
    transformers_logging.set_verbosity_error()
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(_LossBar(name, note))


class StopOnDivergence(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Ends a training at the first logged loss or gradient norm that is no number.

    Args: stage: `sft` or `dpo`, for the message.
    """

    def __init__(self, stage: str) -> None:
        self._stage = stage

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **_: object,
    ) -> None:
        """Look at the figures of one log.

        Raises: CollapseError: if the loss or the norm of its gradient is nan or infinite.
        """
        found = {name: (logs or {})[name] for name in ("loss", "grad_norm") if name in (logs or {})}
        if not all(np.isfinite(list(found.values()))):
            raise CollapseError(
                f"{self._stage}: expected a finite loss, found {found} at step {state.global_step}; nothing is saved: "
                f"lower teacher.{self._stage}.learning_rate"
            )


def check_finite(model: torch.nn.Module, stage: str) -> None:
    """Make sure that the trained weights are numbers: the last steps may not have been logged.

    Raises: CollapseError: if some are not.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not bool(torch.isfinite(parameter).all()):
            raise CollapseError(f"{stage}: expected finite weights, found nan or infinity in {name}; nothing is saved")


class _LossBar(ProgressCallback):  # type: ignore[misc]  # transformers is not typed
    def __init__(self, name: str, note: Callable[..., None]) -> None:
        super().__init__()
        self._name, self._note = name, note

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: object
    ) -> None:
        super().on_train_begin(args, state, control, **given)
        if self.training_bar is not None:
            self.training_bar.set_description(self._name)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **given: object,
    ) -> None:
        """Show a step's loss in the bar and put it into the ledger."""
        if not state.is_world_process_zero or logs is None or "loss" not in logs:
            return
        if self.training_bar is not None:
            self.training_bar.set_postfix({"loss": f"{logs['loss']:.4f}"})
        self._note(step=state.global_step, loss=logs["loss"], learning_rate=logs.get("learning_rate"))


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return False
    return True
