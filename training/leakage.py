"""Checks that rationales and their embeddings tell a student about pairs, not about labels; each one fails the run.

What is checked of the pairs themselves (queries, near-duplicate titles, held-out parts) is in `training.data`, and told
here by `told_of_data`.
Suffixes: N pairs, P perspectives, D width.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from relevance.errors import RunError
from relevance.labels import LabelScheme
from relevance.pairs import LabelledPair, read_labelled_pairs
from training.cot_store import CotStore
from training.predictions import read_predictions
from training.rationale_rows import Rationale, read_rationales
from training.recipe import SPLITS, VIEWS, Split
from training.runs import Run
from training.soft_labels import FILE, read_soft_labels
from training.teacher.label_words import label_pattern, strip_verdict
from training.teacher.rationale_teacher import rationale_teacher
from training.teacher.sft_rows import asked_view
from training.words import query_unit

PROBE_MARGIN = 0.02
"""A linear probe may be so much more accurate than the teacher who reads the same facts."""
MAX_SHARE_OF_CLASS = 0.5
"""Of the pairs of a class, at most so many may have the very same target."""
CARD = "card.json"
"""What stage `data` tells of its splits."""
MAX_UNREADABLE = 0.1
"""An LLM teacher may leave out so many pairs, whose guidance is masked."""
_WORLD = ("share_of_moved_labels", "share_of_moved_labels_by_class", "test_pairs")
_MAX_PROBED = 10_000
_PROBE_ITERATIONS = 300
_PROBE_STRENGTHS = (1e-4, 1e-3, 1e-2)
_HELD_OUT = 0.2


def check_rationales(run: Run) -> dict[str, Any]:
    """Check the rationale files of a run, of the splits that its recipe names.

    Returns: by split the number of rationales, who wrote them and, of an LLM teacher, the share of them whose writer
        was fitted on the pair.
    Raises: RunError: if a pair lacks a rationale of a perspective (an LLM teacher may leave out a few), a rationale
        holds a class name, or train's and another split's texts come from one family of paraphrases.
    """
    folder, recipe = run.require("rationales"), run.recipe.rationales
    writers: dict[str, set[str]] = {}
    figures: dict[str, Any] = {}
    for split in recipe.splits:
        where = f"rationales.{split}.jsonl"
        rationales = list(read_rationales(folder / where))
        if recipe.generator == "teacher":
            view = asked_view(rationale_teacher(run).recipe.teacher)
            check_nearly_complete(rationales, _pair_ids(run, split), view, where=where)
        else:
            check_complete(rationales, _pair_ids(run, split), recipe.perspectives, where=where)
        check_label_words(rationales, run.recipe.label_scheme, where=where)
        writers[split] = {rationale.generator for rationale in rationales}
        figures[split] = {"rationales": len(rationales), "generators": sorted(writers[split])}
        if recipe.generator == "teacher":
            seen = sum(rationale.annotator_seen_pair for rationale in rationales)
            figures[split]["annotator_seen_pair"] = round(seen / max(len(rationales), 1), 4)
    if recipe.generator.startswith("marketplace") and "train" in writers:
        for split in recipe.splits:
            if split != "train":
                check_families_apart(writers["train"], writers[split], where=split)
    return figures


def told_of_data(run: Run) -> dict[str, Any]:
    """Give what stage `data` found and checked of the pairs themselves, {} if it left no card.

    Returns: what each two splits share (queries, items, near-duplicate titles by MinHash); the shares of the classes in
        each split; of a marketplace its noise and what no split before test names.
    """
    path = run.folder("data") / CARD
    if not path.is_file():
        return {}
    card = json.loads(path.read_text(encoding="utf-8"))
    told: dict[str, Any] = {"shared": card["leaks"]}
    told["class_shares"] = {
        split: {label: round(count / max(counts["pairs"], 1), 4) for label, count in counts["labels"].items()}
        for split, counts in card["splits"].items()
    }
    if world := card.get("marketplace"):
        told["marketplace"] = {name: world["recipe"][name] for name in ("fact_noise", "label_noise")}
        told["marketplace"] |= {name: world[name] for name in _WORLD if name in world}
        for name in ("categories", "brands"):
            told["marketplace"][f"held_out_{name}"] = (
                f"{len(world[f'held_out_{name}'])} of {world[name]}, in test alone"
            )
    return told


def check_complete(
    rationales: Sequence[Rationale], pair_ids: Sequence[str], perspectives: Sequence[str], *, where: str
) -> None:
    """Refuse rationales that are not exactly one for each pair and perspective.

    Raises: RunError: naming the file and the first pair and perspective.
    """
    written = Counter((rationale.pair_id, rationale.perspective) for rationale in rationales)
    expected = {(pair_id, perspective) for pair_id in pair_ids for perspective in perspectives}
    faults: dict[str, list[tuple[str, str]]] = {
        "missing": sorted(expected - written.keys()),
        "for no pair": sorted(written.keys() - expected),
        "more than one": sorted(key for key, count in written.items() if count > 1),
    }
    for fault, keys in faults.items():
        if keys:
            raise RunError(
                f"{where}: expected one rationale for each of {len(expected)} pairs and perspectives, "
                f"found {len(keys)} {fault}, first {keys[0]}"
            )


def check_nearly_complete(rationales: Sequence[Rationale], pair_ids: Sequence[str], view: str, *, where: str) -> None:
    """Refuse an LLM teacher's rationales if too many pairs have none, one has two, or one is of another view.

    Raises: RunError: naming the file, and the first pair or the share.
    """
    written = {rationale.pair_id for rationale in rationales}
    missing = sum(pair_id not in written for pair_id in pair_ids)
    if missing > MAX_UNREADABLE * len(pair_ids):
        raise RunError(
            f"{where}: expected rationales of all but {MAX_UNREADABLE:.0%} of {len(pair_ids)} pairs, found none for "
            f"{missing}: the teacher's answers cannot be read"
        )
    check_complete(rationales, [pair_id for pair_id in pair_ids if pair_id in written], (view,), where=where)


def check_label_words(rationales: Iterable[Rationale], scheme: LabelScheme, *, where: str) -> None:
    """Refuse rationales that name a class.

    Raises: RunError: naming the file, the pair and the word.
    """
    pattern = label_pattern(scheme)
    for rationale in rationales:
        found = pattern.search(rationale.rationale)
        if found is not None:
            raise RunError(f"{where}: expected no class names, found {found[0]!r} in {rationale.pair_id!r:.80}")


def check_families_apart(train: set[str], other: set[str], *, where: str) -> None:
    """Refuse generators, named `NAME/FAMILY`, that write train and another split from one family of paraphrases.

    Args: where: the other split.
    Raises: RunError: naming the split and what they share.
    """
    shared = train & other
    if shared:
        raise RunError(
            f"rationales: expected other paraphrases in {where} than in train, found both from {sorted(shared)}"
        )


@dataclass(frozen=True, slots=True)
class Targets:
    """N pairs with the embeddings a student would be guided to.

    Args: embedding_ND: the perspectives' embeddings side by side; label_N: class indices.
    """

    pair_ids: tuple[str, ...]
    embedding_ND: NDArray[np.float32]
    label_N: NDArray[np.int64]

    def rows(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> Targets:
        """Give some of the rows, by mask or by index."""
        return Targets(tuple(np.array(self.pair_ids)[chosen]), self.embedding_ND[chosen], self.label_N[chosen])


def check_embeddings(run: Run, *, train_only: bool = False) -> dict[str, Any]:
    """Check what the CoT embeddings of a run say of the label by themselves.

    A linear probe is fitted on train and scored on train queries it did not see, whose paraphrases it knows, and on
    every other split that is embedded, whose paraphrases in the marketplace are others. Each is held against the
    predictions that stage `annotate` left for the same pairs.

    Args: train_only: of a control that was made for train alone, which leaves nothing else to score on.
    Returns: shares of the commonest target by class; for each set of pairs the accuracies of probe, teacher and
        majority; how many rationales stripping changes; the share of their tokens that the encoder read.
    Raises: RunError: if a class shares one target, a probe beats the teacher by more than two points, there is no
        teacher, or no pairs to score a probe on.
    """
    store = CotStore.load(run.require("embed"))
    targets = {split: own for split in SPLITS if (own := _targets(run, store, split)).pair_ids}
    _check_probed(run, targets.keys(), train_only=train_only)
    train = targets.pop("train")
    shares = check_targets(train)
    unit_N = np.array([query_unit(pair_id.split("\t")[0], "probe:") for pair_id in train.pair_ids])
    if not 0 < (unit_N < _HELD_OUT).sum() < len(unit_N):
        raise RunError(
            f"embeddings: expected training queries to fit and to score a probe on, found {len(unit_N)} pairs"
        )
    compared: dict[Split, tuple[Targets, Targets]] = {
        "train": (train.rows(unit_N >= _HELD_OUT), train.rows(unit_N < _HELD_OUT)),
        **{split: (train, other) for split, other in targets.items()},
    }
    return {
        "share_of_commonest_target": shares,
        "probes": {split: _probe(run, split, *both) for split, both in compared.items()},
        "stripping": _stripping(run, list(compared)),
        **_tokens_read(run),
    }


def _tokens_read(run: Run) -> dict[str, Any]:
    """Give the share of the rationales' tokens that the encoder read, {} where stage `embed` did not tell."""
    path = run.folder("embed") / "report.json"
    told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return told


