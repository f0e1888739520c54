"""Everything an inspection says, as plain data; the texts of the rows it shows are read at the end."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relevance.labels import LabelScheme
from training.inspection import confusion, examples, noise
from training.inspection.examples import Shown
from training.inspection.reading import Judge, Left, PairRow
from training.inspection.rows import UNLABELLED, Rows, RuleOutcomes, rule_outcomes
from training.inspection.what_if import what_if
from training.words import stems

_LONGEST_TEXT = 300
"""Characters of a query or title that the page shows."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is computed and shown: examples of each list, categories of their own, draws of the bootstrap."""

    shown: Shown
    most_categories: int = 20
    draws: int = 1000
    seed: int = 0


def inspect_rows(rows: Rows, left: Left, judge: Judge, extent: Extent) -> dict[str, Any]:
    """Give every figure and list; rows of a list are indices until `with_texts` has read them.

    Raises: InputError: if the tiers are not those of the policy.
    """
    scheme, policy = judge.scheme, judge.policy
    outcomes: RuleOutcomes = rule_outcomes(rows, policy, scheme)
    labelled = bool(rows.labelled_N.any())
    return {
        "scheme": {"name": scheme.name, "classes": list(scheme.classes), "titles": list(scheme.titles)},
        "policy": {
            "version": policy.version,
            "filter_tier": policy.filter_tier,
            "rules": [rule.name for rule in policy.rules],
            "uncertified": [name for name in rows.locales if not policy.cut_points(name).certified],
        },
        "left_out": {
            "unscored": dict(sorted(left.unscored.items())),
            "exact_only": left.exact_only,
            "not_scored": left.not_scored,
        },
        "has_labels": labelled,
        "has_probabilities": rows.probabilities_NK is not None,
        "rules_known": rows.rules_known,
        "locales": _sizes(rows.locale_N, rows.locales),
        "has_categories": len(rows.categories) > 1,
        "draws": extent.draws,
        "small": {"rows": confusion.SMALL_ROWS, "queries": confusion.SMALL_QUERIES},
        "per_query": extent.shown.per_query,
        "overview": confusion.overview(rows, scheme, draws=extent.draws, seed=extent.seed),
        "confusions": confusion.confusions(rows, scheme, most_categories=extent.most_categories) if labelled else None,
        "what_if": what_if(rows, outcomes, policy, scheme),
        "examples": examples.worst(rows, scheme, extent.shown) if labelled else None,
        "noise": noise.confident_suspects(rows, scheme, extent.shown),
        "duplicates": noise.duplicate_suspects(rows, scheme, extent.shown),
    }


def with_texts(
    report: dict[str, Any], rows: Rows, scheme: LabelScheme, reading: Iterator[PairRow] | None
) -> dict[str, Any]:
    """Put each shown row in the place of its index.

    Args: reading: of the pairs file, from its start again; None where there is none.
    """
    lists = [entry["rows"] for entry in report["examples"] or []]
    if report["noise"] is not None:
        lists.append(report["noise"]["rows"])
    pairs = report["duplicates"]["pairs"] if report["duplicates"] is not None else []
    wanted = {i for own in lists for i in own} | {pair[side] for pair in pairs for side in ("first", "second")}
    texts = _texts({int(rows.place_N[i]) for i in wanted}, reading)
    shown = {i: _shown(rows, scheme, i, texts) for i in wanted}
    full = dict(report)
    if report["examples"] is not None:
        full["examples"] = [entry | {"rows": [shown[i] for i in entry["rows"]]} for entry in report["examples"]]
    if report["noise"] is not None:
        found = report["noise"]
        suspects = zip(found["rows"], found["likely"], strict=True)
        full["noise"] = {name: value for name, value in found.items() if name != "likely"} | {
            "rows": [shown[i] | _likely(rows, scheme, i, k) for i, k in suspects]
        }
    if report["duplicates"] is not None:
        full["duplicates"] = report["duplicates"] | {
            "pairs": [_compared(shown[pair["first"]], shown[pair["second"]], pair["similarity"]) for pair in pairs]
        }
    return full


def plain(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Give plain data in which nan, which JSON cannot hold, is None, and half characters, which UTF-8 cannot, are ?."""
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else value


def _texts(places: set[int], reading: Iterator[PairRow] | None) -> dict[int, PairRow]:
    found: dict[int, PairRow] = {}
    if places and reading is not None:
        last = max(places)
        for row in reading:
            if row.number in places:
                found[row.number] = row
            if row.number >= last:
                break
    return found


def _shown(rows: Rows, scheme: LabelScheme, i: int, texts: Mapping[int, PairRow]) -> dict[str, Any]:
    place, label, predicted = int(rows.place_N[i]), int(rows.label_N[i]), int(rows.predicted_N[i])
    judged = texts.get(place)
    chances = None if rows.probabilities_NK is None else rows.probabilities_NK[i]
    return {
        "row": place,
        "query_id": _cut(judged.pair.query.id) if judged else None,
        "item_id": _cut(str(judged.pair.item.id)) if judged else None,
        "query": _cut(judged.pair.query.text) if judged else None,
        "title": _cut(judged.pair.item.title) if judged else None,
        "locale": rows.locales[rows.locale_N[i]],
        "category": rows.categories[rows.category_N[i]] or None,
        "label": None if label == UNLABELLED else scheme.classes[label],
        "predicted": scheme.classes[predicted],
        "score": round(float(rows.score_N[i]), 4),
        "tier": int(rows.tier_N[i]),
        "kept": bool(rows.kept_N[i]),
        "p_label": None if chances is None or label == UNLABELLED else round(float(chances[label]), 4),
        "p_predicted": None if chances is None else round(float(chances[predicted]), 4),
    }


def _likely(rows: Rows, scheme: LabelScheme, i: int, likely: int) -> dict[str, Any]:
    chances = rows.probabilities_NK
    return {
        "likely": scheme.classes[likely],
        "p_likely": None if chances is None else round(float(chances[i, likely]), 4),
    }


def _compared(first: dict[str, Any], second: dict[str, Any], similarity: float) -> dict[str, Any]:
    """Join two near-duplicates with the words that only one of them has."""
    own, other = (set(stems(side["title"] or "")) for side in (first, second))
    return {
        "similarity": similarity,
        "first": first,
        "second": second,
        "only_first": sorted(own - other),
        "only_second": sorted(other - own),
    }


def _sizes(code_N: NDArray[np.int64], names: tuple[str, ...]) -> dict[str, int]:
    return dict(zip(names, np.bincount(code_N, minlength=len(names)).tolist(), strict=True))


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"
