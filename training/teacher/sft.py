"""Stage `sft`: the base model learns its own rationales that agreed with the label (arXiv:2601.21611, eq. 2 and 3).

Every row is asked with the unified prompt, or with the one perspective of a teacher that has one. The rows of one query
in twenty are not learned: only their loss is measured. A rival teacher learns in several phases, each from the weights
of the one before. A killed run goes on from its last checkpoint; a loss that is no number ends it and leaves none.
Under `accelerate launch` each row is seen once an epoch, whatever the number of processes.
"""

from __future__ import annotations

import gc
import json
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from relevance.errors import CollapseError, RecipeError, RunError
from training.runs import Run, hash_json, log, stage_arguments
from training.teacher.decoder import n_parameters
from training.teacher.policy import (
    POLICY,
    PolicyRecord,
    base_identity,
    base_policy,
    load_model,
    load_policy,
    load_tokenizer,
    policy_identity,
    record_policy,
)
from training.teacher.prompts import PromptBook
from training.teacher.sft_rows import (
    EncodedRow,
    Phase,
    SftRow,
    asked_view,
    encode_rows,
    padded_rows,
    sft_rows,
    split_held_out,
    text_rows,
)
from training.teacher.trainer_settings import (
    StopOnDivergence,
    check_finite,
    fit_inputs,
    own_accelerator,
    processes,
    quiet,
    resume_point,
    trainer_options,
)

STAGE = "sft"
REPORT = "report.json"
_FIGURES = "figures.json"
_ARGUMENTS = "training_args.bin"


def main(argv: list[str]) -> int:
    """Run the stage; see `fit_policy`."""
    fit_policy(stage_arguments(argv, STAGE, __doc__))
    return 0


def fit_policy(run: Run) -> None:
    """Fine-tune the base model of a run on what stage `generate` kept; writes `policy` and `report.json`.

    Raises: RunError: if an earlier stage is missing, nothing was kept, or a row is too long; RecipeError: if the recipe
        does not fit the machine; CollapseError: if the loss is no number.
    """
    recipe = run.recipe.teacher
    base = base_policy(run)
    revision = None if Path(base).is_dir() else recipe.revision
    tokenizer = load_tokenizer(base, revision=revision)
    phases = phases_of(run, tokenizer)
    inputs = {
        "sft": fit_inputs(recipe.sft),
        "lora": None if recipe.lora is None else recipe.lora.model_dump(mode="json"),
        "base": policy_identity(base, revision),
        "thinking": recipe.sampling.thinking,
        "prompt": PromptBook.load(recipe.prompt, run.recipe.label_scheme).fingerprint,
        "view": asked_view(recipe),
        "seed": run.recipe.seed,
        "phases": [
            [p.name, p.epochs, hash_json([[r.pair_id, r.prompt, r.completion] for r in p.rows])] for p in phases
        ],
    }
    with run.stage(STAGE, inputs, resumable=True) as folder:
        if folder is not None:
            processes().wait_for_everyone()
            with own_accelerator():
                FineTuning(run, folder, base, tokenizer).fit(phases)


def phases_of(run: Run, tokenizer: PreTrainedTokenizerBase) -> list[Phase]:
    """Give the phases of a run's method, with all their rows.

    `mpcot` has one; `progressive` has LREF's three (arXiv:2503.09223); `crsd` reads platform text first
    (arXiv:2510.11056), with the same trainable weights.
    """
    method = run.recipe.teacher.method
    if method == "progressive":
        from training.teacher.curriculum import phases

        return phases(run, tokenizer)
    rows = sft_rows(run)
    learned = Phase("sft", rows, equal_token_epochs(run, rows, tokenizer))
    return [Phase("continued", text_rows(run), epochs=1.0), learned] if method == "crsd" else [learned]


