"""A judge's answers → its report: every figure is made from files, so judging anew asks nothing again.

Suffixes: N pairs, K classes, V views.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from relevance.labels import LabelScheme
from relevance.pairs import LabelledPair
from training.measures import Bootstrap
from training.predictions import Predictions, predictions_of
from training.recipe import Perspective, View
from training.runs import DONE, Run, hash_file, hash_json
from training.teacher import judge_measures
from training.teacher.faithfulness import (
    chosen_answers,
    early_figures,
    swap_facts,
    swap_figures,
    whole_probabilities,
)
from training.teacher.forced_labels import ForcedLabel
from training.teacher.grounding import consistent, spans_found
from training.teacher.judge_measures import UNANSWERED, Answers, Draws, mean_intervals, spread
from training.teacher.samples import Sample
from training.teacher_recipe import SamplingRecipe, TeacherRecipe

Floats = NDArray[np.float64]
Source = Literal["label_tokens", "label_logprobs", "none"]
NOT_RUN = "not run"
STAGES = ("teacher_pretrain", "generate", "sft", "preferences", "dpo")
"""Earlier stages whose reports a teacher's own report repeats."""
_FLOOR = 1e-9
_NAMED, _OTHER = 0.0, float(np.log(1e-6))
"""Logits of the class that an answer names and of the others, where there are no probabilities."""


@dataclass(frozen=True, slots=True)
class Judged:
    """What a judge has read from its folder.

    Args: labelled: the pairs asked about; drawn: those of them with several answers; greedy: an answer to each of
        `labelled`, in their order; draws: answers to `drawn`, by perspective; choice: the
        same of dev pairs, with labels, None where none were asked; forced: None where labels could not be forced;
        swapped: answers to changed pairs, None where none were asked; seconds: by part: answers and seconds of them.
    """

    labelled: tuple[LabelledPair, ...]
    drawn: tuple[LabelledPair, ...]
    greedy: tuple[Sample, ...]
    draws: tuple[Sample, ...]
    choice: tuple[tuple[LabelledPair, ...], tuple[Sample, ...]] | None
    forced: tuple[ForcedLabel, ...] | None
    swapped: tuple[Sample, ...] | None
    seconds: Mapping[str, tuple[int, float]]


def report_of(run: Run, judged: Judged, view: View) -> tuple[dict[str, Any], Predictions]:
    """Give a teacher's figures as plain data, nan as None, and its predictions.

    Args: view: what the greedy answers were asked from.
    """
    scheme, teacher = run.recipe.label_scheme, run.recipe.teacher
    bootstrap = Bootstrap(run.recipe.evaluate.draws, run.recipe.evaluate.confidence, run.recipe.seed)
    answers, source = answers_of(judged, scheme)
    pair_ids = [one.pair.pair_id for one in judged.labelled]
    named = answers.predicted != UNANSWERED
    known = named & ~np.isnan(answers.probabilities_NK).any(axis=1)
    argmax_N = np.where(known, np.nan_to_num(answers.probabilities_NK).argmax(axis=1), UNANSWERED)
    report = {
        "name": run.recipe.name,
        "split": teacher.judge.split,
        "view": view,
        "generator": judged.greedy[0].generator,
        "teacher": teacher.model_dump(mode="json"),
        "data": hash_file(run.require("data") / "pairs.train.parquet"),
        "classes": list(scheme.classes),
        "titles": list(scheme.titles),
        "draws": bootstrap.draws,
        "confidence": bootstrap.confidence,
        "pairs": {
            "n_pairs": len(pair_ids),
            "n_queries": len(np.unique(answers.query_id)),
            "labels": np.bincount(answers.label, minlength=scheme.n_classes).tolist(),
            "hash": hash_json(sorted(pair_ids)),
        },
        "majority": judge_measures.majority(answers.label, scheme),
        "figures": judge_measures.answer_figures(answers, scheme, bootstrap),
        "sources": _sources(judged, answers, scheme, bootstrap),
        "confusion": judge_measures.confusion(answers, scheme),
        "probabilities": {
            "source": source,
            "n_pairs": int(known.sum()),
            "other_label": float((argmax_N != answers.predicted)[known].mean()) if known.any() else None,
        },
        "answers": answer_counts(judged),
        "perspectives": _perspectives(judged, teacher, scheme, bootstrap),
        "rationales": _rationales(run, judged, bootstrap),
        "faithfulness": _faithfulness(run, judged, bootstrap),
        "cost": cost(judged, teacher.sampling),
        "stages": stage_facts(run),
    }
    return plain(report), predictions_of(list(judged.labelled), _logits(answers), scheme)


