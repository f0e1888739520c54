"""Command `merge_policy`: an adapter and its base as one full model, for servers that load no adapters.

Merging rounds: the merged model is written only if its logits are those of the adapter. Suffixes: L tokens, V
vocabulary.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch

from relevance.errors import RunError
from training.teacher.policy import Policy, load_model, load_policy, record_policy

_PROBE = "running shoes for women, size 8"
_TOLERANCE = 1e-3
"""Largest difference of a logit, as a share of the largest logit."""


def main(argv: list[str]) -> int:
    """Merge the policy of `--policy` into the folder `--to`."""
    parser = argparse.ArgumentParser(prog="relevance merge_policy", description=__doc__)
    parser.add_argument("--policy", required=True, type=Path, help="folder of an adapter, such as OUT/dpo/policy")
    parser.add_argument("--to", required=True, type=Path, help="folder to write the full model to")
    arguments = parser.parse_args(argv)
    merge_policy(load_policy(arguments.policy), arguments.to)
    return 0


def merge_policy(policy: Policy, folder: Path, *, tolerance: float = _TOLERANCE) -> None:
    """Write an adapter's policy as one full model, in the precision of its base.

    Args: tolerance: largest difference of a logit, as a share of the largest logit.
    Raises: RunError: if the policy is no adapter, its base is quantized, or the merged model's logits differ.
    """
    if policy.record is None or policy.record.quantized or not hasattr(policy.model, "merge_and_unload"):
        raise RunError(f"{policy.name}: expected an adapter over a base that is not quantized")
    if folder.exists():
        raise RunError(f"{folder}: expected a folder that does not exist yet")
    expected_LV = _probe(policy)
    dtype, device = policy.model.dtype, policy.model.device
    policy.model.merge_and_unload().save_pretrained(folder)
    merged = Policy(load_model(folder, dtype=dtype).to(device).eval(), policy.tokenizer, "merged")
    gap = float((_probe(merged) - expected_LV).abs().max() / expected_LV.abs().max())
    if gap > tolerance:
        shutil.rmtree(folder)
        raise RunError(
            f"{policy.name}: expected merged logits within {tolerance} of the adapter's, found {gap:.2g} of the "
            f"largest; serve the adapter as it is"
        )
    policy.tokenizer.save_pretrained(folder)
    record_policy(folder, policy.record.model_copy(update={"base": "."}))


def _probe(policy: Policy) -> torch.Tensor:
    ids = policy.tokenizer(_PROBE, return_tensors="pt").to(policy.model.device)
    with torch.inference_mode():
        logits_LV: torch.Tensor = policy.model(**ids).logits[0].float()
    return logits_LV
