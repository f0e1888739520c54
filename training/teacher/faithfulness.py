"""Whether a rationale is what decides the label: early answering, filler reasoning, and facts that are swapped.

Early answering (Lanham et al., arXiv:2307.13702, section 2.3): the reasoning is cut short and the label forced; a label
that stands from the start was not reasoned out. Filler (section 2.5): dots in place of the words say what length alone
does. Swapped facts: a fact of the item that the rationale cites is replaced by another item's, and the teacher asked
anew; a faithful one cites the new fact and, where the query asked for the old one, changes its label.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relevance.labels import LabelScheme
from relevance.metrics.intervals import Interval
from relevance.pairs import Item, LabelledPair, Pair
from training.measures import Bootstrap
from training.rationale_rows import Evidence, Rationale
from training.teacher.forced_labels import WHOLE, ForcedJob, ForcedLabel, reasoning_of
from training.teacher.grounding import fold, list_pieces, shown_fields, word_places
from training.teacher.judge_measures import mean_intervals
from training.teacher.samples import Sample
from training.words import query_unit

CUTS = {"0": 0.0, "25": 0.25, "50": 0.5, "75": 0.75, WHOLE: 1.0}
"""Share of the reasoning that is kept, by name."""
FILLER = "filler"
DOTS = "..."
_SWAPPED = "#swapped"
_NOT_KNOWN = float("nan")


@dataclass(frozen=True, slots=True)
class Swap:
    """A pair in which one fact of the item was replaced.

    Args: pair: the changed pair, with an item id of its own; field: where the fact stood; old, new: its words;
        asked_for: the query names the old one, so the item now answers it less well.
    """

    pair_id: str
    pair: Pair
    field: str
    old: str
    new: str
    asked_for: bool


def chosen_answers(answers: Sequence[Sample], limit: int) -> list[Sample]:
    """Choose answers with a label and a rationale for the tests: the same ones every time, from all over the split."""
    usable = [answer for answer in answers if answer.readable]
    return sorted(usable, key=lambda answer: query_unit(answer.pair_id, "faithfulness:"))[:limit]


def cut_reasoning(reasoning: Rationale, share: float) -> Rationale:
    """Keep the first part of the evidence and the rationale's words after it, counted together in words."""
    words = reasoning.rationale.split()
    sizes = [max(1, len(f"{row.query_span} {row.item_span}".split())) for row in reasoning.evidence]
    left = int(share * (sum(sizes) + len(words)) + 0.5)
    evidence: list[Evidence] = []
    for row, size in zip(reasoning.evidence, sizes, strict=True):
        if size > left:
            return reasoning.model_copy(update={"evidence": tuple(evidence), "rationale": ""})
        evidence.append(row)
        left -= size
    return reasoning.model_copy(update={"rationale": " ".join(words[:left])})


def filler_reasoning(reasoning: Rationale) -> Rationale:
    """Give as many dots as the rationale has words, without any evidence."""
    return reasoning.model_copy(
        update={"evidence": (), "rationale": " ".join([DOTS] * len(reasoning.rationale.split()))}
    )


def early_jobs(answers: Sequence[Sample], pairs: Mapping[str, Pair]) -> list[ForcedJob]:
    """Give what early answering and the filler control ask: each answer's reasoning at every cut, and as dots.

    Args: pairs: by pair id.
    """
    jobs = []
    for answer in answers:
        whole, pair = reasoning_of(answer), pairs[answer.pair_id]
        parts = {cut: cut_reasoning(whole, share) for cut, share in CUTS.items()}
        parts[FILLER] = filler_reasoning(whole)
        jobs += [ForcedJob(pair, answer.view, cut, part) for cut, part in parts.items()]
    return jobs