def answers_of(judged: Judged, scheme: LabelScheme) -> tuple[Answers, Source]:
    """Give the greedy answers as arrays, and where their probabilities come from.

    `label_tokens` are forced labels after the answer's own reasoning, `label_logprobs` what a server told; without
    either there are none.
    """
    predicted_N = np.array([_class_of(one, scheme) for one in judged.greedy], dtype=np.int64)
    pair_ids = [one.pair.pair_id for one in judged.labelled]
    source: Source = "none"
    probabilities_NK = np.full((len(pair_ids), scheme.n_classes), np.nan)
    if judged.forced is not None:
        source, probabilities_NK = "label_tokens", whole_probabilities(judged.forced, pair_ids, scheme.n_classes)
    elif any(one.label_logprobs for one in judged.greedy):
        source = "label_logprobs"
        probabilities_NK = np.array([_told(one, scheme) for one in judged.greedy])
    probabilities_NK[predicted_N == UNANSWERED] = np.nan
    return Answers(
        query_id=np.array([one.pair.query.id for one in judged.labelled], dtype=np.str_),
        label=np.array([scheme.index(one.label) for one in judged.labelled], dtype=np.int64),
        predicted=predicted_N,
        probabilities_NK=probabilities_NK,
    ), source


def draws_of(
    labelled: Sequence[LabelledPair],
    samples: Sequence[Sample],
    perspectives: tuple[Perspective, ...],
    scheme: LabelScheme,
    *,
    n_samples: int,
) -> Draws:
    """Give several answers a perspective as arrays; pairs that could not be asked have only wrong ones.

    Args: n_samples: answers asked for of each pair and perspective.
    """
    place = {one.pair.pair_id: (n, one.label) for n, one in enumerate(labelled)}
    right_NV = np.zeros((len(labelled), len(perspectives)), dtype=np.int64)
    first_NV = np.full_like(right_NV, UNANSWERED)
    for one in samples:
        (n, label), v = place[one.pair_id], perspectives.index(one.view)
        right_NV[n, v] += one.label == label
        if one.sample == 0:
            first_NV[n, v] = _class_of(one, scheme)
    query_id = np.array([one.pair.query.id for one in labelled], dtype=np.str_)
    return Draws(query_id, perspectives, right_NV, first_NV, n_samples)


def answer_counts(judged: Judged) -> dict[str, dict[str, Any]]:
    """Count, for the greedy answers and each perspective's, what came: errors, no label, and the parser's problems."""
    groups: dict[str, list[Sample]] = {"greedy": list(judged.greedy)}
    for one in judged.draws:
        groups.setdefault(one.view, []).append(one)
    return {
        name: {
            "answers": len(own),
            "errors": sum(one.error is not None for one in own),
            "without_label": sum(one.label is None for one in own),
            "too_long": sum(one.finish_reason == "length" for one in own),
            "problems": dict(sorted(Counter(problem for one in own for problem in one.problems).items())),
        }
        for name, own in groups.items()
    }


def cost(judged: Judged, recipe: SamplingRecipe) -> dict[str, Any]:
    """Give what one greedy answer a pair costs for 1,000 pairs, and what judging took in all.

    Returns: tokens None where a server did not count them; seconds None where no session ended that measured them;
        money by the recipe's prices, None where both are 0.
    """
    parts = [*judged.greedy, *judged.draws, *(judged.choice[1] if judged.choice else ()), *(judged.swapped or ())]
    answers, seconds = judged.seconds.get("greedy", (0, 0.0))
    return {
        "per_1000_pairs": {
            **_tokens(judged.greedy, recipe, 1000 / len(judged.greedy)),
            "seconds": 1000 * seconds / answers if answers else None,
        },
        "judging": {
            **_tokens(parts, recipe, 1.0),
            "answers": len(parts),
            "seconds": sum(own for _, own in judged.seconds.values()),
        },
    }


