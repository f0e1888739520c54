"""Study `faithfulness`: whether explanations say what the student answered and what the annotator found.

The prototype nearest to a pair's latent is held against others that know less: always the most common one, always the
one that suits the judged pairs best, one drawn as often as it is common, one found by a map that was fitted to other
pairs' rationales, and the one most common under the student's label. Token weights are held against random words
(`training.studies.deletion`). Nothing is fitted here.
Suffixes: N pairs, M prototypes, P perspectives, C clauses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relevance.bundle import PROTOTYPES
from relevance.errors import InputError
from relevance.metrics.intervals import Interval
from relevance.pairs import LabelledPair
from relevance.prototypes import Prototypes
from training.evaluate import score_rows
from training.measures import Bootstrap, Scored
from training.predictions import predictions_of
from training.prototypes.provenance import prototypes_folder
from training.prototypes.stage import Explained, explained_pairs, read_prototypes
from training.prototypes.templates import Verdicts, agreement, said
from training.runs import Run, hash_file, log
from training.student.model import load_student
from training.studies.deletion import deletion_test
from training.studies.study_run import (
    bootstrap_of,
    markdown_table,
    served,
    shown,
    student_folder,
    study_folder,
    study_parser,
    study_run,
    write_study,
)
from training.teacher.judge_measures import mean_intervals

NAME = "faithfulness"
NEAREST = "nearest"
CONTROLS = {
    "common": "always the perspective's most common prototype that holds a clause",
    "constant": "always the prototype that does best by the measure itself, on these very pairs",
    "random": "a prototype drawn by how common it is",
    "shuffled": "nearest under a map fitted to other pairs' rationales",
    "label": "most common prototype of the student's label",
}
MEASURES = {
    "label_share": "share of its members with the student's label",
    "top_label": "its most common label is the student's",
    "precision": "share of its own clauses that are the annotator's, where the nearest holds any",
    "verdicts": "share of the dimensions that it or the annotator speaks of, with the same verdict",
    "all_verdicts": "the same verdict in all of them",
}
Floats = NDArray[np.float64]


def main(argv: list[str]) -> int:
    """Run the study.

    Raises: RunError: if the student or its prototypes are missing, or they are another one's; InputError: if the judged
        split has no rationales.
    """
    parser = study_parser(NAME, __doc__)
    parser.add_argument("--pairs", type=int, default=500, help="at most so many pairs in the deletion test")
    arguments = parser.parse_args(argv)
    if arguments.pairs < 1:
        raise InputError(f"study faithfulness, --pairs: expected at least 1, found {arguments.pairs}")
    run = study_run(arguments)
    split = run.recipe.evaluate.split
    read = {
        PROTOTYPES: prototypes_folder(run) / PROTOTYPES,
        "rationales": run.require("rationales") / f"rationales.{split}.jsonl",
    }
    missing = [str(path) for path in read.values() if not path.is_file()]
    if missing:
        raise InputError(f"study faithfulness: expected the files {missing}, found none; see rationales.splits")
    settings = {"pairs": arguments.pairs, "files": {name: hash_file(path) for name, path in read.items()}}
    with study_folder(run, NAME, settings) as folder:
        if folder is not None:
            result = study_faithfulness(run, folder, limit=arguments.pairs)
            write_study(folder, result, render(result))
            log.info("study faithfulness: %s", folder)
    return 0


def study_faithfulness(run: Run, folder: Path, *, limit: int) -> dict[str, Any]:
    """Give the figures of prototypes on the judged split, and of token weights on at most `limit` of its pairs.

    Raises: RunError, InputError, RecipeError: if the run cannot be read or calibrated.
    """
    recipe, split, bootstrap = run.recipe, run.recipe.evaluate.split, bootstrap_of(run)
    calibrator, policy = served(run, folder)
    prototypes, shuffled, verdicts = read_prototypes(prototypes_folder(run), recipe.label_scheme.n_classes)
    explained = explained_pairs(run, split)

    def score(pairs: Sequence[LabelledPair], logits_NK: Floats) -> Scored:
        predictions = predictions_of(list(pairs), logits_NK, recipe.label_scheme)
        return score_rows(recipe, predictions, policy, calibrator)

    scored = score(explained.pairs, explained.logits_NK.astype(np.float64))
    student, tokenizer = load_student(student_folder(run))
    order = np.random.default_rng(recipe.seed).permutation(len(explained.pairs))[:limit]
    return {
        "name": recipe.name,
        "split": split,
        "n_pairs": len(explained.pairs),
        "n_queries": len(np.unique(scored.query_id)),
        "draws": bootstrap.draws,
        "confidence": bootstrap.confidence,
        "perspectives": {
            name: _perspective_figures(p, (prototypes, shuffled), verdicts, explained, scored, bootstrap)
            for p, name in enumerate(prototypes.perspectives)
        },
        "deletion": _plain(
            deletion_test(student, tokenizer, [explained.pairs[n] for n in order], score, bootstrap=bootstrap)
        ),
    }


def choices(
    p: int,
    both: tuple[Prototypes, Prototypes],
    verdicts: Sequence[Verdicts],
    latent_NR: NDArray[np.float32],
    predicted_N: NDArray[np.int64],
) -> dict[str, Floats]:
    """Give, for the nearest prototype of a perspective and each control, the chance with which it is named, (N, M).

    The control `constant` is another one for each measure: `best_constant`.

    Args: both: the prototypes, and those of the shuffled control; verdicts: of each prototype.
    """
    prototypes, shuffled = both
    own_M = prototypes.perspective_M == p
    each_MM = np.eye(len(own_M))
    size_M = np.where(own_M, prototypes.size_M, 0)
    spoken_M = np.where([bool(own) for own in verdicts], size_M, 0)
    count_MK = prototypes.share_MK * size_M[:, None]
    return {
        NEAREST: each_MM[prototypes.nearest(latent_NR)[0][:, p]],
        "common": np.tile(each_MM[spoken_M.argmax()], (len(latent_NR), 1)),
        "random": np.tile(size_M / size_M.sum(), (len(latent_NR), 1)),
        "shuffled": each_MM[shuffled.nearest(latent_NR)[0][:, p]],
        "label": each_MM[np.where(own_M[:, None], count_MK, -1).argmax(axis=0)[predicted_N]],
    }


def best_constant(value_NM: Floats, own_M: NDArray[np.bool_], counted_N: NDArray[np.bool_]) -> Floats:
    """Give the chances, (N, M), of naming for every pair the prototype of a perspective of the highest mean value.

    Args: counted_N: the pairs that are averaged over, here as in the figure that it stands beside.
    """
    counted_CM = value_NM[counted_N] if counted_N.any() else value_NM
    mean_M = np.where(own_M, np.nan_to_num(counted_CM, nan=-1.0).mean(axis=0), -np.inf)
    return np.tile(np.eye(len(own_M))[mean_M.argmax()], (len(value_NM), 1))


def measures(
    prototypes: Prototypes, verdicts: Sequence[Verdicts], true_N: Sequence[Verdicts], predicted_N: NDArray[np.int64]
) -> dict[str, Floats]:
    """Give each of `MEASURES` for every pair and prototype, (N, M); nan for the precision of one without a clause.

    Args: true_N: the annotator's verdicts of one perspective; predicted_N: the student's labels.
    """
    kinds = {own: row for row, own in enumerate(dict.fromkeys(true_N))}
    row_N = [kinds[own] for own in true_N]
    agreed_TM = np.array([[agreement(own, other) for other in verdicts] for own in kinds])
    right_TM = np.array([[_precision(other, own) for other in verdicts] for own in kinds])
    return {
        "label_share": prototypes.share_MK.astype(np.float64).T[predicted_N],
        "top_label": (prototypes.share_MK.argmax(axis=1)[None] == predicted_N[:, None]).astype(np.float64),
        "precision": right_TM[row_N],
        "verdicts": agreed_TM[row_N],
        "all_verdicts": (agreed_TM[row_N] == 1).astype(np.float64),
    }


def render(result: Mapping[str, Any]) -> str:
    """Give the study as Markdown: one table a perspective, and one of the deletion test."""
    text = (
        f"{result['n_pairs']:,} pairs of {result['n_queries']:,} queries of `{result['split']}`; "
        f"{100 * result['confidence']:g} % intervals by query.\n\n"
    )
    for name, rows in result["perspectives"].items():
        close, spoken = shown(rows["close"]), shown(rows["spoken"])
        text += f"Perspective `{name}`: {rows['prototypes']} prototypes, close for {close} of the pairs, "
        text += f"with a clause for {spoken}.\n\n"
        table = [
            [clause, f"{row['n_pairs']:,}", shown(row["precision"]), shown(row["base_rate"])]
            for clause, row in rows["clauses"].items()
        ]
        text += markdown_table(("clause", "pairs it is said of", "right", "true of all pairs"), table) + "\n"
        for group, title in (("all", "all pairs"), ("close_only", "pairs with a close rationale")):
            header = (title, "nearest", *(f"{c} (nearest minus it)" for c in CONTROLS))
            table = [
                [MEASURES[measure], shown(found[NEAREST])]
                + [f"{found[c]['value']:.3f} ({shown(found[f'over_{c}'])})" for c in CONTROLS]
                for measure, found in rows[group].items()
            ]
            text += markdown_table(header, table) + "\n"
    controls = "; ".join(f"{name}: {about}" for name, about in CONTROLS.items())
    text += f"Controls: {controls}.\n\nDeletion of words, heaviest by token weight against random ones:\n\n"
    header = ("dropped", "pairs", "figure", "heaviest", "random", "difference")
    table = [
        [part, f"{row['n_pairs']:,}", figure.replace("_", " ")]
        + [shown(found[key]) for key in ("weighted", "random", "difference")]
        for part, row in result["deletion"].items()
        for figure, found in row.items()
        if figure != "n_pairs"
    ]
    return text + markdown_table(header, table)


def _perspective_figures(
    p: int,
    both: tuple[Prototypes, Prototypes],
    verdicts: Sequence[Verdicts],
    explained: Explained,
    scored: Scored,
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    prototypes = both[0]
    named = choices(p, both, verdicts, explained.latent_NR, scored.predicted)
    true_N = [explained.verdicts[pair.pair.pair_id][p] for pair in explained.pairs]
    close_N = prototypes.nearest(explained.latent_NR)[1][:, p] >= prototypes.floor_P[p]
    nearest_N = named[NEAREST].argmax(axis=1)
    spoken_N = close_N & np.array([bool(verdicts[m]) for m in nearest_N.tolist()])
    shares = {"close": close_N.astype(np.float64), "spoken": spoken_N.astype(np.float64)}
    result: dict[str, Any] = {
        "prototypes": int((prototypes.perspective_M == p).sum()),
        "floor": float(prototypes.floor_P[p]),
        **mean_intervals(scored.query_id, shares, bootstrap),
        "clauses": _clause_figures([verdicts[m] for m in nearest_N.tolist()], true_N, close_N, scored, bootstrap),
        "all": {},
        "close_only": {},
    }
    for measure, value_NM in measures(prototypes, verdicts, true_N, scored.predicted).items():
        known_N = ~np.isnan(_expected(named[NEAREST], value_NM))
        for group, counted_N in (("all", known_N), ("close_only", known_N & close_N)):
            chances = named | {"constant": best_constant(value_NM, prototypes.perspective_M == p, counted_N)}
            values = {
                name: np.where(counted_N, _expected(chance_NM, value_NM), np.nan) for name, chance_NM in chances.items()
            }
            values |= {f"over_{control}": values[NEAREST] - values[control] for control in CONTROLS}
            result[group][measure] = mean_intervals(scored.query_id, values, bootstrap)
    plain: dict[str, Any] = _plain(result)
    return plain


def _clause_figures(
    named_N: Sequence[Verdicts],
    true_N: Sequence[Verdicts],
    close_N: NDArray[np.bool_],
    scored: Scored,
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    """Give, for each clause of close prototypes, of how many pairs it is said, how often rightly, and its base rate."""
    clauses = sorted({clause for own, close in zip(named_N, close_N.tolist(), strict=True) if close for clause in own})
    said_NC = said(named_N, clauses) & close_N[:, None]
    true_NC = said(true_N, clauses).astype(np.float64)
    figures: dict[str, Any] = {}
    for c, clause in enumerate(clauses):
        values = {"precision": np.where(said_NC[:, c], true_NC[:, c], np.nan), "base_rate": true_NC[:, c]}
        found = mean_intervals(scored.query_id, values, bootstrap)
        figures["=".join(clause)] = {"n_pairs": int(said_NC[:, c].sum()), **found}
    return figures


def _precision(own: Verdicts, true: Verdicts) -> float:
    return sum(clause in true for clause in own) / len(own) if own else np.nan


def _expected(chance_NM: Floats, value_NM: Floats) -> Floats:
    """Give the mean of the values that are known; nan where none with a chance is."""
    known_NM = np.where(np.isnan(value_NM), 0.0, chance_NM)
    total_N = known_NM.sum(axis=1)
    return np.where(total_N > 0, (known_NM * np.nan_to_num(value_NM)).sum(axis=1) / np.maximum(total_N, 1e-12), np.nan)


def _plain(value: Any) -> Any:  # noqa: ANN401 - any figures
    if isinstance(value, Interval):
        return asdict(value)
    if isinstance(value, Mapping):
        return {key: _plain(v) for key, v in value.items()}
    return value
