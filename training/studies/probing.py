"""Study `probing`: does the latent hold words of the rationales that neither the input nor the label gives away?

The study of arXiv:2601.21611, section 4.5.4, with the controls it lacks: what the label alone foretells, other states
of the same student, an extractor that was never trained, a student without one, and one whose targets were shuffled.
It reads a grid's fits of `grid.ours`, `bert` and `lrkd_shuffled`; nothing is trained but the probes.

Suffixes: N pairs, M pairs that a keyword leaves, K classes, R width of a latent, E kinds of evidence, J folds,
D states' width, or draws; S seeds.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Memory, Parallel, delayed
from numpy.typing import NDArray
from tqdm import tqdm

from relevance.calibration import softmax
from relevance.errors import RunError
from relevance.pairs import LabelledPair
from training.evaluate import TEST_READS
from training.grid.fits import FITS
from training.grid.statistics import draw_queries, estimate_drawn
from training.multiplicity import holm
from training.runs import DONE, Run, commit, hash_file, log
from training.student.model import WEIGHTS, load_student
from training.studies.probes import (
    Keyword,
    KeywordRules,
    control_labels,
    corrected_t_test,
    drawn_f1,
    f1,
    find_keywords,
    probe,
    probe_auc,
    trainable,
)
from training.studies.probing_page import draw_deltas, table
from training.studies.rationale_pairs import pairs_with_rationales
from training.studies.states import collect_states, random_projection, with_fresh_extractor
from training.studies.study_run import study_parser, study_run, write_study
from training.words import stems

NAME = "probing"
PLOT = "delta.svg"
PLAIN, SHUFFLED = "bert", "lrkd_shuffled"
LATENT, LABEL = "latent", "label"
REPRESENTATIONS: dict[str, str] = {
    LATENT: "latent r",
    "cls": "[CLS] of the same student",
    "mean": "mean token state of the same student",
    "projection": "random projection of that mean",
    "untrained": "r of an untrained extractor on the same encoder",
    "shuffled": "r under rationales shuffled within a class",
    "plain_cls": "[CLS] of the plain cross-encoder",
    "answer": "the same student's class probabilities",
    LABEL: "the label alone",
}
"""Name → title; all but the first are what the latent is held against."""
_COMPUTES = [sys.modules[name] for name in (__name__, probe.__module__, collect_states.__module__)]
"""Modules whose change makes kept results stale."""


@dataclass(frozen=True, slots=True)
class ProbedFit:
    """The student folders of one seed: the system under study, the plain cross-encoder, and shuffled targets."""

    seed: int
    ours: Path
    plain: Path
    shuffled: Path


@dataclass(frozen=True, slots=True)
class ProbingSettings:
    """Sizes of the study.

    Args: rules: which words are probed, in how many folds; draws: of the query bootstrap; level: of Holm's test;
        jobs: processes; kept: folder of this study alone that keeps what was probed, None keeps nothing.
    """

    rules: KeywordRules = field(default_factory=KeywordRules)
    draws: int = 2000
    level: float = 0.05
    jobs: int = 1
    kept: Path | None = None


@dataclass(frozen=True, slots=True)
class _Measured:
    """Probes of one representation for one keyword.

    Args: f1_S, drawn_DS: of each seed, and of it with queries drawn; f1_J, auc: means over seeds; control: F1 on labels
        without meaning, or nan.
    """

    f1_S: NDArray[np.float64]
    f1_J: NDArray[np.float64]
    auc: float
    drawn_DS: NDArray[np.float64]
    control: float

    @property
    def f1(self) -> float:
        """Mean over seeds."""
        return float(self.f1_S.mean())


@dataclass(frozen=True, slots=True)
class _Spread:
    """How intervals are made: as the grid's, from draws of queries and of seeds; of one seed, of that student alone."""

    seed: int
    queries: int

    def difference(self, measured: Sequence[Mapping[str, _Measured]], name: str, other: str) -> dict[str, float]:
        """Give the difference in F1, mean over keywords and seeds, with its 95 % interval."""
        f1_S = np.mean([own[name].f1_S - own[other].f1_S for own in measured], axis=0)
        drawn_DS = np.mean([own[name].drawn_DS - own[other].drawn_DS for own in measured], axis=0)
        found = estimate_drawn(f1_S, drawn_DS, self.seed, constant=len(f1_S) == 1, queries=self.queries)
        return {"value": found.value, "low": found.low, "high": found.high}


