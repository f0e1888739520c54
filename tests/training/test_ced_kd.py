"""CED-KD: the decoder learns rationales, looks at no later token, and shares the encoder's embeddings."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from relevance.errors import RecipeError
from relevance.pairs import Item, Pair, Query
from training.student.batches import Batches, TrainingSet
from training.student.ced_kd import RATIONALE, RationaleDecoder, RationaleTokens
from training.student_recipe import CedKdRecipe

PAIRS = [
    Pair(Query("red shoes", id="q1"), Item("Fleetrun trail shoes for men, red", id="a")),
    Pair(Query("desk lamp", id="q2"), Item("Voltry floor lamp with a dimmer", id="b")),
    Pair(Query("steel water bottle", id="q3"), Item("Lunch box", id="c")),
]
RATIONALES = {
    PAIRS[0].pair_id: {"user": "The shopper wants shoes to run in.", "struct": "The colour agrees."},
    PAIRS[1].pair_id: {"rule": "A lamp for the floor does not stand on a desk."},
}


def one_batch(student, tokenizer, rationales=RATIONALES, *, max_tokens=64, pairs=PAIRS):
    """The pairs as one batch, in their order."""
    n = len(pairs)
    data = TrainingSet(
        list(pairs),
        np.zeros(n, np.int64),
        np.ones(n, np.float32),
        np.zeros((n, 4), np.float32),
        np.zeros(n, np.float32),
        np.zeros((n, 0), np.float32),
    )
    side = RationaleTokens(pairs, rationales, tokenizer, max_tokens)
    return next(Batches(data, student.config.template, tokenizer, batch_size=8, side=[side]).epoch(0, 0))


def make_decoder(student, tokenizer, **recipe):
    """A decoder in evaluation mode, so that dropout does not blur comparisons."""
    torch.manual_seed(0)
    ids = {"bos": tokenizer.cls_id, "eos": tokenizer.sep_id, "pad": tokenizer.pad_id}
    vocabulary = recipe.pop("vocabulary", np.arange(tokenizer.vocabulary_size))
    return RationaleDecoder(student, CedKdRecipe(**recipe), vocabulary, **ids).eval()


def run(student, batch):
    """The student's output on a batch."""
    return student(batch.input_ids_BL, batch.attention_mask_BL, batch.token_type_ids_BL)


def loss_of(decoder, student, batch):
    """The term's loss on a batch, gradients kept."""
    return decoder(student, run(student, batch), batch)


def with_rationale(batch, ids):
    """The batch with other rationale tokens."""
    return replace(batch, side={RATIONALE: ids})


def test_perspectives_are_joined_in_one_order_with_equal_room(make_student):
    """User, struct, rule in whatever order they come, each cut to a third of the room; a lone one has all of it."""
    _, tokenizer = make_student()
    pair_ids = {
        PAIRS[0].pair_id: {"rule": "lamp " * 50, "user": "shoes " * 50, "struct": "red"},
        PAIRS[1].pair_id: {"user": "lamp " * 50},
    }
    side = RationaleTokens(PAIRS, pair_ids, tokenizer, 10)
    ids = tokenizer.collate([np.zeros(1, np.int32)] * 3, [np.zeros(1, np.int32)] * 3)
    shoes, red, lamp = (int(tokenizer.encode_items([word])[0][0]) for word in ("shoes", "red", "lamp"))

    rationale_BS = side.arrays(np.array([0, 1, 2]), ids)[RATIONALE]

    pad = tokenizer.pad_id
    assert rationale_BS.tolist() == [[shoes] * 4 + [red] + [lamp] * 5, [lamp] * 10, [pad] * 10]
    assert side.arrays(np.array([2]), ids)[RATIONALE].shape == (1, 0)


def test_special_tokens_in_a_text_are_no_words_of_it(make_student):
    """A rationale that spells out [PAD] or [SEP] neither ends early nor has holes."""
    _, tokenizer = make_student()
    side = RationaleTokens(PAIRS[:1], {PAIRS[0].pair_id: {"user": "red [PAD] lamp [SEP]"}}, tokenizer, 10)
    ids = tokenizer.collate([np.zeros(1, np.int32)], [np.zeros(1, np.int32)])

    assert side.arrays(np.array([0]), ids)[RATIONALE].tolist() == [tokenizer.encode_items(["red lamp"])[0].tolist()]


