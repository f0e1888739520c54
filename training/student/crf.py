"""A linear-chain conditional random field over token tags (Lafferty, McCallum and Pereira, ICML 2001); training only.

Suffixes: B sequences, L steps, T tags (twice in a matrix: from, to).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LinearChainCrf(nn.Module):
    """Scores of a tag sequence: its emissions, its transitions, and how it starts and ends.

    p(y|x) = exp(s(x, y) − log Z(x)), s = start[y_1] + Σ_t emission[t, y_t] + Σ_t transition[y_{t−1}, y_t] + end[y_n].
    A mask is True on the first n ≥ 1 steps of a sequence and False after them; the first step of every sequence must
    be unmasked, and steps in between are left out by moving the later ones up before the call.
    """

    def __init__(self, n_tags: int) -> None:
        super().__init__()
        self.start_T = nn.Parameter(torch.zeros(n_tags))
        self.end_T = nn.Parameter(torch.zeros(n_tags))
        self.transition_TT = nn.Parameter(torch.empty(n_tags, n_tags))
        nn.init.uniform_(self.transition_TT, -0.1, 0.1)

    def forward(self, emission_BLT: Tensor, tag_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Give the negative log likelihood of each tag sequence, of shape (B,).

        Args: emission_BLT: float32; tag_BL: int64, any valid tag where masked.
        """
        return self.log_partition(emission_BLT, mask_BL) - self.score(emission_BLT, tag_BL, mask_BL)

    def score(self, emission_BLT: Tensor, tag_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Give s(x, y) of each sequence, of shape (B,)."""
        emitted_BL = emission_BLT.gather(2, tag_BL.unsqueeze(2)).squeeze(2)
        moved_BL = self.transition_TT[tag_BL[:, :-1], tag_BL[:, 1:]]
        last_B = tag_BL.gather(1, mask_BL.sum(dim=1, keepdim=True) - 1).squeeze(1)
        inner_B = (emitted_BL * mask_BL).sum(dim=1) + (moved_BL * mask_BL[:, 1:]).sum(dim=1)
        return inner_B + self.start_T[tag_BL[:, 0]] + self.end_T[last_B]

    def log_partition(self, emission_BLT: Tensor, mask_BL: Tensor) -> Tensor:
        """Give log Z(x) of each sequence by the forward recursion in log space, of shape (B,)."""
        alpha_BT = self.start_T + emission_BLT[:, 0]
        for step in range(1, emission_BLT.shape[1]):
            moved_BT = torch.logsumexp(alpha_BT.unsqueeze(2) + self.transition_TT, dim=1) + emission_BLT[:, step]
            alpha_BT = torch.where(mask_BL[:, step].unsqueeze(1), moved_BT, alpha_BT)
        return torch.logsumexp(alpha_BT + self.end_T, dim=1)

    @torch.no_grad()
    def decode(self, emission_BLT: Tensor, mask_BL: Tensor) -> list[list[int]]:
        """Give each sequence's best tags (Viterbi), without the masked steps."""
        best_BT = self.start_T + emission_BLT[:, 0]
        come_from = []
        for step in range(1, emission_BLT.shape[1]):
            moved_BT, from_BT = (best_BT.unsqueeze(2) + self.transition_TT).max(dim=1)
            best_BT = torch.where(mask_BL[:, step].unsqueeze(1), moved_BT + emission_BLT[:, step], best_BT)
            come_from.append(from_BT.tolist())
        last = (best_BT + self.end_T).argmax(dim=1).tolist()
        paths = []
        for row, length in enumerate(mask_BL.sum(dim=1).tolist()):
            path = [last[row]]
            for from_BT_list in reversed(come_from[: length - 1]):
                path.append(from_BT_list[row][path[-1]])
            paths.append(path[::-1])
        return paths
