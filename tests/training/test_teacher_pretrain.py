"""The decoder from scratch: its tokenizer and template, what it reads, and that it learns and resumes exactly."""

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from relevance.errors import RecipeError, RunError
from relevance.pairs import Item, LabelledPair, Pair, Query, write_labelled_pairs
from training.recipe import PERSPECTIVES, VIEWS, load_recipe
from training.runs import DONE, Run
from training.soft_labels import SoftLabels, write_soft_labels
from training.teacher import pretrain
from training.teacher.decoder import make_decoder, n_parameters, train_tokenizer
from training.teacher.documents import Encoded, Windows, check_chats, encode_chats, encode_texts, pack, platform_texts
from training.teacher.parts import is_reserved
from training.teacher.policy import load_policy
from training.teacher.prompts import PromptBook
from training.teacher_recipe import DecoderRecipe

KINDS = ("lamp", "shirt", "kettle", "backpack", "drill", "pillow")
COLOURS = ("red", "blue", "green", "black")
DECODER = DecoderRecipe(vocabulary=400, width=32, layers=2, heads=4, kv_heads=2, context=256)
OVERRIDES = (
    "teacher.base=scratch",
    "teacher.prompt.version=compact",
    "teacher.prompt.shots=0",
    "teacher.decoder.vocabulary=500",
    "teacher.decoder.width=32",
    "teacher.decoder.layers=1",
    "teacher.decoder.heads=4",
    "teacher.decoder.kv_heads=2",
    "teacher.decoder.context=256",
    "teacher.pretrain.context=256",
    "teacher.pretrain.steps=24",
    "teacher.pretrain.batch_size=4",
    "teacher.pretrain.learning_rate=1e-2",
    "teacher.pretrain.instructed=0.5",
)


