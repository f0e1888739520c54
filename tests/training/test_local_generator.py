"""Sampling a policy of this process: draws that belong to a prompt, exact label probabilities, nothing cut silently."""

from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from training.teacher.decoder import make_decoder, train_tokenizer
from training.teacher.generator import Prompt
from training.teacher.grouped_attention import NAME, use_grouped_attention
from training.teacher.local_generator import LocalGenerator, _drawn
from training.teacher.policy import Policy
from training.teacher.sft_rows import SftRow, encode_rows
from training.teacher_recipe import DecoderRecipe, SamplingRecipe

TEXTS = [
    f"query: {c} {t}\ntitle: {t} {c} for home" for c in ("red", "blue", "steel") for t in ("kettle", "lamp", "mug")
]


@pytest.fixture(scope="module")
def policy():
    """A decoder of two layers with random weights, large enough that its distributions are not flat."""
    recipe = DecoderRecipe(vocabulary=400, width=32, layers=2, heads=4, kv_heads=2, context=96)
    tokenizer = train_tokenizer([*TEXTS, "Exact Substitute Complement Irrelevant label rationale"], recipe)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make_decoder(recipe, tokenizer)
        with torch.no_grad():
            for parameter in model.model.layers.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(std=0.4)
            model.get_input_embeddings().weight.normal_(std=0.25)
    return Policy(model.eval(), tokenizer, "tiny")


def prompts(*, samples=1, first_sample=0):
    """Give prompts of different lengths."""
    return [
        Prompt(f"struct\t{n}", ({"role": "user", "content": text[: 12 + 3 * n]},), samples, first_sample)
        for n, text in enumerate(TEXTS)
    ]


def generator(policy, *, seed=0, **settings):
    """Give a generator with a short answer."""
    return LocalGenerator(policy, SamplingRecipe(max_new_tokens=8, **settings), seed=seed)


def texts(completions):
    """Give the texts by key and sample, after checking that none came twice."""
    found = list(completions)
    by_place = {(c.key, c.sample): c.text for c in found}
    assert len(by_place) == len(found)
    return by_place


def test_an_answer_depends_on_seed_key_and_sample_and_not_on_its_batch(policy):
    """27 answers in batches of 4, alone and in reverse, and in two parts: equal; another seed: others."""
    whole = texts(generator(policy, batch_size=4).complete(prompts(samples=3)))

    alone = texts(generator(policy, batch_size=1).complete(reversed(prompts(samples=3))))
    first = texts(generator(policy).complete(prompts(samples=1)))
    rest = texts(generator(policy).complete(prompts(samples=2, first_sample=1)))
    other = texts(generator(policy, seed=1).complete(prompts(samples=3)))

    assert len(whole) == 27
    assert alone == whole
    assert first | rest == whole
    assert len(set(whole.values())) > 20
    assert other != whole


