"""Recipes: one TOML file holds the complete configuration of a run; unknown keys are errors."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from relevance.errors import RecipeError
from relevance.labels import LabelScheme, load_scheme
from relevance.text import TextTemplate
from relevance.tokenization import N_SPECIAL

RECIPES = Path(__file__).parent / "recipes"
Split = Literal["train", "dev", "cal", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "cal", "test")
Perspective = Literal["user", "struct", "rule"]
PERSPECTIVES: tuple[Perspective, ...] = ("user", "struct", "rule")
"""User intent, structured analysis, business rule (arXiv:2601.21611, section 3.2)."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataRecipe(_Section):
    """Stage `data`.

    Args: source: `esci-mini` (folder with esci_mini.parquet), `esci` (folder with the official Parquet tables),
        `wands` (folder with WANDS' three tab-separated files) or `pairs` (one .jsonl or .parquet file of ours);
        products: optional folder with esci_products.parquet, joined for longer texts and category;
        cal_fraction: share of train queries set aside as `cal`; dev_fraction, test_fraction: for sources that have no
        split of their own; max_queries: per split, None for all; large_version: ESCI's; locales: None for all.
    """

    source: Literal["esci-mini", "esci", "wands", "pairs"]
    path: str
    products: str | None = None
    cal_fraction: float = Field(default=0.15, gt=0, lt=1)
    dev_fraction: float = Field(default=0.1, gt=0, lt=1)
    test_fraction: float = Field(default=0.2, gt=0, lt=1)
    max_queries: int | None = Field(default=None, ge=1)
    large_version: bool = True
    locales: tuple[str, ...] | None = None
    on_bad_row: Literal["fail", "skip"] = "fail"


class RationalesRecipe(_Section):
    """Stage `rationales`.

    Args: generator: `programmatic` writes from item fields the student does not see; query_readings: optional folder
        with esci_query_reasoning.parquet; splits: which pairs get rationales.
    """

    generator: Literal["programmatic"] = "programmatic"
    perspectives: tuple[Perspective, ...] = PERSPECTIVES
    query_readings: str | None = None
    splits: tuple[Split, ...] = ("train",)


class EmbedRecipe(_Section):
    """Stage `embed`.

    Args: model: a sentence-transformers model by hub name or path, or `package:NAME` for one a Python package carries;
        cache: folder of the embedding cache, relative to the run unless absolute; strip_label_words: remove class
        names and the final verdict sentence before embedding.
    """

    model: str = "BAAI/bge-m3"
    revision: str | None = None
    batch_size: int = Field(default=64, ge=1)
    max_tokens: int = Field(default=1024, ge=8)
    cache: str = "embedding_cache"
    strip_label_words: bool = True


class AnnotateRecipe(_Section):
    """Stage `annotate`: a feature-based teacher, fitted on labelled pairs, gives probabilities to pairs without labels.

    Args: model: sentence encoder of the teacher's features; items: folder with esci_products.parquet, None for the
        items of the training pairs; queries: folder with esci_label_ids.parquet, whose train queries are added, None
        for the queries of the training pairs; ranks: for each query, so many items drawn from this range of its
        ranking by cosine; extra_ranks: the same for queries of `queries`; folds: of cross-fitting.
    """

    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    items: str | None = None
    queries: str | None = None
    ranks: tuple[tuple[int, int, int], ...] = ((0, 10, 4), (10, 40, 3), (40, 200, 2), (200, 2000, 1), (2000, 10**9, 1))
    extra_ranks: tuple[tuple[int, int, int], ...] = ((0, 5, 2), (5, 30, 1), (30, 300, 1))
    folds: int = Field(default=5, ge=2)


class EncoderRecipe(_Section):
    """The student's BERT body: a hub name, a path, `package:NAME`, or `scratch` with the sizes given here."""

    name: str = "bert-base-multilingual-uncased"
    tokenizer: str | None = None
    layers: int = Field(default=4, ge=1)
    width: int = Field(default=128, ge=8)
    heads: int = Field(default=4, ge=1)