def invented_pairs(split, n_queries, turn=0):
    """Colour-and-kind queries with two items each; `turn` gives every pair another label."""
    pairs = []
    for i in range(n_queries):
        kind, colour = KINDS[i % 6], COLOURS[(i // 6) % 4]
        query = Query(f"{colour} {kind} {split} {i}", f"{split}{i}", "us")
        for rank, title in enumerate((f"{colour} {kind} by Norda {split}", f"storage case for {kind} {split}")):
            item = Item(title, f"{split}{i}-{rank}", brand="Norda", attributes={"size": "M"})
            pairs.append(LabelledPair(Pair(query, item), "ESCI"[(rank + turn) % 4], "invented"))
    return pairs


def start(path, turn=0, *overrides):
    """Give a run whose stages data and annotate are finished; the guesses do not depend on `turn`."""
    data, annotate = path / "data", path / "annotate"
    for folder in (data, annotate):
        folder.mkdir(parents=True)
        (folder / DONE).write_text(json.dumps({"inputs": ""}))
    for split, n in {"train": 24, "dev": 6, "cal": 2, "test": 2}.items():
        write_labelled_pairs(data / f"pairs.{split}.parquet", invented_pairs(split, n, turn))
    pairs = [one.pair for one in invented_pairs("train", 24)]
    guess_NK = np.random.default_rng(0).dirichlet(np.ones(4), len(pairs)).astype(np.float32)
    soft = SoftLabels(pairs, guess_NK, np.zeros((len(pairs), 0), dtype=np.float32))
    for perspective in PERSPECTIVES:
        write_soft_labels(annotate / f"soft_labels.{perspective}.parquet", soft)
    return Run(load_recipe("tiny", [*OVERRIDES, *overrides]), path)


def options(run):
    """Give the command line of the stage."""
    sets = [part for override in OVERRIDES for part in ("--set", override)]
    return ["--recipe", "tiny", "--out", str(run.path), *sets]


@pytest.fixture(scope="module")
def tokenizer():
    """A small tokenizer."""
    return train_tokenizer([f"{c} {k} by Norda; size: M" for c in COLOURS for k in KINDS], DECODER)


@given(st.text())
def test_every_text_survives_the_tokenizer(text):
    """Byte-level: what was written in NFC comes back, emoji and control characters too."""
    tokenizer = train_tokenizer(["red lamp"], DECODER)
    plain = tokenizer.backend_tokenizer.normalizer.normalize_str(text)

    assert tokenizer.decode(tokenizer(text)["input_ids"]) == plain


@pytest.mark.parametrize("thinking", [None, True, False])
def test_the_chat_template_writes_what_qwen3s_does(tokenizer, thinking):
    """System, turns, thoughts, and the empty think block: in the prompt without thinking, else in the answer."""
    trl = pytest.importorskip("trl")
    qwen3 = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text(encoding="utf-8")
    flag = {} if thinking is None else {"enable_thinking": thinking}
    asked = [{"role": "system", "content": "Rules"}, {"role": "user", "content": "red lamp"}]
    answered = [*asked, {"role": "assistant", "content": "it is one\nlabel: E"}]
    thought = [*asked, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nlabel: E"}]
    for chat, prompt in ((asked, True), (answered, False), (thought, False), ([*answered, asked[1]], True)):
        rendered = [
            tokenizer.apply_chat_template(
                chat, tokenize=False, add_generation_prompt=prompt, chat_template=template, **flag
            )
            for template in (None, qwen3)
        ]
        assert rendered[0] == rendered[1]
    prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True, **flag)
    assert prompt.endswith("<think>\n\n</think>\n\n") is (thinking is False)


def test_a_decoder_has_the_parameters_of_its_formula(tokenizer):
    """V·D tied; a layer has D·(D + 2·D_kv) + D² of attention, 3·D·3D of feed-forward, norms of 2·D + 2·D_h; D at last.

    V = len(tokenizer), D = 32, D_kv = 16, D_h = 8, 2 layers.
    """
    layer = 32 * (32 + 2 * 16) + 32 * 32 + 3 * 32 * 96 + 2 * 32 + 2 * 8
    model = make_decoder(DECODER, tokenizer)

    assert n_parameters(model) == len(tokenizer) * 32 + 2 * layer + 32
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert model.config.pad_token_id == tokenizer.convert_tokens_to_ids("<|endoftext|>")


@pytest.mark.parametrize("change", [{"heads": 5}, {"kv_heads": 3}, {"width": 36}])
def test_heads_that_do_not_fit_are_refused(tokenizer, change):
    """Heads divide the width into even parts, key heads divide the heads."""
    with pytest.raises(RecipeError, match=r"teacher\.decoder: expected width / heads"):
        make_decoder(DECODER.model_copy(update=change), tokenizer)


def test_documents_do_not_change_with_the_gold_labels(tmp_path):
    """Three other labellings of the same pairs give the same documents, letter by letter."""
    found = [pretrain.training_documents(start(tmp_path / str(turn), turn)) for turn in range(4)]

    assert found[0].texts
    assert found[0].chats
    assert all(documents == found[0] for documents in found[1:])


def test_documents_are_of_training_pairs_only_and_as_many_as_asked_for(tmp_path):
    """No word of dev, cal or test; half of the documents are chats that end with an answer."""
    documents = pretrain.training_documents(start(tmp_path))
    words = Counter(" ".join([*documents.texts, *(m["content"] for chat in documents.chats for m in chat)]).split())

    assert words["train"] > 0
    assert not words.keys() & {"dev", "cal", "test"}
    assert len(documents.chats) == len(documents.texts)
    assert len(set(documents.texts)) == len(documents.texts)
    assert all(chat[-1]["role"] == "assistant" for chat in documents.chats)
    assert sum("label: " in chat[-1]["content"] for chat in documents.chats) == len(documents.chats)


def test_chats_are_of_every_view_and_of_no_reserved_pair(tmp_path):
    """Asked for all of them, a quarter is of each view, and the pairs are those that preferences leave to SFT."""
    run = start(tmp_path, 0, "teacher.pretrain.instructed=1.0", "teacher.preferences.reserved=0.5")
    pairs = [one.pair for one in invented_pairs("train", 24)]
    asked = [chat[0]["content"] for chat in pretrain.training_documents(run).chats]
    book = PromptBook.load(run.recipe.teacher.prompt, run.recipe.label_scheme)
    free = [pair for pair in pairs if not is_reserved(pair.query.text, run.recipe.teacher)]
    expected = [book.messages(pair, view)[0]["content"] for pair in free for view in VIEWS]

    assert 0 < len(free) < len(pairs)
    assert sorted(asked) == sorted(expected)


def test_item_pages_hold_every_named_field_once():
    """Title, fields, long text; the same item under two queries is one page."""
    item = Item("Red lamp", "1", brand="Norda", color=None, text="Warm light.", attributes={"size": "M"})
    pairs = [Pair(Query("lamp", "a"), item), Pair(Query("red lamp", "b"), item)]

    assert platform_texts(pairs) == ["Red lamp\nbrand: Norda; size: M\nWarm light.", "lamp", "red lamp"]


@given(st.lists(st.integers(1, 30), max_size=60), st.integers(4, 20))
def test_packing_loses_no_token_and_cuts_only_what_is_too_long(lengths, context):
    """The pieces between restarts of the positions are the documents, in windows as few as twice the tokens need."""
    documents = [list(range(100 * i, 100 * i + n)) for i, n in enumerate(lengths, start=1)]
    windows = pack(map(Encoded, documents), context, pad_id=0)
    pieces = Counter(tuple(d[at : at + context]) for d in documents for at in range(0, len(d), context))

    assert Counter(_pieces(windows)) == pieces
    assert windows.input_ids_NL.shape == (len(windows), context)
    assert len(windows) <= 2 * -(-sum(lengths) // context)


def _pieces(windows: Windows):
    for ids, positions in zip(windows.input_ids_NL, windows.position_ids_NL, strict=True):
        starts = [*np.flatnonzero(positions == 0), len(ids)]
        for start, end in itertools.pairwise(starts):
            if ids[start] != 0:
                yield tuple(int(i) for i in ids[start:end])


def test_a_packed_document_sees_no_other(tokenizer):
    """The summed loss of two documents in one window is the sum of their losses in windows of their own."""
    torch.manual_seed(0)
    model = make_decoder(DECODER, tokenizer).eval()
    first, second = encode_texts(["red lamp by Norda", "storage case for kettle; size: M"], tokenizer)
    with torch.inference_mode():
        together = pretrain.nll(model, pack([first, second], 64, 0), np.array([0]))
        apart = [pretrain.nll(model, pack([one], 64, 0), np.array([0])) for one in (first, second)]

    assert int(together[1]) == len(first.ids) + len(second.ids) - 2 == sum(int(count) for _, count in apart)
    torch.testing.assert_close(together[0], apart[0][0] + apart[1][0])


def test_an_instruction_longer_than_a_window_is_refused(tokenizer):
    """Its label would be cut off."""
    chat = ({"role": "user", "content": "red lamp " * 40}, {"role": "assistant", "content": "label: E"})
    encoded = encode_chats([chat], tokenizer, thinking=False)

    check_chats(encoded, len(encoded[0].ids))
    with pytest.raises(RunError, match=r"teacher\.pretrain\.context: expected instructions of at most 32 tokens"):
        check_chats(encoded, 32)


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("context", [64, 8])
def test_of_a_chat_only_the_answer_may_be_learned(tokenizer, thinking, context):
    """What is predicted, however the document was cut: the answer's own words and what ends them, no word before."""
    chat = ({"role": "user", "content": "red lamp by Norda"}, {"role": "assistant", "content": "It fits. label: E"})
    encoded = encode_chats([chat], tokenizer, thinking=thinking, answers_only=True)
    windows = pack(encoded, context, pad_id=0)
    learned = tokenizer.decode(windows.input_ids_NL[windows.trained_NL])
    whole = tokenizer.decode(encoded[0].ids)

    assert pack(encode_chats([chat], tokenizer, thinking=thinking), 64, 0).trained_NL.sum() == len(encoded[0].ids) - 1
    assert "red lamp" not in learned
    if context == 64:
        assert whole.endswith(learned)
        assert learned.removeprefix("<think>\n\n</think>\n\n").startswith("It fits. label: E")


def test_every_epoch_takes_every_window_once():
    """10 steps of 3 over 6 windows are five epochs, in more than one order."""
    rows = np.concatenate([pretrain.rows_of_step(step, 6, 3, seed=0) for step in range(10)]).reshape(5, 6)

    assert (np.sort(rows, axis=1) == np.arange(6)).all()
    assert len({tuple(row) for row in rows}) > 1


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A finished stage."""
    run = start(tmp_path_factory.mktemp("whole"))
    assert pretrain.main(options(run)) == 0
    return run


def test_pretraining_lowers_the_perplexity_of_dev_texts(pretrained):
    """Well below a uniform guess over the vocabulary, and the report says what was read."""
    report = json.loads((pretrained.path / "teacher_pretrain" / "report.json").read_text())
    notes = [json.loads(line) for line in (pretrained.path / "ledger.jsonl").read_text().splitlines()]

    assert report["dev_perplexity"] < 0.5 * report["dev_perplexity_at_start"]
    assert report["tokens"] == 24 * 4 * 256
    assert report["parameters"] == n_parameters(load_policy(pretrained.path / "teacher_pretrain" / "policy").model)
    assert [note["step"] for note in notes if "loss" in note] == [0, 23]
    assert not (pretrained.path / "teacher_pretrain" / "checkpoint.pt").exists()


def test_a_decoder_may_learn_answers_alone(tmp_path):
    """No platform text and no prompt is predicted: no perplexity of texts is told, and the loss of answers falls."""
    run = start(tmp_path)
    sets = ["--set", "teacher.pretrain.instructed=1", "--set", "teacher.pretrain.answers_only=true"]
    assert pretrain.main([*options(run), *sets]) == 0
    report = json.loads((run.path / "teacher_pretrain" / "report.json").read_text())
    losses = [json.loads(line).get("loss") for line in (run.path / "ledger.jsonl").read_text().splitlines()]
    first, *_, last = [loss for loss in losses if loss is not None]

    assert report["documents"]["platform"] == 0
    assert report["dev_perplexity"] is None
    assert last < 0.8 * first


def test_a_killed_pretraining_ends_at_the_same_weights(pretrained, tmp_path, monkeypatch):
    """Stopped after 17 steps with a checkpoint every 5, the second run ends bit for bit where the first would have."""
    run = start(tmp_path)
    monkeypatch.setattr(pretrain, "_CHECKPOINT_STEPS", 5)
    plain, taken = pretrain.rows_of_step, []

    def killing(step, n, batch_size, seed):
        taken.append(step)
        if len(taken) == 18:
            raise KeyboardInterrupt
        return plain(step, n, batch_size, seed)

    monkeypatch.setattr(pretrain, "rows_of_step", killing)
    with pytest.raises(KeyboardInterrupt):
        pretrain.main(options(run))
    assert not (run.path / "teacher_pretrain" / DONE).exists()
    pretrain.main(options(run))

    assert taken[18:] == list(range(15, 24))
    expected, found = (load_file(r.path / "teacher_pretrain/policy/model.safetensors") for r in (pretrained, run))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_windows_longer_than_the_decoder_reads_are_refused(tmp_path):
    """The decoder has no positions there."""
    run = start(tmp_path)
    with pytest.raises(RecipeError, match=r"teacher\.pretrain\.context: expected at most"):
        pretrain.main([*options(run), "--set", "teacher.decoder.context=128"])


def test_the_stage_needs_the_annotators_guesses(tmp_path):
    """Without stage annotate there is no guess, and the gold label must not be one."""
    run = start(tmp_path)
    (run.path / "annotate" / DONE).unlink()
    with pytest.raises(RunError, match="relevance annotate"):
        pretrain.main(options(run))
