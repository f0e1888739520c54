"""Training-only terms of the loss and what they read beside a pair's tokens; none of it is saved with the student."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from relevance.tokenization import PairBatch

if TYPE_CHECKING:
    from training.student.batches import Batch
    from training.student.model import Student, StudentOutput


class SideInputs(Protocol):
    """Arrays that one term needs of each pair of a batch."""

    def arrays(self, chosen_B: NDArray[np.int64], ids: PairBatch) -> dict[str, NDArray[np.generic]]:
        """Give arrays whose first axis is the B pairs.

        Args: chosen_B: the pairs' places in the training set; ids: their tokens as the student reads them.
        """
        ...


class Term(nn.Module):
    """One more summand of the loss, with parameters of its own where it needs some.

    Subclasses set `name` (its name in the ledger) and `weight`, and define `forward`.
    """

    name: str
    weight: float

    def forward(self, student: Student, output: StudentOutput, batch: Batch) -> Tensor:
        """Give the unweighted loss, a scalar.

        Args: output: of the student on the batch; batch: `batch.side` holds what the term's `SideInputs` gave.
        """
        raise NotImplementedError
