"""Latent reasoning extractors: token states → latent (arXiv:2601.21611, appendix A), in their folded form.

Each extractor ends in a weighted mean of token states, w_j = token weight of token j, so that the weights are at hand
for explanations and the last linear map runs once a pair instead of once a token (docs/papers.md has the algebra).

Suffixes: B pairs, L tokens, D encoder width, R latent width, C codes, A attention width, P perspectives.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training.student_recipe import ExtractorRecipe

MASK_BIAS = -6e4
"""Added to the attention scores of padding: finite in fp16, so that a row of padding alone gives no NaN."""
LEAKY_SLOPE = 0.2
GATV2_WIDTH = 32
"""Width of GATv2's hidden scores: they are made for each edge, so the encoder's width would cost L² · D a pair."""


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
    return mean_attention(nn.functional.leaky_relu(score_BLL, LEAKY_SLOPE), mask_BL)


def mean_attention(score_BLL: Tensor, mask_BL: Tensor) -> Tensor:
    """Give the mean over tokens i of softmax_j of their scores, padding left out on both sides; shape (B, L)."""
    score_BLL = score_BLL + mask_bias(mask_BL, score_BLL.dtype).unsqueeze(1)
    node_BL = uniform_weights(mask_BL, score_BLL.dtype)
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


class GATv2Extractor(nn.Module):
    """The same layer with dynamic attention (Brody et al., arXiv:2105.14491), which ranks tokens per token.

    α_ij = aᵀ LeakyReLU(U h_i + V h_j), r = W Σ_j w_j h_j with w_j = mean_i softmax_j(α_ij).
    """

    def __init__(self, width: int, hidden_dim: int | None = None) -> None:
        super().__init__()
        hidden = hidden_dim or width
        self.weight = nn.Linear(width, hidden, bias=False)
        self.source = nn.Linear(width, GATV2_WIDTH, bias=False)
        self.target = nn.Linear(width, GATV2_WIDTH)
        self.attention = nn.Linear(GATV2_WIDTH, 1, bias=False)
        nn.init.xavier_uniform_(self.weight.weight)
        self.latent_width = hidden

    def forward(self, hidden_BLD: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Give the latent of shape (B, R) and the token weights of shape (B, L)."""
        edge_BLLA = self.source(hidden_BLD).unsqueeze(2) + self.target(hidden_BLD).unsqueeze(1)
        score_BLL = self.attention(nn.functional.leaky_relu(edge_BLLA, LEAKY_SLOPE)).squeeze(-1)
        weight_BL = mean_attention(score_BLL, mask_BL)
        return self.weight(weighted_sum(weight_BL, hidden_BLD)), weight_BL


class SlotExtractor(nn.Module):
    """One extractor a perspective and a gate over them (ours): r = Σ_p g_p r_p, g = softmax(G h_cls)."""

    def __init__(self, extractors: Sequence[nn.Module], width: int) -> None:
        super().__init__()
        self.extractors = nn.ModuleList(extractors)
        self.gate = nn.Linear(width, len(extractors))
        self.latent_width: int = extractors[0].latent_width  # type: ignore[assignment]

    def slots(self, hidden_BLD: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Give each perspective's latent, of shape (B, P, R), and token weights, of shape (B, P, L)."""
        latents, weights = zip(*(extractor(hidden_BLD, mask_BL) for extractor in self.extractors), strict=True)
        return torch.stack(latents, dim=1), torch.stack(weights, dim=1)

    def mix(self, hidden_BLD: Tensor, slots_BPR: Tensor, weights_BPL: Tensor) -> tuple[Tensor, Tensor]:
        """Give the gated latent of shape (B, R) and token weights of shape (B, L)."""
        gate_B1P = torch.softmax(self.gate(hidden_BLD[:, 0]), dim=-1).unsqueeze(1)
        return torch.bmm(gate_B1P, slots_BPR).squeeze(1), torch.bmm(gate_B1P, weights_BPL).squeeze(1)

    def forward(self, hidden_BLD: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Give the latent of shape (B, R) and the token weights of shape (B, L)."""
        return self.mix(hidden_BLD, *self.slots(hidden_BLD, mask_BL))


Extractor = MLPExtractor | PolyExtractor | GATExtractor | GATv2Extractor | CLSExtractor | SlotExtractor


def make_extractor(recipe: ExtractorRecipe, width: int, n_perspectives: int) -> Extractor | None:
    """Build the recipe's extractor; None for `none`, the plain cross-encoder.

    Args: n_perspectives: P of the slots.
    """
    if recipe.kind == "none":
        return None
    if recipe.slots:
        return SlotExtractor([_one_extractor(recipe, width) for _ in range(n_perspectives)], width)
    return _one_extractor(recipe, width)


def _one_extractor(
    recipe: ExtractorRecipe, width: int
) -> MLPExtractor | PolyExtractor | GATExtractor | GATv2Extractor | CLSExtractor:
    match recipe.kind:
        case "mlp":
            return MLPExtractor(width, recipe.hidden_dim)
        case "poly":
            return PolyExtractor(width, recipe.codes)
        case "gat":
            return GATExtractor(width, recipe.hidden_dim)
        case "gatv2":
            return GATv2Extractor(width, recipe.hidden_dim)
        case _:
            return CLSExtractor(width)
