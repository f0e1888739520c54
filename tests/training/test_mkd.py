"""MKD: the softened distribution, the tags beside the student's tokens, and that both teach."""

import logging
import math

import numpy as np
import pytest
import torch

from relevance.pairs import Item, Pair, Query
from relevance.text import TextTemplate
from relevance.tokenization import PairTokenizer
from training.rationale_rows import Evidence
from training.student.batches import Batches, TrainingSet
from training.student.bio_tags import TaggedSpan, spans_of_tags
from training.student.mkd import TAGS, EvidenceTags, MkdTerm, softened_loss, without_specials
from training.student_recipe import MkdRecipe

PAIRS = [
    Pair(Query("red fleetrun shoes", id="q1"), Item("Fleetrun trail shoes for men, red", id="a")),
    Pair(Query("desk lamp", id="q2"), Item("Voltry floor lamp with a very long title and a dimmer", id="b")),
    Pair(Query("steel water bottle", id="q3"), Item("Lunch box", id="c")),
]
EVIDENCE = {
    PAIRS[0].pair_id: [
        Evidence(dim="brand", query_span="fleetrun", item_span="fleetrun", verdict="match"),
        Evidence(dim="colour", query_span="red", item_span="red", verdict="match"),
    ],
    PAIRS[1].pair_id: [Evidence(dim="type", query_span="desk lamp", item_span="floor lamp", verdict="mismatch")],
}


def training_set(pairs):
    """Pairs with a label and a teacher's probabilities each."""
    n = len(pairs)
    soft = np.tile(np.array([[0.7, 0.2, 0.06, 0.04]], np.float32), (n, 1))
    return TrainingSet(
        pairs,
        np.zeros(n, np.int64),
        np.ones(n, np.float32),
        soft,
        np.ones(n, np.float32),
        np.zeros((n, 0), np.float32),
    )


def one_batch(student, tokenizer, pairs=PAIRS, evidence=EVIDENCE):
    """All the pairs as one batch with their tags."""
    tags = EvidenceTags(pairs, evidence, student.config.template, tokenizer)
    batches = Batches(training_set(pairs), student.config.template, tokenizer, batch_size=8, side=[tags])
    return next(batches.epoch(0, 0))


def run(student, batch):
    """The student's output on a batch."""
    return student(batch.input_ids_BL, batch.attention_mask_BL, batch.token_type_ids_BL)


def test_softened_loss_is_hinton_s_by_hand():
    """T = 2, teacher (0.64, 0.36) softens to (4/7, 3/7); a uniform student: 4 Σ p ln(2 p); weight 0 does not count."""
    p = np.array([4 / 7, 3 / 7])
    teacher = torch.tensor([[0.64, 0.36], [0.0, 0.0]])

    loss = softened_loss(torch.zeros(2, 2), teacher, torch.tensor([1.0, 0.0]), 2.0)

    assert loss.item() == pytest.approx(4 * float((p * np.log(2 * p)).sum()), rel=1e-5)


def test_softened_loss_is_zero_where_the_student_agrees_even_on_a_certain_teacher():
    """KL(p ‖ p) = 0 at any temperature, and a probability of 0 gives no nan."""
    teacher = torch.tensor([[0.5, 0.3, 0.2]])

    assert softened_loss(teacher.log(), teacher, torch.ones(1), 3.0).item() == pytest.approx(0, abs=1e-6)
    assert math.isfinite(softened_loss(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), torch.ones(1), 2.0).item())


def test_compacted_tokens_are_the_query_s_then_the_item_s():
    """−1 at [CLS], the middle and last [SEP] and padding is moved out; order and tags stay."""
    tags = torch.tensor([[-1, 3, 0, -1, 5, -1, -1], [-1, 7, -1, 0, 0, 8, -1]])
    states = torch.arange(14.0).reshape(2, 7, 1)

    moved, moved_tags, mask = without_specials(states, tags)

    assert moved[0, :3, 0].tolist() == [1, 2, 4]
    assert moved[1, :, 0].tolist() == [8, 10, 11, 12]
    assert moved_tags.tolist() == [[3, 0, 5, 0], [7, 0, 0, 8]]
    assert mask.tolist() == [[True, True, True, False], [True] * 4]


