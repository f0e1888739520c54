"""Supervised fine-tuning with TRL: what is learned, in which phases, and what is refused."""

import json

import pytest
import torch
from sft_runs import OVERRIDES, finish, report_of, start

from relevance.errors import CollapseError, RecipeError, RunError
from training.grid import teacher_job
from training.recipe import load_recipe
from training.runs import DONE, Run
from training.teacher import sft
from training.teacher.parts import split_parts
from training.teacher.policy import base_policy_identity, load_policy
from training.teacher.prompts import PromptBook
from training.teacher.sft_rows import SftRow, encode_rows
from training.teacher.trainer_settings import StopOnDivergence, last_checkpoint, trainer_options
from training.teacher_recipe import TeacherFitRecipe

pytest.importorskip("trl")
pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_loss_falls_and_only_the_adapter_was_trained(tuned):
    """On seen and on held-out rows; the saved adapter's weights are no longer those it started with."""
    found = report_of(tuned.path)["phases"]["sft"]
    policy = load_policy(tuned.path / "sft" / "policy", trainable=True)

    assert found["last_loss"] < 0.95 * found["first_loss"]
    assert found["held_out_loss"] < found["first_loss"]
    assert found["trained_parameters"] == sum(p.numel() for p in policy.model.parameters() if p.requires_grad)
    assert found["trained_parameters"] < 0.7 * found["parameters"]
    assert any(bool(p.any()) for name, p in policy.model.named_parameters() if "lora_B" in name)


def test_the_report_counts_rows_tokens_and_steps(tuned):
    """Every kept row of the fit part is learned or held out; 8 rows a step, two epochs, nothing cut, nothing left."""
    found = report_of(tuned.path)["phases"]["sft"]
    rows = found["rows"] + found["held_out_rows"]

    assert rows == 3 * len(split_parts(tuned).fit)
    assert found["held_out_rows"] > 0
    assert found["steps"] == 2 * -(-found["rows"] // 8)
    assert found["truncated"] == 0
    assert found["tokens_seen"] == 2 * found["tokens_per_epoch"]
    assert sorted(p.name for p in (tuned.path / "sft").iterdir()) == [DONE, "inputs.json", "policy", "report.json"]


def test_the_policy_records_what_it_was_made_from(tuned):
    """Prompt book, order, thinking and view; another book is refused, and so are its files part of what SFT read."""
    book = PromptBook.load(tuned.recipe.teacher.prompt, tuned.recipe.label_scheme)
    policy = load_policy(tuned.path / "sft" / "policy", fingerprint=book.fingerprint)

    read = tuned.inputs_of("sft")
    assert (read["prompt"], read["base"]) == (book.fingerprint, base_policy_identity(tuned))
    assert policy.record.view == "unified"
    assert policy.record.thinking is False
    assert policy.record.reasoning_order == "think_first"
    with pytest.raises(RunError, match="expected the prompt book"):
        load_policy(tuned.path / "sft" / "policy", fingerprint="0" * 64)


def test_a_finished_stage_does_nothing(tuned):
    """The adapter's file stays as it is, also when only what fits the training to a machine has changed."""
    weights = tuned.path / "sft" / "policy" / "adapter_model.safetensors"
    before = weights.stat().st_mtime_ns
    sft.fit_policy(tuned)
    machine = ("device_batch_size=2", "save_steps=50", "gradient_checkpointing=true")
    sft.fit_policy(start(tuned.shared, tuned.path, *(f"teacher.sft.{setting}" for setting in machine)))

    assert weights.stat().st_mtime_ns == before


def test_a_row_that_would_be_cut_is_an_error_before_anything_trains(earlier, tmp_path):
    """One pair's answer is too long; the message names the pair and the lengths of prompt and answer."""
    tokenizer = load_policy(earlier / "teacher_pretrain" / "policy").tokenizer
    prompt = ({"role": "user", "content": "red lamp"},)
    rows = [SftRow("a\t1", prompt, "label: E"), SftRow("b\t2", prompt, "very " * 60 + "label: E")]
    with pytest.raises(
        RunError, match=r"at most 64 tokens, found 1 longer ones; the longest, of pair 'b\\t2', has \d+"
    ):
        encode_rows(rows, tokenizer, thinking=False, max_tokens=64)

    run = start(earlier, tmp_path, "teacher.sft.max_tokens=32")
    with pytest.raises(RunError, match="whose end, with the label, would be cut"):
        sft.fit_policy(run)
    assert not (run.path / "sft" / "phases").exists()


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path):
    """Ten rows a step in forward passes of four."""
    recipe = TeacherFitRecipe(batch_size=10, device_batch_size=4)
    with pytest.raises(RecipeError, match="expected a batch_size that 1 processes of 4 rows share evenly, found 10"):
        trainer_options(recipe, tmp_path, seed=0)
    assert trainer_options(TeacherFitRecipe(batch_size=12), tmp_path, seed=0)["gradient_accumulation_steps"] == 3


