"""The gate of preference optimisation: which of two policies answers dev pairs better.

Preference optimisation often gains nothing and sometimes harms, so its policy is shipped only where it wins on pairs
that neither policy was trained on. Answers are kept under a name that says what was asked: another margin asks nothing
again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from relevance.errors import RunError
from relevance.labels import LabelScheme
from relevance.pairs import LabelledPair, read_labelled_pairs
from training.recipe import Recipe
from training.runs import Run, hash_file, hash_json
from training.teacher.judge_measures import UNANSWERED, class_figures
from training.teacher.local_generator import LocalGenerator
from training.teacher.policy import load_policy
from training.teacher.prompts import PromptBook
from training.teacher.samples import Sample, read_samples, sample_pairs, write_samples
from training.teacher.sft_rows import asked_view
from training.words import query_unit

DEV = "pairs.dev.parquet"
_PLACES = 6


def decide(run: Run, folder: Path, policies: Mapping[str, Path]) -> dict[str, Any]:
    """Ask policies `sft` and `dpo` about the gate's pairs and ship the better one.

    Args: folder, policies: as `ask_gate` takes them.
    Returns: `shipped` (`sft` or `dpo`), `reason` in words, and `gate` with the figures of both.
    Raises: RunError: if there are no dev pairs.
    """
    gate = ask_gate(run, folder, policies)
    gain, margin = gate["dpo"]["macro_f1"] - gate["sft"]["macro_f1"], gate["margin"]
    return {
        "shipped": "dpo" if gain > margin else "sft",
        "reason": f"macro-F1 {gate['sft']['macro_f1']:.4f} after SFT and {gate['dpo']['macro_f1']:.4f} after DPO "
        f"on {gate['pairs']} dev pairs; DPO must win by more than {margin:g}",
        "gate": gate,
    }


def ask_gate(run: Run, folder: Path, policies: Mapping[str, Path]) -> dict[str, Any]:
    """Ask policies about the gate's pairs.

    Args: folder: that the answers are written to, from which a killed gate goes on; policies: by name, a name always
        for the same one in a folder.
    Returns: which pairs were asked about, the margin of the recipe, and the figures of each policy by its name.
    Raises: RunError: if there are no dev pairs.
    """
    recipe, scheme = run.recipe, run.recipe.label_scheme
    pairs = pairs_of(run)
    asked = hash_json([gate_inputs(run), [one.pair.pair_id for one in pairs]])[:12]
    figures: dict[str, dict[str, Any]] = {}
    for name, policy in policies.items():
        answers = folder / f"gate.{name}.{asked}.jsonl"
        if not answers.is_file():
            _ask(recipe, policy, pairs, answers)
        figures[name] = figures_of(pairs, list(read_samples(answers)), scheme)
    return {
        "pairs": len(pairs),
        "queries": len({one.pair.query.id for one in pairs}),
        "pairs_hash": hash_json(sorted(one.pair.pair_id for one in pairs)),
        "margin": recipe.teacher.dpo.gate_margin,
        **figures,
    }


def gate_inputs(run: Run) -> dict[str, Any]:
    """Give all that decides the answers of the gate but for its pairs and policies, as plain data to be hashed."""
    teacher = run.recipe.teacher
    return {
        "prompt": PromptBook.load(teacher.prompt, run.recipe.label_scheme).fingerprint,
        "view": asked_view(teacher),
        "sampling": teacher.sampling.model_dump(mode="json", include={"thinking", "max_new_tokens"}),
        "files": {DEV: hash_file(run.require("data") / DEV)},
    }


def pairs_of(run: Run) -> list[LabelledPair]:
    """Give the dev pairs of a run's gate.

    Raises: RunError: if there are none.
    """
    path = run.require("data") / DEV
    pairs = gate_pairs(read_labelled_pairs(path, run.recipe.label_scheme), run.recipe.teacher.dpo.gate_pairs)
    if not pairs:
        raise RunError(f"{path}: expected dev pairs for the gate of DPO, found none")
    return pairs


def gate_pairs(labelled: Sequence[LabelledPair], most: int) -> list[LabelledPair]:
    """Choose whole queries, the same for every run, until there are so many pairs; in the order of the file.

    Pairs of exact-only sources are left out, as in every other judgement.
    """
    labelled = [one for one in labelled if not one.exact_only]
    sizes: dict[str, int] = {}
    for one in labelled:
        sizes[one.pair.query.text] = sizes.get(one.pair.query.text, 0) + 1
    chosen: set[str] = set()
    count = 0
    for query in sorted(sizes, key=lambda text: (query_unit(text, "gate:"), text)):
        if count >= most:
            break
        chosen.add(query)
        count += sizes[query]
    return [one for one in labelled if one.pair.query.text in chosen]


def figures_of(pairs: Sequence[LabelledPair], samples: Sequence[Sample], scheme: LabelScheme) -> dict[str, Any]:
    """Give accuracy, macro-F1, the share of pairs with a readable answer and the mean tokens of an answer.

    Args: samples: one a pair, in the order of the pairs.
    """
    label_N = np.array([scheme.index(one.label) for one in pairs])
    predicted_N = np.array([scheme.index(s.label) if s.label is not None else UNANSWERED for s in samples])
    figures = class_figures(label_N, predicted_N, scheme)
    tokens = [s.completion_tokens for s in samples if s.error is None and s.completion_tokens is not None]
    return {
        **{name: round(figures[name], _PLACES) for name in ("accuracy", "macro_f1", "answered")},
        "response_tokens": round(float(np.mean(tokens)), 2) if tokens else None,
    }


def _ask(recipe: Recipe, policy: Path, pairs: Sequence[LabelledPair], answers: Path) -> None:
    """Write one greedy answer a pair, under the prompt that the policy is used with."""
    teacher, scheme = recipe.teacher, recipe.label_scheme
    book = PromptBook.load(teacher.prompt, scheme)
    sampling = teacher.sampling.model_copy(update={"kind": "local", "temperature": 0.0})
    generator = LocalGenerator(load_policy(policy, fingerprint=book.fingerprint), sampling, seed=recipe.seed)
    views = (asked_view(teacher),)
    asked = [one.pair for one in pairs]
    write_samples(answers, asked, lambda rest: sample_pairs(generator, book, scheme, rest, views, samples=1))