def test_the_loss_is_the_mean_over_pairs_of_the_mean_over_tokens(make_student):
    """The batch's loss equals the mean of the losses of its two pairs with a rationale, each decoded alone."""
    student, tokenizer = make_student()
    decoder = make_decoder(student, tokenizer)

    alone = [loss_of(decoder, student, one_batch(student, tokenizer, pairs=[pair])).item() for pair in PAIRS[:2]]

    together = loss_of(decoder, student, one_batch(student, tokenizer)).item()
    assert together == pytest.approx(sum(alone) / 2, rel=1e-5)
    assert alone[0] != pytest.approx(alone[1], rel=1e-3)


def test_an_untrained_decoder_is_as_uncertain_as_the_vocabulary_is_large(make_student):
    """With all embeddings zero every token has probability 1 / V: the loss is ln V."""
    student, tokenizer = make_student()
    decoder = make_decoder(student, tokenizer)
    with torch.no_grad():
        student.encoder.embeddings.word_embeddings.weight.zero_()

    assert loss_of(decoder, student, one_batch(student, tokenizer)).item() == pytest.approx(np.log(30522), rel=1e-5)


def test_the_end_of_a_rationale_is_one_of_its_tokens(make_student):
    """Zero embeddings, a bias of 5 on EOS: ln(V − 1 + e⁵) − 5 / (n + 1) on a pair of n tokens and EOS."""
    student, tokenizer = make_student()
    decoder = make_decoder(student, tokenizer)
    batch = one_batch(student, tokenizer)
    with torch.no_grad():
        student.encoder.embeddings.word_embeddings.weight.zero_()
        decoder.bias[tokenizer.sep_id] = 5
    n_B = (batch.side[RATIONALE] != tokenizer.pad_id).sum(dim=1).numpy()

    expected = np.log(30521 + np.exp(5)) - np.mean(5 / (n_B[n_B > 0] + 1))
    assert loss_of(decoder, student, batch).item() == pytest.approx(expected, rel=1e-5)


def test_padding_of_pairs_and_rationales_changes_nothing(make_student):
    """Eight more padded steps of the rationale, and five of the pair, give the same loss."""
    student, tokenizer = make_student()
    decoder = make_decoder(student, tokenizer)
    batch = one_batch(student, tokenizer)
    padded = with_rationale(batch, torch.nn.functional.pad(batch.side[RATIONALE], (0, 8), value=tokenizer.pad_id))
    for name in ("input_ids_BL", "attention_mask_BL", "token_type_ids_BL"):
        padded = replace(padded, **{name: torch.nn.functional.pad(getattr(batch, name), (0, 5))})

    expected = loss_of(decoder, student, batch).item()
    assert loss_of(decoder, student, padded).item() == pytest.approx(expected, rel=1e-5)


def test_no_token_is_predicted_from_itself_or_a_later_one(make_student):
    """log p(t_1 … t_n) of a prefix is the same whatever follows: the state of step t ignores tokens after t."""
    student, tokenizer = make_student()
    decoder = make_decoder(student, tokenizer)
    batch = one_batch(student, tokenizer, pairs=PAIRS[:1])
    output = run(student, batch)
    states = []
    hook = decoder.decoder.register_forward_hook(lambda _, given, state: states.append(state))
    ids = batch.side[RATIONALE].clone()
    decoder(student, output, with_rationale(batch, ids))
    ids[0, 4] = ids[0, 4] + 1
    decoder(student, output, with_rationale(batch, ids))
    hook.remove()

    same = torch.isclose(states[0], states[1], atol=1e-6).all(dim=2)[0]
    assert same[:5].all()
    assert not same[5:].any()


def test_batches_without_a_rationale_cost_nothing(make_student):
    """The loss is 0 and so is every gradient; nothing is nan."""
    student, tokenizer = make_student()
    decoder = make_decoder(student, tokenizer)

    loss = loss_of(decoder, student, one_batch(student, tokenizer, {}))
    loss.backward()

    assert loss.item() == 0
    assert all(torch.count_nonzero(p.grad) == 0 for p in decoder.parameters())


