"""States of frozen layers, kept: the same outputs and gradients as without, found again by another process' file."""

from pathlib import Path

import pytest
import torch

from relevance.errors import RecipeError, RunError
from training.recipe import load_recipe
from training.student import train
from training.student.fit import freeze
from training.student.frozen import INDEX, STATES, FrozenStates


def batch(rows, length):
    """Give ids, mask and types of random pairs, the last row shorter than the others."""
    generator = torch.Generator().manual_seed(rows * 100 + length)
    ids = torch.randint(5, 60, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[-1, length // 2 :] = 0
    ids[-1, length // 2 :] = 0
    types = torch.zeros_like(ids)
    types[:, length // 3 :] = 1
    return ids, mask, types * mask


def with_dropout(student, chance):
    """Set every dropout of a student, those inside the attention too."""
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = chance
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = chance
    return student


@pytest.fixture
def student(make_student):
    """A student of two layers without dropout, the lowest one frozen."""
    made = with_dropout(make_student()[0], 0.0)
    freeze(made, True, 1)
    return made


def test_logits_and_gradients_are_those_of_the_whole_encoder(student, tmp_path):
    """What padding a row was first seen with does not matter, nor does reading it again."""
    student.train()
    inputs = batch(4, 12)
    student(*inputs).logits_BK.sum().backward()
    whole = student(*inputs)
    expected = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
    student.zero_grad()
    student.frozen = FrozenStates(tmp_path, student.encoder, 1)
    wider = [torch.nn.functional.pad(tensor[2:], (0, 5)) for tensor in inputs]
    student(*wider)
    for computed in (4, 4):
        kept = student(*inputs)
        torch.testing.assert_close(kept.logits_BK, whole.logits_BK, rtol=1e-4, atol=1e-5)
        assert student.frozen.computed == computed
    student.zero_grad()
    kept.logits_BK.sum().backward()
    found = {name: p.grad for name, p in student.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_frozen_layers_have_no_dropout_and_the_others_keep_theirs(make_student, tmp_path):
    """What is kept must not depend on a draw; the layers that train go on with theirs."""
    noisy = with_dropout(make_student()[0], 0.5).train()
    freeze(noisy, True, 1)
    noisy.frozen = FrozenStates(tmp_path, noisy.encoder, 1)
    inputs = batch(2, 8)
    first, second = noisy(*inputs).hidden_BLD, noisy(*inputs).hidden_BLD
    assert not torch.equal(first, second), "the upper layer's dropout is gone"
    assert noisy.encoder.encoder.layer[0].training, "the mode of the frozen layers was not given back"
    noisy.eval()
    expected = noisy.encoder(inputs[0], attention_mask=inputs[1], token_type_ids=inputs[2]).last_hidden_state
    torch.testing.assert_close(noisy(*inputs).hidden_BLD[0], expected[0], rtol=1e-4, atol=1e-5)


def test_another_process_reads_what_was_saved_and_not_what_a_killed_one_left(student, tmp_path):
    """Two jobs of a grid share what they compute; a half-written file stays out of it."""
    first = FrozenStates(tmp_path, student.encoder, 1)
    inputs = batch(3, 9)
    first.last_states(student.encoder, *inputs)
    unsaved = FrozenStates(tmp_path, student.encoder, 1)
    unsaved.last_states(student.encoder, *inputs)
    assert unsaved.computed == 3, "read a file that nobody vouches for"
    first.close()
    later = FrozenStates(tmp_path, student.encoder, 1)
    later.last_states(student.encoder, *inputs)
    assert later.computed == 0
    assert len(list(tmp_path.glob(f"*/*{INDEX}"))) == 1
    first.last_states(student.encoder, *inputs)
    first.close()
    assert len(list(tmp_path.glob(f"*/*{INDEX}"))) == 2, "a closed one that is used again wrote over its file"


def test_other_weights_and_other_types_are_not_taken_for_these(student, tmp_path):
    """The folder is named by the weights, a row by tokens and types."""
    states = FrozenStates(tmp_path, student.encoder, 1)
    ids, mask, types = batch(3, 9)
    states.last_states(student.encoder, ids, mask, types)
    states.last_states(student.encoder, ids, mask, types.roll(1, dims=1) * mask)
    assert states.computed == 6
    states.close()
    with torch.no_grad():
        student.encoder.encoder.layer[0].output.dense.weight[0, 0] += 0.5
    other = FrozenStates(tmp_path, student.encoder, 1)
    other.last_states(student.encoder, ids, mask, types)
    assert other.computed == 3


def test_a_file_cut_short_is_named(student, tmp_path):
    """The message says what to delete."""
    states = FrozenStates(tmp_path, student.encoder, 1)
    inputs = batch(3, 9)
    states.last_states(student.encoder, *inputs)
    states.close()
    file: Path = next(tmp_path.glob(f"*/*{STATES}"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(RunError, match=r"expected \d+ bytes from \d+ on, found"):
        FrozenStates(tmp_path, student.encoder, 1).last_states(student.encoder, *inputs)


@pytest.mark.parametrize("wrong", ["student.encoder.freeze_layers=0", "student.field_dropout=0.2"])
def test_states_that_would_not_stay_are_refused(wrong):
    """Nothing can be kept of layers that train or of texts that change."""
    keys = ["student.encoder.keep_states=true", "student.encoder.freeze_layers=1", "student.field_dropout=0", wrong]
    with pytest.raises(RecipeError, match=r"student\.encoder\.keep_states"):
        load_recipe("tiny", keys)


def test_a_cpu_without_bf16_trains_in_full_precision_and_says_so(monkeypatch, caplog):
    """Emulated bf16 is tens of times slower than float32."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    with caplog.at_level("WARNING"):
        assert not train.computes_bf16()
    assert "training in float32" in caplog.text


def test_what_a_killed_process_never_named_is_deleted_and_what_is_written_is_not(student, tmp_path):
    """A file without an index goes; that of a process at work stays until it names it, and is found then."""
    writing = FrozenStates(tmp_path, student.encoder, 1)
    inputs = batch(2, 8)
    writing.last_states(student.encoder, *inputs)
    (own,) = writing._folder.glob(f"*{STATES}")
    forgotten = own.with_name(f"1-dead{STATES}")
    forgotten.write_bytes(b"half a row")
    other = FrozenStates(tmp_path, student.encoder, 1)
    assert own.is_file()
    assert not forgotten.exists()
    writing.save()
    third = FrozenStates(tmp_path, student.encoder, 1)
    third.last_states(student.encoder, *inputs)
    assert (third.computed, writing.computed) == (0, 2)
    for states in (writing, other, third):
        states.close()
