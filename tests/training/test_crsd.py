"""CRSD: the second view carries the rationale, teaches the first one, and leaves nothing in the student."""

import numpy as np
import pytest
import torch

from relevance.errors import RecipeError
from relevance.pairs import Item, Pair, Query
from training.student.batches import Batches, TrainingSet
from training.student.crsd import CrsdTerm, SecondView
from training.student_recipe import CrsdRecipe

PAIRS = [
    Pair(Query("red shoes", id="q1"), Item("Fleetrun trail shoes for men, red", id="a")),
    Pair(Query("red shoes", id="q1"), Item("Fleetrun sandals", id="b")),
    Pair(Query("steel water bottle", id="q3"), Item("Lunch box", id="c")),
    Pair(Query("desk lamp", id="q4"), Item("Voltry lamp for a desk", id="d")),
]
RATIONALES = {
    PAIRS[0].pair_id: {"user": "The shopper wants shoes to run in.", "struct": "The colour agrees."},
    PAIRS[1].pair_id: {"user": "Sandals are worn on other days."},
    PAIRS[2].pair_id: {"rule": "A box holds food and no water."},
}
LABELS = np.array([0, 1, 3, 0])


def one_batch(student, tokenizer, rationales=RATIONALES, *, max_tokens=160):
    """The pairs as one batch, in their order."""
    n = len(PAIRS)
    data = TrainingSet(
        PAIRS, LABELS, np.ones(n, np.float32), np.zeros((n, 4), np.float32), np.zeros(n, np.float32),
        np.zeros((n, 0), np.float32),
    )  # fmt: skip
    side = SecondView(PAIRS, rationales, student.config.template, tokenizer, max_tokens)
    batches = Batches(data, student.config.template, tokenizer, batch_size=8, side=[side])
    return next(batches.epoch(0, 0))


def first_view(student, batch):
    """The student's output on what it reads at serving time."""
    return student(batch.input_ids_BL, batch.attention_mask_BL, batch.token_type_ids_BL)


def test_the_second_view_is_the_pair_with_its_rationale_behind_it(make_student):
    """Token for token: [CLS] query [SEP] item [SEP] rationale [SEP], type 1 from the item on."""
    student, tokenizer = make_student()
    batch = one_batch(student, tokenizer)
    texts = tokenizer.encode_texts(["The shopper wants shoes to run in. The colour agrees."])[0].tolist()

    row = int((batch.side["view_attention_mask"].sum(dim=1)).argmax())
    plain = batch.input_ids_BL[row][batch.attention_mask_BL[row] == 1].tolist()
    view = batch.side["view_input_ids"][row][batch.side["view_attention_mask"][row] == 1].tolist()
    types = batch.side["view_token_type_ids"][row].tolist()

    assert view == [*plain, *texts, tokenizer.sep_id]
    assert types[: len(view)] == [*batch.token_type_ids_BL[row].tolist()[: len(plain)], *[1] * (len(view) - len(plain))]


def test_a_long_rationale_is_cut_and_the_pair_is_not(make_student):
    """The cut view still ends in [SEP]."""
    student, tokenizer = make_student()
    rationales = {pair.pair_id: {"user": "shoes " * 200} for pair in PAIRS}
    batch = one_batch(student, tokenizer, rationales, max_tokens=120)

    assert batch.side["view_input_ids"].shape[1] == 120
    assert (batch.side["view_input_ids"][:, -1] == tokenizer.sep_id).all()


def test_a_pair_without_rationale_changes_no_loss(make_student):
    """Its second view is its first, and neither CE, contrast nor KL counts it."""
    student, tokenizer = make_student()
    term = CrsdTerm(student, CrsdRecipe(), None).eval()
    batch = one_batch(student, tokenizer)
    told = batch.side["has_rationale"]
    assert told.sum() == 3
    before = term(student, first_view(student, batch), batch)
    batch.label_B[~told] = 2

    assert term(student, first_view(student, batch), batch).item() == pytest.approx(before.item(), rel=1e-5)