def test_the_rationale_teaches_the_encoder_through_states_and_embeddings(make_student):
    """Gradients reach every layer of the encoder, and embeddings of words that stand in the rationale alone."""
    student, tokenizer = make_student("none")
    decoder = make_decoder(student, tokenizer)
    batch = one_batch(student, tokenizer)

    loss_of(decoder, student, batch).backward()

    for layer in student.encoder.encoder.layer:
        assert torch.count_nonzero(layer.output.dense.weight.grad) > 0
    word = tokenizer.encode_items(["shopper"])[0][0]
    assert word not in batch.input_ids_BL
    assert torch.count_nonzero(student.encoder.embeddings.word_embeddings.weight.grad[word]) > 0


def test_the_embeddings_are_the_encoder_s_own(make_student):
    """The decoder has no (V, D) tensor; a change of the student's embeddings changes its loss at once."""
    student, tokenizer = make_student()
    decoder = make_decoder(student, tokenizer)
    batch = one_batch(student, tokenizer)
    output = run(student, batch)
    before = decoder(student, output, batch).item()
    with torch.no_grad():
        student.encoder.embeddings.word_embeddings.weight.mul_(3)

    assert decoder(student, output, batch).item() != pytest.approx(before, rel=1e-3)
    assert (30522, 64) not in {tuple(tensor.shape) for tensor in decoder.state_dict().values()}


def test_the_decoder_learns_the_rationales_of_a_few_pairs(make_student):
    """30 steps on two pairs bring the loss from about ln V under a fifth of it; the student's weights keep their names.

    Each pair has its own text, so this needs the pair's states: a decoder that ignored them could not tell them apart.
    """
    student, tokenizer = make_student("none")
    names = set(student.state_dict())
    decoder = make_decoder(student, tokenizer)
    batch = one_batch(student, tokenizer)
    optimizer = torch.optim.Adam([*student.parameters(), *decoder.parameters()], lr=5e-3)
    losses = []
    for _ in range(30):
        loss = loss_of(decoder, student, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    assert losses[-1] < losses[0] / 5
    assert set(student.state_dict()) == names
    assert not any(key.startswith(("student", "encoder")) for key in decoder.state_dict())


def test_heads_must_divide_the_width(make_student):
    """Width 64 does not split into 5 heads: the recipe is refused by name."""
    student, tokenizer = make_student()

    with pytest.raises(RecipeError, match="heads that divide the width 64, found 5"):
        make_decoder(student, tokenizer, heads=5)


def test_the_decoder_chooses_among_the_tokens_that_occur(make_student):
    """With unseen tokens' biases at minus infinity the softmax over all of them is the same."""
    student, tokenizer = make_student()
    side = RationaleTokens(PAIRS, RATIONALES, tokenizer, 64)
    occurring = np.union1d(side.vocabulary, [tokenizer.sep_id])
    batch = one_batch(student, tokenizer)
    whole, small = make_decoder(student, tokenizer), make_decoder(student, tokenizer, vocabulary=side.vocabulary)
    with torch.no_grad():
        whole.bias.fill_(-1e4)
        whole.bias[torch.from_numpy(occurring)] = 0
    whole.load_state_dict(small.state_dict() | {"bias": whole.bias})

    assert len(small.bias) == len(occurring) < len(whole.bias)
    assert loss_of(small, student, batch).item() == pytest.approx(loss_of(whole, student, batch).item(), rel=1e-5)


def test_the_share_of_the_rationales_that_is_written_is_told(make_student):
    """Twelve of forty tokens, then all."""
    _, tokenizer = make_student()
    text = {PAIRS[0].pair_id: {"user": "lamp " * 30, "rule": "shoes " * 10}}
    written = len(tokenizer.encode_texts(["lamp " * 30 + "shoes " * 10])[0])

    assert RationaleTokens(PAIRS, text, tokenizer, 12).share_read == pytest.approx(12 / written)
    assert RationaleTokens(PAIRS, text, tokenizer, 200).share_read == 1
    assert RationaleTokens(PAIRS, {}, tokenizer, 12).share_read == 1
