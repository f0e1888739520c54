"""Answers a second of `LocalGenerator` and of transformers' `generate`, in turns, on the decoder of `teacher-small`.

Random weights, prompts of made-up words, and so many tokens that end an answer that lengths spread as a teacher's do:
most are short, a few reach the limit. Both decode greedily and must give the same texts. The ratio is of times, block
by block; its A/A ratio is of `generate` before and after.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import GenerationConfig

from benchmarks.measure import RESULTS, WORDS, figure, machine
from training.recipe import load_recipe
from training.teacher.decoder import make_decoder, train_tokenizer
from training.teacher.generator import Completion, Prompt
from training.teacher.local_generator import LocalGenerator
from training.teacher.policy import Policy
from training.teacher_recipe import SamplingRecipe


def make_policy(ends: int) -> tuple[Policy, list[int]]:
    """Give the recipe's decoder with random weights, and the tokens that end an answer."""
    recipe = load_recipe("teacher-small").teacher.decoder
    words = WORDS["us"].split()
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, 40)) for _ in range(400)]
    torch.manual_seed(0)
    tokenizer = train_tokenizer(texts, recipe)
    model = make_decoder(recipe, tokenizer).eval()
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.1)
    own = int(model.generation_config.eos_token_id)
    chosen = rng.choice(np.arange(10, len(tokenizer)), ends, replace=False)
    model.generation_config.eos_token_id = [own, *chosen.tolist()]
    return Policy(model, tokenizer, "random"), model.generation_config.eos_token_id


def by_transformers(policy: Policy, prompts: Sequence[Prompt], recipe: SamplingRecipe, ends: list[int]) -> list[str]:
    """Answer all prompts as one left-padded batch with `generate`."""
    tokenizer = policy.tokenizer
    rendered = [
        tokenizer.apply_chat_template(
            [dict(m) for m in p.messages], add_generation_prompt=True, tokenize=False, enable_thinking=recipe.thinking
        )
        for p in prompts
    ]
    inputs = tokenizer(rendered, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
    config = GenerationConfig(
        max_new_tokens=recipe.max_new_tokens, do_sample=False, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id
    )
    with torch.inference_mode():
        out_BL = policy.model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            generation_config=config,
            use_model_defaults=False,
        )
    texts = []
    for row in out_BL[:, inputs["input_ids"].shape[1] :].tolist():
        end = next((place for place, token in enumerate(row) if token in ends), len(row))
        texts.append(tokenizer.decode(row[:end], skip_special_tokens=True))
    return texts


def by_us(policy: Policy, prompts: Sequence[Prompt], recipe: SamplingRecipe) -> list[Completion]:
    """Answer all prompts with `LocalGenerator`, in their order."""
    by_key = {completion.key: completion for completion in LocalGenerator(policy, recipe, seed=0).complete(prompts)}
    return [by_key[prompt.key] for prompt in prompts]


def main(argv: list[str]) -> int:
    """Measure and write results/local_sampling.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--answers", type=int, default=128)
    parser.add_argument("--ends", type=int, default=3, help="tokens that end an answer")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "local_sampling.json")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    policy, ends = make_policy(arguments.ends)
    recipe = SamplingRecipe(max_new_tokens=128, batch_size=arguments.answers, temperature=0)
    rng = np.random.default_rng(1)
    words = WORDS["us"].split()
    prompts = [
        Prompt(f"user\t{i}", ({"role": "user", "content": " ".join(rng.choice(words, rng.integers(60, 110)))},), 1, 0)
        for i in range(arguments.answers)
    ]
    ratios, again = [], []
    for _ in tqdm(range(arguments.blocks), desc="blocks"):
        times = []
        for ours in (False, True, False):
            policy.model.set_attn_implementation("sdpa")
            started = time.perf_counter()
            if ours:
                completions = by_us(policy, prompts, recipe)
            else:
                theirs = by_transformers(policy, prompts, recipe, ends)
            times.append(time.perf_counter() - started)
        ratios.append((times[0] + times[2]) / 2 / times[1])
        again.append(times[0] / times[2])
    lengths = [completion.completion_tokens for completion in completions]
    same = sum(mine.text == text for mine, text in zip(completions, theirs, strict=True)) / len(prompts)
    result = {
        "machine": machine(),
        "threads": arguments.threads,
        "answers": arguments.answers,
        "tokens_of_an_answer": {"mean": float(np.mean(lengths)), "longest": int(max(lengths))},
        "same_texts": same,
        "speed_ours_over_generate": asdict(figure(ratios)),
        "generate_over_generate": asdict(figure(again)),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