def _check_probed(run: Run, embedded: Collection[Split], *, train_only: bool) -> None:
    """Refuse embeddings that no probe can be fitted on, scored on or held against."""
    if "train" not in embedded or (len(embedded) < 2 and not train_only):
        raise RunError(
            "embeddings: expected those of train, and of another split to score a probe on (embed.splits), "
            f"found {sorted(embedded)} in {run.folder('embed')}"
        )
    if not run.finished("annotate"):
        raise RunError(
            f"embeddings: expected stage 'annotate', whose teacher bounds the probe, found none in {run.path}"
        )


def _stripping(run: Run, splits: Sequence[Split]) -> dict[str, Any]:
    """Count the rationales that lose words before they are embedded; without any, probes are the same either way."""
    folder, scheme = run.require("rationales"), run.recipe.label_scheme
    changed_N = [
        strip_verdict(rationale.rationale, scheme) != rationale.rationale.strip()
        for split in splits
        for rationale in read_rationales(folder / f"rationales.{split}.jsonl")
    ]
    applied, changed = run.recipe.embed.strip_label_words, sum(changed_N)
    some = f"stripping changes some texts; the probes read them {'stripped' if applied else 'as written'}"
    return {
        "applied": applied,
        "rationales": len(changed_N),
        "changed": changed,
        "meaning": some if changed else "stripping changes no text; the probes are the same with and without it",
    }


