"""The multi-dimensional reward of CRSD's teacher (arXiv:2510.11056), by which `preferences.builder = "reward"` pairs
answers.

The paper names no dimensions. Ours is a gated product: a wrong label is worth nothing, and of a right one

    reward = 0.35 grounding + 0.25 consistency + 0.2 coverage + 0.1 compliance + 0.1 brevity

where every part is in [0, 1] and reads the answer, the pair and the scheme, never another model:

- grounding: share of the spans the rationale points at that stand in the query or the item's shown fields
  (`training.teacher.grounding`); 0 if it points at none.
- consistency: whether the label follows from the evidence: the most relevant class wants no mismatch, any other class
  wants a mismatch or something missing; 1 or 0, and 0.5 without evidence.
- coverage: share of the query's distinct words (as stems) that the evidence's query spans hold, or, without evidence,
  the rationale.
- compliance: share of the evidence that keeps the marketplace's rules: a match or mismatch names words on both sides,
  what is missing names none of the item, and a mismatch in what the item is (`GOVERNED`) is never the most relevant
  class; 1 without evidence, as no rule is broken.
- brevity: 1 up to 60 words of rationale, 0 from 240 on or without any, falling evenly between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from relevance.labels import LabelScheme
from relevance.pairs import LabelledPair, Pair
from training.rationale_rows import Evidence
from training.teacher.grounding import consistent, spans_found
from training.teacher.samples import Sample
from training.words import stems

GOVERNED = frozenset({"accessory", "type", "brand", "negation"})
"""Dimensions that business rules decide on: a mismatch there is never the most relevant class."""
FULL_WORDS, NO_WORDS = 60, 240


@dataclass(frozen=True, slots=True)
class Reward:
    """The parts of an answer's reward, each in [0, 1].

    Args: right: the answer's label is the pair's; without it the total is 0.
    """

    right: bool
    grounding: float
    consistency: float
    coverage: float
    compliance: float
    brevity: float

    @property
    def total(self) -> float:
        """The gated product."""
        parts = (
            0.35 * self.grounding
            + 0.25 * self.consistency
            + 0.2 * self.coverage
            + 0.1 * self.compliance
            + 0.1 * self.brevity
        )
        return parts if self.right else 0.0


def reward_answer(sample: Sample, labelled: LabelledPair, scheme: LabelScheme, fields: Sequence[str]) -> Reward:
    """Give the reward of one answer.

    Args: fields: item fields that the prompt shows beside the title, as `teacher.prompt.fields`.
    """
    pair, label, evidence = labelled.pair, sample.label, sample.evidence
    spans = spans_found(evidence, sample.rationale, pair, fields)
    follows = None if label is None else consistent(label, evidence, scheme)
    exact = label is not None and scheme.index(label) == scheme.exact
    return Reward(
        right=label == labelled.label,
        grounding=spans.share if spans.total else 0.0,
        consistency=0.5 if follows is None else float(follows),
        coverage=coverage(pair, evidence, sample.rationale),
        compliance=float(np.mean([_complies(one, exact) for one in evidence])) if evidence else 1.0,
        brevity=brevity(sample.rationale),
    )


def coverage(pair: Pair, evidence: Sequence[Evidence], rationale: str) -> float:
    """Give the share of the query's distinct stems that the evidence holds, or without evidence the rationale."""
    asked = set(stems(pair.query.text))
    read = set(stems(" ".join(one.query_span for one in evidence) if evidence else rationale))
    return len(asked & read) / len(asked) if asked else 0.0


def brevity(rationale: str) -> float:
    """Give 1 for at most `FULL_WORDS` words, 0 for none or at least `NO_WORDS`, and a straight line between."""
    words = len(rationale.split())
    return float(np.clip((NO_WORDS - words) / (NO_WORDS - FULL_WORDS), 0.0, 1.0)) if words else 0.0


def _complies(evidence: Evidence, exact: bool) -> bool:
    query_words, item_words = bool(evidence.query_span.strip()), bool(evidence.item_span.strip())
    if evidence.verdict == "missing":
        return not item_words
    broken = exact and evidence.verdict == "mismatch" and evidence.dim in GOVERNED
    return query_words and item_words and not broken
