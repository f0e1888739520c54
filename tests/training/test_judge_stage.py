"""Stage `judge` on a real tiny policy, as a user would run it."""

import json

import numpy as np
import pytest
from constant_policy import save_constant_policy
from judge_makers import make_run
from llm_servers import LlmServer

from relevance.errors import RecipeError
from relevance.labels import ESCI
from training.grid import teacher_stage
from training.predictions import read_predictions
from training.runs import DONE
from training.teacher.judge import judge_policy, judged_pairs, main
from training.teacher.judge_measures import classes_named


def fitted_policy(folder, run):
    """Train a tiny decoder, in seconds, to answer each test pair of a run with S, and save it as its SFT policy."""
    import torch

    from training.teacher.decoder import make_decoder, train_tokenizer
    from training.teacher.policy import Policy, save_policy
    from training.teacher.prompts import PromptBook
    from training.teacher_recipe import DecoderRecipe

    torch.manual_seed(0)
    recipe = DecoderRecipe(vocabulary=400, width=32, layers=1, heads=2, kv_heads=1, context=192)
    book = PromptBook.load(run.recipe.teacher.prompt, ESCI)
    pairs = [one.pair for one in judged_pairs(run, "test", 12)]
    views = ("user", "struct", "rule", "unified")
    prompts = [book.messages(pair, view) for pair in pairs for view in views]
    tokenizer = train_tokenizer([p[-1]["content"] for p in prompts] + ["it is a similar thing.\nlabel: S"] * 9, recipe)
    said = {"role": "assistant", "content": "it is a similar thing.\nlabel: S"}
    texts = [
        tokenizer.apply_chat_template(p, tokenize=False, add_generation_prompt=True, enable_thinking=False)
        + f"{said['content']}<|im_end|>"
        for p in prompts
    ]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    model = make_decoder(recipe, tokenizer)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = model(**batch, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    save_policy(Policy(model.eval(), tokenizer, "sft"), folder / "policy")
    (folder / DONE).write_text('{"inputs": "", "seconds": 2.0}')


def test_the_stage_judges_a_real_policy_and_asks_nothing_again(tmp_path, tiny_pairs):
    """A tiny decoder that always says S: its figures are those of S, its probabilities agree, and the second call of
    the command makes the same figures from the files, policy or no policy."""
    run = make_run(
        tmp_path,
        tiny_pairs,
        prompt={"version": "compact", "shots": 0, "fields": ["brand", "color"]},
        judge={"pairs": 12, "samples": 3, "choice_pairs": 6, "faithfulness_pairs": 6},
    )
    fitted_policy(tmp_path / "sft", run)
    recipe = tmp_path / "recipe.toml"
    _write_toml(recipe, run.recipe)
    assert main(["--recipe", str(recipe), "--out", str(tmp_path)]) == 0
    folder = tmp_path / "judge"
    report = json.loads((folder / "report.json").read_text())
    predictions = read_predictions(folder / "predictions.test.parquet")

    assert report["policy"] == "shipped"
    assert report["generator"].startswith("local: sft@")
    assert report["figures"]["answered"]["value"] == 1.0
    assert report["figures"]["accuracy"]["value"] == pytest.approx(np.mean(predictions.label == 1))
    assert report["probabilities"]["other_label"] == 0.0
    assert (classes_named(predictions) == 1).all()
    assert np.exp(predictions.logits_NK).sum(axis=1) == pytest.approx(np.ones(12), abs=1e-6)
    assert report["faithfulness"]["early"]["cuts"]["100"]["same"]["value"] == 1.0
    assert "# Teacher card: made-up" in (folder / "card.md").read_text()
    assert len((tmp_path / "test_reads.jsonl").read_text().splitlines()) == 1
    (folder / "report.json").unlink()
    answers = (folder / "greedy.jsonl").stat().st_mtime_ns
    judge_policy(run)
    assert json.loads((folder / "report.json").read_text())["figures"] == report["figures"]
    assert (folder / "greedy.jsonl").stat().st_mtime_ns == answers


def _write_toml(path, recipe):
    """Write the parts of a recipe that differ from the defaults."""
    teacher = recipe.teacher
    path.write_text(
        f"""
name = "made-up"
[data]
source = "pairs"
path = "none.jsonl"
[evaluate]
draws = 50
[teacher]
base = "scratch"
[teacher.prompt]
version = "{teacher.prompt.version}"
shots = 0
fields = ["brand", "color"]
[teacher.judge]
pairs = {teacher.judge.pairs}
samples = 3
choice_pairs = {teacher.judge.choice_pairs}
faithfulness_pairs = {teacher.judge.faithfulness_pairs}
[teacher.sampling]
max_new_tokens = 24
batch_size = 8
prompt_price = 1.0
completion_price = 4.0
""",
        encoding="utf-8",
    )


def served_run(folder, tiny_pairs, url="http://127.0.0.1:1/v1"):
    """Give a run whose base and fine-tuned policy a server answers for."""
    sampling = {"kind": "openai", "model": "m", "policy_model": "mine", "base_url": url, "retries": 0}
    small = {"pairs": 4, "samples": 1, "faithfulness_pairs": 0}
    run = make_run(folder, tiny_pairs, prompt={"version": "compact", "shots": 0}, sampling=sampling, judge=small)
    for stage in ("teacher_pretrain", "sft"):
        pairs = [one.pair for one in judged_pairs(run, "test", 4)]
        save_constant_policy(folder / stage / "policy", run, pairs, "unused", steps=0)
        (folder / stage / DONE).write_text('{"inputs": "", "seconds": 2.0}')
    return run


def test_a_server_judges_the_base_and_the_shipped_policy_each_by_its_name(tmp_path, tiny_pairs):
    """The server's log tells which model was asked for each of the judgements."""
    with LlmServer(tmp_path) as server:
        run = served_run(tmp_path, tiny_pairs, server.url)
        asked = []
        for policy in (None, "sft", "base"):
            before = len(server.requests())
            judge_policy(run, policy)
            asked.append({row["asked"]["model"] for row in server.requests()[before:]})
        before = len(server.requests())
        folder = judge_policy(run, "base", perspective="rule")
        prompts = {row["asked"]["messages"][-1]["content"].splitlines()[0] for row in server.requests()[before:]}

    assert asked == [{"mine"}, set(), {"m"}]
    assert folder.name == "judge_base_rule"
    assert prompts == {"view: rule"}
    assert json.loads((folder / "report.json").read_text())["view"] == "rule"
    with pytest.raises(RecipeError, match="--perspective rule: expected --policy base, found sft"):
        judge_policy(run, "sft", perspective="rule")


def test_a_server_is_not_asked_for_a_policy_that_is_not_shipped(tmp_path, tiny_pairs):
    """It serves the one that is, whose answers would be taken for the other's."""
    run = served_run(tmp_path, tiny_pairs)
    with pytest.raises(RecipeError, match=r"--policy dpo: expected the policy that is shipped.*found that sft is"):
        judge_policy(run, "dpo")


def test_a_server_does_not_compare_teachers(tmp_path):
    """It would answer for all of them with one model."""
    arguments = ["tiny", "--out", str(tmp_path), "--set", "teacher.sampling.kind=openai"]
    with pytest.raises(RecipeError, match="found 'openai', which serves one model for all"):
        teacher_stage.main(arguments)
