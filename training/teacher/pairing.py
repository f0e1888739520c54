"""Which of a pair's answers DPO prefers to which (arXiv:2601.21611, eq. 4): pure functions over scored answers.

The paper sets a wrong answer against a right one and leaves open which of several. Ours: the two are about equally
long, or DPO learns length (Park et al., arXiv:2403.19159); they differ in more than their label, or there is no
reasoning to learn; both are well formed, or it learns a format; the rejected one is drawn without regard to its
perspective.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from training.teacher.samples import Sample
from training.words import chunks

Dropped = Literal["unreadable", "agreed", "no_right_answer", "malformed", "length", "same_words"]
"""Why a pair gives no preference: no answer is readable, they do not differ enough in score, none is right, or no
better and worse answer of it are both well formed, then of like length, then of unlike words."""
DROPPED: tuple[Dropped, ...] = get_args(Dropped)
MALFORMED = frozenset({"not_json", "repaired", "bad_evidence"})
"""Problems of `training.teacher.responses` that make an answer, even a whole one, no model of how to write one."""
_K = TypeVar("_K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Answer:
    """A readable answer with what the choice depends on.

    Args: tokens: of its text; score: 1 or 0 for a right or wrong label, or a reward in [0, 1]; right: its label is the
        pair's.
    """

    sample: Sample
    tokens: int
    score: float
    right: bool

    @property
    def well_formed(self) -> bool:
        """Say whether the text is whole and was read without repair."""
        return MALFORMED.isdisjoint(self.sample.problems) and self.sample.whole


@dataclass(frozen=True, slots=True)
class MatchRule:
    """What a chosen and a rejected answer must have in common, and in what they must differ.

    Args: margin: of score, at least; length_ratio: of their tokens, longer to shorter, at most; max_jaccard: of the
        words of their rationales, not reached; seed: decides which rejected answer is tried first.
    """

    margin: float
    length_ratio: float
    max_jaccard: float
    seed: int


def match_answers(answers: Sequence[Answer], rule: MatchRule) -> tuple[Answer, Answer] | Dropped:
    """Choose a preferred and a rejected answer of one pair.

    Rejected answers are tried in a seeded order; of the better ones that fit, the closest in tokens is chosen.

    Returns: (chosen, rejected), or why there is none: the furthest check that any two answers reached.
    """
    if not any(answer.right for answer in answers):
        return "no_right_answer" if answers else "unreadable"
    better = [(c, r) for r in in_seeded_order(answers, rule.seed) for c in answers if _beats(c, r, rule.margin)]
    if not better:
        return "agreed"
    whole = [(c, r) for c, r in better if c.well_formed and r.well_formed]
    if not whole:
        return "malformed"
    alike = [(c, r) for c, r in whole if length_ratio(c, r) <= rule.length_ratio]
    if not alike:
        return "length"
    told = [(c, r) for c, r in alike if jaccard(c.sample.rationale, r.sample.rationale) < rule.max_jaccard]
    if not told:
        return "same_words"
    rejected = told[0][1]
    candidates = [chosen for chosen, other in told if other is rejected]
    return min(candidates, key=lambda c: (abs(c.tokens - rejected.tokens), _place(c, rule.seed))), rejected


def in_seeded_order(answers: Iterable[Answer], seed: int) -> list[Answer]:
    """Sort answers by a hash of seed, pair, view and sample number: the same order in every run, favouring no view."""
    return sorted(answers, key=lambda answer: _place(answer, seed))


def length_ratio(one: Answer, other: Answer) -> float:
    """Give the tokens of the longer answer over those of the shorter one; an empty answer counts as one token."""
    short, long = sorted((one.tokens, other.tokens))
    return max(1, long) / max(1, short)


def jaccard(one: str, other: str) -> float:
    """Give the overlap of the distinct words of two texts, in [0, 1]; 1 for two texts without words."""
    left, right = set(chunks(one)), set(chunks(other))
    return len(left & right) / len(left | right) if left | right else 1.0


def balanced_quotas(available: Mapping[_K, int], total: int) -> dict[_K, int]:
    """Share a total among groups as equally as what is available allows.

    Each group gets all it has or an equal share, whichever is less, and what is left over goes to the others; the
    remainder of the last division goes to the largest groups.

    Returns: as many as asked for in all, or all there are; in the order of `available`.
    """
    quotas: dict[_K, int] = {}
    rest = min(total, sum(available.values()))
    smallest_first = sorted(available, key=available.__getitem__)
    for number, group in enumerate(smallest_first):
        quotas[group] = min(available[group], rest // (len(smallest_first) - number))
        rest -= quotas[group]
    return {group: quotas[group] for group in available}


def seeded_hash(*parts: object) -> str:
    """Give a hash of some values, by which to sort or draw the same way in every run."""
    return hashlib.sha256("\t".join(map(str, parts)).encode("utf-8", "replace")).hexdigest()


def _beats(chosen: Answer, rejected: Answer, margin: float) -> bool:
    gain = chosen.score - rejected.score
    # Rewards are sums of decimal weights: 0.85 - 0.65 is a margin of 0.2.
    return chosen.right and gain > 0 and gain >= margin - 1e-9


def _place(answer: Answer, seed: int) -> str:
    return seeded_hash(seed, answer.sample.pair_id, answer.sample.view, answer.sample.sample)
