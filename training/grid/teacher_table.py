"""A comparison of teachers in Markdown: the content of comparison.json as comparison.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from training.grid.comparisons import NOT_RUN
from training.grid.table import p_value, signed
from training.grid.teacher_results import COMPARED, PRIMARY
from training.studies.study_run import markdown_table

Row = Mapping[str, Any]
FAMILIES = {
    "main": "MPCoT against the best single perspective, and what DPO adds to each",
    "equal_tokens": "MPCoT against the best single perspective that read as much",
    "others": "MPCoT against further teachers",
}
_ONE_DRAW = (
    "The base model and its answers in stage `generate` are one draw, shared by all teachers and seeds: the intervals "
    "say nothing of another base or other first answers. A pair counts as the class that its answer names; an answer "
    "that names none is wrong."
)
_LEARNED = ("SFT tokens", "DPO pairs", "across perspectives", "reward accuracy", "reward margin")


def teacher_table(results: Mapping[str, Any]) -> str:
    """Give the comparison in Markdown, those not run included, below the row of the commonest class.

    Beside the figures stands what each teacher learned from: a teacher of three perspectives has three times the rows.
    Of DPO's preferences the share whose two answers are of unlike perspectives, and how its last steps ended.

    Args: results: as comparison.json holds them.
    """
    titles, commonest = results["titles"], results["commonest"]
    always = [f"always {commonest['title']}", "–", f"{commonest['macro_f1']:.3f}", f"{commonest['accuracy']:.3f}"]
    rows = [[*always, "–", *["–"] * len(_LEARNED)]]
    for row in results["teachers"]:
        own = row["figures"]
        figures = [_with_interval(own[name]) for name in (*COMPARED, "answered")] if own else [NOT_RUN, "–", "–"]
        learned = _learned_from(row, results["learned"]) if own else ["–"] * len(_LEARNED)
        rows.append([titles.get(row["name"], row["name"]), str(len(row["seeds"])), *figures, *learned])
    parts = [f"**{results['wording']}**"] if results["wording"] else []
    parts += [
        f"{_size(results)}; 95 % intervals over seeds and queries. {_ONE_DRAW}",
        _table(["teacher", "seeds", "macro-F1", "accuracy", "answered", *_LEARNED], rows),
    ]
    parts += [text for group, own in results["best"].items() for text in _choice(group, own, results)]
    for family, differences in results["differences"].items():
        if differences:
            parts += [f"### {FAMILIES[family]}", _difference_table(differences, titles)]
    if results["slices"]:
        parts += ["### Further slices", *_slices(results)]
    return "\n\n".join(parts) + "\n"


def _learned_from(row: Row, learned: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Give the cells of what a teacher learned from; those of DPO only where DPO has trained it."""
    system, _, phase = row["name"].rpartition("_")
    own = learned.get(system, {})
    cells = [_thousands(own.get("sft_tokens"))]
    told = own if phase == "dpo" else {}
    crossing = told.get("crossing")
    cells += [_thousands(told.get("dpo_rows")), "–" if crossing is None else f"{crossing:.0%}"]
    return [*cells, _plain(told.get("reward_accuracy")), _plain(told.get("reward_margin"))]


def _choice(group: str, best: Mapping[str, str | None], results: Mapping[str, Any]) -> list[str]:
    """Say which teachers of a group are its best, and which ones the choice was made without."""
    titles = results["titles"]
    parts = []
    chosen = [titles[f"{name}_{phase}"] for phase, name in best.items() if name is not None]
    if chosen:
        what = titles[f"{group}best_sft"].rpartition(", ")[0]
        parts.append(f"The {what}, chosen on dev pairs: {'; '.join(chosen)}.")
    missing = [row for row in results["without_dev_figures"] if row["group"] == group]
    if missing:
        names = [titles[f"{one['name']}_{one['phase']}"] for one in missing]
        named = [f"{name} ({one['seeds']} of {one['of']} seeds)" for name, one in zip(names, missing, strict=True)]
        parts.append(f"Without dev figures of all seeds, and chosen from those there are: {'; '.join(named)}.")
    return parts


def _slices(results: Mapping[str, Any]) -> list[str]:
    """Give macro-F1 on each further slice of the judged pairs, which the comparisons above leave out."""
    slices = results["slices"]
    rows = [["commonest class", *(f"{own['commonest']['macro_f1']:.3f}" for own in slices.values())]]
    for number, row in enumerate(results["teachers"]):
        if row["figures"]:
            cells = [_with_interval(own["teachers"][number]["figures"][PRIMARY]) for own in slices.values()]
            rows.append([results["titles"].get(row["name"], row["name"]), *cells])
    sizes = "; ".join(f"{name}: {_size(own)}" for name, own in slices.items())
    return [f"Macro-F1. {sizes}.", _table(["teacher", *slices], rows)]


def _size(own: Mapping[str, Any]) -> str:
    name = f"Slice {own['slice']}: " if "slice" in own else ""
    return f"{name}{own['n_pairs']} pairs of {own['n_queries']} queries"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return markdown_table(head, rows).rstrip()


def _difference_table(differences: Sequence[Row], titles: Mapping[str, str]) -> str:
    head = ["comparison", "seeds", "Δ macro-F1", "MDD", "p (Holm)", "Δ accuracy", "MDD", "verdict"]
    rows = []
    for row in differences:
        name = " − ".join(titles.get(row[side], row[side]) for side in ("ours", "theirs"))
        cells = ["–"] * 6
        if row["figures"]:
            main, accuracy = (row["figures"][one] for one in COMPARED)
            cells = [str(main["seeds"]), signed(main), _plain(main["detectable"]), p_value(row["p_holm"])]
            cells += [signed(accuracy), _plain(accuracy["detectable"])]
        rows.append([name, *cells, row["verdict"]])
    return _table(head, rows)


def _with_interval(own: Mapping[str, float | None]) -> str:
    if own["low"] is None or own["high"] is None:
        return f"{own['value']:.3f}"
    return f"{own['value']:.3f} ({own['low']:.3f} to {own['high']:.3f})"


def _plain(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _thousands(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"