def _probe(run: Run, split: Split, fitted: Targets, evaluated: Targets) -> dict[str, float]:
    probe, teacher = probe_accuracy(fitted, evaluated), _teacher_accuracy(run, split, evaluated)
    check_probe(probe, teacher)
    majority = float((evaluated.label_N == np.bincount(fitted.label_N).argmax()).mean())
    return {
        "probe_accuracy": round(probe, 4),
        "teacher_accuracy": round(teacher, 4),
        "majority_accuracy": round(majority, 4),
    }


def check_targets(train: Targets) -> dict[int, float]:
    """Refuse targets that are the same for most pairs of a class, as a coded label would be.

    Returns: by class index, the share of its pairs that have its commonest target.
    Raises: RunError: naming the class and the share.
    """
    shares = {}
    for label in np.unique(train.label_N):
        own_ND = train.embedding_ND[train.label_N == label]
        _, counts = np.unique(own_ND, axis=0, return_counts=True)
        shares[int(label)] = round(float(counts.max() / len(own_ND)), 4)
        if len(own_ND) > 1 and shares[int(label)] > MAX_SHARE_OF_CLASS:
            raise RunError(
                f"embeddings: expected at most {MAX_SHARE_OF_CLASS:.0%} of class {label} to have one target, "
                f"found {shares[int(label)]:.0%} of {len(own_ND)} pairs"
            )
    return shares


