"""Stage `teacher_pretrain`: a small decoder from scratch learns the platform's language and to follow prompts.

Its documents are item pages and queries of the training pairs, and prompts of every view with the programmatic
annotator's rationale and guess; never a dev or test text, never a pair's own gold label: the guesses come from a
classifier that stage `annotate` fitted on the labels of other training queries. Of pairs that are reserved for
preferences it reads the texts and no answer: there SFT's policy must err by itself. The teachers of all folds start
from one base, which has read texts and annotator's rationales of the pairs that a fold leaves out. A killed run goes on
from its last checkpoint to the very weights that it would have had. Suffixes: N windows, B windows of a batch, L
tokens.
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase, Qwen3ForCausalLM, get_cosine_schedule_with_warmup

from relevance.errors import RecipeError, RunError
from relevance.pairs import read_pairs
from training.recipe import PERSPECTIVES, VIEWS
from training.runs import Run, hash_file, log, stage_arguments
from training.soft_labels import FILE
from training.teacher.decoder import make_decoder, n_parameters, train_tokenizer
from training.teacher.documents import (
    Chat,
    Windows,
    check_chats,
    encode_chats,
    encode_texts,
    instructions,
    pack,
    platform_texts,
)
from training.teacher.parts import is_reserved
from training.teacher.policy import POLICY, PRETRAIN_STAGE, Policy, load_tokenizer, save_policy
from training.teacher.programmatic_generator import ProgrammaticGenerator
from training.teacher.prompts import PromptBook
from training.teacher_recipe import TeacherPretrainRecipe

_CHECKPOINT = "checkpoint.pt"
_CHECKPOINT_STEPS = 50
_NOTE_STEPS = 50
_BUDGET_STEPS = 5
_DEV_WINDOWS = 256
_WEIGHT_DECAY = 0.1
_BETAS = (0.9, 0.95)


def main(argv: list[str]) -> int:
    """Run the stage.

    Raises: RecipeError: if windows are longer than the decoder's context; RunError: if an earlier stage is missing, or
        an instruction is longer than a window.
    """
    run = stage_arguments(argv, PRETRAIN_STAGE, __doc__)
    teacher = run.recipe.teacher
    if teacher.pretrain.context > teacher.decoder.context:
        raise RecipeError(
            f"teacher.pretrain.context: expected at most teacher.decoder.context = {teacher.decoder.context}, found "
            f"{teacher.pretrain.context}"
        )
    data, guesses = run.require("data"), run.require("annotate")
    files = [data / "pairs.train.parquet", data / "pairs.dev.parquet"]
    files += [guesses / FILE.replace(".", f".{perspective}.") for perspective in PERSPECTIVES]
    inputs = {
        "pretrain": teacher.pretrain.model_dump(mode="json"),
        "decoder": teacher.decoder.model_dump(mode="json"),
        "annotator": teacher.sampling.annotator,
        "thinking": teacher.sampling.thinking,
        "prompt": PromptBook.load(teacher.prompt, run.recipe.label_scheme).fingerprint,
        "views": VIEWS,
        "reserved": teacher.preferences.reserved,
        "seed": run.recipe.seed,
        "files": {path.name: hash_file(path) for path in files},
    }
    with run.stage(PRETRAIN_STAGE, inputs, resumable=True) as folder:
        if folder is not None:
            pretrain(run, folder)
    return 0


@dataclass(frozen=True, slots=True)
class TrainingDocuments:
    """Platform texts and chats, in the order they are packed in before shuffling."""

    texts: list[str]
    chats: list[Chat]


def training_documents(run: Run) -> TrainingDocuments:
    """Give the documents of a run: texts of its training pairs, and chats about those not reserved for preferences."""
    recipe = run.recipe.teacher
    pairs = list(read_pairs(run.require("data") / "pairs.train.parquet"))
    texts = platform_texts(pairs)
    share = recipe.pretrain.instructed
    asked = [pair for pair in pairs if not is_reserved(pair.query.text, recipe)]
    count = len(asked) * len(VIEWS) if share == 1 else round(len(texts) * share / (1 - share))
    book = PromptBook.load(recipe.prompt, run.recipe.label_scheme)
    chats: list[Chat] = []
    if count:
        generator = ProgrammaticGenerator(run)
        chats = instructions(generator, book, asked, VIEWS, count=count, seed=run.recipe.seed)
    return TrainingDocuments([] if share == 1 else texts, chats)


def pretrain(run: Run, folder: Path) -> None:
    """Train the decoder and write `policy`, `report.json` and the ledger's figures."""
    recipe = run.recipe.teacher
    documents = training_documents(run)
    tokenizer = _tokenizer(run, folder, documents)
    train = _windows(documents, tokenizer, run)
    # Of a decoder that reads no platform text for its own sake, its perplexity would say nothing.
    dev_pairs = read_pairs(run.require("data") / "pairs.dev.parquet") if documents.texts else ()
    dev = pack(encode_texts(platform_texts(dev_pairs), tokenizer), recipe.pretrain.context, tokenizer.pad_token_id)
    set_seed(run.recipe.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = make_decoder(recipe.decoder, tokenizer).to(device)
    figures: dict[str, Any] = {
        "documents": {"platform": len(documents.texts), "instructions": len(documents.chats)},
        "vocabulary": len(tokenizer),
        "parameters": n_parameters(model),
        "windows": len(train),
        "tokens": recipe.pretrain.steps * recipe.pretrain.batch_size * recipe.pretrain.context,
        "dev_perplexity_at_start": perplexity(model, dev),
    }
    log.info(
        "%s: %d parameters, %d tokens to read (%.1f times the %d windows)",
        PRETRAIN_STAGE,
        figures["parameters"],
        figures["tokens"],
        recipe.pretrain.steps * recipe.pretrain.batch_size / len(train),
        len(train),
    )
    Pretraining(run, model, train, folder / _CHECKPOINT).fit()
    figures["dev_perplexity"] = perplexity(model, dev)
    save_policy(Policy(model, tokenizer, PRETRAIN_STAGE), folder / POLICY)
    (folder / "report.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    (folder / _CHECKPOINT).unlink(missing_ok=True)
    run.note(PRETRAIN_STAGE, **figures)


class Pretraining:
    """The training loop: AdamW, warm-up and cosine, clipped gradients, a checkpoint from time to time."""

    def __init__(self, run: Run, model: Qwen3ForCausalLM, windows: Windows, checkpoint: Path) -> None:
        self._run, self._model, self._windows, self._checkpoint = run, model, windows, checkpoint
        self._recipe: TeacherPretrainRecipe = run.recipe.teacher.pretrain
        decayed = [p for p in model.parameters() if p.ndim > 1]
        kept = [p for p in model.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": _WEIGHT_DECAY}, {"params": kept, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(groups, lr=self._recipe.learning_rate, betas=_BETAS)
        warm_up = round(self._recipe.steps * self._recipe.warmup_fraction)
        self._schedule = get_cosine_schedule_with_warmup(self._optimizer, warm_up, self._recipe.steps)

    def fit(self) -> None:
        """Train to the last step, from the checkpoint if there is one.

        Raises: RunError: if the loss is not a number.
        """
        first = self._resume()
        steps, tokens = self._recipe.steps, self._recipe.batch_size * self._recipe.context
        started = time.monotonic()
        self._model.train()
        with tqdm(total=steps, initial=first, unit="step", desc=PRETRAIN_STAGE) as bar:
            for step in range(first, steps):
                loss = self._step(step)
                bar.update()
                done = step + 1 - first
                speed = done * tokens / (time.monotonic() - started)
                if done == _BUDGET_STEPS:
                    remaining = (steps - step - 1) * tokens / speed
                    log.info("%s: %.0f tokens/s, about %.0f s to go", PRETRAIN_STAGE, speed, remaining)
                if step % _NOTE_STEPS == 0 or step == steps - 1:
                    bar.set_postfix({"loss": f"{loss:.3f}", "tokens/s": f"{speed:.0f}"})
                    self._run.note(PRETRAIN_STAGE, step=step, loss=round(loss, 5), tokens_per_second=round(speed))
                if (step + 1) % _CHECKPOINT_STEPS == 0:
                    self._save(step + 1)

    def _step(self, step: int) -> float:
        chosen = rows_of_step(step, len(self._windows), self._recipe.batch_size, self._run.recipe.seed)
        total, count = nll(self._model, self._windows, chosen)
        loss = total / count
        if not torch.isfinite(loss):
            raise RunError(f"{PRETRAIN_STAGE}: expected a finite loss, found {loss.item()} at step {step}")
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad()
        return float(loss.detach())

    def _save(self, step: int) -> None:
        partial = self._checkpoint.with_suffix(".partial")
        state = {
            "step": step,
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
        }
        torch.save(state, partial)
        os.replace(partial, self._checkpoint)

    def _resume(self) -> int:
        if not self._checkpoint.is_file():
            return 0
        state = torch.load(self._checkpoint, map_location=self._model.device, weights_only=True)
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        return int(state["step"])


def rows_of_step(step: int, n: int, batch_size: int, seed: int) -> NDArray[np.int64]:
    """Give the windows of a step: every window once an epoch, each epoch in an order of its own."""
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    return np.array([_order(n, seed, int(place) // n)[place % n] for place in places])


def nll(model: Qwen3ForCausalLM, windows: Windows, chosen: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Give the summed negative log-likelihood of the chosen windows' trained tokens, and their number."""
    device = model.device
    input_ids_BL = torch.from_numpy(windows.input_ids_NL[chosen]).to(device)
    position_ids_BL = torch.from_numpy(windows.position_ids_NL[chosen]).to(device)
    trained_BL = torch.from_numpy(windows.trained_NL[chosen]).to(device)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
        hidden_BLD = model.model(input_ids=input_ids_BL, position_ids=position_ids_BL, use_cache=False)[0]
        logits_MV = model.lm_head(hidden_BLD[:, :-1][trained_BL[:, 1:]])
    target_M = input_ids_BL[:, 1:][trained_BL[:, 1:]]
    total = nn.functional.cross_entropy(logits_MV.float(), target_M, reduction="sum")
    return total, trained_BL[:, 1:].sum()


@torch.inference_mode()
def perplexity(model: Qwen3ForCausalLM, windows: Windows) -> float | None:
    """Give the perplexity over (at most the first 256) windows, None without any."""
    chosen = np.arange(min(len(windows), _DEV_WINDOWS))
    if not len(chosen):
        return None
    model.eval()
    parts = [nll(model, windows, batch) for batch in np.array_split(chosen, -(-len(chosen) // 16))]
    return round(math.exp(sum(float(total) for total, _ in parts) / sum(int(count) for _, count in parts)), 4)


def _windows(documents: TrainingDocuments, tokenizer: PreTrainedTokenizerBase, run: Run) -> Windows:
    recipe = run.recipe.teacher
    chats = encode_chats(
        documents.chats, tokenizer, thinking=recipe.sampling.thinking, answers_only=recipe.pretrain.answers_only
    )
    check_chats(chats, recipe.pretrain.context)
    encoded = [*encode_texts(documents.texts, tokenizer), *chats]
    if not encoded:
        raise RunError(f"{run.folder('data')}: expected texts of training pairs, found none")
    order = np.random.default_rng([run.recipe.seed, 41]).permutation(len(encoded))
    return pack((encoded[i] for i in order), recipe.pretrain.context, tokenizer.pad_token_id)


def _tokenizer(run: Run, folder: Path, documents: TrainingDocuments) -> PreTrainedTokenizerBase:
    """Give the tokenizer that a killed run left, else train one on the training documents."""
    path = folder / POLICY
    if not (path / "tokenizer_config.json").is_file():
        contents = [message["content"] for chat in documents.chats for message in chat]
        train_tokenizer([*documents.texts, *contents], run.recipe.teacher.decoder).save_pretrained(path)
    return load_tokenizer(path)


@lru_cache(maxsize=2)
def _order(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, 43, epoch]).permutation(n)