def test_a_checkpoint_that_was_cut_off_is_passed_over_and_removed(tmp_path):
    """The state is written last: without it, or with half of it, the checkpoint before is the newest whole one."""
    for step, state in ((3, '{"global_step": 3}'), (6, '{"global_'), (9, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)

    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-3")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]
    assert last_checkpoint(tmp_path / "nothing") is None


def test_a_killed_fine_tuning_may_go_on_with_another_device_batch(earlier, tmp_path, monkeypatch):
    """Stopped after step 5 with forward passes of 4 rows, it ends with passes of 2 after as many steps and tokens.

    Without adapter dropout, which draws other numbers for other passes, it ends at the weights of the whole run.
    """
    quick = ("teacher.sft.learning_rate=1e-3", "teacher.lora.dropout=0.0")
    whole = start(earlier, tmp_path / "whole", *quick)
    sft.fit_policy(whole)

    def killing(self, args, state, control, **_):
        if state.global_step == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(StopOnDivergence, "on_step_end", killing)
    with pytest.raises(KeyboardInterrupt):
        sft.fit_policy(start(earlier, tmp_path / "killed", *quick))
    monkeypatch.undo()
    run = start(earlier, tmp_path / "killed", *quick, "teacher.sft.device_batch_size=2")
    sft.fit_policy(run)
    expected, found = (report_of(one.path)["phases"]["sft"] for one in (whole, run))

    assert (found["steps"], found["tokens_seen"]) == (expected["steps"], expected["tokens_seen"])
    weights = [load_policy(one.path / "sft" / "policy").model.state_dict() for one in (whole, run)]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, atol=1e-4, rtol=1e-3, msg=name)


def test_the_crsd_teacher_reads_platform_text_first(earlier, tmp_path):
    """One epoch of item pages and queries, then the rationales, with the same weights."""
    run = start(earlier, tmp_path, "teacher.method=crsd", "teacher.sft.epochs=1", "teacher.sft.save_steps=99")
    sft.fit_policy(run)
    phases = report_of(run.path)["phases"]

    assert list(phases) == ["continued", "sft"]
    assert phases["continued"]["epochs"] == 1
    assert phases["continued"]["answer_tokens_per_epoch"] == phases["continued"]["tokens_per_epoch"]
    assert load_policy(run.path / "sft" / "policy").record.base.endswith("teacher_pretrain/policy")


def test_one_perspective_reads_as_many_tokens_as_three(earlier, tuned, tmp_path):
    """About three epochs of the teacher of three for one of its own; up to a step's rounding the tokens are equal."""
    one = ('teacher.perspectives=["rule"]', 'teacher.equal_tokens_with=["user", "struct", "rule"]')
    run = start(earlier, tmp_path, *one, "teacher.sft.save_steps=99")
    sft.fit_policy(run)
    expected, found = (report_of(path)["phases"]["sft"] for path in (tuned.path, tmp_path))
    step = 8 * found["longest"]

    assert report_of(tmp_path)["view"] == "rule"
    assert found["epochs"] == pytest.approx(2 * expected["tokens_per_epoch"] / found["tokens_per_epoch"])
    assert 5 < found["epochs"] < 7
    assert expected["tokens_seen"] - step <= found["tokens_seen"] <= expected["tokens_seen"] + step


