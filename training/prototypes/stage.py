"""Stage `prototypes`: what a finished student's latents say, in a few typical rationales, for explanations.

Rationales of training pairs are rendered from templates, clustered into medoids a perspective, and a ridge map is
fitted from the student's latents to their places; the student itself stays as it is. A prototype that held-out maps
name for pairs it fits worse than the perspective's most common one is given up, and clauses that they name wrongly are
said of no pair (`training.prototypes.telling`). The floors come from dev: under them naming the nearest prototype was
no better than always naming the perspective's most common one. Pairs of Exact-only sources are left out, because they
say nothing about class shares.
Suffixes: N pairs, M prototypes, P perspectives, R latent width, D width of the rationale space, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from relevance.bundle import PROTOTYPES
from relevance.errors import InputError, RunError
from relevance.pairs import LabelledPair, read_labelled_pairs
from relevance.prototypes import Prototypes
from training.prototypes.latent_map import LatentMap, fit_latent_map
from training.prototypes.provenance import STUDENT_FILES
from training.prototypes.rationale_space import encoder_name, unit_rows, verdicts_by_pair
from training.prototypes.telling import Told, tell, without
from training.prototypes.templates import PHRASES, Verdicts, agreement
from training.rationale_rows import read_rationales
from training.runs import Run, hash_file, log, stage_arguments
from training.student.batches import readable
from training.student.model import load_student
from training.studies.states import States, collect_states
from training.words import query_unit

SHUFFLED = "shuffled.npz"
"""The same prototypes with maps fitted to other pairs' rationales: a control that the bundle does not get."""
FIGURES = "prototypes.json"
_FITTED, _HELD_OUT = "train", "dev"


@dataclass(frozen=True, slots=True)
class Explained:
    """Pairs of one split with what the student and the annotator say of them.

    Args: verdicts: of each pair, one a perspective; latent_NR: the student's.
    """

    pairs: list[LabelledPair]
    verdicts: dict[str, tuple[Verdicts, ...]]
    latent_NR: NDArray[np.float32]
    logits_NK: NDArray[np.float32]


def main(argv: list[str]) -> int:
    """Run the stage.

    Raises: RunError: if an earlier stage has not finished or the student has no latent; InputError: if train or dev
        lack rationales, or there are too few.
    """
    run = stage_arguments(argv, "prototypes", __doc__)
    student, data, source = (run.require(stage) for stage in ("student", "data", "rationales"))
    files = {
        **{f"student/{name}": student / name for name in STUDENT_FILES},
        **{f"pairs.{split}": data / f"pairs.{split}.parquet" for split in (_FITTED, _HELD_OUT)},
        **{f"rationales.{split}": source / f"rationales.{split}.jsonl" for split in (_FITTED, _HELD_OUT)},
        PHRASES.name: PHRASES,
    }
    missing = [str(path) for path in files.values() if not path.is_file()]
    if missing:
        raise InputError(f"prototypes: expected the files {missing}, found none; rationales.splits needs train and dev")
    inputs = {
        "prototypes": run.recipe.prototypes.model_dump(mode="json"),
        "encoder": encoder_name(run.recipe.embed),
        "seed": run.recipe.seed,
        "scheme": run.recipe.label_scheme.to_dict(),
        "files": {name: hash_file(path) for name, path in files.items()},
    }
    with run.stage("prototypes", inputs) as folder:
        if folder is not None:
            make_prototypes(run, folder)
    return 0


