"""Merging an adapter in low precision: rounding passes, another model does not."""

import pytest
import torch
from preference_makers import save_policies

from relevance.errors import RunError
from training.teacher.merge_policy import difference_of, merge_policy
from training.teacher.policy import load_model, load_policy


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """A base and an adapter over it whose weights are not zero."""
    return save_policies(tmp_path_factory.mktemp("policies"))


def adapter(policies, dtype):
    """Give the adapter over its base in another precision; its own weights stay in float32, as peft loads them."""
    policy = load_policy(policies / "adapter")
    for name, weight in policy.model.named_parameters():
        if "lora_" not in name:
            weight.data = weight.data.to(dtype)
    return policy


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_low_precision_base_is_merged_in_float32_and_rounded_once(policies, tmp_path, dtype):
    """Each merged weight is the float32 sum of base and scaled product, cast to the base's precision."""
    policy = adapter(policies, dtype)
    layer = policy.model.base_model.model.model.layers[0].mlp.up_proj
    low_DR, high_RD = layer.lora_B["default"].weight, layer.lora_A["default"].weight
    expected = (layer.base_layer.weight.float() + layer.scaling["default"] * (low_DR @ high_RD)).detach().to(dtype)
    merge_policy(policy, tmp_path / "merged")
    merged = load_model(tmp_path / "merged", dtype=dtype)
    torch.testing.assert_close(merged.model.layers[0].mlp.up_proj.weight.detach(), expected, atol=0, rtol=1e-2)
    assert float((merged.model.layers[0].mlp.up_proj.weight == expected).float().mean()) > 0.99


def probes(last, other=5.0):
    """Give the logits of three probes of 40 tokens whose last token's are given, among 16 words."""
    logits_LV = torch.full((40, 16), other)
    logits_LV[-1] = torch.tensor([*last, *[0.0] * (16 - len(last))])
    return [logits_LV] * 3


def test_another_next_token_tells_where_the_choice_was_no_tie():
    """The norms agree to 1 %; which word comes next is exchanged, once clearly and once within the rounding."""
    assert difference_of(probes([1.0, 0.2]), probes([1.0, 0.2]), 0.01) is None
    assert "found another after" in difference_of(probes([1.0, 0.2]), probes([0.2, 1.0]), 0.01)
    assert difference_of(probes([1.0, 0.995]), probes([0.995, 1.0]), 0.01) is None
    assert "found 0.2 for" in difference_of(probes([1.0]), probes([1.0], other=6.0), 0.01)
    assert "found nan for" in difference_of(probes([1.0]), probes([float("nan")]), 0.01)


def test_a_merge_that_is_another_model_writes_nothing(policies, tmp_path):
    """More than the precision rounds: the probes' logits are told apart, and the folder is gone."""
    policy = adapter(policies, torch.bfloat16)
    with pytest.raises(RunError, match="expected merged logits within 1e-09 of the adapter's norm"):
        merge_policy(policy, tmp_path / "merged", tolerance=1e-9)
    assert not (tmp_path / "merged").exists()