def test_tags_stand_beside_the_tokens_that_the_evidence_names(make_student):
    """Each row of tags decodes to the words of its evidence; specials, padding and pairs without evidence are −1."""
    _, tokenizer = make_student()
    tags = EvidenceTags(PAIRS, EVIDENCE, TextTemplate(), tokenizer)
    texts = [(pair.query.text, pair.item.title) for pair in PAIRS]
    ids = tokenizer.collate(
        [tokenizer.encode_query(query) for query, _ in texts], tokenizer.encode_items([title for _, title in texts])
    )

    tag_BL = tags.arrays(np.array([0, 1, 2]), ids)[TAGS]

    words = [[], []]
    vocabulary = {number: word for word, number in tokenizer_vocabulary(tokenizer).items()}
    for row in (0, 1):
        special = np.isin(ids.input_ids_BL[row], [tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id])
        assert np.array_equal(tag_BL[row] < 0, special)
        for span in spans_of_tags(np.maximum(tag_BL[row], 0).tolist()):
            word = "".join(vocabulary[t].removeprefix("##") for t in ids.input_ids_BL[row, span.start : span.end])
            words[row].append((span.dim, span.verdict, word))
    assert words[0] == [
        ("attribute", "match", "red"),
        ("brand", "match", "fleetrun"),
        ("brand", "match", "fleetrun"),
        ("attribute", "match", "red"),
    ]
    assert words[1] == [("type", "mismatch", "desklamp"), ("type", "mismatch", "floorlamp")]
    assert (tag_BL[2] == -1).all()


def tokenizer_vocabulary(tokenizer):
    """The vocabulary of a pair tokenizer."""
    from tokenizers import Tokenizer

    return Tokenizer.from_buffer(tokenizer.to_bytes()).get_vocab()


def test_tags_are_cut_where_the_item_is_cut(make_student):
    """With room for 10 tokens the row still has one tag a token, the same as the uncut one's first."""
    _, wide = make_student()
    narrow = PairTokenizer.from_bytes(wide.to_bytes(), max_query_tokens=5, max_pair_tokens=10)
    rows = []
    for tokenizer in (wide, narrow):
        ids = tokenizer.collate([tokenizer.encode_query("desk lamp")], tokenizer.encode_items([PAIRS[1].item.title]))
        tags = EvidenceTags(PAIRS, EVIDENCE, TextTemplate(), tokenizer)
        rows.append(tags.arrays(np.array([1]), ids)[TAGS][0])

    assert len(rows[1]) == 10
    assert rows[1].tolist() == [*rows[0][:9], -1]


def test_a_pair_whose_item_reads_otherwise_than_tagged_does_not_count(make_student):
    """Field dropout hides the brand: the tags no longer belong to the tokens, so the row is left out."""
    _, tokenizer = make_student()
    template = TextTemplate(fields=("title", "brand"))
    pair = Pair(Query("red mug", id="q"), Item("mug", id="i", brand="Norda"))
    evidence = {pair.pair_id: [Evidence(dim="colour", query_span="red", item_span="", verdict="missing")]}
    tags = EvidenceTags([pair], evidence, template, tokenizer)
    full, hidden = (
        tokenizer.collate([tokenizer.encode_query("red mug")], tokenizer.encode_items([text]))
        for text in (template.item_text(pair.item), "mug")
    )

    assert (tags.arrays(np.array([0]), full)[TAGS] >= 0).any()
    assert (tags.arrays(np.array([0]), hidden)[TAGS] == -1).all()


