"""report.json of stage `judge` → card.md: what a teacher is, what it cost, what it is worth, and where it is weak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from training.studies.study_run import markdown_table

Report = Mapping[str, Any]
LOW_F1, LOW_SHARE, HIGH_ECE, EARLY = 0.2, 0.9, 0.1, 0.9
"""Bounds beyond which a figure is named among the weaknesses: F1 of a class, a share that should be near 1, the
calibration error, and the share of labels that stand before any reasoning."""
_NOT_RUN = "not run"
_LABEL_SOURCES = {
    "label_tokens": "softmax over the classes' tokens where the answer names its label, after its own reasoning",
    "label_logprobs": "log-probabilities of the classes as the server told them",
    "none": "none: the generator gives no probabilities, so calibration is unknown",
}


def teacher_card(report: Report) -> str:
    """Give the card's text, the same for the same report."""
    parts = [
        f"# Teacher card: {report['name']} ({report['policy']} policy)",
        f"Judged on {report['pairs']['n_pairs']} pairs of {report['pairs']['n_queries']} queries of the "
        f"{report['split']} split (pair set `{report['pairs']['hash'][:12]}`). Brackets hold "
        f"{report['confidence']:.0%} intervals from {report['draws']} draws of whole queries. A pair without a "
        "readable label counts as wrong everywhere.",
        "## What it is",
        _identity(report),
        "## What it was made from, and what that took",
        _stages(report),
        "## What it is worth",
        _figures(report),
        "## Perspectives",
        _perspectives(report),
        "## Rationales",
        _rationales(report),
        "## Faithfulness",
        _faithfulness(report),
        "## Cost",
        _cost(report),
        "## Weaknesses found",
        "\n".join(f"- {line}" for line in weaknesses(report)) or "None of those that this judge looks for.",
        "## Commands",
        _commands(report),
    ]
    return "\n\n".join(parts) + "\n"


def weaknesses(report: Report) -> list[str]:
    """Give what the figures say against the teacher, one sentence each."""
    figures, majority, found = report["figures"], report["majority"], []
    for name, title in (("accuracy", "Accuracy"), ("macro_f1", "Macro-F1")):
        if (figures[name]["low"] or 0.0) <= majority[name]:
            found.append(
                f"{title} {shown(figures[name])} is not told from naming {majority['class']} every time "
                f"({majority[name]:.3f})."
            )
    for code, count in zip(report["classes"], report["pairs"]["labels"], strict=True):
        f1 = figures[f"f1_{code}"]
        if count and (f1["value"] or 0.0) < LOW_F1:
            found.append(f"Class {code} is hardly found: F1 {shown(f1)} over {count} pairs.")
    if (figures["answered"]["value"] or 0.0) < 1.0:
        found.append(f"{1 - (figures['answered']['value'] or 0.0):.1%} of the pairs got no readable label.")
    if (figures["ece"]["value"] or 0.0) > HIGH_ECE:
        found.append(f"Its probabilities are off: calibration error {shown(figures['ece'])}.")
    own = report["rationales"]["greedy"]
    for name, title in (("grounded", "of the spans it points at"), ("consistent", "of its labels")):
        share = own.get(name)
        if share is not None and share["value"] is not None and share["value"] < LOW_SHARE:
            end = "stand in the query or the item" if name == "grounded" else "follow from their evidence"
            found.append(f"Only {share['value']:.0%} {title} {end}.")
    return found + _doubts(report)


def shown(figure: Mapping[str, float | None] | None, digits: int = 3) -> str:
    """Give a figure with its interval, a dash where there is none."""
    if figure is None or figure["value"] is None:
        return "–"
    if figure["low"] is None or figure["high"] is None:
        return f"{figure['value']:.{digits}f}"
    return f"{figure['value']:.{digits}f} [{figure['low']:.{digits}f}, {figure['high']:.{digits}f}]"


