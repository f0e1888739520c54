"""What is told before a server is paid: how many answers, for how much, and which rows SFT could not take."""

import logging

import pytest
from test_collect import make_run

from relevance.errors import RecipeError
from relevance.pairs import Item, Pair, Query
from training.recipe import load_recipe
from training.runs import Run
from training.teacher.decoder import make_decoder, train_tokenizer
from training.teacher.forecast import check_room, estimated_tokens, tell_requests
from training.teacher.policy import Policy, save_policy
from training.teacher_recipe import DecoderRecipe

VIEWS = ("user", "struct", "rule")


@pytest.fixture(autouse=True)
def told(caplog):
    """Hear what the project says, however quiet."""
    caplog.set_level(logging.INFO, logger="relevance.training")


def long_pair(words):
    """Give a pair with a long title."""
    return Pair(Query("lamp", "q"), Item(" ".join(["lamp"] * words), "i"))


def test_the_number_of_answers_and_their_cost_are_told(tiny_pairs, tmp_path, caplog):
    """10 pairs × 3 perspectives × 5 samples; the cost bounds what so many answers of 100 tokens cost alone."""
    sampling = {"kind": "openai", "model": "m", "max_new_tokens": 100, "prompt_price": 1.0, "completion_price": 1e4}
    run = make_run(tmp_path, tiny_pairs, sampling=sampling)
    tell_requests(run, "generate", [one.pair for one in tiny_pairs[:10]], VIEWS, samples=5)
    first, second = caplog.messages
    cost = float(second.split("about ")[1].split(" by")[0])

    assert first == "generate: 10 pairs, up to 150 answers"
    assert 150 * 100 * 1e4 / 1e6 < cost < 1.1 * 150 * 100 * 1e4 / 1e6


def test_without_prices_no_cost_is_told(tiny_pairs, tmp_path, caplog):
    """Nor where there is nothing to ask."""
    tell_requests(make_run(tmp_path, tiny_pairs), "judge", [], VIEWS, samples=5)

    assert caplog.messages == ["judge: 0 pairs, up to 0 answers"]


def test_estimated_lengths_are_above_those_of_a_tokenizer():
    """English at three characters a token, Japanese at one."""
    assert estimated_tokens([{"content": "abcdef"}, {"content": "abc"}]) == 3
    assert estimated_tokens([{"content": "水筒 ab"}]) == 3


@pytest.mark.parametrize(("words", "warnings"), [(10, 0), (2000, 1)])
def test_a_row_that_sft_may_refuse_is_told_before_a_server_is_asked(tmp_path, tiny_pairs, caplog, words, warnings):
    """Its prompt and the longest answer are more than SFT takes."""
    sampling = {"kind": "openai", "model": "m", "max_new_tokens": 100}
    run = make_run(tmp_path, tiny_pairs, sampling=sampling, sft={"max_tokens": 3072})
    check_room(run, [tiny_pairs[0].pair, long_pair(words)])

    assert sum("1 of 2 pairs may be too long for SFT" in message for message in caplog.messages) == warnings


def test_prompts_that_leave_no_room_for_an_answer_end_the_stage(tmp_path, tiny_pairs, caplog):
    """Counted by the tokenizer of a base that is sampled here; one that leaves some room is only told of."""
    recipe = DecoderRecipe(vocabulary=320, width=32, layers=1, heads=4, kv_heads=2, context=4096)
    tokenizer = train_tokenizer(["a lamp"], recipe)
    save_policy(Policy(make_decoder(recipe, tokenizer), tokenizer, "base"), tmp_path / "base")
    sampling, prompt = {"max_new_tokens": 100}, {"version": "compact", "shots": 0}
    section = {"base": str(tmp_path / "base"), "sampling": sampling, "prompt": prompt, "sft": {"max_tokens": 300}}
    run = make_run(tmp_path, tiny_pairs, **section)
    check_room(run, [long_pair(200)])

    assert "1 of 1 pairs may be too long" in caplog.text
    with pytest.raises(RecipeError, match=r"max_tokens: expected room .* in 300 tokens, found 1 of 2 prompts"):
        check_room(run, [long_pair(1), long_pair(400)])


def test_the_recipe_of_the_paper_fits_and_asks_about_as_many_pairs_as_the_paper(tmp_path, caplog):
    """100,000 pairs for SFT and DPO; the longest ESCI item that its reader gives leaves room for the longest answer."""
    recipe = load_recipe("teacher-qwen3-14b")
    item = Item(
        "word " * 60, "1", "brand name", "dark blue", None, {"bullets": "steel " * 333, "description": "a " * 750}
    )
    check_room(Run(recipe, tmp_path), [Pair(Query("red running shoes for women size nine", "q"), item)])

    assert recipe.teacher.generate.max_pairs + recipe.teacher.preferences.asked_pairs == 100_000
    assert recipe.teacher.folds == 1
    assert not caplog.messages
