"""What a trained student holds of each pair: the states that the probing study reads. The student stays as it is.

Suffixes: B pairs of a batch, N pairs, D encoder width, R latent width, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from relevance.pairs import Pair
from relevance.tokenization import PairTokenizer
from training.student.batches import encode_queries
from training.student.extractor import uniform_weights, weighted_sum
from training.student.model import Student

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class States:
    """Last-layer states of N pairs, in their order.

    Args: cls_ND: of [CLS]; mean_ND: mean over the pair's tokens; latent_NR: of the extractor, None without one;
        logits_NK: the student's answer.
    """

    cls_ND: Floats
    mean_ND: Floats
    latent_NR: Floats | None
    logits_NK: Floats


@torch.inference_mode()
def collect_states(
    student: Student, tokenizer: PairTokenizer, pairs: Sequence[Pair], *, batch_size: int = 64
) -> States:
    """Run a student in evaluation mode over pairs and keep its states; batches are sorted by length.

    Raises: QueryTooLongError: if a query has more tokens than the student's limit.
    """
    device = next(student.parameters()).device
    template = student.config.template
    queries = encode_queries(pairs, template, tokenizer)
    items = tokenizer.encode_items([template.item_text(pair.item) for pair in pairs])
    by_length = np.argsort([len(q) + len(i) for q, i in zip(queries, items, strict=True)], kind="stable")
    parts: dict[str, list[torch.Tensor]] = {"cls_ND": [], "mean_ND": [], "latent_NR": [], "logits_NK": []}
    for start in range(0, len(pairs), batch_size):
        chosen = by_length[start : start + batch_size]
        batch = tokenizer.collate([queries[i] for i in chosen], [items[i] for i in chosen])
        tensors = {name: torch.from_numpy(array).to(device) for name, array in batch.inputs().items()}
        output = student(**tensors)
        weights_BL = uniform_weights(tensors["attention_mask"], output.hidden_BLD.dtype)
        parts["cls_ND"].append(output.hidden_BLD[:, 0])
        parts["mean_ND"].append(weighted_sum(weights_BL, output.hidden_BLD))
        parts["logits_NK"].append(output.logits_BK)
        if output.latent_BR is not None:
            parts["latent_NR"].append(output.latent_BR)
    back = np.argsort(by_length)
    arrays = {name: torch.cat(part).float().cpu().numpy()[back] for name, part in parts.items() if part}
    return States(arrays["cls_ND"], arrays["mean_ND"], arrays.get("latent_NR"), arrays["logits_NK"])


def with_fresh_extractor(student: Student, seed: int) -> Student:
    """Give a student of the same encoder, shared and untouched, whose extractor and head are newly initialised."""
    device = next(student.parameters()).device
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fresh = Student(student.config, student.encoder)
    return fresh.eval().to(device)


def random_projection(states_ND: Floats, width: int, seed: int) -> Floats:
    """Give the states times a seeded Gaussian matrix of variance 1 / D; shape (N, width)."""
    matrix_DR = np.random.default_rng([seed, 41]).normal(size=(states_ND.shape[1], width))
    return np.asarray(states_ND @ (matrix_DR / np.sqrt(states_ND.shape[1])), dtype=np.float32)