@dataclass(frozen=True, slots=True)
class _ProbeInputs:
    """What the probes for all keywords share.

    Args: states: of each seed, by the names of `REPRESENTATIONS`; place_N: number of each pair's query; types_N: a word
        type of it; drawn_DQ: draws of queries; seed: of the control task.
    """

    states: Sequence[Mapping[str, NDArray[np.float32]]]
    place_N: NDArray[np.int64]
    types_N: NDArray[np.str_]
    drawn_DQ: NDArray[np.float64]
    seed: int


def main(argv: list[str]) -> int:
    """Run the study on a grid, a process a core; `--fit SYSTEM/seed_S` probes that fit alone.

    A killed study goes on with the keywords that it has not probed.

    Raises: as `study_probing` and `grid_fits`.
    """
    arguments = study_parser(NAME, __doc__).parse_args(argv)
    run = study_run(arguments)
    fits = grid_fits(run, arguments.fit)
    split = run.recipe.evaluate.split
    files = {
        "pairs": hash_file(run.require("data") / f"pairs.{split}.parquet"),
        "rationales": hash_file(run.require("rationales") / f"rationales.{split}.jsonl"),
        "fits": {f"{f.seed}": [hash_file(p / WEIGHTS) for p in (f.ours, f.plain, f.shuffled)] for f in fits},
    }
    settings = ProbingSettings(jobs=len(os.sched_getaffinity(0)))
    inputs = {"seed": run.recipe.seed, "strip": run.recipe.embed.strip_label_words, "files": files}
    inputs["settings"] = {"rules": asdict(settings.rules), "draws": settings.draws, "level": settings.level}
    inputs["template"] = run.recipe.template.model_dump(mode="json")
    with run.stage(f"studies/{NAME}", inputs, resumable=True) as folder:
        if folder is not None:
            _note_test_read(run, split, files)
            result = study_probing(run, fits, replace(settings, kept=folder / "probed"))
            write_study(folder, result, table(result))
            (folder / PLOT).write_text(draw_deltas(result), encoding="utf-8")
            shutil.rmtree(folder / "probed")
    return 0


def grid_fits(run: Run, fit: str | None = None) -> list[ProbedFit]:
    """Find the seeds for which the system under study and both of its controls have finished.

    Args: run: of a grid, or of one of its fits; fit: `SYSTEM/seed_S`, None for every seed of the recipe's `grid.ours`.
    Raises: RunError: if there is no such seed.
    """
    folder = (run.shared or run.path) / FITS
    ours, _, seed = (fit or f"{run.recipe.grid.ours}/seed_*").partition("/")
    found = []
    for path in sorted((folder / ours).glob(f"{seed}/student"), key=lambda p: (len(p.parent.name), p.parent.name)):
        plain, shuffled = (folder / name / path.parent.name / "student" for name in (PLAIN, SHUFFLED))
        if all((p / DONE).is_file() for p in (path, plain, shuffled)):
            found.append(ProbedFit(int(path.parent.name.removeprefix("seed_")), path, plain, shuffled))
    if not found:
        raise RunError(
            f"{folder}: expected finished students of {ours}, {PLAIN} and {SHUFFLED} from one seed, found none; "
            "run `relevance grid` with these systems first"
        )
    return found


