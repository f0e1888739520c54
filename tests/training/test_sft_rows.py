"""Rows of fine-tuning: whose prompt, whose answer, which tokens, and which of them have a loss."""

import numpy as np
import pytest
from sft_runs import start

from relevance.errors import RunError
from training.recipe import load_recipe
from training.teacher.parts import fold_of, split_parts
from training.teacher.policy import load_policy
from training.teacher.prompts import PromptBook
from training.teacher.sft_rows import (
    IGNORED,
    EncodedRow,
    SftRow,
    asked_view,
    encode_rows,
    padded_rows,
    sft_rows,
    split_held_out,
    text_rows,
)


def test_rows_are_asked_with_the_unified_prompt_and_answered_from_their_perspective(earlier, tmp_path):
    """Three rows a pair with one prompt, and three answers in the book's own words."""
    run = start(earlier, tmp_path)
    book = PromptBook.load(run.recipe.teacher.prompt, run.recipe.label_scheme)
    first = split_parts(run).fit[0]
    rows = [row for row in sft_rows(run) if row.pair_id == first.pair.pair_id]

    assert [row.prompt for row in rows] == [tuple(book.messages(first.pair, "unified"))] * 3
    assert [f"the {view} side" in row.completion for view, row in zip(("user", "struct", "rule"), rows, strict=True)]
    assert all(row.completion.endswith(f"label: {first.label}") for row in rows)


def test_a_teacher_of_one_perspective_learns_and_keeps_its_own_prompt(earlier, tmp_path):
    """Rows of the other perspectives are left out."""
    run = start(earlier, tmp_path, 'teacher.perspectives=["struct"]')
    book = PromptBook.load(run.recipe.teacher.prompt, run.recipe.label_scheme)
    rows = sft_rows(run)
    parts = split_parts(run)

    assert len(rows) == len(parts.fit)
    assert rows[0].prompt == tuple(book.messages(parts.fit[0].pair, "struct"))
    assert asked_view(run.recipe.teacher) == "struct"


def test_the_curriculum_s_teacher_is_asked_with_the_rules():
    """LREF never trains on the unified prompt."""
    assert asked_view(load_recipe("tiny", ["teacher.method=progressive"]).teacher) == "rule"


def test_no_reserved_pair_is_learned(earlier, tmp_path):
    """Preferences need pairs that SFT never saw."""
    run = start(earlier, tmp_path)
    reserved = {one.pair.pair_id for one in split_parts(run).reserved}

    assert reserved
    assert not reserved & {row.pair_id for row in sft_rows(run)}


@pytest.mark.parametrize("thinking", [False, True])
def test_rows_are_in_tokens_what_trl_makes_of_the_conversation(earlier, tmp_path, thinking):
    """Same tokens and same loss mask; the empty think block has a loss only where the prompt does not hold it."""
    pytest.importorskip("trl")
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    policy = load_policy(earlier / "teacher_pretrain" / "policy", trainable=True)
    rows = sft_rows(start(earlier, tmp_path))[:5]
    flag = {"enable_thinking": thinking}
    conversations = [
        {
            "prompt": [dict(m) for m in row.prompt],
            "completion": [{"role": "assistant", "content": row.completion}],
            "chat_template_kwargs": flag,
        }
        for row in rows
    ]
    arguments = SFTConfig(
        str(tmp_path / "trl"), max_length=None, bf16=False, use_cpu=True, report_to=[], disable_tqdm=True
    )
    trainer = SFTTrainer(
        policy.model, arguments, train_dataset=Dataset.from_list(conversations), processing_class=policy.tokenizer
    )
    encoded = encode_rows(rows, policy.tokenizer, thinking=thinking, max_tokens=256)

    assert [{name: ids.tolist() for name, ids in row.features().items()} for row in encoded] == [
        {name: given[name] for name in ("input_ids", "labels")} for given in trainer.train_dataset
    ]
    answer = policy.tokenizer.decode([i for i in encoded[0].features()["labels"] if i != IGNORED])
    assert answer.startswith("<think>") is thinking
    assert answer.endswith(f"{rows[0].completion}<|im_end|>\n")


def test_a_row_longer_than_the_base_model_reads_is_an_error(earlier):
    """The decoder has 512 positions, whatever the recipe allows."""
    tokenizer = load_policy(earlier / "teacher_pretrain" / "policy").tokenizer
    row = SftRow("a\t1", ({"role": "user", "content": "red lamp " * 300},), "label: E")
    with pytest.raises(RunError, match="or the base model: expected rows of at most 512 tokens"):
        encode_rows([row], tokenizer, thinking=False, max_tokens=3072)


def test_a_long_plain_text_is_read_in_pieces(earlier):
    """Continued pre-training has no label to lose: all tokens are there, and an end."""
    tokenizer = load_policy(earlier / "teacher_pretrain" / "policy").tokenizer
    text = "red lamp by Norda " * 20
    rows = encode_rows([SftRow("", (), text)], tokenizer, thinking=False, max_tokens=50)
    ids = [i for row in rows for i in row.input_ids]

    assert len(rows) > 1
    assert tokenizer.decode(ids) == text + tokenizer.eos_token
    assert all(np.array_equal(row.features()["labels"], row.input_ids) for row in rows)


def test_a_template_that_rewrites_the_prompt_is_refused(earlier):
    """The prompt of training would not be the prompt of asking."""
    tokenizer = load_policy(earlier / "teacher_pretrain" / "policy").tokenizer
    tokenizer.chat_template = "{{ messages | length }}{{ messages[-1].content }}"
    row = SftRow("a\t1", ({"role": "user", "content": "red lamp"},), "label: E")
    with pytest.raises(RunError, match=r"pair 'a\\t1': expected the chat to start with its prompt"):
        encode_rows([row], tokenizer, thinking=False, max_tokens=64)


def test_a_query_s_rows_are_held_out_together():
    """And some are, and few."""
    rows = [SftRow(f"q{i}\t{j}", (), "x") for i in range(300) for j in range(3)]
    learned, held_out = split_held_out(rows)

    assert len(learned) + len(held_out) == 900
    assert not {row.pair_id.split("\t")[0] for row in learned} & {row.pair_id.split("\t")[0] for row in held_out}
    assert 0 < len(held_out) < 60


def test_rows_without_loss_fill_up_to_what_the_processes_share():
    """Seven rows of four at a time become eight; the added one teaches nothing."""
    rows = [EncodedRow("a", np.array([5, 6], dtype=np.int32), 1)] * 7
    padded = padded_rows(rows, 4, pad_id=0)

    assert padded[:7] == rows
    assert [(row.input_ids.tolist(), row.features()["labels"].tolist()) for row in padded[7:]] == [([0], [IGNORED])]
    assert padded_rows(rows, 7, pad_id=0) == rows


def test_platform_text_of_the_fold_that_is_left_out_is_not_read(earlier, tmp_path):
    """Both folds together read every query, and neither reads one of its own fold."""
    folds = [start(earlier, tmp_path, "teacher.folds=2", f"teacher.fold={fold}") for fold in range(2)]
    read = [{row.completion for row in text_rows(run)} for run in folds]
    queries = {one.pair.query.text for run in folds for one in split_parts(run).held_out}

    assert {query for query in queries if query in read[0]} == {q for q in queries if fold_of(q, 2) == 1}
    assert {query for query in queries if query in read[1]} == {q for q in queries if fold_of(q, 2) == 0}
    assert len(text_rows(start(earlier, tmp_path))) == len(read[0] | read[1])