def make_prototypes(run: Run, folder: Path) -> Prototypes:
    """Fit prototypes, maps and floors, and write them with their figures.

    Raises: as `main`.
    """
    section, perspectives = run.recipe.prototypes, run.recipe.rationales.perspectives
    train, dev = (explained_pairs(run, split) for split in (_FITTED, _HELD_OUT))
    fold_N = np.array([int(query_unit(p.pair.query.text, "prototypes:") * section.folds) for p in train.pairs])
    verdicts_PN = list(zip(*(train.verdicts[p.pair.pair_id] for p in train.pairs), strict=True))
    told = [
        tell(run, name, own_N, train.latent_NR, fold_N) for name, own_N in zip(perspectives, verdicts_PN, strict=True)
    ]
    targets = [own.place_TD[own.part.row_N] for own in told]
    shuffle_N = np.random.default_rng([run.recipe.seed, 7]).permutation(len(train.pairs))
    shuffled = [
        fit_latent_map(train.latent_NR, place_ND[shuffle_N], fold_N, [own.fitted.strength])
        for place_ND, own in zip(targets, told, strict=True)
    ]
    answers = [fit_latent_map(train.logits_NK, place_ND, fold_N) for place_ND in targets]
    label_N = np.array([run.recipe.label_scheme.index(p.label) for p in train.pairs], dtype=np.int64)
    prototypes, verdicts = _gathered(told, label_N, run.recipe.label_scheme.n_classes)
    prototypes = _with_maps(prototypes, [own.fitted for own in told])
    true_NP = [
        [without(own, kept.left_out) for own, kept in zip(dev.verdicts[p.pair.pair_id], told, strict=True)]
        for p in dev.pairs
    ]
    floor_P = floors(prototypes, verdicts, dev.latent_NR, true_NP)
    prototypes = replace(prototypes, floor_P=floor_P)
    (folder / PROTOTYPES).write_bytes(prototypes.to_bytes())
    (folder / SHUFFLED).write_bytes(_with_maps(prototypes, shuffled).to_bytes())
    _, similarity_NP = prototypes.nearest(dev.latent_NR)
    figures: dict[str, Any] = {
        "n_pairs": {_FITTED: len(train.pairs), _HELD_OUT: len(dev.pairs)},
        "perspectives": {
            name: {
                "texts": len(told[p].part.texts),
                "prototypes": len(told[p].medoid_M),
                "left_out": {"=".join(clause): precision for clause, precision in told[p].left_out.items()},
                "strength": told[p].fitted.strength,
                "held_out_r2_of_all": told[p].r2_of_all,
                "held_out_r2": told[p].fitted.held_out_r2,
                "held_out_r2_shuffled": shuffled[p].held_out_r2,
                "held_out_r2_of_logits": answers[p].held_out_r2,
                "floor": float(floor_P[p]),
                "close_dev": float((similarity_NP[:, p] >= floor_P[p]).mean()),
            }
            for p, name in enumerate(perspectives)
        },
        "prototypes": _rows(prototypes, verdicts, run.recipe.label_scheme.classes),
    }
    (folder / FIGURES).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    log.info("prototypes: %s", {name: row["prototypes"] for name, row in figures["perspectives"].items()})
    return prototypes


def explained_pairs(run: Run, split: str) -> Explained:
    """Give a split's pairs that have rationales of every perspective, with the student's latents.

    Raises: RunError: if the student has no latent; InputError: if no pair is left.
    """
    perspectives = run.recipe.rationales.perspectives
    path = run.require("rationales") / f"rationales.{split}.jsonl"
    verdicts = verdicts_by_pair(read_rationales(path), perspectives)
    rows = read_labelled_pairs(run.require("data") / f"pairs.{split}.parquet", run.recipe.label_scheme)
    rows = [p for p in rows if not p.exact_only and p.pair.pair_id in verdicts]
    student, tokenizer = load_student(run.require("student"))
    if student.extractor is None:
        raise RunError(f"{run.folder('student')}: expected a student with an extractor, found one without a latent")
    fits = readable([p.pair for p in rows], student.config.template, tokenizer).tolist()
    rows = [p for p, fit in zip(rows, fits, strict=True) if fit]
    if not rows:
        raise InputError(f"{path}: expected rationales of {perspectives} for pairs of {split!r}, found none")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    states = collect_states(student.to(device), tokenizer, [p.pair for p in rows])
    return Explained(rows, verdicts, _latents(states), states.logits_NK)


def read_prototypes(folder: Path, n_classes: int) -> tuple[Prototypes, Prototypes, list[Verdicts]]:
    """Give what the stage wrote: the prototypes, those of the shuffled control, and what each prototype concludes.

    Raises: BundleError: if a file is damaged.
    """
    own, control = (
        Prototypes.from_bytes((folder / name).read_bytes(), n_classes=n_classes) for name in (PROTOTYPES, SHUFFLED)
    )
    rows = json.loads((folder / FIGURES).read_text(encoding="utf-8"))["prototypes"]
    return own, control, [tuple(row["verdicts"].items()) for row in rows]