def check_probe(probe: float, teacher: float) -> None:
    """Refuse embeddings from which a linear probe reads the label better than the teacher knows it.

    Raises: RunError: with both accuracies.
    """
    if probe > teacher + PROBE_MARGIN:
        raise RunError(
            f"embeddings: expected a linear probe at most {PROBE_MARGIN:.0%} above the teacher, "
            f"found accuracies {probe:.4f} and {teacher:.4f}: the rationales hold the label"
        )


def probe_accuracy(fitted: Targets, evaluated: Targets) -> float:
    """Give the accuracy of a logistic regression from embedding to label on other pairs.

    It is the best of three strengths of regularisation on those very pairs, so that the check errs on the strict side.
    """
    step = max(1, len(fitted.label_N) // _MAX_PROBED)
    accuracies = []
    for strength in _PROBE_STRENGTHS:
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=_PROBE_ITERATIONS, tol=1e-3))
        probe.fit(fitted.embedding_ND[::step], fitted.label_N[::step])
        accuracies.append(float((probe.predict(evaluated.embedding_ND) == evaluated.label_N).mean()))
    return max(accuracies)


def _labelled(run: Run, split: Split) -> list[LabelledPair]:
    return read_labelled_pairs(run.require("data") / f"pairs.{split}.parquet", run.recipe.label_scheme)


def _pair_ids(run: Run, split: Split) -> list[str]:
    return [one.pair.pair_id for one in _labelled(run, split)]


def _targets(run: Run, store: CotStore, split: Split) -> Targets:
    """Give the pairs of a split that have all perspectives' embeddings."""
    labelled, scheme = _labelled(run, split), run.recipe.label_scheme
    single_P = np.array([perspective in VIEWS for perspective in store.perspectives])
    embedding_BPD, mask_BP = store.lookup([one.pair.pair_id for one in labelled])
    there_N = mask_BP[:, single_P].all(axis=1)
    pair_ids = tuple(labelled[n].pair.pair_id for n in np.flatnonzero(there_N))
    label_N = np.array([scheme.index(one.label) for one in labelled])[there_N]
    width = int(single_P.sum()) * store.width
    return Targets(pair_ids, embedding_BPD[there_N][:, single_P].reshape(len(pair_ids), width), label_N)


def _teacher_accuracy(run: Run, split: Split, evaluated: Targets) -> float:
    """Give the accuracy of the annotating teacher on the same pairs; of train's it saw none with its label.

    Raises: RunError: if it did not predict every one of them.
    """
    folder = run.require("annotate")
    named: dict[str, int]
    if split == "train":
        soft = read_soft_labels(folder / FILE, run.recipe.label_scheme.n_classes)
        named = {p.pair_id: int(k) for p, k in zip(soft.pairs, soft.probabilities_NK.argmax(axis=1), strict=True)}
    else:
        predictions = read_predictions(folder / f"predictions.{split}.parquet")
        named = dict(zip(predictions.pair_id.tolist(), predictions.logits_NK.argmax(axis=1).tolist(), strict=True))
    missing = [pair_id for pair_id in evaluated.pair_ids if pair_id not in named]
    if missing:
        raise RunError(
            f"{folder}: expected the teacher's prediction of {len(evaluated.pair_ids)} embedded pairs of {split}, "
            f"found none for {len(missing)}, first {missing[0]!r:.80}"
        )
    named_N = np.array([named[pair_id] for pair_id in evaluated.pair_ids])
    return float((named_N == evaluated.label_N).mean())