def study_probing(run: Run, fits: Sequence[ProbedFit], settings: ProbingSettings | None = None) -> dict[str, Any]:
    """Probe every representation for every keyword and compare the latent with each of the others.

    F1 is of pooled out-of-fold answers; its intervals are t intervals from draws of whole queries and, apart from that,
    of seeds where there are several, as the grid's are, and keep the fitted probes; untrained extractor and random
    projection are drawn anew for each seed. The p-values are Nadeau and Bengio's corrected t-test over the folds of the
    mean over seeds, so they speak of these students, corrected by Holm over all keywords and comparisons at once.

    Args: fits: one a seed; figures are means over them; settings: None for the defaults.
    Returns: plain data: settings, keywords, representations and comparisons.
    Raises: InputError: if pairs lack rationales or no keyword is left to probe; RunError: if a student cannot be read
        or has no extractor.
    """
    settings = settings or ProbingSettings()
    labelled, texts, evidence_NE = pairs_with_rationales(run)
    template = run.recipe.template
    visible = [f"{template.query_text(p.pair.query.text)} {template.item_text(p.pair.item)}" for p in labelled]
    query_N = np.array([p.pair.query.id for p in labelled], dtype=np.str_)
    keywords = find_keywords(texts, visible, query_N.tolist(), evidence_NE, rules=settings.rules)
    log.info("probing: %d pairs, keywords: %s", len(labelled), ", ".join(keyword.word for keyword in keywords))
    states = [representations(run, fit, labelled) for fit in fits]
    heads = [(stems(p.pair.query.text) or [""])[-1] for p in labelled]
    return {
        "study": NAME,
        "system": fits[0].ours.parent.parent.name,
        "seeds": [fit.seed for fit in fits],
        "n_pairs": len(labelled),
        "n_queries": len(np.unique(query_N)),
        "folds": settings.rules.folds,
        "rules": asdict(settings.rules),
        "level": settings.level,
        "titles": REPRESENTATIONS,
        **compare(states, keywords, query_N, np.array(heads, dtype=np.str_), settings=settings, seed=run.recipe.seed),
    }


def compare(
    states: Sequence[Mapping[str, NDArray[np.float32]]],
    keywords: Sequence[Keyword],
    query_N: NDArray[np.str_],
    types_N: NDArray[np.str_],
    *,
    settings: ProbingSettings,
    seed: int,
) -> dict[str, Any]:
    """Probe representations for keywords and give keywords, representations and comparisons as plain data.

    Args: states: of each seed: (N, width) by the names of `REPRESENTATIONS`; keywords: as `find_keywords` found them;
        query_N: each pair's query; types_N: a word type of it, which the control task labels at random; seed: of the
        draws and of the control task.
    """
    queries, place_N = np.unique(query_N, return_inverse=True)
    drawn_DQ = draw_queries(len(queries), settings.draws, seed).astype(np.float64)
    memory = Memory(settings.kept, verbose=0)
    probed = memory.cache(_probed, ignore=["inputs"])
    inputs = _ProbeInputs(states, place_N, types_N, drawn_DQ, seed)
    code = [hash_file(Path(str(module.__file__))) for module in _COMPUTES]
    tasks = (delayed(probed)(number, code, keyword, inputs) for number, keyword in enumerate(keywords))
    found = Parallel(n_jobs=settings.jobs, return_as="generator")(tasks)
    measured = list(tqdm(found, total=len(keywords), unit="keyword", desc="probing"))
    return _summary(keywords, measured, settings.level, _Spread(seed, len(queries)))


def _probed(number: int, code: Sequence[str], keyword: Keyword, inputs: _ProbeInputs) -> dict[str, _Measured]:
    """Probe all representations for one keyword.

    Args: code: hashes of what computes, so that results of other code are not taken up again.
    """
    rng = np.random.default_rng([inputs.seed, number])
    control_M = control_labels(inputs.types_N[keyword.row_M], float(keyword.present_M.mean()), rng)
    return {
        name: _measure([own[name] for own in inputs.states], keyword, control_M, inputs) for name in REPRESENTATIONS
    }


def representations(run: Run, fit: ProbedFit, labelled: Sequence[LabelledPair]) -> dict[str, NDArray[np.float32]]:
    """Give what one seed's students hold of each pair, by the names of `REPRESENTATIONS`; each of shape (N, width).

    Raises: RunError: if a student cannot be read, or the system under study or its control has no extractor.
    """
    pairs = [p.pair for p in labelled]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    student, tokenizer = load_student(fit.ours)
    own = collect_states(student.to(device), tokenizer, pairs)
    drawn = run.recipe.seed + fit.seed
    untrained = collect_states(with_fresh_extractor(student, drawn), tokenizer, pairs)
    plain, plain_tokenizer = load_student(fit.plain)
    shuffled, shuffled_tokenizer = load_student(fit.shuffled)
    plain_cls_ND = collect_states(plain.to(device), plain_tokenizer, pairs).cls_ND
    shuffled_NR = collect_states(shuffled.to(device), shuffled_tokenizer, pairs).latent_NR
    if own.latent_NR is None or untrained.latent_NR is None or shuffled_NR is None:
        raise RunError(f"{fit.ours} and {fit.shuffled}: expected students with an extractor, found one without")
    label_N = [run.recipe.label_scheme.index(p.label) for p in labelled]
    return {
        LATENT: own.latent_NR,
        "cls": own.cls_ND,
        "mean": own.mean_ND,
        "projection": random_projection(own.mean_ND, own.latent_NR.shape[1], drawn),
        "untrained": untrained.latent_NR,
        "shuffled": shuffled_NR,
        "plain_cls": plain_cls_ND,
        "answer": softmax(own.logits_NK.astype(np.float64)).astype(np.float32),
        LABEL: np.eye(run.recipe.label_scheme.n_classes, dtype=np.float32)[label_N],
    }


