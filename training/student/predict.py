"""Logits of a torch student for any pairs, and the figure that training selects by. Suffixes: N pairs, K classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from relevance.calibration import expected_gain, softmax
from relevance.labels import LabelScheme
from relevance.metrics.classification import auc, macro_f1
from relevance.pairs import Pair
from relevance.tokenization import PairTokenizer
from training.student.batches import encode_queries
from training.student.model import Student


@torch.inference_mode()
def predict(
    student: Student, tokenizer: PairTokenizer, pairs: Sequence[Pair], *, batch_size: int = 64
) -> NDArray[np.float64]:
    """Give the logits of pairs in their order, float64 of shape (N, K); batches are sorted by length."""
    was_training = student.training
    student.eval()
    device = next(student.parameters()).device
    template = student.config.template
    queries = encode_queries(pairs, template, tokenizer)
    items = tokenizer.encode_items([template.item_text(pair.item) for pair in pairs])
    by_length = np.argsort([len(q) + len(i) for q, i in zip(queries, items, strict=True)], kind="stable")
    logits_NK = np.empty((len(pairs), student.config.label_scheme.n_classes))
    for start in range(0, len(pairs), batch_size):
        chosen = by_length[start : start + batch_size]
        batch = tokenizer.collate([queries[i] for i in chosen], [items[i] for i in chosen])
        tensors = {name: torch.from_numpy(array).to(device) for name, array in batch.inputs().items()}
        logits_NK[chosen] = student(**tensors).logits_BK.float().cpu().numpy()
    student.train(was_training)
    return logits_NK


def selection_figure(label_N: NDArray[np.int64], logits_NK: NDArray[np.float64], scheme: LabelScheme) -> float:
    """Give what early stopping maximises: the mean of AUC Exact (by score), AUC Irrelevant and macro-F1.

    Figures that the labels do not allow (one class only) are left out of the mean.
    """
    probabilities_NK = softmax(logits_NK)
    figures = [
        auc(label_N == scheme.exact, expected_gain(probabilities_NK, scheme)),
        auc(label_N == scheme.irrelevant, probabilities_NK[:, scheme.irrelevant]),
        macro_f1(label_N, probabilities_NK.argmax(axis=1), scheme.n_classes),
    ]
    return float(np.nanmean(figures))
