"""The CRF against enumeration of every tag sequence."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp

from training.student.crf import LinearChainCrf


def make_case(n_tags, lengths, seed):
    """A CRF with large random weights, emissions, tags and a ragged mask; emissions beyond the mask are huge."""
    generator = torch.Generator().manual_seed(seed)
    crf = LinearChainCrf(n_tags).double()
    for parameter in crf.parameters():
        torch.nn.init.normal_(parameter, std=1.5, generator=generator)
    longest = max(lengths)
    mask = torch.arange(longest) < torch.tensor(lengths).unsqueeze(1)
    emission = torch.randn(len(lengths), longest, n_tags, generator=generator, dtype=torch.float64)
    emission[~mask] = 1e4
    tags = torch.randint(0, n_tags, (len(lengths), longest), generator=generator)
    return crf, emission, tags, mask


def scores_by_hand(crf, emission, paths):
    """s(x, y) of one unpadded sequence under each of many paths (rows), written out in numpy."""
    start, end, transition = (tensor.detach().numpy() for tensor in (crf.start_T, crf.end_T, crf.transition_TT))
    emitted = emission.numpy()[np.arange(paths.shape[1]), paths].sum(axis=1)
    moved = transition[paths[:, :-1], paths[:, 1:]].sum(axis=1)
    return start[paths[:, 0]] + emitted + moved + end[paths[:, -1]]


@given(st.integers(1, 4), st.lists(st.integers(1, 5), min_size=1, max_size=3), st.integers(0, 1000))
def test_likelihood_and_best_path_equal_enumeration(n_tags, lengths, seed):
    """On up to 4 tags × 5 steps of ragged length, log Z and the best path are those over all tag sequences."""
    crf, emission, tags, mask = make_case(n_tags, lengths, seed)

    loss = crf(emission, tags, mask)
    decoded = crf.decode(emission, mask)

    for row, length in enumerate(lengths):
        every = np.array(list(itertools.product(range(n_tags), repeat=length)))
        scores = scores_by_hand(crf, emission[row], every)
        own = scores_by_hand(crf, emission[row], tags[row : row + 1, :length].numpy())[0]
        assert loss[row].item() == pytest.approx(logsumexp(scores) - own, abs=1e-9)
        assert decoded[row] == every[scores.argmax()].tolist()


def test_gradients_are_those_of_finite_differences():
    """Autograd through the forward recursion and the masks, in double precision."""
    crf, emission, tags, mask = make_case(3, [4, 2, 1], seed=1)
    emission = torch.where(mask.unsqueeze(2), emission, torch.zeros(())).requires_grad_()

    assert torch.autograd.gradcheck(lambda given: crf(given, tags, mask), (emission,))


def test_the_gradient_on_emissions_is_marginal_minus_observed():
    """∂(−log p)/∂emission[t, k] = p(y_t = k) − [y_t = k]: each unmasked step sums to 0 and masked ones are 0."""
    crf, emission, tags, mask = make_case(4, [5, 3], seed=2)
    emission.requires_grad_()

    crf(emission, tags, mask).sum().backward()

    assert torch.allclose(emission.grad.sum(dim=2), torch.zeros(2, 5, dtype=torch.float64), atol=1e-9)
    assert torch.count_nonzero(emission.grad[~mask]) == 0
    assert torch.all(emission.grad[mask].gather(1, tags[mask].unsqueeze(1)) < 0)


def test_what_stands_under_the_mask_changes_nothing():
    """Other emissions and tags in the padding give the same loss to the bit, and an empty batch gives none."""
    crf, emission, tags, mask = make_case(3, [4, 2], seed=3)
    noise, other = emission.clone(), tags.clone()
    noise[~mask] = -7.0
    other[~mask] = 0

    assert torch.equal(crf(emission, tags, mask), crf(noise, other, mask))
    assert crf(emission[:0], tags[:0], mask[:0]).shape == (0,)
