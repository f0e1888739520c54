"""Policies on disk: adapters know their base, nothing is merged unasked, and mistakes are named."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model

from relevance.errors import RecipeError, RunError
from training.recipe import load_recipe
from training.runs import DONE, Run
from training.teacher.decoder import make_decoder, train_tokenizer
from training.teacher.merge_policy import main, merge_policy
from training.teacher.policy import (
    Policy,
    PolicyRecord,
    base_identity,
    base_policy,
    final_policy,
    load_model,
    load_policy,
    policy_identity,
    read_record,
    rebased,
    save_policy,
)
from training.teacher_recipe import DecoderRecipe

DECODER = DecoderRecipe(vocabulary=320, width=32, layers=2, heads=4, kv_heads=2, context=64)
TEXTS = ["red running shoes for women", "kettle, steel, 1.7 l\nbrand: Morningside", "水筒 ステンレス label: E"]
BOOK = "f" * 64


def make_base(folder, seed=0):
    """Save a tiny decoder with random weights; give its folder."""
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(TEXTS, DECODER)
    save_policy(Policy(make_decoder(DECODER, tokenizer), tokenizer, "base"), folder)
    return folder


def make_adapter(base, folder, seed=0):
    """Save an adapter whose weights are random, not zero, over a base; give its folder."""
    torch.manual_seed(seed)
    model = load_model(base)
    identity = base_identity(base, model, folder)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    record = PolicyRecord(**identity, prompt=BOOK, reasoning_order="think_first", thinking=False, view="unified")
    policy = Policy(adapted, load_policy(base).tokenizer, "sft", record)
    save_policy(policy, folder)
    return policy


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base, an adapter over it, and the adapter as it was in memory."""
    root = tmp_path_factory.mktemp("policies")
    base = make_base(root / "teacher_pretrain" / "policy")
    adapter = root / "sft" / "policy"
    return base, adapter, make_adapter(base, adapter)


def logits(policy):
    """Give the logits of one text."""
    ids = policy.tokenizer(TEXTS[0], return_tensors="pt")
    with torch.inference_mode():
        return policy.model.eval()(**ids).logits


def test_a_loaded_adapter_gives_the_logits_of_the_one_in_memory(folders):
    """Over the same base, unmerged, and named by stage and weights."""
    _, adapter, policy = folders
    loaded = load_policy(adapter)

    torch.testing.assert_close(logits(loaded), logits(policy))
    assert loaded.name.startswith("sft@")
    assert loaded.name == load_policy(adapter).name
    assert hasattr(loaded.model, "merge_and_unload")
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert loaded.record == policy.record


def test_only_the_adapter_of_a_trainable_policy_takes_gradients(folders):
    """The base stays frozen."""
    model = load_policy(folders[1], trainable=True).model

    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    assert all(p.requires_grad for p in load_policy(folders[0], trainable=True).model.parameters())


def test_a_run_that_was_moved_still_loads(folders, tmp_path):
    """The base is recorded relative to the adapter, so the whole run can move, and its name stays."""
    shutil.copytree(folders[0].parents[1], tmp_path / "moved")

    moved = load_policy(tmp_path / "moved" / "sft" / "policy")
    torch.testing.assert_close(logits(moved), logits(folders[2]))
    assert moved.name == load_policy(folders[1]).name


def test_an_adapter_from_another_base_model_is_refused(folders, tmp_path):
    """A base that was trained again in the meantime has other weights."""
    shutil.copytree(folders[0].parents[1], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "teacher_pretrain")
    make_base(tmp_path / "run" / "teacher_pretrain" / "policy", seed=1)

    with pytest.raises(RunError, match=r"an adapter from another base model: expected .*sha256:.*, found sha256:"):
        load_policy(tmp_path / "run" / "sft" / "policy")


def test_an_adapter_without_its_base_says_where_it_should_be(folders, tmp_path):
    """Only the adapter's folder was copied."""
    shutil.copytree(folders[1], tmp_path / "sft" / "policy")

    with pytest.raises(RunError, match=r"expected its base model at .*teacher_pretrain"):
        load_policy(tmp_path / "sft" / "policy")


def test_an_adapter_of_another_tool_is_refused(folders, tmp_path):
    """Without a record nobody knows which base it belongs to."""
    shutil.copytree(folders[1], tmp_path / "policy")
    (tmp_path / "policy" / "policy.json").unlink()

    with pytest.raises(RunError, match=r"expected policy\.json beside adapter_config\.json"):
        load_policy(tmp_path / "policy")


def test_a_broken_record_is_named(folders, tmp_path):
    """A record with an unknown key or half of one is no record."""
    shutil.copytree(folders[1], tmp_path / "policy")
    (tmp_path / "policy" / "policy.json").write_text('{"base": "x"')

    with pytest.raises(RunError, match="expected the record of a policy"):
        read_record(tmp_path / "policy")


def test_another_prompt_book_is_refused(folders):
    """A policy asked with prompts it never saw would answer worse without a word."""
    assert load_policy(folders[1], fingerprint=BOOK).record.prompt == BOOK
    with pytest.raises(RunError, match=r"expected the prompt book it was trained with \(ffff"):
        load_policy(folders[1], fingerprint="0" * 64)


def test_what_is_no_model_is_named(tmp_path):
    """An empty folder, and a folder that does not exist."""
    for where in (tmp_path, tmp_path / "missing"):
        with pytest.raises(RunError, match="expected a folder or hub name of a causal language model"):
            load_policy(where)


