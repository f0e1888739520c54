"""A policy of this process as a text generator, and its probabilities of the labels.

Guaranteed: the random numbers behind an answer come from (seed, key, sample) alone, so the same call gives the same
texts, and another batch size, order or neighbour changes a text only where padding moves a logit by a rounding error
and a draw falls between the two values. Not guaranteed: equal texts on other hardware, dtypes or library versions.

Suffixes: N prompts, B sequences of a batch, L tokens, T new tokens, V vocabulary, K labels, S tokens of a label.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from training.teacher.generator import Completion, Prompt, failed
from training.teacher.roomy_cache import roomy_cache
from training.teacher_recipe import SamplingRecipe

if TYPE_CHECKING:
    from training.teacher.policy import Policy

_STILL_WRITING = 0.75
"""Share of a batch's rows that still write below which the others are taken out: fewer copies of the cache than at each
end, and hardly a wasted step."""
_HERE = "\ue000"
"""A character of Unicode's private use, which marks a place in a rendered conversation."""
_WINDOW_BATCHES = 16
"""Batches that are sorted by length together; all that is ever held of the prompts."""


class LocalGenerator:
    """Samples a policy with transformers, in left-padded batches of prompts of similar length.

    A prompt that leaves no room for `max_new_tokens` in the model's context is not cut: its completions say so.

    Args: policy: its model is put into evaluation mode; seed: of all draws.
    """

    def __init__(self, policy: Policy, recipe: SamplingRecipe, *, seed: int) -> None:
        self.policy, self.recipe, self.seed = policy, recipe, seed
        from training.teacher.grouped_attention import use_grouped_attention

        self._model, self._tokenizer = policy.model.eval(), policy.tokenizer
        use_grouped_attention(self._model)
        self._context = int(self._model.config.max_position_embeddings)
        eos = self._model.generation_config.eos_token_id
        eos = self._tokenizer.eos_token_id if eos is None else eos
        self._eos = [int(token) for token in (eos if isinstance(eos, list) else [eos])]
        pad = self._tokenizer.pad_token_id
        self._pad = self._eos[0] if pad is None else int(pad)

    @property
    def name(self) -> str:
        """The policy's name and the sampling settings."""
        r = self.recipe
        return (
            f"local: {self.policy.name}, temperature {r.temperature}, top_p {r.top_p}, top_k {r.top_k}, "
            f"max_tokens {r.max_new_tokens}, thinking {r.thinking}, seed {self.seed}"
        )

    def complete(self, prompts: Iterable[Prompt], *, total: int | None = None) -> Iterator[Completion]:
        """Answer prompts, window by window: view by view, so that a batch is not held up by a view of longer answers.

        Within a view the longest prompt comes first.

        Args: prompts: read a window at a time; total: completions to come, which shows a progress bar.
        """
        jobs = self._jobs(prompts)
        size = self.recipe.batch_size
        with tqdm(total=total, unit="answer", desc=self.policy.name, disable=total is None) as progress:
            while window := list(islice(jobs, size * _WINDOW_BATCHES)):
                window.sort(key=lambda job: (job.view, -len(job.ids)))
                asked = [job for job in window if self._room(job) is None]
                for job in window:
                    if (error := self._room(job)) is not None:
                        progress.update()
                        yield failed(job.key, job.sample, error)
                for start in range(0, len(asked), size):
                    batch = asked[start : start + size]
                    completions = self._sample(batch)
                    progress.update(len(batch))
                    yield from completions

    @torch.inference_mode()
    def label_probabilities(
        self, messages: Sequence[Sequence[Mapping[str, str]]], prefixes: Sequence[str], labels: Sequence[str]
    ) -> NDArray[np.float64]:
        """Give the probability of each label as the next words of an answer, among the labels.

        The sum of the log-probabilities of a label's tokens, softmax over the labels; tokens are those of prefix and
        label together, counted from where the labels' tokens first differ.

        Args: messages: one conversation a prompt; prefixes: how each answer begins, up to its label; labels: as they
            would stand there, with what ends them where one begins like another.
        Returns: float64 of shape (N, K), rows summing to 1; nan where a prompt with its prefix and a label is longer
            than the model's context.
        """
        rows = [self._label_ids(m, prefix, labels) for m, prefix in zip(messages, prefixes, strict=True)]
        result_NK = np.full((len(rows), len(labels)), np.nan)
        fits = [n for n, row in enumerate(rows) if max(len(row.start) + len(end) for end in row.ends) <= self._context]
        order = sorted(fits, key=lambda n: -len(rows[n].start))
        size = max(1, self.recipe.batch_size // len(labels))
        for at in range(0, len(order), size):
            part = order[at : at + size]
            result_NK[part] = self._label_batch([rows[n] for n in part]).softmax(dim=1).numpy()
        return result_NK

    def _jobs(self, prompts: Iterable[Prompt]) -> Iterator[_Job]:
        for prompt in prompts:
            ids = self._ids(self._text(prompt.messages))
            for sample in range(prompt.first_sample, prompt.first_sample + prompt.samples):
                yield _Job(prompt.key, sample, ids)

    def _text(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Render a conversation up to where the answer begins."""
        text: str = self._tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            add_generation_prompt=True,
            tokenize=False,
            enable_thinking=self.recipe.thinking,
        )
        return text

    def _begun(self, messages: Sequence[Mapping[str, str]], prefix: str) -> str:
        """Render a conversation up to where an answer stands that begins so, as SFT renders whole ones.

        With `thinking` the template writes the think block into the answer, not into the prompt.
        """
        answer = {"role": "assistant", "content": prefix + _HERE}
        text: str = self._tokenizer.apply_chat_template(
            [*(dict(message) for message in messages), answer], tokenize=False, enable_thinking=self.recipe.thinking
        )
        return text[: text.rindex(_HERE)]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _room(self, job: _Job) -> str | None:
        answer = self.recipe.max_new_tokens
        if len(job.ids) + answer <= self._context:
            return None
        return (
            f"prompt too long: expected at most {self._context - answer} tokens ({self._context} of context, {answer} "
            f"of them for the answer), found {len(job.ids)}"
        )

    @torch.inference_mode()
    def _sample(self, batch: Sequence[_Job]) -> list[Completion]:
        """Answer one batch token by token; answers that have ended leave it a quarter at a time.

        Our own loop, because `generate` carries every row to the end of the longest, of short answers with a few long
        ones most of the work, and reads a prompt once for each of its answers (docs/decisions/0008-sampling.md).
        """
        prompt_of = {ids: n for n, ids in enumerate(dict.fromkeys(tuple(job.ids) for job in batch))}
        ids_BL, mask_BL = self._padded(list(prompt_of))
        uniform_BT = torch.from_numpy(np.stack([self._uniforms(job) for job in batch]))
        warpers = self._warpers()
        new: list[list[int]] = [[] for _ in batch]
        rows, writing = np.arange(len(batch)), np.ones(len(batch), dtype=bool)
        position_BL, cache = (mask_BL.cumsum(dim=1) - 1).clamp(min=0), roomy_cache(self._model)
        for step in range(self.recipe.max_new_tokens):
            out = self._model(
                input_ids=ids_BL,
                attention_mask=mask_BL,
                position_ids=position_BL,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            logits_BV, cache = out.logits[:, -1].float(), out.past_key_values
            if step == 0 and len(prompt_of) < len(batch):
                prompts = torch.tensor([prompt_of[tuple(job.ids)] for job in batch], device=mask_BL.device)
                cache.batch_select_indices(prompts)
                logits_BV, mask_BL = logits_BV[prompts], mask_BL[prompts]
            token_B = _drawn(logits_BV, uniform_BT[rows, step], self.recipe, warpers)
            tokens = token_B.tolist()
            for place in np.flatnonzero(writing):
                new[rows[place]].append(tokens[place])
            writing &= ~np.isin(tokens, self._eos)
            if not writing.any():
                break
            if writing.mean() <= _STILL_WRITING:
                kept = torch.from_numpy(np.flatnonzero(writing)).to(mask_BL.device)
                cache.batch_select_indices(kept)
                mask_BL, token_B, rows = mask_BL[kept], token_B[kept], rows[writing]
                writing = np.ones(len(rows), dtype=bool)
            ids_BL, position_BL = token_B.unsqueeze(1), mask_BL.sum(dim=1, keepdim=True)
            mask_BL = torch.cat([mask_BL, torch.ones_like(ids_BL)], dim=1)
        return [self._completion(job, tokens) for job, tokens in zip(batch, new, strict=True)]

    def _completion(self, job: _Job, new: list[int]) -> Completion:
        end = next((place for place, token in enumerate(new) if token in self._eos), None)
        kept = new if end is None else new[:end]
        return Completion(
            key=job.key,
            sample=job.sample,
            text=self._tokenizer.decode(kept, skip_special_tokens=True),
            prompt_tokens=len(job.ids),
            completion_tokens=len(new) if end is None else end + 1,
            finish_reason="length" if end is None else "stop",
            error=None,
            label_logprobs=None,
        )

    def _warpers(self) -> Any:  # noqa: ANN401 - transformers is untyped
        """Give what turns the logits of the `top_k` likeliest tokens into those that are drawn from."""
        from transformers.generation import logits_process as processes

        recipe = self.recipe
        warpers = processes.LogitsProcessorList()
        if recipe.temperature == 0:
            return warpers
        warpers.append(processes.TemperatureLogitsWarper(recipe.temperature))
        if recipe.top_p < 1:
            warpers.append(processes.TopPLogitsWarper(recipe.top_p))
        return warpers

    def _uniforms(self, job: _Job) -> NDArray[np.float64]:
        """Give one number in [0, 1) for each new token of an answer, the same whatever else is in the batch."""
        name = f"{self.seed}\t{job.sample}\t{job.key}".encode()
        seed = int.from_bytes(hashlib.sha256(name).digest()[:16], "big")
        return np.random.default_rng(seed).random(self.recipe.max_new_tokens)

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Give ids and mask, int64 of shape (B, L), padded on the left."""
        length = max(map(len, rows))
        ids_BL = torch.tensor([[self._pad] * (length - len(row)) + list(row) for row in rows])
        mask_BL = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
        return ids_BL.to(self._model.device), mask_BL.to(self._model.device)

    def _label_ids(self, messages: Sequence[Mapping[str, str]], prefix: str, labels: Sequence[str]) -> _LabelRow:
        text = self._begun(messages, prefix)
        whole = [self._ids(text + label) for label in labels]
        differ = (place for place, tokens in enumerate(zip(*whole, strict=False)) if len(set(tokens)) > 1)
        same = next(differ, min(map(len, whole)) - 1)
        return _LabelRow(whole[0][:same], [ids[same:] for ids in whole])

    def _label_batch(self, rows: Sequence[_LabelRow]) -> torch.Tensor:
        """Give the log-probability of each label's tokens, float64 of shape (B, K) on the CPU."""
        ids_BL, mask_BL = self._padded([row.start for row in rows])
        n_labels, longest = len(rows[0].ends), max(len(end) for row in rows for end in row.ends)
        ends = [end for row in rows for end in row.ends]
        end_ids = torch.tensor([end + [self._pad] * (longest - len(end)) for end in ends]).to(ids_BL.device)
        end_mask = torch.tensor([[1] * len(end) + [0] * (longest - len(end)) for end in ends]).to(ids_BL.device)
        position_BL = (mask_BL.cumsum(dim=1) - 1).clamp(min=0)
        out = self._model(
            input_ids=ids_BL, attention_mask=mask_BL, position_ids=position_BL, use_cache=longest > 1, logits_to_keep=1
        )
        logits = out.logits.repeat_interleave(n_labels, dim=0)
        if longest > 1:
            cache = out.past_key_values
            cache.batch_repeat_interleave(n_labels)
            before = mask_BL.repeat_interleave(n_labels, dim=0)
            after = self._model(
                input_ids=end_ids[:, :-1],
                attention_mask=torch.cat([before, end_mask[:, :-1]], dim=1),
                position_ids=before.sum(dim=1, keepdim=True) + torch.arange(longest - 1, device=ids_BL.device),
                past_key_values=cache,
                use_cache=True,
            )
            logits = torch.cat([logits, after.logits], dim=1)
        log_probability = logits.float().log_softmax(dim=-1).gather(2, end_ids.unsqueeze(2)).squeeze(2)
        sum_BK: torch.Tensor = (log_probability * end_mask).sum(dim=1).double().cpu().view(len(rows), n_labels)
        return sum_BK


@dataclass(frozen=True, slots=True)
class _Job:
    key: str
    sample: int
    ids: list[int]

    @property
    def view(self) -> str:
        """What the key names before its tab, as `prompt_key` makes it; "" for a key without one."""
        view, tab, _ = self.key.partition("\t")
        return view if tab else ""


@dataclass(frozen=True, slots=True)
class _LabelRow:
    """Tokens that all labels share, and each label's own."""

    start: list[int]
    ends: list[list[int]]


def _drawn(
    logits_BV: torch.Tensor,
    uniform_B: torch.Tensor,
    recipe: SamplingRecipe,
    warpers: Any,  # noqa: ANN401 - transformers is untyped
) -> torch.Tensor:
    """Give of each row the token at which its running sum passes the row's number; greedy, the likeliest.

    A sample of the distribution, as multinomial sampling is, but of numbers that belong to the row, not to the batch.
    The `top_k` likeliest are taken out first, in the order of the vocabulary, so that what follows, a sort among it,
    is of them alone.

    Returns: int64 of shape (B,).
    """
    if recipe.temperature == 0:
        return logits_BV.argmax(dim=-1)
    place_BV: torch.Tensor | None = None
    if 0 < recipe.top_k < logits_BV.shape[-1]:
        place_BV = logits_BV.topk(recipe.top_k, dim=-1, sorted=False).indices.sort(dim=-1).values
        logits_BV = logits_BV.gather(-1, place_BV)
    logits_BV = warpers(None, logits_BV)
    sum_BV = logits_BV.softmax(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    total_B1 = sum_BV[:, -1:]
    target_B1 = uniform_B.to(logits_BV.device).unsqueeze(1) * total_B1
    target_B1 = torch.minimum(target_B1, torch.nextafter(total_B1, torch.zeros_like(total_B1)))
    drawn_B1 = torch.searchsorted(sum_BV, target_B1, right=True)
    return (drawn_B1 if place_BV is None else place_BV.gather(-1, drawn_B1)).squeeze(1)