class ExtractorRecipe(_Section):
    """The latent reasoning extractor. `hidden_dim` of None is the encoder's width; `codes` is K of Poly."""

    kind: Literal["none", "cls", "mlp", "poly", "gat"] = "gat"
    hidden_dim: int | None = Field(default=None, ge=1)
    codes: int = Field(default=32, ge=1)


class FitRecipe(_Section):
    """One pass of optimisation: the warm-up and the fine-tuning of a student share this schema.

    Args: head_learning_rate: of everything but the encoder; layer_decay: factor on the learning rate per layer
        downwards; warmup_fraction: of all steps; soft_label_weight: of the cross-entropy against annotated
        probabilities where a pair has them; rank_weight: of the pairwise loss within queries; freeze_embeddings: keep
        the encoder's word embeddings fixed; patience: epochs without a better dev figure before stopping;
        max_pair_tokens: shorter than the recipe's, for speed.
    """

    epochs: int = Field(default=5, ge=1)
    batch_size: int = Field(default=32, ge=1)
    learning_rate: float = Field(default=2e-5, gt=0)
    head_learning_rate: float = Field(default=1e-3, gt=0)
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    weight_decay: float = Field(default=0.01, ge=0)
    warmup_fraction: float = Field(default=0.06, ge=0, le=1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    soft_label_weight: float = Field(default=0.0, ge=0)
    rank_weight: float = Field(default=0.0, ge=0)
    freeze_embeddings: bool = False
    patience: int = Field(default=2, ge=1)
    max_pair_tokens: int | None = Field(default=None, ge=8)


class StudentRecipe(_Section):
    """Stage `student`.

    Args: fit: the fine-tuning on labelled pairs; warm_up: before it, on annotated pairs without labels (stage
        `annotate`), None for no warm-up; warm_up_template: what the warm-up reads, None for the recipe's template;
        pooling: what stands beside the latent in the head: raw [CLS], [CLS] and the masked mean, or `segments` (see
        `training.student.model.Student`); head_width: hidden units of the head, None for a linear one;
        feature_weight: of the training-only regression on annotated features; guidance_weight: λ of arXiv:2601.21611
        eq. 9; class_weights: `none`, or `sqrt_inverse` frequency; query_weights: `sqrt_inverse` gives each pair of a
        query of n pairs the weight 1 / √n; field_dropout: chance that an optional item field is hidden from one pair
        in one epoch; random_negatives: pairs with another query's item added as least relevant, per labelled pair, and
        their weight; seeds: one fine-tuning each, their weights averaged; round_weights: round the encoder to what
        int8w stores before anything is calibrated; bf16: autocast.
    """

    encoder: EncoderRecipe = EncoderRecipe()
    extractor: ExtractorRecipe = ExtractorRecipe()
    warm_up: FitRecipe | None = None
    warm_up_template: TextTemplate | None = None
    fit: FitRecipe = FitRecipe()
    pooling: Literal["cls", "cls_mean", "segments"] = "cls"
    head_width: int | None = Field(default=None, ge=1)
    feature_weight: float = Field(default=0.0, ge=0)
    guidance_weight: float = Field(default=0.1, ge=0)
    class_weights: Literal["none", "sqrt_inverse"] = "none"
    query_weights: Literal["none", "sqrt_inverse"] = "none"
    field_dropout: float = Field(default=0.0, ge=0, lt=1)
    random_negatives: float = Field(default=0.0, ge=0, le=4)
    random_negative_weight: float = Field(default=0.2, ge=0)
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    round_weights: bool = False
    bf16: bool = False
    checkpoint_steps: int = Field(default=200, ge=1)


class CalibrateRecipe(_Section):
    """Stage `calibrate`.

    Args: method: calibrator kind; shrinkage: pairs at which a locale's own fit weighs as much as the pooled one;
        epsilon, confidence: the false-filter rule; min_exact_queries: fewer take the pooled cut;
        exact_precision, upper_precision: of the cuts 3|4 and 2|3; balanced_labels: choose label weights for macro-F1
        instead of naming the most probable class, which under a common class hardly ever names a rare one.
    """

    method: Literal["temperature", "vector", "isotonic"] = "vector"
    shrinkage: float = Field(default=200.0, ge=0)
    epsilon: float = Field(default=0.05, gt=0, lt=1)
    confidence: float = Field(default=0.95, gt=0, lt=1)
    min_exact_queries: int = Field(default=60, ge=1)
    exact_precision: float = Field(default=0.9, gt=0, le=1)
    upper_precision: float = Field(default=0.7, gt=0, le=1)
    filter_tier: int = Field(default=2, ge=0, le=4)
    balanced_labels: bool = True
    aliases: dict[str, str] = Field(default_factory=dict)
    rules: tuple[dict[str, Any], ...] = ()


class EvaluateRecipe(_Section):
    """Stage `evaluate`: the split, and the draws and confidence of the query bootstrap."""

    split: Split = "test"
    draws: int = Field(default=1000, ge=50)
    confidence: float = Field(default=0.95, gt=0, lt=1)
    legacy_swapped_gains: bool = False


class ExportRecipe(_Section):
    """Stage `export`.

    Args: precisions: graphs to make and gate; ship: graphs to put into the bundle, of those that pass;
        latent_outputs: also give `latent` and `token_weights`; card: path of the CARD.md text, None for a made one;
        about: sections of the made card, heading → lines (sources, weaknesses).
    """

    model_id: str = "relevance-tiers"
    precisions: tuple[Literal["fp32", "fp16", "int8w", "int8"], ...] = ("fp32", "int8w")
    ship: tuple[Literal["fp32", "fp16", "int8w", "int8"], ...] = ("int8w",)
    latent_outputs: bool = False
    gate_pairs: int = Field(default=1000, ge=50)
    golden: str | None = None
    card: str | None = None
    about: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    licences: dict[str, str] = Field(default_factory=dict)
    locales: dict[str, Literal["supported", "weak", "unsupported"]] = Field(default_factory=dict)


class Recipe(_Section):
    """A complete run configuration: what `relevance pipeline` runs, and one section a stage."""

    name: str
    stages: tuple[str, ...] = ("data", "rationales", "embed", "student", "calibrate", "evaluate", "report", "export")
    seed: int = 0
    scheme: str = "esci"
    max_query_tokens: int = Field(default=64, ge=1)
    max_pair_tokens: int = Field(default=128, ge=8)
    template: TextTemplate = TextTemplate()
    data: DataRecipe
    rationales: RationalesRecipe = RationalesRecipe()
    embed: EmbedRecipe = EmbedRecipe()
    annotate: AnnotateRecipe = AnnotateRecipe()
    student: StudentRecipe = StudentRecipe()
    calibrate: CalibrateRecipe = CalibrateRecipe()
    evaluate: EvaluateRecipe = EvaluateRecipe()
    export: ExportRecipe = ExportRecipe()

    @model_validator(mode="after")
    def _room_for_items(self) -> Recipe:
        if self.max_query_tokens + N_SPECIAL >= self.max_pair_tokens:
            raise ValueError(
                f"expected max_query_tokens < max_pair_tokens - {N_SPECIAL}, found {self.max_query_tokens} and "
                f"{self.max_pair_tokens}"
            )
        return self

    @property
    def label_scheme(self) -> LabelScheme:
        """The label scheme that `scheme` names."""
        return load_scheme(self.scheme)


def load_recipe(name_or_path: str, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe by name (one of `training/recipes`) or path, with `a.b=value` overrides (values are TOML).

    Raises: RecipeError: no such recipe, not TOML, an unknown key, a wrong type, or an override that is not `key=value`.
    """
    path = RECIPES / f"{name_or_path}.toml"
    if not path.is_file():
        path = Path(name_or_path)
    if not path.is_file():
        known = sorted(p.stem for p in RECIPES.glob("*.toml"))
        raise RecipeError(f"expected a recipe of {known} or a TOML file, found {name_or_path!r}")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: expected TOML: {error}") from error
    for override in overrides or []:
        _override(data, override)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}, found {e['input']!r}" for e in error.errors()
        )
        raise RecipeError(f"{path.name}: {problems}") from error


def _override(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set: expected key=value, found {override!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, last = key.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise RecipeError(f"--set {override}: expected {parent!r} to be a section")
    data[last] = value