def floors(
    prototypes: Prototypes,
    verdicts: Sequence[Verdicts],
    latent_NR: NDArray[np.float32],
    true_NP: Sequence[Sequence[Verdicts]],
) -> NDArray[np.float32]:
    """Give the similarity of each perspective under which naming the nearest prototype does not pay.

    With pairs in the order of their similarity, it lies where naming the nearest has lost most against always naming
    the most common prototype, by the agreement of verdicts; -1 where it never loses.

    Args: verdicts: of each prototype; true_NP: the annotator's, of pairs that nothing was fitted on.
    """
    index_NP, similarity_NP = prototypes.nearest(latent_NR)
    floor_P = np.full(len(prototypes.perspectives), -1.0, dtype=np.float32)
    for p in range(len(floor_P)):
        own_M = np.flatnonzero(prototypes.perspective_M == p)
        common = int(own_M[prototypes.size_M[own_M].argmax()])
        order_N = np.argsort(similarity_NP[:, p], kind="stable").tolist()
        gain_N = [
            agreement(verdicts[index_NP[n, p]], true_NP[n][p]) - agreement(verdicts[common], true_NP[n][p])
            for n in order_N
        ]
        lost_N = np.cumsum(gain_N)
        worst = int(lost_N.argmin())
        if lost_N[worst] < 0:
            floor_P[p] = np.nextafter(similarity_NP[order_N[worst], p], np.float32(2))
    return floor_P


def _gathered(told: Sequence[Told], label_N: NDArray[np.int64], n_classes: int) -> tuple[Prototypes, list[Verdicts]]:
    """Give the prototypes, still without maps, and what each of them concludes; members are the pairs of its text."""
    texts: list[str] = []
    verdicts: list[Verdicts] = []
    perspectives, directions, counts = [], [], []
    width = max(own.place_TD.shape[1] for own in told)
    for p, own in enumerate(told):
        count_TK = np.zeros((len(own.part.texts), n_classes))
        np.add.at(count_TK, (own.part.row_N, label_N), 1)
        medoid_M = own.medoid_M[np.argsort(-own.part.members_T[own.medoid_M], kind="stable")]
        texts += [own.part.texts[t] for t in medoid_M]
        verdicts += [own.part.verdicts[t] for t in medoid_M]
        perspectives += [p] * len(medoid_M)
        directions.append(_widened(unit_rows(own.place_TD)[medoid_M], width))
        counts.append(count_TK[medoid_M])
    count_MK = np.concatenate(counts)
    size_M = count_MK.sum(axis=1)
    prototypes = Prototypes(
        perspectives=tuple(own.part.perspective for own in told),
        texts=tuple(texts),
        perspective_M=np.array(perspectives, dtype=np.int64),
        share_MK=(count_MK / size_M[:, None]).astype(np.float32),
        size_M=size_M.astype(np.int64),
        direction_MD=np.concatenate(directions).astype(np.float32),
        map_PRD=np.zeros((len(told), 1, width), np.float32),
        offset_PD=np.zeros((len(told), width), np.float32),
        floor_P=np.full(len(told), -1.0, np.float32),
    )
    return prototypes, verdicts


def _with_maps(prototypes: Prototypes, maps: Sequence[LatentMap]) -> Prototypes:
    width = prototypes.direction_MD.shape[1]
    return replace(
        prototypes,
        map_PRD=np.stack([_widened(own.map_RD, width) for own in maps]).astype(np.float32),
        offset_PD=np.stack([_widened(own.offset_D, width) for own in maps]).astype(np.float32),
    )


def _widened(array: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Add zeros to the last axis: the space of a perspective with few texts is narrower than others'."""
    return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, width - array.shape[-1])])


def _rows(prototypes: Prototypes, verdicts: Sequence[Verdicts], classes: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "perspective": prototypes.perspectives[prototypes.perspective_M[m]],
            "text": prototypes.texts[m],
            "verdicts": dict(own),
            "size": int(prototypes.size_M[m]),
            "share": dict(zip(classes, prototypes.share_MK[m].tolist(), strict=True)),
        }
        for m, own in enumerate(verdicts)
    ]


def _latents(states: States) -> NDArray[np.float32]:
    if states.latent_NR is None:
        raise RunError("prototypes: expected a student with an extractor, found one without a latent")
    return states.latent_NR
