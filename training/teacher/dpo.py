"""Stage `dpo`: the SFT policy learns which of two answers is the better one, and must prove it on dev pairs.

Eq. 5 of arXiv:2601.21611 leaves out the logarithm of the probabilities, the reference policy and β. We minimise

    − log σ(β [log π(y⁺|x) / π_ref(y⁺|x) − log π(y⁻|x) / π_ref(y⁻|x)]) − w · mean log π(y⁺ token)

(Rafailov et al., arXiv:2305.18290) by TRL's DPOTrainer, π_ref being the SFT policy: a frozen copy of its adapter, or of
all its weights where SFT trained all. The second term, of weight `dpo.sft_weight`, keeps the chosen answer likely:
plain DPO may lower both (trl issue 2382).

Gate (`training.teacher.gate`): both policies answer the same dev pairs (whole queries) greedily, an answer without a
label counts as wrong, and DPO's policy is shipped only if it wins by more than `dpo.gate_margin` of macro-F1; else the
SFT policy stays the teacher, as it does when there are fewer than `LEAST_PREFERENCES` preferences to learn from; it
then answers the gate's pairs alone, so that it has dev figures as any other. With another margin or other pairs the
policy that is there is judged anew. A loss that is no number ships nothing.

Under `accelerate launch` the last batch of an epoch repeats some of the first rows, so that all processes have as many:
at most one row fewer than processes × `dpo.device_batch_size`.
"""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from relevance.errors import CollapseError, InputError
from training.runs import DONE, Run, hash_file, hash_json, log, stage_arguments
from training.teacher.gate import ask_gate, decide, gate_inputs, pairs_of
from training.teacher.policy import POLICY, load_model, load_policy, read_record, rebased, record_policy
from training.teacher.preference_rows import FILE, Preference, read_preferences
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
from training.teacher_recipe import DpoRecipe

if TYPE_CHECKING:
    from trl import DPOTrainer

STAGE = "dpo"
REPORT = "report.json"
LEAST_PREFERENCES = 8
"""Fewer teach nothing but themselves; the stage then ships the SFT policy and says so."""
_CHECKPOINTS, _TRAINING, _ARGUMENTS = "checkpoints", "training.json", "training_args.bin"
_REFERENCE = "ref"
"""The name that TRL gives its frozen copy of an adapter, and the folder that checkpoints keep it in."""
_GATE = frozenset({"gate_pairs", "gate_margin"})
"""Keys that decide which policy is shipped, not what is trained."""
_LAST_STEPS = 10
"""Steps whose mean says how a training ended: one batch alone is noise."""
_FIRST_AND_LAST = ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")


def main(argv: list[str]) -> int:
    """Run the stage; see the module."""
    optimise_policy(stage_arguments(argv, "dpo", __doc__))
    return 0


def optimise_policy(run: Run) -> None:
    """Train for a run and decide which policy it ships, each unless that has been done with the same inputs.

    Raises: RunError: if an earlier stage has not finished, or there are no dev pairs; CollapseError: if the loss is no
        number.
    """
    sft, preferences = run.require("sft"), run.require("preferences")
    teacher = run.recipe.teacher
    inputs = {
        "dpo": fit_inputs(teacher.dpo, without=_GATE),
        "thinking": teacher.sampling.thinking,
        "seed": run.recipe.seed,
        "sft": _inputs_of(sft),
        "files": {FILE: hash_file(preferences / FILE)},
    }
    rows = list(read_preferences(preferences / FILE))
    pairs_of(run)  # so that a gate without pairs is known before the training
    with run.stage(STAGE, inputs, resumable=True) as folder:
        if folder is not None:
            processes().wait_for_everyone()
            if len(rows) >= LEAST_PREFERENCES:
                thinking, note = teacher.sampling.thinking, partial(run.note, STAGE)
                Optimisation(sft / POLICY, rows, teacher.dpo, thinking, run.recipe.seed, note).fit(folder)
        # The other processes have nothing left to do, and would give up waiting for a long gate.
        if processes().is_main_process:
            _decide(run, sft, len(rows))


