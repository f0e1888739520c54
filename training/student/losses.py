"""Losses of the student.

Suffixes: B pairs, P perspectives, R latent width, D width of a CoT embedding,
K classes, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def task_loss(
    logits_BK: Tensor, label_B: Tensor, weight_B: Tensor, class_weight_K: Tensor | None, label_smoothing: float
) -> Tensor:
    """Weighted mean cross-entropy (arXiv:2601.21611, eq. 7).

    Args: weight_B: of each pair, for instance low for random negatives; class_weight_K: None for all ones.
    Returns: Σ w_i c_{y_i} CE_i / Σ w_i c_{y_i}, a scalar.
    """
    loss_B = nn.functional.cross_entropy(logits_BK, label_B, reduction="none", label_smoothing=label_smoothing)
    if class_weight_K is not None:
        weight_B = weight_B * class_weight_K[label_B]
    return (loss_B * weight_B).sum() / weight_B.sum().clamp(min=1e-8)


def guidance_loss(latent_BD: Tensor, cot_embedding_BPD: Tensor, mask_BP: Tensor) -> Tensor:
    """Squared distance between each projected latent and its pair's CoT embeddings (arXiv:2601.21611, eq. 8).

    The SUM over dimensions, as in the paper; a mean would divide it by D and switch the guidance off unnoticed.

    Args: latent_BD: P r, float; cot_embedding_BPD: L2-normalised, zeros where missing; mask_BP: False = missing.
    Returns: mean over present (pair, perspective) entries of Σ_dim (P r − e)²; 0 when none is present.
    """
    distance_BP = ((latent_BD.unsqueeze(1) - cot_embedding_BPD) ** 2).sum(dim=-1)
    present_BP = mask_BP.to(distance_BP.dtype)
    return (distance_BP * present_BP).sum() / present_BP.sum().clamp(min=1)


def soft_label_loss(logits_BK: Tensor, teacher_BK: Tensor, weight_B: Tensor) -> Tensor:
    """Weighted mean cross-entropy against a teacher's probabilities (label distillation).

    Args: teacher_BK: probabilities; weight_B: 0 where a pair has no teacher.
    """
    loss_B = -(teacher_BK * torch.log_softmax(logits_BK, dim=-1)).sum(dim=-1)
    return (loss_B * weight_B).sum() / weight_B.sum().clamp(min=1e-8)


def rank_loss(logits_BK: Tensor, gain_K: Tensor, label_gain_B: Tensor, query_B: Tensor) -> Tensor:
    """Pairwise logistic loss within queries (Burges et al., RankNet, ICML 2005), weighted by the difference in gain.

    Args: gain_K: gains in [0, 1]; label_gain_B: gain of each label, nan for pairs without one; query_B: which pairs
        belong together.
    Returns: weighted mean over pairs (i, j) of one query with gain_i > gain_j of softplus(z_j − z_i), where z is the
        log-odds of the expected gain; 0 when there is none.
    """
    score_B = (torch.softmax(logits_BK, dim=-1) @ gain_K).clamp(1e-4, 1 - 1e-4)
    odds_B = torch.log(score_B) - torch.log1p(-score_B)
    difference_BB = label_gain_B.unsqueeze(1) - label_gain_B.unsqueeze(0)
    same_BB = query_B.unsqueeze(1) == query_B.unsqueeze(0)
    weight_BB = torch.where(same_BB & (difference_BB > 0), difference_BB, torch.zeros_like(difference_BB))
    loss_BB = nn.functional.softplus(odds_B.unsqueeze(0) - odds_B.unsqueeze(1))
    return (loss_BB * weight_BB).sum() / weight_BB.sum().clamp(min=1e-8)


def feature_loss(predicted_BF: Tensor, feature_BF: Tensor) -> Tensor:
    """Smooth L1 distance to a teacher's standardised features, nan ones left out; 0 when all are."""
    present_BF = ~torch.isnan(feature_BF)
    loss_BF = nn.functional.smooth_l1_loss(predicted_BF, torch.nan_to_num(feature_BF), reduction="none")
    return (loss_BF * present_BF).sum() / present_BF.sum().clamp(min=1)


class GuidanceProjection(nn.Module):
    """The training-only map P from the latent to the space of the CoT embeddings; never exported.

    The identity when both widths agree and no map is needed (the paper's eq. 8), else linear without bias.
    """

    def __init__(self, latent_width: int, embedding_width: int) -> None:
        super().__init__()
        self.map: nn.Module = (
            nn.Identity() if latent_width == embedding_width else nn.Linear(latent_width, embedding_width, bias=False)
        )

    def forward(self, latent_BR: Tensor) -> Tensor:
        """Give P r, of shape (B, D)."""
        projected: Tensor = self.map(latent_BR)
        return projected