def equal_token_epochs(run: Run, rows: Sequence[SftRow], tokenizer: PreTrainedTokenizerBase) -> float | None:
    """Give the epochs after which SFT has read as many tokens as that of a teacher of other perspectives would have.

    Rows are counted as they are learned, prompts and answers, those of held-out queries left out on both sides.

    Args: rows: of the run's own teacher.
    Returns: None where the recipe names no other perspectives.
    Raises: RunError: if nothing was kept of one side.
    """
    recipe = run.recipe.teacher
    if recipe.equal_tokens_with is None:
        return None
    update = {"perspectives": recipe.equal_tokens_with, "equal_tokens_with": None}
    other = replace(run, recipe=run.recipe.model_copy(update={"teacher": recipe.model_copy(update=update)}))

    def tokens(every: Sequence[SftRow]) -> int:
        """Count the tokens of an epoch."""
        thinking, most = recipe.sampling.thinking, recipe.sft.max_tokens
        encoded = encode_rows(split_held_out(every)[0], tokenizer, thinking=thinking, max_tokens=most)
        return sum(len(row.input_ids) for row in encoded)

    own, theirs = tokens(rows), tokens(sft_rows(other))
    if not own or not theirs:
        raise RunError(f"sft: expected rows to learn on both sides, found {own} and {theirs} tokens of them")
    epochs = recipe.sft.epochs * theirs / own
    log.info("sft: %d tokens an epoch, %d with %s: %.2f epochs", own, theirs, recipe.equal_tokens_with, epochs)
    run.note(STAGE, tokens_per_epoch=own, equal_to=theirs, epochs=round(epochs, 4))
    return epochs


@dataclass(frozen=True, slots=True)
class Sets:
    """A phase's rows in tokens: those to learn, and those whose loss is only measured."""

    learned: list[EncodedRow]
    held_out: list[EncodedRow]


