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


def guidance_loss(latent: Tensor, cot_embedding_BPD: Tensor, mask_BP: Tensor) -> Tensor:
    """Squared distance between each projected latent and its pair's CoT embeddings (arXiv:2601.21611, eq. 8).

    The SUM over dimensions, as in the paper; a mean would divide it by D and switch the guidance off unnoticed.

    Args: latent: P r of shape (B, D), or one a perspective of shape (B, P, D); cot_embedding_BPD: L2-normalised, zeros
        where missing; mask_BP: False = missing.
    Returns: mean over present (pair, perspective) entries of Σ_dim (P r − e)²; 0 when none is present.
    """
    distance_BP = ((_per_perspective(latent) - cot_embedding_BPD) ** 2).sum(dim=-1)
    return _present_mean(distance_BP, mask_BP)


def cosine_guidance_loss(latent: Tensor, cot_embedding_BPD: Tensor, mask_BP: Tensor) -> Tensor:
    """1 − cos(P r, e), a guidance that ignores length (ours); arguments and mean as `guidance_loss`."""
    cosine_BP = nn.functional.cosine_similarity(_per_perspective(latent), cot_embedding_BPD, dim=-1)
    return _present_mean(1 - cosine_BP, mask_BP)


def info_nce_guidance_loss(
    latent: Tensor, cot_embedding_BPD: Tensor, mask_BP: Tensor, alike_BB: Tensor, temperature: float
) -> Tensor:
    """InfoNCE between latents and the CoT embeddings of the batch, perspective by perspective (ours).

    Args: as `guidance_loss`; alike_BB: pairs that are no negatives of each other.
    """
    latent_BPD = _per_perspective(latent).expand_as(cot_embedding_BPD)
    losses = [
        info_nce(latent_BPD[:, p], cot_embedding_BPD[:, p], alike_BB | ~mask_BP[:, p], temperature)
        for p in range(cot_embedding_BPD.shape[1])
    ]
    return _present_mean(torch.stack(losses, dim=1), mask_BP)


def info_nce(anchor_BD: Tensor, positive_BD: Tensor, excluded_BB: Tensor, temperature: float) -> Tensor:
    """InfoNCE of each pair with the positives of the other pairs as negatives (van den Oord et al., arXiv:1807.03748).

    Args: excluded_BB: True where column j is not to be a negative of row i (false negatives, missing positives); the
        own positive on the diagonal always counts; temperature: τ of the cosine.
    Returns: of shape (B,).
    """
    similarity_BB = nn.functional.normalize(anchor_BD, dim=-1) @ nn.functional.normalize(positive_BD, dim=-1).T
    own_BB = torch.eye(len(anchor_BD), dtype=torch.bool, device=anchor_BD.device)
    logits_BB = (similarity_BB / temperature).masked_fill(excluded_BB & ~own_BB, -torch.inf)
    return -torch.log_softmax(logits_BB, dim=-1).diagonal()


def alike(query_B: Tensor, label_B: Tensor) -> Tensor:
    """Say which pairs of a batch share query and label, and so are false negatives of each other; shape (B, B)."""
    return (query_B.unsqueeze(1) == query_B.unsqueeze(0)) & (label_B.unsqueeze(1) == label_B.unsqueeze(0))


def _per_perspective(latent: Tensor) -> Tensor:
    return latent.unsqueeze(1) if latent.ndim == 2 else latent


def _present_mean(value_BP: Tensor, mask_BP: Tensor) -> Tensor:
    present_BP = mask_BP.to(value_BP.dtype)
    return (value_BP * present_BP).sum() / present_BP.sum().clamp(min=1)


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
