"""The client against `transformers serve`, a server that nobody here wrote, with a tiny Qwen3 made from its config."""

import shutil
import sys

import pytest
import torch
from llm_servers import Process

from relevance.labels import ESCI
from training.teacher.decoder import make_decoder, train_tokenizer
from training.teacher.generator import Prompt
from training.teacher.openai_client import OpenAiGenerator
from training.teacher_recipe import DecoderRecipe, SamplingRecipe


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a random decoder, its tokenizer and its chat template."""
    folder = tmp_path_factory.mktemp("qwen3") / "tiny"
    recipe = DecoderRecipe(vocabulary=300, width=16, layers=1, heads=2, kv_heads=1, context=128)
    tokenizer = train_tokenizer(["red kettle of steel", "desk lamp for home"], recipe)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        decoder = make_decoder(recipe, tokenizer)
    decoder.generation_config.do_sample = True
    decoder.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_real_server_answers_is_resumed_from_the_store_and_says_what_it_refuses(model, tmp_path):
    """It always streams and refuses fields that are not OpenAI's; then the same prompts without any server."""
    command = [sys.executable, "-m", "transformers.commands.transformers_cli", "serve", "--host", "127.0.0.1"]
    server = Process([*command, "--port", "{port}", "--device", "cpu"], HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    sampling = SamplingRecipe(
        kind="openai",
        model=str(model),
        base_url=server.url,
        concurrency=1,
        max_new_tokens=6,
        extensions=False,
        retries=1,
        timeout_s=90,
    )
    prompts = [Prompt(str(n), ({"role": "user", "content": f"kettle {n}"},), samples=2) for n in range(3)]
    try:
        server.start()
        first = list(OpenAiGenerator(sampling, tmp_path / "store.jsonl", ESCI).complete(prompts))
        extended = sampling.model_copy(update={"extensions": True})
        (refused,) = OpenAiGenerator(extended, tmp_path / "store.jsonl", ESCI).complete(
            [Prompt("a", prompts[0].messages, samples=1)]
        )
    finally:
        server.kill()
        shutil.rmtree(model)
    again = OpenAiGenerator(sampling, tmp_path / "store.jsonl", ESCI)
    second = list(again.complete(prompts))

    assert {(c.key, c.sample): c.text for c in second} == {(c.key, c.sample): c.text for c in first}
    assert len(first) == 6
    assert [(c.error, c.finish_reason, bool(c.text)) for c in first] == [(None, "stop", True)] * 6
    assert again.ledger.requests == 0
    assert refused.error is not None
    assert "status 422" in refused.error
    assert "Unexpected keys" in refused.error
