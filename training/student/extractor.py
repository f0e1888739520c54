"""Latent reasoning extractors: token states → latent (arXiv:2601.21611, appendix A), in their folded form.

Each extractor ends in a weighted mean of token states, w_j = token weight of token j, so that the weights are at hand
for explanations and the last linear map runs once a pair instead of once a token (docs/papers.md has the algebra).

Suffixes: B pairs, L tokens, D encoder width, R latent width, C codes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

ExtractorKind = Literal["none", "cls", "mlp", "poly", "gat"]
MASK_BIAS = -6e4
"""Added to the attention scores of padding: finite in fp16, so that a row of padding alone gives no NaN."""
LEAKY_SLOPE = 0.2


def mask_bias(mask_BL: Tensor, dtype: torch.dtype) -> Tensor:
    """Give 0 for tokens and `MASK_BIAS` for padding, of shape (B, L)."""
    return (1 - mask_BL.to(dtype)) * MASK_BIAS


def uniform_weights(mask_BL: Tensor, dtype: torch.dtype) -> Tensor:
    """Give each token of a pair the same weight; rows sum to 1, or to 0 without tokens."""
    mask_BL = mask_BL.to(dtype)
    return mask_BL / mask_BL.sum(dim=1, keepdim=True).clamp(min=1)


def weighted_sum(weight_BL: Tensor, hidden_BLD: Tensor) -> Tensor:
    """Give Σ_j w_j h_j, of shape (B, D)."""
    return torch.bmm(weight_BL.unsqueeze(1), hidden_BLD).squeeze(1)


class MLPExtractor(nn.Module):
    """Mean over tokens of a two-layer MLP (eq. 10–11); the last layer commutes with the mean and runs once a pair."""

    def __init__(self, width: int, hidden_dim: int | None = None) -> None:
        super().__init__()
        hidden = hidden_dim or width
        self.first = nn.Linear(width, hidden)
        self.second = nn.Linear(hidden, width)
        self.latent_width = width

    def forward(self, hidden_BLD: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Give the latent of shape (B, R) and the token weights of shape (B, L)."""
        weight_BL = uniform_weights(mask_BL, hidden_BLD.dtype)
        pooled = weighted_sum(weight_BL, nn.functional.gelu(self.first(hidden_BLD)))
        return self.second(pooled), weight_BL


class PolyExtractor(nn.Module):
    """Mean of K learned attention poolings (eq. 12–13): w_j = mean_k softmax_j(h_j · u_k / √d)."""

    def __init__(self, width: int, codes: int = 32) -> None:
        super().__init__()
        self.codes_CD = nn.Parameter(torch.randn(codes, width) * 0.02)
        self.latent_width = width

    def forward(self, hidden_BLD: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Give the latent of shape (B, R) and the token weights of shape (B, L)."""
        score_BCL = (hidden_BLD @ self.codes_CD.T).transpose(1, 2) / self.codes_CD.shape[1] ** 0.5
        attention_BCL = torch.softmax(score_BCL + mask_bias(mask_BL, score_BCL.dtype).unsqueeze(1), dim=-1)
        weight_BL = attention_BCL.mean(dim=1)
        return weighted_sum(weight_BL, hidden_BLD), weight_BL


class GATExtractor(nn.Module):
    """One graph attention layer over the complete token graph, averaged over nodes (eq. 14–16).

    With s_i = a₁·W h_i and t_j = a₂·W h_j the layer is r = W Σ_j w_j h_j, w_j = mean_i softmax_j(LeakyReLU(s_i + t_j)):
    neither W h per token nor [W h_i ‖ W h_j] per edge is ever built (methods: exact, checked against the literal loop).
    """

    def __init__(self, width: int, hidden_dim: int | None = None) -> None:
        super().__init__()
        hidden = hidden_dim or width
        self.weight = nn.Linear(width, hidden, bias=False)
        self.attention_2R = nn.Parameter(torch.empty(2, hidden))
        nn.init.xavier_uniform_(self.weight.weight)
        nn.init.xavier_uniform_(self.attention_2R)
        self.latent_width = hidden

    def forward(self, hidden_BLD: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Give the latent of shape (B, R) and the token weights of shape (B, L)."""
        weight_BL = graph_token_weights(hidden_BLD, mask_BL, self.attention_2R @ self.weight.weight)
        return self.weight(weighted_sum(weight_BL, hidden_BLD)), weight_BL


def graph_token_weights(hidden_BLD: Tensor, mask_BL: Tensor, direction_2D: Tensor) -> Tensor:
    """Give w_j = mean over tokens i of softmax_j(LeakyReLU(s_i + t_j)), of shape (B, L).

    Args: direction_2D: rows a₁ᵀW and a₂ᵀW, so that s and t come from one product with the token states.
    """
    source_target_BL2 = hidden_BLD @ direction_2D.T
    score_BLL = source_target_BL2[:, :, :1] + source_target_BL2[:, :, 1:].transpose(1, 2)
    score_BLL = nn.functional.leaky_relu(score_BLL, LEAKY_SLOPE)
    score_BLL = score_BLL + mask_bias(mask_BL, score_BLL.dtype).unsqueeze(1)
    node_BL = uniform_weights(mask_BL, hidden_BLD.dtype)
    return torch.bmm(node_BL.unsqueeze(1), torch.softmax(score_BLL, dim=-1)).squeeze(1)


class CLSExtractor(nn.Module):
    """The ablation without extractor: the latent is the raw [CLS] state."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.latent_width = width

    def forward(self, hidden_BLD: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Give the latent of shape (B, R) and token weights of shape (B, L), all on [CLS]."""
        weight_BL = torch.zeros_like(mask_BL, dtype=hidden_BLD.dtype)
        weight_BL[:, 0] = 1
        return hidden_BLD[:, 0], weight_BL


def make_extractor(
    kind: ExtractorKind, width: int, hidden_dim: int | None, codes: int
) -> MLPExtractor | PolyExtractor | GATExtractor | CLSExtractor | None:
    """Build an extractor by name; None for `none`, the plain cross-encoder."""
    match kind:
        case "none":
            return None
        case "cls":
            return CLSExtractor(width)
        case "mlp":
            return MLPExtractor(width, hidden_dim)
        case "poly":
            return PolyExtractor(width, codes)
        case "gat":
            return GATExtractor(width, hidden_dim)
