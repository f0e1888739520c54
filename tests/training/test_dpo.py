"""DPO: the reference is the SFT policy and stays it, nothing is cut, a killed run resumes, the gate decides."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from preference_makers import FIT, PROMPT, finished_run, labelled_pairs, preferences, sample, save_policies, stage_run

from relevance.errors import CollapseError, InputError, RunError
from relevance.labels import ESCI
from relevance.pairs import write_labelled_pairs
from training.grid.teacher_job import outcome
from training.runs import DONE
from training.teacher import gate
from training.teacher.dpo import LEAST_PREFERENCES, Optimisation, check_lengths, optimise_policy
from training.teacher.policy import (
    final_policy,
    load_policy,
)
from training.teacher.prompts import PromptBook
from training.teacher.trainer_settings import StopOnDivergence, own_accelerator


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """A base model, an adapter over it whose weights are not zero, and a fully trained policy: three folders."""
    return save_policies(tmp_path_factory.mktemp("policies"))


def optimisation(folder, rows=None, **changes):
    """Give a training from an SFT policy's folder."""
    return Optimisation(
        sft=folder,
        rows=rows or preferences(),
        recipe=FIT.model_copy(update=changes),
        thinking=False,
        seed=0,
        note=lambda **_: None,
    )


def log_probabilities(model, batch):
    """Give the summed log-probability of each answer of a batch, by a literal sum over a plain forward pass."""
    with torch.no_grad():
        logits_BLV = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()
    tokens_BL = batch["input_ids"][:, 1:]
    each_BL = logits_BLV[:, :-1].log_softmax(-1).gather(-1, tokens_BL[..., None])[..., 0]
    return (each_BL * batch["completion_mask"][:, 1:]).sum(1)


def batch_of(trainer):
    """Give all rows as one batch: the chosen answers, then the rejected ones."""
    return trainer.data_collator([trainer.train_dataset[n] for n in range(len(trainer.train_dataset))])


@pytest.mark.parametrize("kind", ["adapter", "full"])
@own_accelerator()
def test_the_reference_is_the_sft_policy_before_and_after_twenty_steps(policies, tmp_path, kind):
    """Step 0: loss ln 2 and rewards 0. After 20 steps the reference's log-probabilities are the same, the margin is
    not, and a plain forward pass of the SFT policy (not of the base) gives the reference's."""
    trainer = optimisation(policies / kind, sft_weight=0.0, save_steps=100).trainer(tmp_path)
    batch = batch_of(trainer)
    expected = log_probabilities(load_policy(policies / kind).model, batch)
    of_base = log_probabilities(load_policy(policies / "base").model, batch)
    trainer.model.eval()
    before = torch.cat(trainer.compute_ref_log_probs(trainer.ref_model or trainer.model, batch))
    torch.testing.assert_close(before, expected, atol=1e-4, rtol=1e-5)
    assert (before - of_base).abs().min() > 1e-3
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(math.log(2), abs=1e-6)
    trainer.train()
    assert trainer.state.global_step == 20
    first, last = trainer.state.log_history[0], trainer.state.log_history[-2]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert (first["rewards/chosen"], first["rewards/rejected"]) == (pytest.approx(0, abs=1e-5),) * 2
    trainer.model.eval()
    after = torch.cat(trainer.compute_ref_log_probs(trainer.ref_model or trainer.model, batch))
    torch.testing.assert_close(after, before, atol=0, rtol=0)
    assert last["rewards/margins"] > 0.1
    trained = log_probabilities(trainer.model, batch)
    margin_of = (trained - expected).chunk(2)
    assert float((margin_of[0] - margin_of[1]).mean()) > 1.0


@own_accelerator()
def test_the_anchor_adds_the_mean_loss_of_the_chosen_tokens(policies, tmp_path):
    """At step 0 the loss is ln 2 + w · mean NLL of the chosen answers' tokens, by a literal forward pass."""
    trainer = optimisation(policies / "adapter", sft_weight=0.5, batch_size=16, device_batch_size=16).trainer(tmp_path)
    batch = batch_of(trainer)
    total = log_probabilities(load_policy(policies / "adapter").model, batch).chunk(2)[0].sum()
    tokens = batch["completion_mask"][:, 1:].chunk(2)[0].sum()
    trainer.train()
    expected = math.log(2) + 0.5 * float(-total / tokens)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, abs=1e-3)