def _measure(
    states: Sequence[NDArray[np.float32]],
    keyword: Keyword,
    control_M: NDArray[np.bool_],
    inputs: _ProbeInputs,
) -> _Measured:
    present_M, folds, query_M = keyword.present_M, keyword.folds, inputs.place_N[keyword.row_M]
    probes = [probe(state[keyword.row_M], present_M, folds) for state in states]
    controls: list[float] = []
    if trainable(control_M, folds):
        controls = [f1(probe(state[keyword.row_M], control_M, folds).answer_M, control_M) for state in states]
    drawn_DS = np.stack([drawn_f1(p.answer_M, present_M, query_M, inputs.drawn_DQ) for p in probes], axis=1)
    return _Measured(
        np.array([f1(p.answer_M, present_M) for p in probes]),
        np.mean([p.f1_J for p in probes], axis=0),
        _mean([probe_auc(p, present_M, folds) for p in probes]),
        drawn_DS,
        _mean(controls),
    )


def _summary(
    keywords: Sequence[Keyword], measured: Sequence[Mapping[str, _Measured]], level: float, spread: _Spread
) -> dict[str, Any]:
    others = [name for name in REPRESENTATIONS if name != LATENT]
    ratio = 1 / (len(keywords[0].folds) - 1)
    p_values = {
        (row, name): corrected_t_test(own[LATENT].f1_J - own[name].f1_J, ratio)
        for row, own in enumerate(measured)
        for name in others
    }
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    return {
        "keywords": [
            {
                "word": keyword.word,
                "n_pairs": len(keyword.row_M),
                "n_present": int(keyword.present_M.sum()),
                "n_dropped": keyword.dropped,
                "f1": {name: m.f1 for name, m in own.items()},
                "auc": {name: m.auc for name, m in own.items()},
                "control_f1": {name: m.control for name, m in own.items()},
                "latent_minus": {
                    name: {
                        **spread.difference([own], LATENT, name),
                        "p": p_values[row, name],
                        "p_holm": adjusted[row, name],
                    }
                    for name in others
                },
            }
            for row, (keyword, own) in enumerate(zip(keywords, measured, strict=True))
        ],
        "representations": {
            name: {
                "f1": _mean([own[name].f1 for own in measured]),
                "auc": _mean([own[name].auc for own in measured]),
                "selectivity": _mean([own[name].f1 - own[name].control for own in measured]),
                "over_label": spread.difference(measured, name, LABEL),
            }
            for name in REPRESENTATIONS
        },
        "comparisons": {
            name: {
                "latent_minus": spread.difference(measured, LATENT, name),
                "ahead": sum(_decided(own, adjusted[row, name], name, level) > 0 for row, own in enumerate(measured)),
                "behind": sum(_decided(own, adjusted[row, name], name, level) < 0 for row, own in enumerate(measured)),
            }
            for name in others
        },
    }


def _decided(own: Mapping[str, _Measured], p_holm: float, name: str, level: float) -> int:
    """Give the sign of latent minus another where Holm's test decides, else 0."""
    return int(np.sign((own[LATENT].f1_J - own[name].f1_J).mean())) if p_holm < level else 0


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def _note_test_read(run: Run, split: str, files: Mapping[str, Any]) -> None:
    if split == "test":
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "commit": commit(), "study": NAME}
        with (run.path / TEST_READS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line | {"files": files}) + "\n")