def test_the_curriculum_s_phases_follow_each_other_and_a_finished_one_is_not_trained_again(
    earlier, tmp_path, monkeypatch
):
    """Stopped after the second of three phases; the next call trains the third only, from the second's weights."""
    run = start(earlier, tmp_path, "teacher.method=progressive", "teacher.sft.epochs=1", "teacher.sft.save_steps=99")
    plain, trained = sft.FineTuning._train, []

    def counting(self, phase, rows, work, policy, previous):
        if len(trained) == 2 and "again" not in trained:
            trained.append("again")
            raise KeyboardInterrupt
        trained.append(phase.name)
        return plain(self, phase, rows, work, policy, previous)

    monkeypatch.setattr(sft.FineTuning, "_train", counting)
    with pytest.raises(KeyboardInterrupt):
        sft.fit_policy(run)
    sft.fit_policy(run)
    report = report_of(run.path)

    assert trained == ["ee_cot", "ra_cot", "again", "dr_cot"]
    assert list(report["phases"]) == ["ee_cot", "ra_cot", "dr_cot"]
    assert report["view"] == "rule"
    assert report["phases"]["ra_cot"]["first_loss"] < report["phases"]["ee_cot"]["first_loss"]


def test_a_loss_that_is_no_number_saves_nothing(earlier, tmp_path):
    """A rate far too high; it stops at the first log that tells, and leaves no checkpoint to go on from."""
    run = start(
        earlier, tmp_path, "teacher.sft.learning_rate=1e25", "teacher.sft.epochs=50", "teacher.sft.save_steps=1"
    )
    with pytest.raises(CollapseError, match=r"sft: expected a finite loss, found .*nan.* at step 10;"):
        sft.fit_policy(run)
    assert not (run.path / "sft" / "policy").exists()
    assert not (run.path / "sft" / DONE).exists()
    assert not list(run.path.rglob("checkpoint-*"))


def test_a_comparison_counts_a_diverged_teacher_as_ended(earlier, tmp_path):
    """Its status says so, so that no later call trains it again."""
    run = start(earlier, tmp_path, "teacher.sft.learning_rate=1e25", "teacher.sft.epochs=50")
    (tmp_path / "recipe.json").write_text(run.recipe.model_dump_json())
    words = ["--out", str(tmp_path), "--shared", str(earlier), "--system", "mpcot", "--seed", "0", "--config-hash", "h"]
    threads = torch.get_num_threads()
    assert teacher_job.main(words) == 0
    torch.set_num_threads(threads)
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["config_hash"]) == ("diverged", "h")
    assert "expected a finite loss" in status["error"]


def test_quantised_training_needs_an_adapter_and_cuda(earlier, tmp_path, monkeypatch):
    """Refused before anything is trained."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecipeError, match="expected CUDA and the bitsandbytes package"):
        sft.fit_policy(start(earlier, tmp_path / "lora", "teacher.sft.qlora=true"))
    run = start(earlier, tmp_path / "full", "teacher.sft.qlora=true")
    teacher = run.recipe.teacher.model_copy(update={"lora": None})
    with pytest.raises(RecipeError, match=r"expected a section teacher\.lora"):
        sft.fit_policy(Run(run.recipe.model_copy(update={"teacher": teacher}), run.path, shared=earlier))


def test_full_fine_tuning_saves_a_full_model(earlier, tmp_path):
    """Without `teacher.lora` every weight is trained, and the policy needs no base."""
    recipe = load_recipe("tiny", [*OVERRIDES, "teacher.sft.epochs=1", "teacher.sft.save_steps=99"])
    recipe = recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update={"lora": None})})
    run = Run(recipe, tmp_path, shared=earlier)
    sft.fit_policy(run)
    found = report_of(run.path)["phases"]["sft"]

    assert found["trained_parameters"] == found["parameters"]
    assert found["last_loss"] < 0.7 * found["first_loss"]
    assert not hasattr(load_policy(run.path / "sft" / "policy").model, "merge_and_unload")


def test_a_run_that_kept_nothing_says_so(earlier, tmp_path):
    """Eq. 1 may leave nothing of a weak base model."""
    finish(tmp_path / "generate")
    (tmp_path / "generate" / "kept.train.jsonl").write_text("")
    with pytest.raises(RunError, match="expected kept rationales of"):
        sft.fit_policy(start(earlier, tmp_path))