def test_grouped_attention_gives_the_logits_of_transformers_own(policy):
    """Left padding, a prompt at once, then tokens one by one; a model whose heads share nothing is left alone."""
    generator(policy)
    ids = torch.randint(5, 300, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    logits = {}
    for implementation in (NAME, "sdpa"):
        policy.model.set_attn_implementation(implementation)
        out = policy.model(input_ids=ids[:, :6], attention_mask=mask[:, :6], use_cache=True)
        steps = [out.logits[:, -1]]
        for place in range(6, 9):
            cache = out.past_key_values
            out = policy.model(ids[:, place : place + 1], attention_mask=mask[:, : place + 1], past_key_values=cache)
            steps.append(out.logits[:, -1])
        logits[implementation] = torch.stack(steps)
    torch.testing.assert_close(logits[NAME], logits["sdpa"], rtol=1e-4, atol=1e-5)
    use_grouped_attention(policy.model)
    assert policy.model.config._attn_implementation == NAME
    alone = make_decoder(DecoderRecipe(vocabulary=400, width=32, heads=4, kv_heads=4), policy.tokenizer)
    use_grouped_attention(alone)
    assert alone.config._attn_implementation == "sdpa"


def test_tokens_are_drawn_from_the_tempered_and_cut_distribution(policy):
    """2,000 first tokens against softmax(logits / 0.7) over the five largest: chi-square, and nothing beyond them."""
    recipe = SamplingRecipe(max_new_tokens=1, temperature=0.7, top_k=5, top_p=1.0, batch_size=500)
    sampler = LocalGenerator(policy, recipe, seed=0)
    messages = ({"role": "user", "content": TEXTS[0]},)
    ids = policy.tokenizer.apply_chat_template(
        list(messages), add_generation_prompt=True, enable_thinking=False, return_tensors="pt"
    )
    with torch.inference_mode():
        top = torch.topk(policy.model(ids).logits[0, -1], 5)
    expected = torch.softmax(top.values.double() / 0.7, dim=0).numpy()
    names = [policy.tokenizer.decode([token], skip_special_tokens=True) for token in top.indices.tolist()]

    counts = Counter(c.text for c in sampler.complete([Prompt("user\tx", messages, 2000)]))

    share = {name: expected[[n == name for n in names]].sum() for name in names}
    assert len(share) >= 4
    assert set(counts) <= set(share)
    assert chisquare([counts[name] for name in share], [2000 * p for p in share.values()]).pvalue > 0.001


def test_the_nucleus_is_cut_where_its_sum_is_reached(policy):
    """top_p so small that only the most probable token is left: any temperature gives the greedy answer."""
    greedy = texts(generator(policy, temperature=0).complete(prompts()))

    assert texts(generator(policy, temperature=2.0, top_p=1e-6, top_k=0).complete(prompts())) == greedy


def test_temperature_zero_is_greedy_decoding(policy):
    """The same tokens as transformers' own greedy search, one prompt at a time."""
    found = texts(generator(policy, temperature=0, batch_size=3).complete(prompts()))

    for prompt in prompts():
        ids = policy.tokenizer.apply_chat_template(
            list(prompt.messages), add_generation_prompt=True, enable_thinking=False, return_tensors="pt"
        )
        out = policy.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
        new = out[0, ids.shape[1] :]
        assert found[prompt.key, 0] == policy.tokenizer.decode(new, skip_special_tokens=True)


def test_answers_that_have_ended_leave_the_batch_and_change_no_other(policy, monkeypatch):
    """With a quarter of all tokens as ends most answers are short: the same texts as one by one, in ever fewer rows.

    The nine prompts are read once each, not once for each of their three answers.
    """
    before = policy.model.generation_config.eos_token_id
    monkeypatch.setattr(policy.model.generation_config, "eos_token_id", [before, *range(7, 400, 4)])
    settings = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    alone = {(c.key, c.sample): c for c in generator(policy, batch_size=1, **settings).complete(prompts(samples=3))}
    rows = []
    hook = policy.model.register_forward_pre_hook(
        lambda _, __, inputs: rows.append(len(inputs["input_ids"])), with_kwargs=True
    )
    together = {(c.key, c.sample): c for c in generator(policy, batch_size=27, **settings).complete(prompts(samples=3))}
    hook.remove()
    assert together == alone
    assert {c.finish_reason for c in together.values()} == {"stop", "length"}
    assert len({c.completion_tokens for c in together.values()}) > 3
    assert rows[0] == 9
    assert 9 < rows[1] <= 27
    assert rows[1:] == sorted(rows[1:], reverse=True)
    assert rows[-1] <= 9


def test_an_answer_ends_at_the_first_end_token_and_says_so(policy):
    """The token that greedy decoding gives third is made an end token: two tokens of text, three paid, `stop`."""
    (prompt,) = prompts()[:1]
    ids = policy.tokenizer.apply_chat_template(
        list(prompt.messages), add_generation_prompt=True, enable_thinking=False, return_tensors="pt"
    )
    out = policy.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    new = out[0, ids.shape[1] :].tolist()
    end = next(place for place, token in enumerate(new) if place >= 2 and token not in new[:place])
    before = policy.model.generation_config.eos_token_id
    policy.model.generation_config.eos_token_id = [before, new[end]]
    try:
        (stopped,) = generator(policy, temperature=0).complete([prompt])
    finally:
        policy.model.generation_config.eos_token_id = before
    (whole,) = generator(policy, temperature=0).complete([prompt])

    assert stopped.text == policy.tokenizer.decode(new[:end], skip_special_tokens=True)
    assert (stopped.completion_tokens, stopped.finish_reason) == (end + 1, "stop")
    assert (whole.completion_tokens, whole.finish_reason) == (8, "length")
    assert whole.prompt_tokens == ids.shape[1]


def test_a_prompt_without_room_for_its_answer_gets_an_error_and_the_others_an_answer(policy):
    """Context 96 and eight new tokens leave 88; a prompt of exactly 88 tokens is answered, one of 89 is not."""

    def tokens(n):
        content = "z" * n
        ids = policy.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, enable_thinking=False
        )
        return len(ids), Prompt(str(len(ids)), ({"role": "user", "content": content},), 2)

    given = dict(tokens(n) for n in range(30, 80))

    found = list(generator(policy).complete(given.values()))

    assert {88, 89} <= set(given)
    assert len(found) == 2 * len(given)
    assert {c.key for c in found if c.error is None} == {str(n) for n in given if n <= 88}
    problem = next(c for c in found if c.key == "89")
    assert problem.error == (
        "prompt too long: expected at most 88 tokens (96 of context, 8 of them for the answer), found 89"
    )