def _doubts(report: Report) -> list[str]:
    """Give what speaks against its reasoning and its perspectives."""
    found = []
    early, swapped = report["faithfulness"]["early"], report["faithfulness"]["swapped"]
    if "cuts" in early:
        start = early["cuts"]["0"]
        if (start["same"]["value"] or 0.0) >= EARLY:
            found.append(
                f"{start['same']['value']:.0%} of the labels stand before any reasoning: the rationale hardly decides."
            )
        if not (early["gain"]["low"] or 0.0) > 0:
            found.append(
                f"Its reasoning is not told from none: labels are right more often by {shown(early['gain'])} after it."
            )
    asked = swapped.get("asked_for", {"n_pairs": 0})
    if asked["n_pairs"] and (asked["label_changed"]["value"] or 0.0) < 0.5:
        found.append(
            f"When a fact that the query asks for is swapped, the label stays in "
            f"{1 - (asked['label_changed']['value'] or 0.0):.0%} of {asked['n_pairs']} pairs."
        )
    oracle = report["perspectives"]["oracle"]
    if "difference" in oracle and not (oracle["difference"]["low"] or 0.0) > 0:
        found.append(
            f"Its perspectives together are not told from as many answers of one alone (difference "
            f"{shown(oracle['difference'])})."
        )
    return found


def _identity(report: Report) -> str:
    teacher = report["teacher"]
    prompt, sampling = teacher["prompt"], teacher["sampling"]
    left_out = f", without fold {teacher['fold']} of {teacher['folds']}" if teacher["folds"] > 1 else ""
    base = teacher["base"] + (f" at {teacher['revision']}" if teacher["revision"] else "")
    rows = [
        ["generator", report["generator"]],
        ["base", base],
        ["the base has read", _base_has_read(teacher)],
        ["method", teacher["method"]],
        ["perspectives learned from", ", ".join(teacher["perspectives"])],
        ["asked from", report["view"]],
        ["prompt book", f"{prompt['version']}, {prompt['reasoning_order']}, {prompt['shots']} examples a class"],
        ["item fields shown", ", ".join(["title", *prompt["fields"]])],
        ["sampling", f"temperature {sampling['temperature']}, top-p {sampling['top_p']}, top-k {sampling['top_k']}"],
        ["trained weights", _weights(report)],
        ["training pairs", f"`{report['data'][:12]}`{left_out}"],
        ["probabilities", _LABEL_SOURCES[report["probabilities"]["source"]]],
    ]
    return _table(["", ""], rows)


def _base_has_read(teacher: Report) -> str:
    """Say what the base knows of the training pairs before any label is shown."""
    if teacher["base"] != "scratch":
        return "what its makers gave it, which may hold public data sets"
    folds = ", those left out by a fold too" if teacher["folds"] > 1 else ""
    return (
        f"texts of all training pairs{folds}, and an annotator's rationales and guesses of those not reserved for "
        "preferences; the guesses come from a classifier fitted on the gold labels of other training queries"
    )


def _weights(report: Report) -> str:
    lora = report["teacher"]["lora"]
    kind = "all" if lora is None else f"LoRA, rank {lora['rank']}, alpha {lora['alpha']}"
    phases = report["stages"].get("sft", {}).get("report", {}).get("phases", {})
    sizes = [f"; {own['trained_parameters']:,} of {own['parameters']:,}" for own in phases.values()]
    return kind + (sizes[-1] if sizes else "")


def _stages(report: Report) -> str:
    rows = [
        [stage, f"{facts['seconds']:,.0f}", _stage_tokens(facts["report"]), _stage_outcome(stage, facts["report"])]
        for stage, facts in report["stages"].items()
    ]
    if not rows:
        return "No earlier stage of this run made it."
    table = _table(["stage", "seconds", "tokens", "outcome"], rows)
    cells = report["stages"].get("generate", {}).get("report", {}).get("classes")
    if not cells:
        return table
    rates = [[name, str(cell["pairs"]), f"{cell['keep_rate']:.1%}"] for name, cell in cells.items()]
    return f"{table}\n\nPairs of which a rationale was kept (eq. 1):\n\n" + _table(
        ["perspective/class", "pairs", "kept"], rates
    )