def early_figures(
    answers: Sequence[Sample],
    forced: Sequence[ForcedLabel],
    labelled: Mapping[str, LabelledPair],
    scheme: LabelScheme,
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    """Give, at each cut and for the filler, how often the forced label is the answer's own, and how often it is right.

    Answers that are too long for a label to be forced at every cut are left out.

    Args: labelled: by pair id.
    Returns: `n_answers`, `cuts`: name → `same` and `right`, each with its interval, and `gain`: how much more often the
        label is right after the whole reasoning than before any.
    """
    found = {(row.pair_id, row.cut): int(np.argmax(row.probabilities)) for row in forced}
    answers = [a for a in answers if all((a.pair_id, cut) in found for cut in (*CUTS, FILLER))]
    query_id = np.array([labelled[answer.pair_id].pair.query.id for answer in answers], dtype=np.str_)
    own_N = np.array([scheme.index(answer.label or "") for answer in answers], dtype=np.int64)
    gold_N = np.array([scheme.index(labelled[answer.pair_id].label) for answer in answers], dtype=np.int64)
    cuts: dict[str, dict[str, Interval]] = {}
    right: dict[str, NDArray[np.float64]] = {}
    for cut in (*CUTS, FILLER):
        forced_N = np.array([found[answer.pair_id, cut] for answer in answers], dtype=np.int64)
        right[cut] = (forced_N == gold_N).astype(np.float64)
        values = {"same": (forced_N == own_N).astype(np.float64), "right": right[cut]}
        cuts[cut] = mean_intervals(query_id, values, bootstrap)
    gain = mean_intervals(query_id, {"gain": right[WHOLE] - right["0"]}, bootstrap)["gain"]
    return {"n_answers": len(answers), "cuts": cuts, "gain": gain}


def swap_facts(answers: Sequence[Sample], pairs: Mapping[str, Pair], fields: Sequence[str], *, seed: int) -> list[Swap]:
    """Replace, for each answer, one fact of its item that its rationale cites by another item's.

    Facts are the shown fields beside the title, each piece of a list one by itself; the words are replaced wherever the
    item has them, its title included. Answers that cite none, or whose fact nothing else could stand for, give no swap.

    Args: pairs: by pair id, whose items are also where other words come from; fields: as `teacher.prompt.fields`.
    """
    pool: dict[str, dict[str, str]] = defaultdict(dict)
    for pair in pairs.values():
        for field, words in _facts(pair.item, fields):
            pool[field].setdefault(fold(words), words)
    swaps = []
    for answer in answers:
        pair = pairs[answer.pair_id]
        said, query = _said(answer), fold(pair.query.text)
        there = _shown_text(pair.item, fields)
        rng = random.Random(f"{seed}:{answer.pair_id}")
        cited = [(field, words) for field, words in _facts(pair.item, fields) if _cites(said, words)]
        rng.shuffle(cited)
        for field, old in cited:
            others = [
                words
                for key, words in sorted(pool[field].items())
                if not any(_cites(text, words) for text in (said, query, there)) and not _cites(key, old)
            ]
            new = rng.choice(others) if others else old
            changed = _swapped(pair.item, old, new)
            if others and not _cites(_shown_text(changed, fields), old):
                swaps.append(Swap(answer.pair_id, Pair(pair.query, changed), field, old, new, _cites(query, old)))
                break
    return swaps


def swap_figures(
    swaps: Sequence[Swap],
    before: Mapping[str, Sample],
    after: Mapping[str, Sample],
    scheme: LabelScheme,
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    """Give how labels and rationales follow a swapped fact, apart for facts that the query asked for and others.

    Args: before, after: the answers by pair id, of the pair as it was and of the changed pair.
    Returns: by group: `n_pairs`, and with intervals the shares of answers to the changed pair whose label differs
        (`label_changed`), has a lower gain (`label_lower`), and whose text cites the new fact (`cites_new`) or still
        the old one (`cites_old`); unreadable answers count in none but `answered`.
    """
    groups: dict[str, Any] = {}
    for name, asked in (("asked_for", True), ("not_asked_for", False)):
        own = [swap for swap in swaps if swap.asked_for == asked]
        rows = [_followed(swap, before[swap.pair_id], after[swap.pair.pair_id], scheme) for swap in own]
        query_id = np.array([swap.pair.query.id for swap in own], dtype=np.str_)
        values = {key: np.array([row[key] for row in rows], dtype=np.float64) for key in (rows[0] if rows else {})}
        groups[name] = {"n_pairs": len(own), **(mean_intervals(query_id, values, bootstrap) if rows else {})}
    return groups


def whole_probabilities(forced: Sequence[ForcedLabel], pair_ids: Sequence[str], n_classes: int) -> NDArray[np.float64]:
    """Give the probabilities after the whole reasoning, float64 of shape (N, K), rows of nan where there are none."""
    found = {row.pair_id: row.probabilities for row in forced if row.cut == WHOLE}
    none = (_NOT_KNOWN,) * n_classes
    rows = [found.get(pair_id, none) for pair_id in pair_ids]
    return np.array(rows, dtype=np.float64).reshape(len(rows), n_classes)


def _facts(item: Item, fields: Sequence[str]) -> list[tuple[str, str]]:
    shown = shown_fields(item, fields)
    return [(name, piece) for name, text in shown.items() if name != "title" for piece in list_pieces(text)]


def _shown_text(item: Item, fields: Sequence[str]) -> str:
    return " | ".join(map(fold, shown_fields(item, fields).values()))


def _said(answer: Sample) -> str:
    return fold(" | ".join([answer.rationale, *(row.item_span for row in answer.evidence)]))


def _cites(folded: str, words: str) -> bool:
    return next(word_places(fold(words), folded), None) is not None


def _swapped(item: Item, old: str, new: str) -> Item:
    def changed(text: str | None) -> str | None:
        """Give a text with the new words; one that has the old words only in another form stays as it is."""
        if text is None:
            return None
        folded, lower = fold(old), text.casefold()
        for start, end in reversed(list(word_places(folded, lower)) if len(lower) == len(text) else []):
            text = text[:start] + new + text[end:]
        return text

    return replace(
        item,
        id=f"{item.id}{_SWAPPED}",
        title=changed(item.title) or "",
        brand=changed(item.brand),
        color=changed(item.color),
        text=changed(item.text),
        attributes={name: changed(text) or "" for name, text in item.attributes.items()},
    )


def _followed(swap: Swap, before: Sample, after: Sample, scheme: LabelScheme) -> dict[str, float]:
    if after.label is None or before.label is None:
        return {"answered": 0.0} | dict.fromkeys(("label_changed", "label_lower", "cites_new", "cites_old"), _NOT_KNOWN)
    said, gain_K = _said(after), scheme.gain_K
    was, now = scheme.index(before.label), scheme.index(after.label)
    return {
        "answered": 1.0,
        "label_changed": float(was != now),
        "label_lower": float(gain_K[now] < gain_K[was]),
        "cites_new": float(_cites(said, swap.new)),
        "cites_old": float(_cites(said, swap.old)),
    }
