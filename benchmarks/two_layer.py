"""Bundles with random weights, made by the real export stage; one of them for measuring overheads.

That has MiniLM widths and two layers: its session takes so little that milliseconds of the service around it show.
Texts, labels and tiers mean nothing; calibrator and policy are those of the embedded default.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import requests_of
from export.build import main as export_main
from relevance.bundle import CALIBRATION, POLICY, TEMPLATE, Precision, open_bundle
from relevance.labels import ESCI
from relevance.pairs import Item, LabelledPair, Pair, Query, write_labelled_pairs
from relevance.text import TextTemplate
from service.settings import DEFAULT_BUNDLE
from training.predictions import predictions_of, write_predictions
from training.runs import DONE
from training.student.encoder import load_encoder
from training.student.model import Student, StudentConfig
from training.student.predict import predict
from training.student_recipe import EncoderRecipe, ExtractorRecipe

QUERIES, ITEMS = 20, 5
RECIPE = """\
name = "{name}"
scheme = "esci"
max_query_tokens = {max_query_tokens}
max_pair_tokens = {max_pair_tokens}

[data]
source = "pairs"
path = "generated"

[export]
model_id = "{name}-random"
precisions = {precisions}
ship = {precisions}
gate_pairs = 50
latent_outputs = {latent_outputs}
"""


@dataclass(frozen=True, slots=True)
class RandomModel:
    """What a random bundle is made of.

    Args: name: also of its folder; vocabulary: None is the tokenizer's; precisions: graphs to make and ship;
        latent_outputs: whether they give latents and token weights too.
    """

    name: str
    layers: int
    width: int
    heads: int
    vocabulary: int | None = None
    precisions: tuple[Precision, ...] = ("fp32",)
    latent_outputs: bool = False


TWO_LAYER = RandomModel("two-layer", layers=2, width=384, heads=12)


def two_layer_bundle(work: Path) -> Path:
    """Give the bundle for measuring overheads, made in this folder (60 MB) unless it is there already."""
    return random_bundle(work, TWO_LAYER)


def random_bundle(work: Path, model: RandomModel) -> Path:
    """Give a bundle with random weights and the GAT extractor, made in this folder unless it is there already.

    Args: work: kept between runs.
    """
    run = work / model.name.replace("-", "_")
    bundle = run / "export" / "bundle"
    if (run / "export" / DONE).is_file():
        return bundle
    shutil.rmtree(run, ignore_errors=True)
    default = open_bundle(DEFAULT_BUNDLE)
    limits = default.manifest.limits
    for stage in ("data", "student", "calibrate"):
        (run / stage).mkdir(parents=True)
        (run / stage / DONE).write_text(json.dumps({"inputs": "", "seconds": 0, "commit": ""}))
    (run / "recipe.toml").write_text(
        RECIPE.format(
            name=model.name,
            precisions=json.dumps(model.precisions),
            latent_outputs=json.dumps(model.latent_outputs),
            **limits.model_dump(),
        ),
        encoding="utf-8",
    )
    for name in (CALIBRATION, POLICY):
        shutil.copy(DEFAULT_BUNDLE / name, run / "calibrate" / name)
    _write_student(run, model)
    export_main(["--recipe", str(run / "recipe.toml"), "--out", str(run)])
    return bundle


def _write_student(run: Path, model: RandomModel) -> None:
    """Write a student with random weights, and its predictions for generated pairs."""
    default = open_bundle(DEFAULT_BUNDLE)
    limits = default.manifest.limits
    torch.manual_seed(0)
    encoder = load_encoder(
        EncoderRecipe(name="scratch", layers=model.layers, width=model.width, heads=model.heads),
        model.vocabulary or default.tokenizer.vocabulary_size,
    )
    config = StudentConfig(
        encoder=encoder.config.to_dict(),
        extractor=ExtractorRecipe(kind="gat"),
        pooling="cls",
        scheme=ESCI.to_dict(),
        template=TextTemplate.model_validate_json((DEFAULT_BUNDLE / TEMPLATE).read_bytes()),
        max_query_tokens=limits.max_query_tokens,
        max_pair_tokens=limits.max_pair_tokens,
    )
    student = Student(config, encoder).eval()
    student.save(run / "student", default.tokenizer)
    label_rng = np.random.default_rng(0)
    for split in ("train", "dev", "cal"):
        pairs = [
            LabelledPair(
                Pair(Query(query, id=f"{split}-{number}", locale="us"), Item(title, id=f"{number}-{rank}")),
                str(label_rng.choice(ESCI.classes)),
            )
            for number, (query, titles) in enumerate(requests_of(None, [ITEMS] * QUERIES))
            for rank, title in enumerate(titles)
        ]
        write_labelled_pairs(run / "data" / f"pairs.{split}.parquet", pairs)
        logits_NK = predict(student, default.tokenizer, [p.pair for p in pairs])
        write_predictions(run / "student" / f"predictions.{split}.parquet", predictions_of(pairs, logits_NK, ESCI))


def main(argv: list[str]) -> int:
    """Make the bundle and tell its path."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"), help="folder that keeps the bundle")
    arguments = parser.parse_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    print(two_layer_bundle(arguments.work))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