@dataclass(frozen=True, slots=True)
class Optimisation:
    """One training of eq. 5.

    Args: sft: folder of the policy to start from; thinking: the chat template's `enable_thinking`, the same as in SFT;
        seed: of the order of rows; note: called with the losses.
    """

    sft: Path
    rows: Sequence[Preference]
    recipe: DpoRecipe
    thinking: bool
    seed: int
    note: Callable[..., None]

    def fit(self, folder: Path) -> None:
        """Train into `folder/policy`, going on from the last checkpoint of a killed run.

        Raises: InputError: if a row is longer than `max_tokens`; CollapseError: if the loss is no number.
        """
        if not (folder / _TRAINING).is_file():
            with own_accelerator():
                self._fit(folder)
        # The trainer holds its models in reference cycles, and the gate needs their memory.
        gc.collect()
        torch.cuda.empty_cache()

    def _fit(self, folder: Path) -> None:
        checkpoints, policy = folder / _CHECKPOINTS, folder / POLICY
        trainer = self.trainer(checkpoints)
        longest = check_lengths(trainer.train_dataset, self.rows, self.recipe.max_tokens)
        try:
            trainer.train(resume_from_checkpoint=_resume_point(trainer, checkpoints))
            check_finite(trainer.model, STAGE)
        except CollapseError:
            shutil.rmtree(checkpoints, ignore_errors=True)
            raise
        trainer.save_model(str(policy))
        if trainer.is_world_process_zero():
            shutil.rmtree(policy / _REFERENCE, ignore_errors=True)
            (policy / _ARGUMENTS).unlink(missing_ok=True)
            record = read_record(self.sft)
            if record is not None:
                record_policy(policy, rebased(record, self.sft, policy))
            figures = json.dumps({**_figures(trainer, self.rows), "longest": longest}, indent=2)
            (folder / _TRAINING).write_text(figures + "\n", encoding="utf-8")
            shutil.rmtree(checkpoints, ignore_errors=True)
        processes().wait_for_everyone()

    def trainer(self, checkpoints: Path) -> DPOTrainer:
        """Build the trainer: the SFT policy to train, and the same policy, frozen, as the reference.

        Given an adapter to train and no reference model, TRL adds a frozen copy of the adapter; of a full model it
        would load the files again that the model says it came from, so there the reference is handed over.
        """
        from datasets import Dataset
        from peft import PeftModel
        from trl import DPOConfig, DPOTrainer

        policy = load_policy(self.sft, trainable=True)
        reference = None
        if not isinstance(policy.model, PeftModel):
            reference = load_model(self.sft, dtype=policy.model.dtype).requires_grad_(False)
        anchored = self.recipe.sft_weight > 0
        config = DPOConfig(
            **trainer_options(self.recipe, checkpoints, seed=self.seed) | {"logging_steps": 1},
            beta=self.recipe.beta,
            loss_type=["sigmoid", "sft"] if anchored else ["sigmoid"],
            loss_weights=[1.0, self.recipe.sft_weight] if anchored else [1.0],
            # TRL would cut the end, where the label is; `check_lengths` refuses such rows instead.
            max_length=None,
        )
        trainer = DPOTrainer(
            model=policy.model,
            ref_model=reference,
            args=config,
            train_dataset=Dataset.from_list([_dialogue(row, self.thinking) for row in self.rows]),
            processing_class=policy.tokenizer,
            callbacks=[StopOnDivergence(STAGE)],
        )
        quiet(trainer, "dpo", self.note)
        return trainer