@own_accelerator()
def test_rows_are_tokenized_as_in_sft_and_none_is_cut(policies, tmp_path):
    """The empty think block belongs to the prompt, each answer ends its turn, and both texts are whole."""
    rows = preferences(3)
    trainer = optimisation(policies / "adapter", rows).trainer(tmp_path)
    for row, tokens in zip(rows, trainer.train_dataset, strict=True):
        prompt = trainer.processing_class.decode(tokens["prompt_ids"])
        expected = trainer.processing_class.apply_chat_template(
            list(row.prompt), tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        assert prompt == expected
        for name, text in (("chosen", row.chosen), ("rejected", row.rejected)):
            assert trainer.processing_class.decode(tokens[f"{name}_ids"]) == f"{text}<|im_end|>\n"
    longest = max(
        len(t["prompt_ids"]) + max(len(t["chosen_ids"]), len(t["rejected_ids"])) for t in trainer.train_dataset
    )
    assert check_lengths(trainer.train_dataset, rows, longest) == longest
    with pytest.raises(InputError, match=r"max_tokens = \d+ tokens, found .* for pair 'q"):
        check_lengths(trainer.train_dataset, rows, longest - 1)


def test_a_row_that_is_too_long_stops_the_training_before_it_starts(policies, tmp_path):
    """No checkpoint, no policy."""
    with pytest.raises(InputError, match=r"teacher\.dpo\.max_tokens = 20"):
        optimisation(policies / "adapter", max_tokens=20).fit(tmp_path)
    assert not (tmp_path / "policy").exists()


@pytest.mark.parametrize("kind", ["adapter", "full"])
def test_a_trained_policy_is_loaded_again_without_the_reference(policies, tmp_path, kind):
    """The folder holds one adapter or model, with the record of its base, and differs from the SFT policy."""
    optimisation(policies / kind, epochs=3).fit(tmp_path)
    assert not (tmp_path / "policy" / "ref").exists()
    assert not (tmp_path / "checkpoints").exists()
    policy = load_policy(tmp_path / "policy", fingerprint=PromptBook.load(PROMPT, ESCI).fingerprint)
    ids = policy.tokenizer("kettle", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        gap = policy.model(ids).logits - load_policy(policies / kind).model(ids).logits
    assert float(gap.abs().max()) > 1e-3
    figures = json.loads((tmp_path / "training.json").read_text())
    assert (figures["steps"], figures["preferences"], figures["longest"] <= FIT.max_tokens) == (12, 16, True)
    assert figures["first_step"]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert figures["last_steps"]["steps"] == 10
    assert figures["last_steps"]["rewards/margins"] < figures["last_step"]["rewards/margins"]
    assert 0 < figures["last_steps"]["rewards/accuracies"] <= 1


def test_a_learning_rate_that_blows_up_stops_and_ships_nothing(policies, tmp_path):
    """Weights of 1e30 overflow in the next forward pass; the checkpoints go, so that a new run starts over."""
    with pytest.raises(CollapseError, match=r"dpo: expected a finite loss, found .*nan.*; nothing is saved"):
        optimisation(policies / "full", learning_rate=1e30, epochs=20, save_steps=1).fit(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_no_number_is_told_with_its_step():
    """As the trainer hands it to its callbacks; finite logs pass."""
    from transformers import TrainerControl, TrainerState, TrainingArguments

    arguments, state = TrainingArguments(report_to=[], use_cpu=True), TrainerState(global_step=7)
    callback = StopOnDivergence("dpo")
    callback.on_log(arguments, state, TrainerControl(), logs={"loss": 0.5, "grad_norm": 1.0})
    callback.on_log(arguments, state, TrainerControl(), logs={"train_runtime": 3.0})
    with pytest.raises(CollapseError, match=r"at step 7; nothing is saved: lower teacher\.dpo\.learning_rate"):
        callback.on_log(arguments, state, TrainerControl(), logs={"loss": math.nan, "grad_norm": 1.0})


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_dpo import optimisation
optimisation(Path(sys.argv[2]), epochs=3).fit(Path(sys.argv[3]))
"""


def environment():
    """Give the environment of a process of its own: one thread, this checkout."""
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}


def run_child(policies, folder):
    """Start a training of 12 steps with a checkpoint every 3, in a process of its own."""
    command = [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(policies / "adapter"), str(folder)]
    return subprocess.Popen(
        command,
        cwd=Path(__file__).parents[2],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def test_a_killed_training_goes_on_from_its_checkpoint_to_the_same_policy(policies, tmp_path):
    """SIGKILL after the first checkpoint; the second run ends where a run that was never killed does.

    transformers would skip the trained adapter of a checkpoint that also holds the reference; the weights tell.
    """
    child = run_child(policies, tmp_path / "killed")
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").glob("checkpoints/checkpoint-*/trainer_state.json")):
        assert child.poll() is None, child.stderr.read().decode()[-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    assert not (tmp_path / "killed" / "policy").exists()
    optimisation(policies / "adapter", epochs=3).fit(tmp_path / "killed")
    optimisation(policies / "adapter", epochs=3).fit(tmp_path / "whole")
    figures = [json.loads((tmp_path / name / "training.json").read_text()) for name in ("killed", "whole")]
    assert [f["steps"] for f in figures] == [12, 12]
    killed, whole = (load_policy(tmp_path / name / "policy").model.state_dict() for name in ("killed", "whole"))
    for name, weight in whole.items():
        torch.testing.assert_close(killed[name], weight, atol=1e-5, rtol=1e-4, msg=name)


def test_a_killed_training_may_go_on_with_another_device_batch(policies, tmp_path, monkeypatch):
    """Stopped after step 5 with forward passes of 4 rows, passes of 2 end after as many steps at the same weights.

    Without the anchor, whose mean over tokens is one of each forward pass.
    """
    quick = {"epochs": 3, "learning_rate": 1e-3, "sft_weight": 0.0}
    optimisation(policies / "full", **quick).fit(tmp_path / "whole")

    def killing(self, args, state, control, **_):
        if state.global_step == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(StopOnDivergence, "on_step_end", killing)
    with pytest.raises(KeyboardInterrupt):
        optimisation(policies / "full", **quick).fit(tmp_path / "killed")
    monkeypatch.undo()
    optimisation(policies / "full", **quick, device_batch_size=2).fit(tmp_path / "killed")
    steps = [json.loads((tmp_path / name / "training.json").read_text())["steps"] for name in ("whole", "killed")]
    assert steps == [12, 12]
    whole, killed = (load_policy(tmp_path / name / "policy").model.state_dict() for name in ("whole", "killed"))
    for name, weight in whole.items():
        torch.testing.assert_close(killed[name], weight, atol=1e-4, rtol=1e-3, msg=name)


def test_the_stage_ships_the_policy_that_won_and_tells_both_figures(policies, tmp_path):
    """A decoder of random weights reads as nothing: both have macro-F1 0, DPO does not win, and SFT stays."""
    run = finished_run(tmp_path, policies, preferences())
    optimise_policy(run)
    report = json.loads((tmp_path / "dpo" / "report.json").read_text())
    assert report["shipped"] == "sft"
    assert "must win by more than 0" in report["reason"]
    assert (report["gate"]["pairs"], report["gate"]["queries"]) == (12, 3)
    assert report["gate"]["sft"]["macro_f1"] == report["gate"]["dpo"]["macro_f1"] == 0.0
    assert report["gate"]["sft"]["response_tokens"] == report["gate"]["dpo"]["response_tokens"] == 4.0
    assert report["training"]["steps"] == 4
    assert report["sft"] == "by hand"
    assert final_policy(run) == tmp_path / "sft" / "policy"
    (tmp_path / "dpo" / "report.json").write_text(json.dumps(report | {"shipped": "dpo"}))
    assert final_policy(run) == tmp_path / "dpo" / "policy"


def test_a_comparison_is_told_what_dpo_learned_from_and_how_it_ended(policies, tmp_path):
    """The trainer's own figures of the last steps stand in what a job of the comparison gives."""
    run = finished_run(tmp_path, policies, preferences())
    (tmp_path / "sft" / "report.json").write_text('{"phases": {"a": {"tokens_seen": 30}, "b": {"tokens_seen": 12}}}')
    (tmp_path / "preferences" / "report.json").write_text('{"crossing": 0.25}')
    optimise_policy(run)
    found = outcome(run)
    last = found["gate"]["training"]["last_steps"]
    learned = {"sft_tokens": 42, "dpo_rows": 16, "crossing": 0.25}
    learned |= {"reward_accuracy": last["rewards/accuracies"], "reward_margin": last["rewards/margins"]}
    assert found["learned"] == learned


def told(one, label):
    """Give an answer about a pair as a gate's line."""
    return sample("unified", 0, label, "so it is", pair_id=one.pair.pair_id).model_dump_json() + "\n"


def test_another_margin_decides_anew_and_trains_and_asks_nothing(policies, tmp_path):
    """DPO reads all pairs and SFT half of them; the weights are not needed again, other pairs would be asked about."""
    run = finished_run(tmp_path, policies, preferences(), gate_pairs=20)
    optimise_policy(run)
    report, folder = tmp_path / "dpo" / "report.json", tmp_path / "dpo"
    trained = (folder / "training.json").stat().st_mtime_ns
    (folder / "policy" / "model.safetensors").rename(tmp_path / "weights")
    for name, known in (("sft", "ES"), ("dpo", "ESCI")):
        (answers,) = folder.glob(f"gate.{name}.*.jsonl")
        answers.write_text("".join(told(one, one.label if one.label in known else None) for one in labelled_pairs(5)))
    found = []
    for margin in (0.49, 0.6):
        optimise_policy(stage_run(tmp_path, gate_pairs=20, gate_margin=margin, device_batch_size=2, save_steps=9))
        found.append(json.loads(report.read_text())["shipped"])
    assert found == ["dpo", "sft"]
    assert (folder / "training.json").stat().st_mtime_ns == trained
    (tmp_path / "weights").rename(folder / "policy" / "model.safetensors")
    optimise_policy(stage_run(tmp_path, gate_pairs=8))
    assert json.loads(report.read_text())["gate"]["pairs"] == 8
    assert (folder / "training.json").stat().st_mtime_ns == trained


def test_a_run_without_dev_pairs_is_told_before_it_trains(policies, tmp_path):
    """The gate could decide nothing."""
    run = finished_run(tmp_path, policies, preferences())
    write_labelled_pairs(tmp_path / "data" / "pairs.dev.parquet", [])
    with pytest.raises(RunError, match="expected dev pairs for the gate"):
        optimise_policy(run)
    assert not (tmp_path / "dpo").exists()


def test_too_few_preferences_leave_the_sft_policy_the_teacher(policies, tmp_path):
    """Seven rows: nothing is trained, the report says why, and the SFT policy has its figures on dev pairs."""
    run = finished_run(tmp_path, policies, preferences(LEAST_PREFERENCES - 1))
    optimise_policy(run)
    report = json.loads((tmp_path / "dpo" / "report.json").read_text())
    assert (report["shipped"], report["training"]) == ("sft", None)
    assert (report["gate"]["pairs"], report["gate"]["sft"]["macro_f1"], "dpo" in report["gate"]) == (12, 0.0, False)
    assert "7 preferences" in report["reason"]
    assert not (tmp_path / "dpo" / "policy").exists()
    assert final_policy(run) == tmp_path / "sft" / "policy"


SHARED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from preference_makers import stage_run
from training.teacher.dpo import optimise_policy
optimise_policy(stage_run(Path(sys.argv[2])))
"""


def test_two_processes_train_one_policy_in_as_many_steps(policies, tmp_path):
    """Under `accelerate launch` with the shipped configuration; only the first process asks the gate's pairs."""
    run = finished_run(tmp_path / "two", policies, preferences())
    script = tmp_path / "shared.py"
    script.write_text(SHARED)
    launch = Path(gate.__file__).parent / "launch" / "ddp.yaml"
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(launch)]
    words = [*launcher, "--num_processes", "2", str(script), str(Path(__file__).parent), str(run.path)]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((run.path / "dpo" / "report.json").read_text())
    assert (report["training"]["processes"], report["training"]["steps"]) == (2, 4)
    assert report["training"]["first_step"]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert report["gate"]["pairs"] == 12
    assert (run.path / "dpo" / DONE).is_file()
