"""Writing policy.toml: the one form of a tier policy that people edit, with comments."""

from __future__ import annotations

import json
from collections.abc import Mapping

from relevance.policy import CutPoints, TierPolicy

_HEAD = """\
# Tier policy: a pair's score and probabilities decide its tier (0 to 4) and whether it is kept.
# values = the scores at which the tier rises: 0|1, 1|2, 2|3, 3|4; equal neighbours merge two tiers.
# certified = it was shown on calibration data that at most epsilon of the Exact pairs are filtered, business rules
# included: bound is the upper confidence bound (one Exact pair of each of n_exact queries), bootstrap_bound the one on
# all Exact pairs. Where it is false, tiers are reported and nothing is filtered. A cut changed by hand is no longer
# certified: say so. Give a changed policy a new version.
"""


def render_policy(policy: TierPolicy, notes: Mapping[str, str] | None = None) -> bytes:
    """Give the text of a policy that `TierPolicy.from_toml` reads back equal.

    Args: notes: `pooled` or a locale → one line put above its cut points.
    """
    notes = notes or {}
    lines = [
        _HEAD,
        f"schema_version = {policy.schema_version}",
        f"version = {_value(policy.version)}",
        f"filter_tier = {policy.filter_tier}  # pairs of a lower tier are filtered",
    ]
    if policy.label_weights:
        lines.append(f"label_weights = {_value(policy.label_weights)}  # the label is the largest weighted probability")
    tables = {"pooled": policy.pooled, **{f"locales.{_value(name)}": cuts for name, cuts in policy.locales.items()}}
    for (table, cuts), name in zip(tables.items(), ("pooled", *policy.locales), strict=True):
        lines += ["", *([f"# {notes[name]}"] if name in notes else []), f"[{table}]", *_cut_lines(cuts)]
    if policy.aliases:
        lines += ["", "# locale tags of requests, in lower case → the locale whose cut points they take", "[aliases]"]
        lines += [f"{_value(alias)} = {_value(target)}" for alias, target in policy.aliases.items()]
    for rule in policy.rules:
        lines += ["", "[[rules]]"]
        fields = rule.model_dump(exclude_defaults=True)
        lines += [f"{key} = {_value(value)}" for key, value in fields.items()]
    return ("\n".join(lines) + "\n").encode()


def _cut_lines(cuts: CutPoints) -> list[str]:
    return [f"{key} = {_value(value)}" for key, value in cuts.model_dump().items()]


def _value(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_value(k)} = {_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)
