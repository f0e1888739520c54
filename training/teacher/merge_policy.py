"""Command `merge_policy`: an adapter and its base as one full model, for servers that load no adapters.

Merging rounds: the merged model stays only if its logits are those of the adapter, up to the rounding of its precision,
and if it goes on with the same token where a label begins. Suffixes: L tokens, V vocabulary.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from relevance.errors import RunError
from training.teacher.policy import Policy, load_model, load_policy, record_policy

_PROBES = (
    "query: running shoes for women, size 8\nitem: Trail shoe, women, 8",
    "query: steel kettle\nitem: Cotton pillow, white",
    "query: phone case\nitem: Charger for phones, 20 W",
)
_TOLERANCE = 1e-3
"""Largest norm of the difference of a probe's logits, as a share of their own, for weights in float32."""
_ROUNDINGS = 8
"""For coarser weights, so many times the distance of 1 to the next number: each layer rounds again."""


def main(argv: list[str]) -> int:
    """Merge the policy of `--policy` into the folder `--to`."""
    parser = argparse.ArgumentParser(prog="relevance merge_policy", description=__doc__)
    parser.add_argument("--policy", required=True, type=Path, help="folder of an adapter, such as OUT/dpo/policy")
    parser.add_argument("--to", required=True, type=Path, help="folder to write the full model to")
    arguments = parser.parse_args(argv)
    merge_policy(load_policy(arguments.policy), arguments.to)
    return 0


def merge_policy(policy: Policy, folder: Path, *, tolerance: float | None = None) -> None:
    """Write an adapter's policy as one full model, summed in float32 and rounded once to the precision of its base.

    Args: tolerance: largest norm of the difference of a probe's logits, as a share of their own, None for what the
        precision rounds.
    Raises: RunError: if the policy is no adapter, its base is quantized, or the merged model's logits differ or name
        another next token.
    """
    if policy.record is None or policy.record.quantized or not hasattr(policy.model, "merge_and_unload"):
        raise RunError(f"{policy.name}: expected an adapter over a base that is not quantized")
    if folder.exists():
        raise RunError(f"{folder}: expected a folder that does not exist yet")
    expected = _probe(policy)
    dtype, device = policy.model.dtype, policy.model.device
    if tolerance is None:
        tolerance = max(_TOLERANCE, _ROUNDINGS * torch.finfo(dtype).eps)
    policy.model.float().merge_and_unload().to(dtype).save_pretrained(folder)
    merged = Policy(load_model(folder, dtype=dtype).to(device).eval(), policy.tokenizer, "merged")
    difference = difference_of(expected, _probe(merged), tolerance)
    if difference is not None:
        shutil.rmtree(folder)
        raise RunError(f"{policy.name}: {difference}; serve the adapter as it is")
    policy.tokenizer.save_pretrained(folder)
    record_policy(folder, policy.record.model_copy(update={"base": "."}))


def difference_of(expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor], tolerance: float) -> str | None:
    """Say what differs between the logits of the probes, None if they agree.

    Another next token counts where the adapter's choice was no tie, that is, clearer than the tolerance.

    Args: expected, found: before and after merging, of shape (L, V) for each probe; tolerance: as `merge_policy`.
    """
    for probe, before_LV, after_LV in zip(_PROBES, expected, found, strict=True):
        gap = float((after_LV - before_LV).norm() / before_LV.norm())
        if not gap <= tolerance:
            return f"expected merged logits within {tolerance} of the adapter's norm, found {gap:.2g} for {probe!r}"
        first, second = before_LV[-1].topk(2).values.tolist()
        if (
            first - second > tolerance * float(before_LV[-1].abs().max())
            and before_LV[-1].argmax() != after_LV[-1].argmax()
        ):
            return f"expected the merged model to go on with the adapter's token, found another after {probe!r}"
    return None


@torch.inference_mode()
def _probe(policy: Policy) -> list[torch.Tensor]:
    """Give the logits of every probe, asked as a chat whose answer has begun."""
    logits = []
    for probe in _PROBES:
        text = policy.tokenizer.apply_chat_template(
            [{"role": "user", "content": probe}], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        ids = policy.tokenizer(f"{text}label:", add_special_tokens=False, return_tensors="pt").to(policy.model.device)
        logits.append(policy.model(input_ids=ids["input_ids"]).logits[0].float())
    return logits