def test_too_little_evidence_in_the_texts_is_a_warning(make_student, caplog):
    """One of three spans found is under 60 %: MKD says that it is under-supervised, as without any; 100 % passes."""
    _, tokenizer = make_student()
    absent = [
        Evidence(dim="brand", query_span="norda", item_span="voltry", verdict="mismatch"),
        Evidence(dim="type", query_span="water bottle", item_span="", verdict="missing"),
    ]
    with caplog.at_level(logging.INFO, logger="relevance.training"):
        few = EvidenceTags(PAIRS[2:], {PAIRS[2].pair_id: absent}, TextTemplate(), tokenizer)
        all_found = EvidenceTags(PAIRS[:2], EVIDENCE, TextTemplate(), tokenizer)
        EvidenceTags(PAIRS, {}, TextTemplate(), tokenizer)

    assert few.alignment.share == pytest.approx(1 / 3)
    assert all_found.alignment.share == 1.0
    assert [(r.levelno, "under-supervised" in r.message) for r in caplog.records] == [
        (logging.WARNING, True),
        (logging.INFO, False),
        (logging.WARNING, True),
    ]


def test_the_term_is_the_weighted_sum_of_its_parts(make_student):
    """α T² KL + γ · mean over pairs with evidence of NLL / length, the CRF fed one pair at a time."""
    student, tokenizer = make_student()
    recipe = MkdRecipe(soft_weight=0.5, temperature=2.0, tag_weight=0.1)
    term = MkdTerm(student, recipe)
    batch = one_batch(student, tokenizer)
    output = run(student, batch)

    per_token = []
    for row in range(3):
        own = batch.side[TAGS][row] >= 0
        if own.any():
            emission = term.emission(output.hidden_BLD[row][own]).unsqueeze(0)
            tags = batch.side[TAGS][row][own].unsqueeze(0)
            per_token.append(
                term.crf(emission, tags, torch.ones_like(tags, dtype=torch.bool)).item() / own.sum().item()
            )
    soft = softened_loss(output.logits_BK, batch.soft_BK, batch.soft_weight_B, 2.0).item()

    assert len(per_token) == 2
    assert term(student, output, batch).item() == pytest.approx(0.5 * soft + 0.1 * np.mean(per_token), rel=1e-5)


def test_a_batch_without_evidence_teaches_the_distribution_alone(make_student):
    """No pair has evidence: the tag part is 0, its gradient too, and nothing is nan."""
    student, tokenizer = make_student()
    term = MkdTerm(student, MkdRecipe(soft_weight=0.0, tag_weight=1.0))
    batch = one_batch(student, tokenizer, evidence={})

    loss = term(student, run(student, batch), batch)
    loss.backward()

    assert loss.item() == 0
    assert torch.count_nonzero(term.emission.weight.grad) == 0


def test_training_on_the_term_makes_the_crf_read_the_evidence(make_student):
    """40 steps on three pairs: the loss falls under a third, and Viterbi gives back the spans of the evidence."""
    torch.manual_seed(0)
    student, tokenizer = make_student("none")
    student.encoder.embeddings.requires_grad_(False)
    term = MkdTerm(student, MkdRecipe(soft_weight=0.5, tag_weight=1.0))
    batch = one_batch(student, tokenizer)
    optimizer = torch.optim.Adam([*student.parameters(), *term.parameters()], lr=3e-3)
    losses = []
    for _ in range(40):
        loss = term(student, run(student, batch), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    assert losses[-1] < losses[0] / 3
    counts = (batch.side[TAGS] >= 0).any(dim=1)
    states, tags, mask = without_specials(run(student, batch).hidden_BLD[counts], batch.side[TAGS][counts])
    decoded = term.crf.decode(term.emission(states), mask)
    expected = [row[own].tolist() for row, own in zip(tags, mask, strict=True)]
    assert decoded == expected
    assert TaggedSpan(0, 2, "type", "mismatch") in [span for row in decoded for span in spans_of_tags(row)]


def test_both_parts_reach_the_encoder_and_none_of_it_is_saved(make_student):
    """The gradient arrives at the encoder; the student's weights and their names are what they were."""
    student, tokenizer = make_student("none")
    names = set(student.state_dict())
    term = MkdTerm(student, MkdRecipe(soft_weight=0.0, tag_weight=1.0))
    batch = one_batch(student, tokenizer)

    term(student, run(student, batch), batch).backward()

    assert torch.count_nonzero(student.encoder.encoder.layer[0].attention.self.query.weight.grad) > 0
    assert set(student.state_dict()) == names
    assert not any(key.startswith(("student", "encoder")) for key in term.state_dict())