def stage_facts(run: Run) -> dict[str, dict[str, Any]]:
    """Give the reports of the teacher's finished stages, with the seconds each took."""
    facts = {}
    for stage in STAGES:
        if run.finished(stage):
            folder = run.folder(stage)
            done = json.loads((folder / DONE).read_text(encoding="utf-8"))
            path = folder / "report.json"
            own = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            facts[stage] = {"seconds": done["seconds"], "report": own}
    return facts


def plain(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Give plain data of nested figures: intervals as objects, nan and infinities, which JSON cannot hold, as None."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [plain(own) for own in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value


def not_run(because: str) -> dict[str, str]:
    """Give what stands in place of figures that could not be made, with the reason."""
    return {"state": NOT_RUN, "because": because}


def _sources(judged: Judged, answers: Answers, scheme: LabelScheme, bootstrap: Bootstrap) -> dict[str, dict[str, Any]]:
    """Give accuracy and macro-F1 of each source by itself, where the judged pairs are of several."""
    source_N = np.array([one.source for one in judged.labelled])
    names = np.unique(source_N).tolist()
    found = {}
    for name in names if len(names) > 1 else ():
        own = answers.of(source_N == name)
        figures = judge_measures.answer_figures(own, scheme, bootstrap)
        found[name] = {
            "n_pairs": len(own.label),
            "n_queries": len(np.unique(own.query_id)),
            "majority": judge_measures.majority(own.label, scheme),
            **{figure: figures[figure] for figure in ("accuracy", "macro_f1")},
        }
    return found


def _perspectives(judged: Judged, teacher: TeacherRecipe, scheme: LabelScheme, bootstrap: Bootstrap) -> dict[str, Any]:
    perspectives, n_samples = teacher.perspectives, teacher.judge.samples
    draws = draws_of(judged.drawn, judged.draws, perspectives, scheme, n_samples=n_samples)
    found: dict[str, Any] = {
        "n_pairs": len(draws.query_id),
        "n_queries": len(np.unique(draws.query_id)),
        "samples": draws.samples,
        "pass_at_k": judge_measures.pass_curves(draws, bootstrap),
        "agreement": judge_measures.agreement(draws, bootstrap),
    }
    if len(perspectives) < 2:
        found["oracle"] = not_run("the teacher has one perspective")
    elif n_samples < len(perspectives):
        found["oracle"] = not_run(f"teacher.judge.samples = {n_samples} is below the {len(perspectives)} perspectives")
    else:
        chooser = draws if judged.choice is None else draws_of(*judged.choice, perspectives, scheme, n_samples=1)
        best = judge_measures.best_perspective(chooser)
        found["oracle"] = {
            "best": best,
            "chosen_on": "the judged pairs" if judged.choice is None else f"{len(chooser.query_id)} dev pairs",
            **judge_measures.oracle_figures(draws, best, bootstrap),
        }
    return found


def _rationales(run: Run, judged: Judged, bootstrap: Bootstrap) -> dict[str, Any]:
    """Give grounding, consistency and length of the greedy answers and of each perspective's first ones."""
    scheme, fields = run.recipe.label_scheme, run.recipe.teacher.prompt.fields
    by_id = {one.pair.pair_id: one for one in judged.labelled}
    groups: dict[str, list[Sample]] = defaultdict(list)
    groups["greedy"] = list(judged.greedy)
    for one in judged.draws:
        if one.sample == 0:
            groups[one.view].append(one)
    figures = {}
    for name, samples in groups.items():
        own = [one for one in samples if one.readable]
        spans = [spans_found(one.evidence, one.rationale, by_id[one.pair_id].pair, fields) for one in own]
        agrees = [None if one.label is None else consistent(one.label, one.evidence, scheme) for one in own]
        query_id = np.array([by_id[one.pair_id].pair.query.id for one in own], dtype=np.str_)
        values = {
            "grounded": np.array([count.share for count in spans], dtype=np.float64),
            "consistent": np.array([np.nan if one is None else float(one) for one in agrees], dtype=np.float64),
        }
        weight_N = np.array([count.total for count in spans], dtype=np.float64)
        figures[name] = {
            "n_rationales": len(own),
            "n_spans": int(weight_N.sum()),
            "n_with_evidence": sum(bool(one.evidence) for one in own),
            **(mean_intervals(query_id, values, bootstrap, {"grounded": weight_N}) if own else {}),
            "words": spread([len(one.rationale.split()) for one in own]),
            "tokens": spread([one.completion_tokens for one in own if one.completion_tokens is not None]),
        }
    return figures


def _faithfulness(run: Run, judged: Judged, bootstrap: Bootstrap) -> dict[str, Any]:
    teacher, scheme = run.recipe.teacher, run.recipe.label_scheme
    by_id = {one.pair.pair_id: one for one in judged.labelled}
    chosen = chosen_answers(judged.greedy, teacher.judge.faithfulness_pairs)
    found: dict[str, Any] = {}
    if teacher.prompt.reasoning_order == "answer_first":
        found["early"] = not_run("the label comes before the rationale (reasoning_order = answer_first)")
    elif judged.forced is None:
        found["early"] = not_run("the generator cannot continue the start of an answer")
    elif not chosen:
        found["early"] = not_run("no answer to test")
    else:
        found["early"] = early_figures(chosen, judged.forced, by_id, scheme, bootstrap)
    pairs = {pair_id: one.pair for pair_id, one in by_id.items()}
    swaps = swap_facts(chosen, pairs, teacher.prompt.fields, seed=run.recipe.seed)
    if judged.swapped is None or not swaps:
        because = "no rationale cites a field of its item" if chosen else "no answer to test"
        found["swapped"] = not_run(because)
    else:
        before = {one.pair_id: one for one in judged.greedy}
        after = {one.pair_id: one for one in judged.swapped}
        found["swapped"] = swap_figures(swaps, before, after, scheme, bootstrap)
    return found


def _class_of(sample: Sample, scheme: LabelScheme) -> int:
    return UNANSWERED if sample.label is None else scheme.index(sample.label)


def _told(sample: Sample, scheme: LabelScheme) -> Floats:
    """Give the softmax of what a server told of the classes; a class it left out is as unlikely as can be."""
    if not sample.label_logprobs:
        return np.full(scheme.n_classes, np.nan)
    told_K = np.exp([sample.label_logprobs.get(code, float("-inf")) for code in scheme.classes])
    total = float(told_K.sum())
    return told_K / total if total > 0 else np.full(scheme.n_classes, np.nan)


def _logits(answers: Answers) -> Floats:
    """Give logits for `training.predictions`: log-probabilities, or a class that is only named; all 0 says nothing."""
    logits_NK = np.log(np.maximum(np.nan_to_num(answers.probabilities_NK), _FLOOR))
    named = answers.predicted != UNANSWERED
    bare = named & np.isnan(answers.probabilities_NK).any(axis=1)
    one_hot_NK = np.arange(logits_NK.shape[1]) == answers.predicted[:, None]
    logits_NK[bare] = np.where(one_hot_NK, _NAMED, _OTHER)[bare]
    logits_NK[~named] = 0.0
    return logits_NK


def _tokens(samples: Sequence[Sample], recipe: SamplingRecipe, scale: float) -> dict[str, float | None]:
    asked = [one for one in samples if one.error is None]
    prompt = [one.prompt_tokens for one in asked if one.prompt_tokens is not None]
    completion = [one.completion_tokens for one in asked if one.completion_tokens is not None]
    if len(prompt) < len(asked) or len(completion) < len(asked):
        return {"prompt_tokens": None, "completion_tokens": None, "money": None}
    money = (sum(prompt) * recipe.prompt_price + sum(completion) * recipe.completion_price) / 1e6
    priced = recipe.prompt_price > 0 or recipe.completion_price > 0
    return {
        "prompt_tokens": scale * sum(prompt),
        "completion_tokens": scale * sum(completion),
        "money": scale * money if priced else None,
    }