class FineTuning:
    """Phase after phase, each finished once and saved."""

    def __init__(self, run: Run, folder: Path, base: str | Path, tokenizer: PreTrainedTokenizerBase) -> None:
        self._run, self._folder, self._base, self._tokenizer = run, folder, base, tokenizer
        self._recipe = run.recipe.teacher
        self._main = processes().is_main_process

    def fit(self, phases: Sequence[Phase]) -> None:
        """Encode and check the rows of all phases, then train each that is not finished."""
        sets = [self._encode(phase) for phase in phases]
        figures: dict[str, dict[str, Any]] = {}
        previous: Path | None = None
        for number, (phase, rows) in enumerate(zip(phases, sets, strict=True)):
            work = self._folder / "phases" / phase.name
            policy = self._folder / POLICY if number == len(phases) - 1 else work / POLICY
            if not (work / _FIGURES).is_file():
                found = self._train(phase, rows, work, policy, previous)
                if self._main:
                    (work / _FIGURES).write_text(json.dumps(found) + "\n", encoding="utf-8")
                processes().wait_for_everyone()
            figures[phase.name] = json.loads((work / _FIGURES).read_text(encoding="utf-8"))
            previous = policy
        processes().wait_for_everyone()
        if self._main:
            report = {"view": asked_view(self._recipe), "method": self._recipe.method, "phases": figures}
            (self._folder / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
            for name, found in figures.items():
                self._run.note(STAGE, phase=name, **found)
            shutil.rmtree(self._folder / "phases")

    def _encode(self, phase: Phase) -> Sets:
        learned, held_out = split_held_out(phase.rows)
        encode = partial(
            encode_rows,
            tokenizer=self._tokenizer,
            thinking=self._recipe.sampling.thinking,
            max_tokens=self._recipe.sft.max_tokens,
        )
        if not learned:
            raise RunError(f"sft, phase {phase.name}: expected rows to learn, found none among {len(phase.rows)}")
        return Sets(encode(learned), encode(held_out))

    def _train(self, phase: Phase, rows: Sets, work: Path, policy: Path, previous: Path | None) -> dict[str, Any]:
        trainer = self._trainer(phase, rows, work, self._model(previous))
        parameters, trained = n_parameters(trainer.model), n_parameters(trainer.model, trained=True)
        tokens = sum(len(row.input_ids) for row in rows.learned)
        log.info("%s: %d rows, %d tokens an epoch, %d trained weights", phase.name, len(rows.learned), tokens, trained)
        started = time.monotonic()
        try:
            trainer.train(resume_from_checkpoint=resume_point(trainer, work))
            check_finite(trainer.model, STAGE)
        except CollapseError:
            # A checkpoint of weights that diverge leads to the same end again.
            shutil.rmtree(work, ignore_errors=True)
            raise
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        evaluated = trainer.evaluate() if rows.held_out else {}
        trainer.save_model(str(policy))
        if self._main:
            (policy / _ARGUMENTS).unlink(missing_ok=True)
            record_policy(policy, self._record(trainer.model, policy))
        found = {
            "rows": len(rows.learned),
            "held_out_rows": len(rows.held_out),
            "tokens_per_epoch": tokens,
            "answer_tokens_per_epoch": sum(len(row.input_ids) - row.n_prompt for row in rows.learned),
            "longest": max(len(row.input_ids) for row in rows.learned),
            "truncated": _cut(trainer.train_dataset["input_ids"], rows.learned),
            "steps": trainer.state.global_step,
            "epochs": trainer.args.num_train_epochs,
            "tokens_seen": int(trainer.state.num_input_tokens_seen),
            "processes": trainer.args.world_size,
            "trained_parameters": trained,
            "parameters": parameters,
            "first_loss": losses[0],
            "last_loss": losses[-1],
            "held_out_loss": evaluated.get("eval_loss"),
            "seconds": round(time.monotonic() - started, 1),
        }
        processes().wait_for_everyone()
        del trainer
        gc.collect()
        return found

    def _trainer(self, phase: Phase, rows: Sets, work: Path, model: PreTrainedModel) -> Any:  # noqa: ANN401 - trl is not typed
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        seed = self._run.recipe.seed
        options = trainer_options(self._recipe.sft, work, seed=seed, epochs=phase.epochs)
        # No length limit for TRL: it would cut rows, and `encode_rows` has refused long ones.
        arguments = SFTConfig(**options, max_length=None, packing=False)
        multiple = arguments.world_size * arguments.per_device_train_batch_size
        learned = rows.learned
        if arguments.world_size > 1:
            learned = padded_rows(learned, multiple, self._tokenizer.pad_token_id)
        trainer = SFTTrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list([row.features() for row in learned]),
            eval_dataset=Dataset.from_list([row.features() for row in rows.held_out]) if rows.held_out else None,
            processing_class=self._tokenizer,
            callbacks=[StopOnDivergence(STAGE)],
        )
        quiet(trainer, f"sft {phase.name}", partial(self._run.note, STAGE, phase=phase.name))
        return trainer

    def _model(self, previous: Path | None) -> PreTrainedModel:
        """Give the model to train: the base with a new adapter, or what the phase before left."""
        if previous is not None:
            return load_policy(previous, trainable=True).model
        set_seed(self._run.recipe.seed)
        lora, fit = self._recipe.lora, self._recipe.sft
        if fit.qlora and lora is None:
            raise RecipeError(
                "teacher.sft.qlora: expected a section teacher.lora, found none; 4-bit weights do not train"
            )
        full = lora is None or not fit.bf16
        model = load_model(
            self._base,
            revision=None if Path(self._base).is_dir() else self._recipe.revision,
            dtype=torch.float32 if full else None,
            quantized=fit.qlora,
        )
        if lora is None:
            return model
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.targets,
            task_type="CAUSAL_LM",
        )
        return get_peft_model(model, config)

    def _record(self, model: PreTrainedModel, policy: Path) -> PolicyRecord:
        recipe = self._recipe
        return PolicyRecord(
            **base_identity(self._base, model, policy),
            prompt=PromptBook.load(recipe.prompt, self._run.recipe.label_scheme).fingerprint,
            reasoning_order=recipe.prompt.reasoning_order,
            thinking=recipe.sampling.thinking,
            view=asked_view(recipe),
            quantized=recipe.sft.qlora,
        )


def _cut(given: Iterable[Sequence[int]], rows: Sequence[EncodedRow]) -> int:
    """Count the rows that the trainer holds with fewer tokens than they have."""
    return sum(len(ids) != len(row.input_ids) for ids, row in zip(given, rows, strict=False))
