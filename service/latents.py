"""What a graph gives beside logits, on its way from a batch to the answer that is explained by it.

Suffixes: B pairs, L tokens, R width of the latent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WEIGHTS_OUTPUT = "token_weights"
"""Name of the graph output that explanations take beside the latent, where there is one."""


@dataclass(frozen=True, slots=True)
class Latents:
    """Latents and token weights of some pairs.

    Args: latent_BR: float32, NaN where there is none; weight_BL: float32, each token's share, 0 behind a pair's end;
        L = 0 where the graph gives none.
    """

    latent_BR: NDArray[np.float32]
    weight_BL: NDArray[np.float32]

    @classmethod
    def empty(cls, n_pairs: int, *, n_tokens: int, like: Latents) -> Latents:
        """Give room for the latents of some pairs.

        Args: n_tokens: of the longest; like: latents of the same graph.
        """
        latent_BR = np.full((n_pairs, like.latent_BR.shape[1]), np.nan, dtype=np.float32)
        return cls(latent_BR, np.zeros((n_pairs, n_tokens if like.weight_BL.shape[1] else 0), dtype=np.float32))

    def put(self, rows: NDArray[np.int64], found: Latents) -> None:
        """Take what a batch found for some pairs; its padding may differ."""
        n_tokens = min(self.weight_BL.shape[1], found.weight_BL.shape[1])
        self.latent_BR[rows] = found.latent_BR
        self.weight_BL[rows, :n_tokens] = found.weight_BL[:, :n_tokens]

    def part(self, start: int, stop: int) -> Latents:
        """Give those of the pairs from one place to before another."""
        return Latents(self.latent_BR[start:stop], self.weight_BL[start:stop])
