"""Small scored files whose figures can be counted by hand, and the report and page that `relevance inspect` makes."""

import json
from pathlib import Path

from training.inspection.command import DATA, PAGE, main

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "service" / "default_bundle"
CUTS = (0.1, 0.3, 0.5, 0.8)
POLICY = """\
schema_version = 1
version = "by-hand"
filter_tier = 2
[pooled]
values = [0.1, 0.3, 0.5, 0.8]
certified = true
[locales.us]
values = [0.1, 0.3, 0.5, 0.8]
certified = true
[locales.jp]
values = [0.1, 0.4, 0.5, 0.8]
certified = false
[[rules]]
name = "complements"
class_at_least = { C = 0.5 }
cap_tier = 1
"""
EXACT = (0.97, 0.01, 0.01, 0.01)
SUBSTITUTE = (0.4, 0.56, 0.02, 0.02)
COMPLEMENT = (0.3, 0.1, 0.55, 0.05)
IRRELEVANT = (0.02, 0.03, 0.05, 0.9)


def pair(query, title, label=None, *, chances=EXACT, locale="us", **more):
    """Give one pair with its label, and the probabilities that a model gives it."""
    return {"query": query, "title": title, "label": label, "chances": chances, "locale": locale, **more}


def scored(row, number):
    """Give what `relevance score --probabilities` writes of a pair under POLICY, from its definition."""
    e, s, c, _ = row["chances"]
    score = round(e + 0.1 * s + 0.01 * c, 6)
    jp = row["locale"] == "jp"
    tier = sum(score >= cut for cut in (CUTS if not jp else (0.1, 0.4, 0.5, 0.8)))
    tier = min(tier, 1) if c >= 0.5 else tier
    return {
        "query_id": row["query"],
        "item_id": number,
        "score": score,
        "tier": tier,
        "label": "ESCI"[max(range(4), key=lambda k: row["chances"][k])],
        "kept": tier >= 2 or jp,
        "truncated": False,
        "policy_locale": row["locale"],
        "reason": None,
        "probabilities": list(row["chances"]),
    }


def write_lines(path, rows):
    """Write rows as JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def files(tmp_path, rows, *, drop=()):
    """Write pairs, scored rows (without the columns named in drop) and policy; gives their paths."""
    lines = [scored(row, number) for number, row in enumerate(rows, start=1)]
    lines = [{name: value for name, value in line.items() if name not in drop} for line in lines]
    pairs = [{name: value for name, value in row.items() if name != "chances"} for row in rows]
    (tmp_path / "policy.toml").write_text(POLICY, encoding="utf-8")
    return write_lines(tmp_path / "scored.jsonl", lines), write_lines(tmp_path / "pairs.jsonl", pairs)


def inspect(tmp_path, *arguments):
    """Run the command on POLICY; gives the report and the page."""
    options = ["--bundle", str(BUNDLE), "--policy", str(tmp_path / "policy.toml"), "--out", str(tmp_path / "out")]
    assert main([*map(str, arguments), *options]) == 0
    report = json.loads((tmp_path / "out" / DATA).read_text(encoding="utf-8"))
    return report, (tmp_path / "out" / PAGE).read_text(encoding="utf-8")


def inspected(tmp_path, rows, *options, drop=()):
    """Write files of these pairs and inspect them."""
    scored_file, pairs_file = files(tmp_path, rows, drop=drop)
    return inspect(tmp_path, scored_file, "--pairs", pairs_file, *options)