def test_the_templates_thinking_switch_is_the_recipes(policy):
    """Without thinking the prompt holds the empty think block."""
    (prompt,) = prompts()[:1]
    block = len(policy.tokenizer("<think>\n\n</think>\n\n", add_special_tokens=False)["input_ids"])

    (without,) = generator(policy, thinking=False).complete([prompt])
    (with_it,) = generator(policy, thinking=True).complete([prompt])

    assert without.prompt_tokens - with_it.prompt_tokens == block > 0


def test_a_batch_is_of_one_view_where_there_are_enough_and_no_answer_depends_on_it(policy):
    """Eight prompts of each of two views, given in turns: four batches, each of one view, longest prompts first."""
    views = ("struct", "user")
    given = [
        Prompt(f"{view}\t{n}", ({"role": "user", "content": text[: 12 + 3 * n]},), 1)
        for n, text in enumerate(TEXTS[:8])
        for view in views
    ]
    completions = list(generator(policy, batch_size=4).complete(given))
    batches = [completions[at : at + 4] for at in range(0, 16, 4)]

    assert [{one.key.partition("\t")[0] for one in batch} for batch in batches] == [{v} for v in views for _ in "12"]
    assert all(own == sorted(own, reverse=True) for own in [[c.prompt_tokens for c in batch] for batch in batches])
    assert texts(completions) == texts(generator(policy, batch_size=1).complete(given))


def test_prompts_are_read_a_window_at_a_time(policy):
    """Batches of two: before the first answer, no more than sixteen batches have been read."""
    read = []

    def given():
        for n in range(100):
            read.append(n)
            yield Prompt(str(n), ({"role": "user", "content": "mug"},), 1)

    completions = generator(policy, batch_size=2, temperature=0).complete(given())
    next(completions)
    completions.close()

    assert len(read) <= 32