def test_the_second_view_is_not_pulled_towards_the_first(make_student):
    """Stop-gradient: with the second view's own CE out of the way, its token states get no gradient at all."""
    student, tokenizer = make_student()
    term = CrsdTerm(student, CrsdRecipe(kl_weight=1.0, contrast_weight=1.0), None).eval()
    batch = one_batch(student, tokenizer)
    output = first_view(student, batch)
    states = []
    hook = student.encoder.register_forward_hook(lambda _, __, out: states.append(out.last_hidden_state))
    batch.label_weight_B[:] = 0
    loss = term(student, output, batch)
    hook.remove()
    first, second = torch.autograd.grad(loss, [output.hidden_BLD, states[0]], allow_unused=True)

    assert first.abs().max() > 0
    assert second is None or second.abs().max() == 0


def test_a_view_without_room_and_one_without_positions_are_refused(make_student):
    """The pair is never cut, and the encoder has 512 positions."""
    student, tokenizer = make_student()
    with pytest.raises(RecipeError, match=r"expected at least 112, .*found 100"):
        SecondView(PAIRS, RATIONALES, student.config.template, tokenizer, 100)
    with pytest.raises(RecipeError, match="at most 512"):
        CrsdTerm(student, CrsdRecipe(max_tokens=600), None)


def test_each_perspective_has_its_share_of_a_short_view(make_student):
    """A long first perspective does not push the others out, and the pair stays whole."""
    student, tokenizer = make_student()
    rationales = {PAIRS[0].pair_id: {"user": "shoes " * 200, "struct": "colour", "rule": "wanted " * 200}}
    batch = one_batch(student, tokenizer, rationales, max_tokens=112)
    row = int(batch.side["view_attention_mask"].sum(dim=1).argmax())
    view = batch.side["view_input_ids"][row].tolist()
    shoes, colour, wanted = (int(tokenizer.encode_texts([word])[0][0]) for word in ("shoes", "colour", "wanted"))

    assert view.count(colour) == 1
    assert abs(view.count(shoes) - view.count(wanted)) <= 2
    assert len(view) == 112


def test_the_share_of_the_rationales_that_fits_is_told(make_student):
    """Of 300 words those that stand in the view, or all where there is room; without rationales nothing is lost."""
    student, tokenizer = make_student()
    template, room = student.config.template, tokenizer.max_pair_tokens + 20
    pair = [PAIRS[0]]
    text = {pair[0].pair_id: {"user": "lamp " * 300}}
    cut = SecondView(pair, text, template, tokenizer, room)
    (row,) = cut.arrays(np.array([0]), None)["view_attention_mask"]
    bare = SecondView(pair, {}, template, tokenizer, room)
    (alone,) = bare.arrays(np.array([0]), None)["view_attention_mask"]

    assert cut.share_read == pytest.approx((row.sum() - alone.sum() - 1) / 300)
    assert 0 < cut.share_read < 1
    assert SecondView(pair, text, template, tokenizer, room + 300).share_read == 1
    assert bare.share_read == 1


def test_the_views_grow_alike_when_the_term_is_trained(make_student):
    """The loss falls, and the first view's classes follow the second's."""
    student, tokenizer = make_student()
    term = CrsdTerm(student, CrsdRecipe(), None)
    batch = one_batch(student, tokenizer)
    optimizer = torch.optim.Adam([*student.parameters(), *term.parameters()], lr=1e-3)
    losses = []
    for _ in range(30):
        value = term(student, first_view(student, batch), batch)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.item())

    assert losses[-1] < 0.5 * losses[0]
    told = batch.side["has_rationale"]
    predicted = first_view(student, batch).logits_BK.argmax(dim=1)
    assert (predicted == batch.label_B)[told].all()


def test_the_projector_is_no_part_of_the_student(make_student):
    """What is saved and exported knows nothing of it."""
    student, _ = make_student()
    names = set(student.state_dict())
    CrsdTerm(student, CrsdRecipe(), None)

    assert set(student.state_dict()) == names
