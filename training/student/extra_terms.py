"""Which training-only terms a recipe asks for, built from the run's rationales, evidence and embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray

from relevance.errors import RecipeError, RunError
from relevance.labels import LabelScheme
from relevance.tokenization import PairTokenizer
from training.cot_store import CotStore
from training.rationale_rows import Evidence, read_rationales
from training.recipe import PERSPECTIVES
from training.runs import Run, log
from training.student.batches import TrainingSet
from training.student.ced_kd import RationaleDecoder, RationaleTokens
from training.student.crsd import CrsdTerm, SecondView
from training.student.guidance import CotInputs, GuidanceTerm, guidance_targets, mean_square, reachable, reduced_by_pca
from training.student.guided_pairs import guided_pairs
from training.student.mkd import EvidenceTags, MkdTerm
from training.student.model import Student
from training.student.terms import SideInputs, Term
from training.student_recipe import StudentRecipe

RATIONALES = "rationales.train.jsonl"


@dataclass(frozen=True, slots=True)
class ExtraTerms:
    """Terms, and what they read beside the tokens."""

    terms: tuple[Term, ...] = ()
    side: tuple[SideInputs, ...] = ()


def needs_rationales(recipe: StudentRecipe) -> bool:
    """Say whether a student reads the text or the evidence of rationales, and not just their embeddings."""
    return bool(recipe.rationale_terms)


def rationales_of(store: str) -> str:
    """Give the stage folder of the rationales that a store's embeddings were made of, such as `visible/rationales`."""
    return str(PurePosixPath(store).with_name("rationales"))


def make_terms(
    run: Run,
    student: Student,
    data: TrainingSet,
    tokenizer: PairTokenizer,
    *,
    class_weight_K: NDArray[np.float32] | None,
    seed: int,
) -> ExtraTerms:
    """Build the terms of a fine-tuning.

    Args: data: the training pairs, those without a label included; seed: of the controls' targets.
    Raises: RunError: if rationales or embeddings that the recipe asks for were not made, or miss every pair.
    """
    recipe, template = run.recipe.student, run.recipe.template
    guided = guidance_terms(run, student, data, seed)
    terms: list[Term] = list(guided.terms)
    side: list[SideInputs] = list(guided.side)
    if needs_rationales(recipe):
        texts, evidence = _rationales(run, data)
        if "ced_kd" in recipe.rationale_terms:
            ids = {"bos": tokenizer.cls_id, "eos": tokenizer.sep_id, "pad": tokenizer.pad_id}
            tokens = RationaleTokens(data.pairs, texts, tokenizer, recipe.ced_kd.max_tokens)
            terms.append(RationaleDecoder(student, recipe.ced_kd, tokens.vocabulary, **ids))
            side.append(tokens)
            _note_read(run, "ced_kd", tokens.share_read)
        if "mkd" in recipe.rationale_terms:
            terms.append(MkdTerm(student, recipe.mkd))
            side.append(EvidenceTags(data.pairs, evidence, template, tokenizer))
        if "crsd" in recipe.rationale_terms:
            weight_K = None if class_weight_K is None else torch.from_numpy(class_weight_K)
            terms.append(CrsdTerm(student, recipe.crsd, weight_K))
            view = SecondView(data.pairs, texts, template, tokenizer, recipe.crsd.max_tokens)
            side.append(view)
            _note_read(run, "crsd", view.share_read)
    return ExtraTerms(tuple(terms), tuple(side))


def _note_read(run: Run, term: str, share: float) -> None:
    """Log how much of the rationales a term reads within its limit, and put it into the ledger."""
    log.info("%s: reads %.1f %% of the rationales' tokens", term, 100 * share)
    run.note("student", term=term, rationale_tokens_read=round(share, 4))


def guidance_terms(run: Run, student: Student, data: TrainingSet, seed: int) -> ExtraTerms:
    """Build guidance alone, nothing where the recipe has none.

    Raises: RunError: if the embeddings were not made, or miss every pair.
    """
    recipe = run.recipe.student
    if recipe.guidance_weight == 0 or recipe.extractor.kind == "none":
        return ExtraTerms()
    store = _targets(run, student, data, seed)
    of_one_latent = 1.0 if recipe.extractor.slots else reachable(store)
    run.note("student", guidance_of_nothing=round(mean_square(store), 6), guidance_reachable=round(of_one_latent, 4))
    term = GuidanceTerm(student, recipe.guidance_weight, recipe.guidance, store.width)
    return ExtraTerms((term,), (CotInputs(data.pairs, store),))


def _targets(run: Run, student: Student, data: TrainingSet, seed: int) -> CotStore:
    recipe = run.recipe.student.guidance
    if not run.finished(recipe.store):
        raise RunError(
            "expected CoT embeddings for guidance; run `relevance rationales` and `relevance embed` first, or set "
            "student.guidance_weight=0"
        )
    store = CotStore.load(run.folder(recipe.store))
    if recipe.pairs != "all":
        written = read_rationales(run.require(rationales_of(recipe.store)) / RATIONALES)
        store = guided_pairs(store, written, recipe.pairs, _label_of(data, run.recipe.label_scheme))
    store = guidance_targets(store, recipe, [pair.pair_id for pair in data.pairs], data.label_N, seed)
    if run.recipe.student.extractor.slots and store.perspectives != PERSPECTIVES:
        raise RecipeError(
            f"student.extractor.slots: expected embeddings of {PERSPECTIVES}, one a slot, found {store.perspectives}"
        )
    if not store.row_of:
        raise RunError(f"{run.folder(recipe.store)}: expected embeddings of the training pairs, found none of theirs")
    if recipe.pca and student.extractor is not None:
        return reduced_by_pca(store, student.extractor.latent_width)
    return store


def _label_of(data: TrainingSet, scheme: LabelScheme) -> dict[str, str]:
    """Give the class code of each labelled pair by its id."""
    labelled = zip(data.pairs, data.label_N.tolist(), data.label_weight_N.tolist(), strict=True)
    return {pair.pair_id: scheme.classes[label] for pair, label, weight in labelled if weight > 0}


def _rationales(run: Run, data: TrainingSet) -> tuple[dict[str, dict[str, str]], dict[str, list[Evidence]]]:
    """Give the texts by pair and perspective, and the evidence by pair.

    Raises: RunError: if the stage has not run, or wrote nothing on the training pairs.
    """
    texts: dict[str, dict[str, str]] = {}
    evidence: dict[str, list[Evidence]] = {}
    known = {pair.pair_id for pair in data.pairs}
    path = run.require("rationales") / RATIONALES
    for rationale in read_rationales(path):
        if rationale.pair_id in known:
            texts.setdefault(rationale.pair_id, {})[rationale.perspective] = rationale.rationale
            evidence.setdefault(rationale.pair_id, []).extend(rationale.evidence)
    if not texts:
        raise RunError(f"{path}: expected rationales of the training pairs, found none of theirs")
    return texts, evidence