def test_a_base_without_chat_template_is_refused(folders, tmp_path):
    """A model that was never tuned for chats cannot be asked."""
    shutil.copytree(folders[0], tmp_path / "plain")
    for path in (tmp_path / "plain").glob("chat_template*"):
        path.unlink()
    config = tmp_path / "plain" / "tokenizer_config.json"
    given = json.loads(config.read_text())
    given.pop("chat_template", None)
    config.write_text(json.dumps(given))

    with pytest.raises(RunError, match="expected an instruction-tuned model"):
        load_policy(tmp_path / "plain")


def test_a_merge_gives_the_adapters_logits(folders, tmp_path):
    """Merged on demand, the full model answers as base and adapter do."""
    expected = logits(folders[2])
    assert main(["--policy", str(folders[1]), "--to", str(tmp_path / "merged")]) == 0

    merged = load_policy(tmp_path / "merged", fingerprint=BOOK)
    torch.testing.assert_close(logits(merged), expected, atol=1e-4, rtol=1e-4)
    assert not hasattr(merged.model, "merge_and_unload")


def test_a_merge_that_changes_the_answers_writes_nothing(folders, tmp_path):
    """Rounding alone is more than no difference at all, as it would be more than 0.001 in low precision."""
    with pytest.raises(RunError, match=r"expected merged logits within 0\.0 of the adapter's"):
        merge_policy(load_policy(folders[1]), tmp_path / "merged", tolerance=0.0)
    assert not (tmp_path / "merged").exists()


def test_a_merge_overwrites_nothing(folders, tmp_path):
    """A folder that is there already may be a policy."""
    with pytest.raises(RunError, match="expected a folder that does not exist yet"):
        merge_policy(load_policy(folders[1]), tmp_path)


def test_a_merge_needs_an_adapter(folders, tmp_path):
    """A full model has nothing to merge."""
    with pytest.raises(RunError, match="expected an adapter"):
        merge_policy(load_policy(folders[0]), tmp_path / "merged")


def test_a_record_can_move_to_the_folder_of_the_next_stage(folders, tmp_path):
    """A policy trained on from the adapter has the same base, seen from its own folder."""
    deeper = tmp_path / "a" / "b" / "policy"
    record = rebased(load_policy(folders[1]).record, folders[1], deeper)

    deeper.mkdir(parents=True)
    assert (deeper / record.base).resolve() == folders[0].resolve()


def test_quantised_bases_need_cuda(folders, monkeypatch):
    """QLoRA on a machine without CUDA is a clear error."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecipeError, match="expected CUDA and the bitsandbytes package"):
        load_model(folders[0], quantized=True)


def finish(path, report=None):
    """Mark a stage folder as finished."""
    path.mkdir(parents=True, exist_ok=True)
    (path / DONE).write_text(json.dumps({"inputs": ""}))
    if report is not None:
        (path / "report.json").write_text(json.dumps(report))


@pytest.mark.parametrize(("shipped", "expected"), [(None, "sft"), ("sft", "sft"), ("dpo", "dpo")])
def test_the_teacher_is_dpos_policy_only_where_its_gate_let_it_pass(tmp_path, shipped, expected):
    """Without DPO, or where it did not win, SFT's policy is the teacher."""
    run = Run(load_recipe("tiny"), tmp_path)
    with pytest.raises(RunError, match="relevance sft"):
        final_policy(run)
    finish(tmp_path / "sft")
    if shipped is not None:
        finish(tmp_path / "dpo", {"shipped": shipped, "sft": ""})

    assert final_policy(run) == tmp_path / expected / "policy"


def test_dpos_policy_of_an_older_sft_is_not_the_teacher(tmp_path):
    """SFT was made anew with other inputs, DPO was not; a report that does not say is an old one."""
    run = Run(load_recipe("tiny"), tmp_path)
    finish(tmp_path / "sft")
    finish(tmp_path / "dpo", {"shipped": "dpo", "sft": "another"})

    with pytest.raises(RunError, match="run dpo again"):
        final_policy(run)
    finish(tmp_path / "dpo", {"shipped": "dpo"})
    with pytest.raises(RunError, match="run dpo again"):
        final_policy(run)


def test_a_policy_is_known_by_what_its_folder_holds(folders, tmp_path):
    """A copy is the same policy; other weights, tokenizer, template or base make another; a hub name stays."""
    full, adapter = policy_identity(folders[0]), policy_identity(folders[1])
    shutil.copytree(folders[0], tmp_path / "a" / "policy")
    copied = policy_identity(tmp_path / "a" / "policy").partition("@")[2]
    tokenizer = tmp_path / "a" / "policy" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + " ")

    for name, text in {"chat_template.jinja": "{{ 1 }}", "generation_config.json": '{"eos_token_id": 7}'}.items():
        shutil.copytree(folders[0], tmp_path / name / "policy")
        (tmp_path / name / "policy" / name).write_text(text)
        assert policy_identity(tmp_path / name / "policy").partition("@")[2] != copied
    assert copied == full.partition("@")[2]
    assert policy_identity(tmp_path / "a" / "policy").partition("@")[2] != copied
    assert adapter != full
    assert load_policy(folders[1]).name == adapter
    assert policy_identity("Qwen/Qwen3-14B", "main") == "Qwen/Qwen3-14B@main"


def test_the_base_is_a_model_or_the_run_s_own_decoder(tmp_path):
    """`scratch` names what stage teacher_pretrain made, which must be there."""
    assert base_policy(Run(load_recipe("tiny", ["teacher.base=Qwen/Qwen3-14B"]), tmp_path)) == "Qwen/Qwen3-14B"
    run = Run(load_recipe("tiny", ["teacher.base=scratch"]), tmp_path)
    with pytest.raises(RunError, match="relevance teacher_pretrain"):
        base_policy(run)
    finish(tmp_path / "teacher_pretrain")
    assert base_policy(run) == tmp_path / "teacher_pretrain" / "policy"
