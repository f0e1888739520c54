"""The student's losses on cases small enough to work out by hand."""

import math

import pytest
import torch

from training.student.guidance import GuidanceProjection
from training.student.losses import (
    feature_loss,
    guidance_loss,
    rank_loss,
    soft_label_loss,
    task_loss,
)


def test_guidance_is_the_sum_over_dimensions_not_the_mean():
    """One pair, one perspective, latent (1, 2, 3) against (0, 0, 0): 1 + 4 + 9 = 14; a mean would give 14 / 3."""
    loss = guidance_loss(torch.tensor([[1.0, 2.0, 3.0]]), torch.zeros(1, 1, 3), torch.tensor([[True]]))

    assert loss.item() == pytest.approx(14.0)


def test_guidance_averages_over_present_entries_only():
    """Distances 1 (present), 4 (present) and 100 (masked) average to 2.5."""
    latent = torch.zeros(2, 1)
    targets = torch.tensor([[[1.0], [10.0]], [[2.0], [0.0]]])
    mask = torch.tensor([[True, False], [True, False]])

    assert guidance_loss(latent, targets, mask).item() == pytest.approx(2.5)


def test_guidance_of_pairs_without_any_rationale_is_zero_and_gives_no_gradient():
    """A batch without CoT embeddings trains on the task loss alone."""
    latent = torch.ones(2, 3, requires_grad=True)
    guidance_loss(latent, torch.zeros(2, 1, 3), torch.zeros(2, 1, dtype=torch.bool)).backward()

    assert torch.count_nonzero(latent.grad) == 0


def test_guidance_reaches_the_projection_and_the_latent():
    """With different widths P is a linear map that learns with the student."""
    projection = GuidanceProjection(latent_width=3, embedding_width=5)
    latent = torch.ones(1, 3, requires_grad=True)
    guidance_loss(projection(latent), torch.ones(1, 1, 5), torch.tensor([[True]])).backward()

    assert torch.count_nonzero(latent.grad) == 3
    assert all(torch.count_nonzero(p.grad) for p in projection.parameters())


def test_projection_is_the_identity_when_the_widths_agree():
    """The paper's eq. 8 has no P; none is added where none is needed."""
    assert list(GuidanceProjection(4, 4).parameters()) == []


def test_task_loss_weighs_pairs_and_classes():
    """CE of uniform logits is ln 2 for any label, so any weighting gives ln 2; a zero weight removes a pair."""
    logits = torch.tensor([[0.0, 0.0], [50.0, -50.0]])
    label = torch.tensor([0, 1])
    weight = torch.tensor([2.0, 0.0])

    assert task_loss(logits, label, weight, torch.tensor([1.0, 9.0]), 0.0).item() == pytest.approx(math.log(2))


def test_soft_loss_equals_the_entropy_when_student_and_teacher_agree():
    """-Σ p ln p of (0.25, 0.75)."""
    teacher = torch.tensor([[0.25, 0.75]])
    expected = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))

    assert soft_label_loss(teacher.log(), teacher, torch.ones(1)).item() == pytest.approx(expected)


def test_feature_loss_leaves_missing_features_out():
    """Smooth L1 of distance 2 is 1.5; the nan beside it counts for nothing."""
    loss = feature_loss(torch.tensor([[2.0, 7.0]]), torch.tensor([[0.0, math.nan]]))

    assert loss.item() == pytest.approx(1.5)


def test_rank_loss_compares_labelled_pairs_of_one_query_only():
    """Equal scores give ln 2 for the one comparable pair; another query and a pair without label change nothing."""
    logits = torch.zeros(4, 2)
    gains = torch.tensor([1.0, 0.0])
    label_gain = torch.tensor([1.0, 0.0, 0.0, math.nan])

    assert rank_loss(logits, gains, label_gain, torch.tensor([0, 0, 1, 0])).item() == pytest.approx(math.log(2))


def test_rank_loss_falls_when_the_better_item_scores_higher():
    """And it is 0 where no two labels of a query differ."""
    gains, query = torch.tensor([1.0, 0.0]), torch.zeros(2, dtype=torch.int64)
    right, wrong = torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 2.0], [2.0, 0.0]])
    labels = torch.tensor([1.0, 0.0])

    assert rank_loss(right, gains, labels, query) < rank_loss(wrong, gains, labels, query)
    assert rank_loss(wrong, gains, torch.ones(2), query).item() == 0.0