def check_lengths(dataset: Any, rows: Sequence[Preference], most: int) -> int:  # noqa: ANN401 - TRL's dataset
    """Make sure that not one row would be cut, by the very tokens that the trainer made.

    Returns: tokens of the longest prompt with an answer.
    Raises: InputError: if one is longer, naming its pair and length, or its answer is not in the tokens.
    """
    longest_of_all = 0
    if len(dataset) != len(rows):
        raise InputError(f"dpo: expected {len(rows)} tokenized preferences, found {len(dataset)}")
    for row, tokens in zip(rows, dataset, strict=True):
        answers = {"chosen": len(tokens["chosen_ids"]), "rejected": len(tokens["rejected_ids"])}
        longest = len(tokens["prompt_ids"]) + max(answers.values())
        if longest > most or not all(answers.values()):
            raise InputError(
                f"dpo: expected at most teacher.dpo.max_tokens = {most} tokens, found {longest} (prompt "
                f"{len(tokens['prompt_ids'])}, answers {answers}) for pair {row.pair_id!r:.80}"
            )
        longest_of_all = max(longest_of_all, longest)
    return longest_of_all


def _dialogue(row: Preference, thinking: bool) -> dict[str, Any]:
    return {
        "prompt": [dict(message) for message in row.prompt],
        "chosen": [{"role": "assistant", "content": row.chosen}],
        "rejected": [{"role": "assistant", "content": row.rejected}],
        "chat_template_kwargs": {"enable_thinking": thinking},
    }


def _resume_point(trainer: DPOTrainer, folder: Path) -> str | None:
    """Give the last whole checkpoint to go on from, without its copy of the reference.

    transformers 4.57 loads either the adapters in a checkpoint's sub-folders or the one beside them: with the reference
    in a sub-folder it would leave the trained adapter out and go on from the SFT policy without a word.
    """
    checkpoint = resume_point(trainer, folder)
    if checkpoint is not None and processes().is_main_process:
        shutil.rmtree(Path(checkpoint) / _REFERENCE, ignore_errors=True)
    processes().wait_for_everyone()
    return checkpoint


def _figures(trainer: DPOTrainer, rows: Sequence[Preference]) -> dict[str, Any]:
    """Give what the training did: its first step, where both rewards are 0, its last, and the mean of its last ten."""
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    return {
        "preferences": len(rows),
        "steps": trainer.state.global_step,
        "processes": trainer.args.world_size,
        "trained_parameters": trained,
        "tokens": {
            "chosen": round(float(np.mean([row.chosen_tokens for row in rows])), 2),
            "rejected": round(float(np.mean([row.rejected_tokens for row in rows])), 2),
        },
        "first_step": {name: steps[0][name] for name in _FIRST_AND_LAST},
        "last_step": {name: steps[-1][name] for name in _FIRST_AND_LAST},
        "last_steps": {
            "steps": len(steps[-_LAST_STEPS:]),
            **{name: float(np.mean([one[name] for one in steps[-_LAST_STEPS:]])) for name in _FIRST_AND_LAST},
        },
    }


def _decide(run: Run, sft: Path, preferences: int) -> None:
    """Write which policy is the teacher, and why, unless that has been decided from the same inputs."""
    folder, recipe = run.path / STAGE, run.recipe.teacher.dpo
    inputs = hash_json([gate_inputs(run), recipe.gate_pairs, recipe.gate_margin])
    path = folder / REPORT
    if path.is_file() and json.loads(path.read_text(encoding="utf-8"))["gate_inputs"] == inputs:
        return
    if preferences < LEAST_PREFERENCES:
        found = f"{preferences} preferences, at least {LEAST_PREFERENCES} are needed"
        gate = ask_gate(run, folder, {"sft": sft / POLICY})
        report: dict[str, Any] = {"shipped": "sft", "reason": found, "gate": gate, "training": None}
    else:
        training = json.loads((folder / _TRAINING).read_text(encoding="utf-8"))
        report = {**decide(run, folder, {"sft": sft / POLICY, "dpo": folder / POLICY}), "training": training}
    report |= {"sft": _inputs_of(sft), "gate_inputs": inputs}
    unfinished = path.with_suffix(".partial")
    unfinished.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    unfinished.replace(path)
    log.info("dpo: ships the %s policy: %s", report["shipped"], report["reason"])
    run.note(STAGE, shipped=report["shipped"], reason=report["reason"], gate=report["gate"])


def _inputs_of(sft: Path) -> str:
    """Give the hash of what an SFT stage was made from."""
    inputs: str = json.loads((sft / DONE).read_text(encoding="utf-8"))["inputs"]
    return inputs
