"""results.json → the grid's tables in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
COLUMNS = {
    "macro_f1": "macro-F1",
    "macro_f1_weighted": "macro-F1, label weights from dev",
    "accuracy": "accuracy",
    "auc_exact": "AUC most relevant",
    "auc_irrelevant": "AUC least relevant",
    "ndcg_10": "nDCG@10",
    "qwk": "QWK",
    "ece": "ECE",
    "brier": "Brier",
}
FAMILIES = {
    "rivals": "Against the rivals",
    "controls": "Against the controls",
    "controls_unguided": "The controls against λ = 0",
    "ablations": "Against the ablations",
    "preset": "The paper's learning rates",
    "rivals_and_bert": "The rivals against plain BERT",
    "others": "Against further systems",
    "over_lexical": "Against logistic regression on cosine and word overlap",
}


def markdown(results: Mapping[str, Any]) -> str:
    """Give the main table, the differences, the shares of the teacher's lead and the runs that did not finish."""
    primary, parts = results["primary"], []
    if results["wording"]:
        parts.append(f"**{results['wording']}**")
    parts.append(
        f"{primary['n_pairs']} pairs of {primary['n_queries']} queries ({primary['name']}), "
        f"{primary['n_ranked_queries']} of them complete lists. Mean over seeds ± sd over seeds."
    )
    parts.append(main_table(results))
    if not results["ranking"]:
        parts.append(results["no_ranking_because"])
    for family, rows in results["differences"].items():
        parts += [f"### {FAMILIES[family]}", difference_table(rows)]
    for part in results["slices"]:
        if part["differences"]:
            title = f"### {FAMILIES['rivals']}, {part['kind']} {part['name']} ({part['n_queries']} queries)"
            parts += [title, difference_table(part["differences"])]
    for curve in results["sweeps"]:
        parts += [f"### Response curve: {curve['title']}", curve["state"] or _curve_table(curve["points"])]
    for ceiling, rows in results["gap_closed"].items():
        parts += [f"### Share of the lead of “{ceiling}” over plain BERT", _gap_table(rows)]
    unfinished = [run for run in results["runs"] if run["state"] != "done"]
    if unfinished:
        parts += ["### Runs that did not finish; none is averaged in", _unfinished_table(unfinished)]
    return "\n\n".join(parts) + "\n"


def main_table(results: Mapping[str, Any]) -> str:
    """Give one row a system, those not run included, below the row of the commonest class."""
    commonest = results["primary"]["commonest"]
    rows = [[f"always {commonest['title']}", "–", *(_plain(commonest.get(name)) for name in COLUMNS)]]
    for system in results["systems"]:
        runs = f"{system['finished']} of {system['asked']}"
        if system["figures"] is None:
            rows.append([system["title"], runs, "not run", *("–" for _ in range(len(COLUMNS) - 1))])
        else:
            rows.append([system["title"], runs, *(_spread(system["figures"][name]) for name in COLUMNS)])
    return _table(["system", "runs", *COLUMNS.values()], rows)


def difference_table(rows: Sequence[Row]) -> str:
    """Give differences of macro-F1 and accuracy, the detectable difference beside them, with their tests.

    McNemar's test is of one pair of runs, and so is the detectable difference beside it; that of macro-F1 is at the
    level of Holm's first step.
    """
    head = ["comparison", "seeds", "Δ macro-F1", "MDD", "p (Holm)", "Δ macro-F1, label weights", "Δ accuracy", "MDD"]
    head += ["McNemar mid-p", "MDD of that pair", "verdict"]
    lines = []
    for row in rows:
        name = f"{row['ours_title']} − {row['theirs_title']}"
        if not row["figures"]:
            lines.append([name, *("–" for _ in range(9)), row["verdict"]])
            continue
        figures, paired = row["figures"], row["paired"]
        main, weighted, accuracy = figures["macro_f1"], figures.get("macro_f1_weighted"), figures["accuracy"]
        lines.append(
            [
                name,
                str(main["seeds"]),
                signed(main),
                _plain(main["detectable"]),
                p_value(row["p_holm"]),
                signed(weighted) if weighted is not None else "–",
                signed(accuracy),
                _plain(accuracy["detectable"]),
                p_value(paired["mid_p"]),
                _plain(paired["detectable"]),
                row["verdict"],
            ]
        )
    return _table(head, lines)


def signed(figure: Row) -> str:
    """Give a difference with its sign and interval."""
    if figure["low"] is None or figure["high"] is None:
        return f"{figure['value']:+.3f}"
    return f"{figure['value']:+.3f} ({figure['low']:+.3f} to {figure['high']:+.3f})"


def p_value(value: float | None) -> str:
    """Give a p-value to four places; none below 0.001, which few seeds cannot tell, and a dash without a test."""
    if value is None:
        return "–"
    return f"{value:.4f}" if value >= 0.001 else "< 0.001"


def _gap_table(rows: Sequence[Row]) -> str:
    lines = [
        [row["title"], f"{row['value']:.0%} ({_share(row['low'])} to {_share(row['high'])})" if "value" in row else "–"]
        for row in rows
    ]
    return _table(["system", "share closed, macro-F1"], lines)


def _curve_table(points: Sequence[Row]) -> str:
    lines = []
    for point in points:
        runs, own, row = f"{point['finished']} of {point['asked']}", point["figure"], point["difference"]
        gap = row["figures"].get("macro_f1")
        difference = (
            ["–", "–", "–"] if gap is None else [signed(gap), _plain(gap["detectable"]), p_value(row["p_holm"])]
        )
        figure = "–" if own is None else _spread(own)
        lines.append([str(point["value"]), runs, figure, *difference, row["verdict"]])
    return _table(["value", "runs", "macro-F1", "Δ to ours", "MDD", "p (Holm)", "verdict"], lines)


def _unfinished_table(runs: Sequence[Row]) -> str:
    lines = [[run["title"], str(run["seed"]), run["state"], run["error"] or "–"] for run in runs]
    return _table(["system", "seed", "state", "error"], lines)


def _plain(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def _spread(figure: Row) -> str:
    return _plain(figure["value"]) + ("" if figure["sd"] is None else f" ± {figure['sd']:.3f}")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    clean = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in [head, *rows]]
    lines = [clean[0], ["---"] * len(head), *clean[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