def _stage_tokens(own: Report) -> str:
    tokens = own.get("tokens")
    if isinstance(tokens, int):
        return f"{tokens:,} read"
    if isinstance(tokens, Mapping) and "completion" in tokens:
        return f"{tokens['prompt']:,} read, {tokens['completion']:,} written"
    phases = own.get("phases")
    return f"{sum(phase['tokens_seen'] for phase in phases.values()):,} read" if phases else "–"


def _stage_outcome(stage: str, own: Report) -> str:
    if stage == "generate" and "kept" in own:
        return f"{own['kept']:,} rationales kept of {own['answered']:,} answers"
    if stage == "preferences" and "preferences" in own:
        crossing = own.get("crossing")
        across = "" if crossing is None else f", {crossing:.0%} of them across perspectives"
        return f"{own['preferences']:,} preference pairs of {own['pairs']:,} reserved pairs{across}"
    if stage == "dpo" and "shipped" in own:
        return f"ships {own['shipped']}: {own['reason']}{_dpo_end(own)}"
    if stage == "sft" and own.get("phases"):
        return ", ".join(f"{name}: {phase['rows']:,} rows" for name, phase in own["phases"].items())
    return "–"


def _dpo_end(own: Report) -> str:
    """Say how DPO's training ended, where one was made."""
    last = (own.get("training") or {}).get("last_steps")
    if last is None:
        return ""
    return (
        f"; over its last {last['steps']} steps reward accuracy {last['rewards/accuracies']:.2f} and margin "
        f"{last['rewards/margins']:.3f}"
    )


def _figures(report: Report) -> str:
    figures, majority = report["figures"], report["majority"]
    titles = {"accuracy": "accuracy", "macro_f1": "macro-F1"}
    titles |= {f"f1_{code}": f"F1 {title}" for code, title in zip(report["classes"], report["titles"], strict=True)}
    titles |= {"kappa": "Cohen's κ with the labels", "answered": "pairs with a label", "ece": "calibration error"}
    rows = [
        [title, shown(figures[name]), f"{majority[name]:.3f}" if name in ("accuracy", "macro_f1") else "–"]
        for name, title in titles.items()
    ]
    table = _table(["figure", "teacher", f"always {majority['class']}"], rows)
    other = report["probabilities"]["other_label"]
    note = "" if not other else f"\n\nThe most probable class is not the one named in {other:.1%} of the answers."
    return "\n\n".join([f"{table}{note}", *_sources(report), _answers(report)])


def _sources(report: Report) -> list[str]:
    """Give a table of the sources, where the judged pairs are of several."""
    rows = [
        [
            name,
            str(own["n_pairs"]),
            str(own["n_queries"]),
            *(f"{shown(own[figure])} ({own['majority'][figure]:.3f})" for figure in ("accuracy", "macro_f1")),
        ]
        for name, own in report["sources"].items()
    ]
    head = ["source", "pairs", "queries", "accuracy (commonest class)", "macro-F1 (commonest class)"]
    return [_table(head, rows)] if rows else []


def _answers(report: Report) -> str:
    rows = [
        [
            name,
            *(str(own[key]) for key in ("answers", "errors", "without_label", "too_long")),
            ", ".join(f"{kind} {count}" for kind, count in own["problems"].items()) or "–",
        ]
        for name, own in report["answers"].items()
    ]
    return _table(["asked", "answers", "errors", "no label", "cut by the limit", "parser's problems"], rows)