@pytest.mark.parametrize(
    "labels", [("E", "S", "C", "I"), ("Exact", "Substitute", "Complement", "Irrelevant", "Exactly")]
)
def test_label_probabilities_are_those_of_the_labels_tokens_after_the_prefix(policy, labels):
    """Brute force: every whole text alone through the model, its tokens after what all labels share summed up."""
    prefixes = [f'{{"rationale": "{"home " * n}", "label": "' for n in range(len(TEXTS))]
    messages = [p.messages for p in prompts()]
    ends = [label + '"' for label in labels]
    expected_NK = np.zeros((len(messages), len(labels)))
    for n, (own, prefix) in enumerate(zip(messages, prefixes, strict=True)):
        start = policy.tokenizer.apply_chat_template(
            list(own), add_generation_prompt=True, enable_thinking=False, tokenize=False
        )
        whole = [policy.tokenizer(start + prefix + end, add_special_tokens=False)["input_ids"] for end in ends]
        shared = next(i for i in range(999) if len({ids[i] for ids in whole}) > 1)
        for k, ids in enumerate(whole):
            with torch.inference_mode():
                logits = policy.model(torch.tensor([ids])).logits[0].double().log_softmax(dim=-1)
            expected_NK[n, k] = sum(float(logits[i - 1, ids[i]]) for i in range(shared, len(ids)))
    expected_NK = np.exp(expected_NK)
    expected_NK /= expected_NK.sum(axis=1, keepdims=True)

    found_NK = generator(policy, batch_size=12).label_probabilities(messages, prefixes, ends)

    np.testing.assert_allclose(found_NK, expected_NK, atol=1e-5)
    np.testing.assert_allclose(found_NK.sum(axis=1), 1.0)
    assert np.ptp(found_NK, axis=1).min() > 0.05


def test_a_label_is_forced_where_fine_tuning_wrote_it_also_with_thinking(policy):
    """With `thinking` the template writes an empty think block into the answer: SFT's rows have it, so has a prefix."""
    messages, prefix, ends = [p.messages for p in prompts()], "home sweet home label: ", ["E", "S"]
    starts = []
    for own in messages:
        row = SftRow("p", tuple(map(dict, own)), prefix + "E")
        (encoded,) = encode_rows([row], policy.tokenizer, thinking=True, max_tokens=10_000)
        starts.append(policy.tokenizer.decode(encoded.input_ids).partition(prefix)[0])
    assert all(start.endswith("</think>\n\n") for start in starts)
    expected = [[policy.tokenizer(start + prefix + end)["input_ids"] for end in ends] for start in starts]
    found = generator(policy, thinking=True).label_probabilities(messages, [prefix] * len(messages), ends)

    for own_K, texts in zip(found, expected, strict=True):
        with torch.inference_mode():
            logits = [policy.model(torch.tensor([ids])).logits[0, -2, ids[-1]] for ids in texts]
        np.testing.assert_allclose(own_K, torch.stack(logits).softmax(dim=0).numpy(), atol=1e-5)


def test_an_answer_beyond_the_context_has_no_label_probabilities(policy):
    """A cut prompt would give the probabilities of another question; the rows beside it keep theirs."""
    asked = [prompts()[0].messages] * 2
    found_NK = generator(policy).label_probabilities(asked, ["word " * 100, "word "], ["E", "S"])
    alone_NK = generator(policy).label_probabilities(asked[:1], ["word "], ["E", "S"])

    assert np.isnan(found_NK[0]).all()
    np.testing.assert_allclose(found_NK[1], alone_NK[0], atol=1e-6)


def test_the_name_holds_model_sampling_and_seed(policy):
    """It is part of every hash: whatever changes an answer changes it; the batch size does not."""
    name = generator(policy).name

    assert name.startswith("local: tiny, temperature 0.7, top_p 0.99, top_k 50, max_tokens 8")
    assert generator(policy, batch_size=3).name == name
    assert len({name, generator(policy, seed=1).name, generator(policy, thinking=True).name}) == 3


def test_the_likeliest_taken_first_draw_what_transformers_warpers_draw_from_the_whole_vocabulary():
    """The same token for the same number, row by row: only the sort is of fewer."""
    recipe = SamplingRecipe(temperature=0.8, top_k=50, top_p=0.9)
    whole = [TemperatureLogitsWarper(0.8), TopKLogitsWarper(50), TopPLogitsWarper(0.9)]
    generator = torch.Generator().manual_seed(0)
    logits_BV = 3 * torch.randn(256, 3000, generator=generator)
    uniform_B = torch.rand(256, dtype=torch.float64, generator=generator)
    drawn = _drawn(logits_BV, uniform_B, recipe, LogitsProcessorList([whole[0], whole[2]]))
    everything = SamplingRecipe(temperature=0.8, top_k=0, top_p=0.9)

    assert torch.equal(drawn, _drawn(logits_BV, uniform_B, everything, LogitsProcessorList(whole)))
