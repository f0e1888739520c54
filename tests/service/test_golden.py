"""The golden replay: what a wrong graph, tokenizer or template does to it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from relevance.errors import ParityError
from relevance.tokenization import PairBatch, PairTokenizer
from service.golden import replay
from service.model import Model


class _ZeroedSegments:
    """A session that loses the token types on their way to the graph."""

    def __init__(self, session) -> None:
        self.session = session

    def run(self, batch):
        """Run with token types 0."""
        zeros = np.zeros_like(batch.token_type_ids_BL)
        return self.session.run(PairBatch(batch.input_ids_BL, batch.attention_mask_BL, zeros))


class _FirstRowOnly:
    """A session that is right for the first row of a batch only, as some accelerated graphs were."""

    def __init__(self, session) -> None:
        self.session = session

    def run(self, batch):
        """Repeat the first row's logits."""
        logits_BK = self.session.run(batch)
        return np.repeat(logits_BK[:1], len(logits_BK), axis=0)


def test_the_exported_graph_passes(model: Model):
    """Every golden pair agrees within the manifest's tolerance."""
    shown = replay(model.bundle, model.session, model.session.precision)

    assert len(model.bundle.golden) == shown.n_pairs
    assert shown.max_abs_difference <= shown.tolerance


def test_zeroed_segments_are_found(model: Model):
    """Token types that do not reach the graph change logits by more than the tolerance."""
    with pytest.raises(ParityError, match=r"golden pair \d+ alone: expected .* logits within"):
        replay(model.bundle, _ZeroedSegments(model.session), model.session.precision)


def test_a_session_that_is_right_alone_but_wrong_in_a_batch_is_found(model: Model):
    """The replay runs batches of more than one pair."""
    with pytest.raises(ParityError, match="in a batch"):
        replay(model.bundle, _FirstRowOnly(model.session), model.session.precision)


def test_nan_logits_are_found(model: Model):
    """NaN is not within any tolerance."""

    class Nan:
        def run(self, batch):
            return np.full((len(batch.input_ids_BL), model.bundle.scheme.n_classes), np.nan, dtype=np.float32)

    with pytest.raises(ParityError, match="difference of nan"):
        replay(model.bundle, Nan(), model.session.precision)


def test_a_wrong_tokenizer_is_found(model: Model):
    """A tokenizer that keeps fewer item tokens gives other ids than the golden ones."""
    right = model.bundle.tokenizer
    longest = max(len(pair.input_ids) for pair in model.bundle.golden)
    wrong = PairTokenizer.from_bytes(right.to_bytes(), max_query_tokens=longest - 5, max_pair_tokens=longest - 1)

    with pytest.raises(ParityError, match="token ids exactly"):
        replay(replace(model.bundle, tokenizer=wrong), model.session, model.session.precision)


def test_a_bundle_without_golden_pairs_is_not_served(model: Model):
    """Fewer than two golden pairs prove nothing."""
    with pytest.raises(ParityError, match="at least 2 golden pairs"):
        replay(replace(model.bundle, golden=()), model.session, model.session.precision)