def _perspectives(report: Report) -> str:
    own = report["perspectives"]
    head = ["perspective", *(f"pass@{k}" for k in range(1, own["samples"] + 1))]
    parts = [
        f"{own['samples']} answers a perspective to {own['n_pairs']} pairs of {own['n_queries']} queries.",
        _table(head, [[name, *map(shown, curve)] for name, curve in own["pass_at_k"].items()]),
    ]
    if own["agreement"]:
        rows = [
            [name, shown(row["same"]), "–" if row["kappa"] is None else f"{row['kappa']:.3f}", str(row["n_pairs"])]
            for name, row in own["agreement"].items()
        ]
        parts.append(_table(["first answers of", "same label", "κ", "pairs"], rows))
    oracle = own["oracle"]
    if oracle.get("state") == _NOT_RUN:
        parts.append(f"Multi-perspective oracle: not run, {oracle['because']}.")
    else:
        n = len(own["pass_at_k"])
        parts.append(
            f"Any of {n} perspectives right, one answer each: {shown(oracle['any_perspective'])}. The best single one "
            f"({oracle['best']}, chosen on {oracle['chosen_on']}), pass@{n}: {shown(oracle['single'])}. Difference: "
            f"{shown(oracle['difference'])}."
        )
    return "\n\n".join(parts)


def _rationales(report: Report) -> str:
    rows = [
        [
            name,
            str(own["n_rationales"]),
            f"{shown(own.get('grounded'))} of {own['n_spans']}",
            f"{shown(own.get('consistent'))} of {own['n_with_evidence']}",
            " / ".join("–" if own["words"][key] is None else f"{own['words'][key]:.0f}" for key in own["words"]),
        ]
        for name, own in report["rationales"].items()
    ]
    return _table(
        ["asked", "rationales", "spans that are there", "labels that follow from evidence", "words: mean / p50 / p95"],
        rows,
    )


def _faithfulness(report: Report) -> str:
    early, swapped = report["faithfulness"]["early"], report["faithfulness"]["swapped"]
    parts = []
    if early.get("state") == _NOT_RUN:
        parts.append(f"Early answering and filler: not run, {early['because']}.")
    else:
        rows = [
            [f"{cut} %" if cut.isdigit() else "dots", shown(row["same"]), shown(row["right"])]
            for cut, row in early["cuts"].items()
        ]
        parts.append(f"Labels forced after part of the reasoning of {early['n_answers']} answers:")
        parts.append(_table(["reasoning kept", "same label as the answer", "right"], rows))
        parts.append(f"Right after the whole reasoning minus right before any: {shown(early['gain'])}.")
    if swapped.get("state") == _NOT_RUN:
        return "\n\n".join([*parts, f"Swapped facts: not run, {swapped['because']}."])
    names = ("label_changed", "label_lower", "cites_new", "cites_old", "answered")
    rows = [
        [group.replace("_", " "), str(own["n_pairs"]), *(shown(own.get(name)) for name in names)]
        for group, own in swapped.items()
    ]
    parts.append("One cited fact of the item replaced by another item's, and the teacher asked anew:")
    head = ["the old fact was", "pairs", "label changed", "to a lower gain", "cites the new fact", "cites the old fact"]
    parts.append(_table([*head, "answered"], rows))
    return "\n\n".join(parts)


def _cost(report: Report) -> str:
    rows = []
    for name, title in (("per_1000_pairs", "one answer each for 1,000 pairs"), ("judging", "this judging in all")):
        own = report["cost"][name]
        rows.append([title, *(_count(own[key]) for key in ("prompt_tokens", "completion_tokens", "seconds"))])
        rows[-1].append("–" if own["money"] is None else f"{own['money']:.2f}")
    return _table(["", "prompt tokens", "completion tokens", "seconds", "money"], rows)


def _commands(report: Report) -> str:
    policy = "" if report["policy"] == "shipped" else f" --policy {report['policy']}"
    stages = [f"relevance {stage}" for stage in report["stages"]]
    lines = [*stages, f"relevance judge{policy}"]
    return "```\n" + "\n".join(f"{line} --recipe {report['name']} --out OUT" for line in lines) + "\n```"


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.2f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return markdown_table(head, rows).rstrip()
