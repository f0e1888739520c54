"""Recipes: one TOML file holds the complete configuration of a run; unknown keys are errors."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from relevance.errors import RecipeError
from relevance.labels import LabelScheme, load_scheme
from relevance.text import TextTemplate
from relevance.tokenization import N_SPECIAL
from training.student_recipe import Section, StudentRecipe
from training.teacher_recipe import TeacherRecipe

RECIPES = Path(__file__).parent / "recipes"
Split = Literal["train", "dev", "cal", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "cal", "test")
Perspective = Literal["user", "struct", "rule"]
PERSPECTIVES: tuple[Perspective, ...] = ("user", "struct", "rule")
"""User intent, structured analysis, business rule (arXiv:2601.21611, section 3.2)."""
View = Literal["user", "struct", "rule", "unified"]
VIEWS: tuple[View, ...] = (*PERSPECTIVES, "unified")
"""What a teacher may be asked for: one perspective, or, after fine-tuning, an answer of its own choice (eq. 2)."""


class MarketplaceRecipe(Section):
    """The synthetic privileged-information world, see `training.data.marketplace`.

    Args: seed: of the world, not of any training; queries: by split; candidates: per query; fact_noise: chance that a
        catalogue fact is wrong; label_noise: chance that a label is moved to an adjacent class; held_out: share of
        categories and of brands that train never sees.
    """

    seed: int = 0
    queries: dict[Split, int] = Field(default={"train": 1000, "dev": 150, "cal": 150, "test": 550})
    candidates: int = Field(default=20, ge=4)
    fact_noise: float = Field(default=0.1, ge=0, lt=1)
    label_noise: float = Field(default=0.08, ge=0, lt=1)
    held_out: float = Field(default=0.2, ge=0, lt=0.5)


class DataRecipe(Section):
    """Stage `data`.

    Args: source: `esci-mini` (folder with esci_mini.parquet), `esci` (folder with the official Parquet tables),
        `wands` (folder with WANDS' three tab-separated files), `pairs` (one .jsonl or .parquet file of ours) or
        `marketplace` (no path: the synthetic world of section `data.marketplace`);
        products: optional folder with esci_products.parquet, joined for longer texts and category;
        cal_fraction: share of train queries set aside as `cal`; dev_fraction, test_fraction: for sources that have no
        split of their own; max_queries: per split, None for all; large_version: ESCI's; locales: None for all.
    """

    source: Literal["esci-mini", "esci", "wands", "pairs", "marketplace"]
    path: str = ""
    marketplace: MarketplaceRecipe = MarketplaceRecipe()
    products: str | None = None
    cal_fraction: float = Field(default=0.15, gt=0, lt=1)
    dev_fraction: float = Field(default=0.1, gt=0, lt=1)
    test_fraction: float = Field(default=0.2, gt=0, lt=1)
    max_queries: int | None = Field(default=None, ge=1)
    large_version: bool = True
    locales: tuple[str, ...] | None = None
    on_bad_row: Literal["fail", "skip"] = "fail"


class RationalesRecipe(Section):
    """Stage `rationales`.

    Args: generator: `programmatic` writes from item fields the student does not see, `visible` from the title alone
        (a control), `marketplace` and `marketplace-visible` do so in the synthetic world, `teacher` is the run's LLM
        teacher (section `teacher`), whose one rationale a pair names no perspective; teacher: folder of a finished
        teacher that writes in place of the run's own, relative to the run unless absolute, such as
        `teachers/mpcot/seed_0` of `relevance teachers`; query_readings: optional folder with
        esci_query_reasoning.parquet, which `visible` does not read; splits: which pairs get rationales.
    """

    generator: Literal["programmatic", "visible", "marketplace", "marketplace-visible", "teacher"] = "programmatic"
    teacher: str | None = None
    perspectives: tuple[Perspective, ...] = PERSPECTIVES
    query_readings: str | None = None
    splits: tuple[Split, ...] = ("train",)


class EmbedRecipe(Section):
    """Stage `embed`.

    Args: model: a sentence-transformers model by hub name or path, `package:NAME` for one a Python package carries, or
        `lsa:WIDTH` for TF-IDF and an SVD of the rationales themselves;
        cache: folder of the embedding cache, relative to the run unless absolute; strip_label_words: remove class
        names and the final verdict sentence before embedding; combined: also embed the perspectives' rationales
        joined to one text, as perspective `combined` (LRKD-Combined of arXiv:2601.21611); annotated: also embed the
        rationales that `annotate.teacher = "policy"` wrote, for a guided warm-up; splits: None for all that have
        rationales.
    """

    model: str = "BAAI/bge-m3"
    revision: str | None = None
    batch_size: int = Field(default=64, ge=1)
    max_tokens: int = Field(default=1024, ge=8)
    cache: str = "embedding_cache"
    strip_label_words: bool = True
    combined: bool = False
    annotated: bool = False
    splits: tuple[Split, ...] | None = None


class PrototypesRecipe(Section):
    """Stage `prototypes`; the encoder of the rendered rationales is `embed.model`.

    Args: width: of the space that rationales and latents meet in; most: prototypes a perspective; least_members:
        training pairs that a prototype stands for at the least; folds: of cross-validation, by query.
    """

    width: int = Field(default=64, ge=2)
    most: int = Field(default=64, ge=1)
    least_members: int = Field(default=20, ge=1)
    folds: int = Field(default=5, ge=2)


class AnnotateRecipe(Section):
    """Stage `annotate`: a feature-based teacher, fitted on labelled pairs, gives probabilities to pairs without labels.

    Args: teacher: `features` reads texts by a sentence encoder; `facts` holds a marketplace's catalogue facts against
        what its queries ask for, and labels the training pairs only; `policy` is the run's LLM teacher; model:
        sentence encoder of the teacher's features; items: folder with esci_products.parquet, None for the
        items of the training pairs; queries: folder with esci_label_ids.parquet, whose train queries are added, None
        for the queries of the training pairs; ranks: for each query, so many items drawn from this range of its
        ranking by cosine; extra_ranks: the same for queries of `queries`; folds: of cross-fitting.
    """

    teacher: Literal["features", "facts", "policy"] = "features"
    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    items: str | None = None
    queries: str | None = None
    ranks: tuple[tuple[int, int, int], ...] = ((0, 10, 4), (10, 40, 3), (40, 200, 2), (200, 2000, 1), (2000, 10**9, 1))
    extra_ranks: tuple[tuple[int, int, int], ...] = ((0, 5, 2), (5, 30, 1), (30, 300, 1))
    folds: int = Field(default=5, ge=2)


class CalibrateRecipe(Section):
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


class EvaluateRecipe(Section):
    """Stage `evaluate`: the split, and the draws and confidence of the query bootstrap."""

    split: Split = "test"
    draws: int = Field(default=1000, ge=50)
    confidence: float = Field(default=0.95, gt=0, lt=1)
    legacy_swapped_gains: bool = False


class ExportRecipe(Section):
    """Stage `export`.

    Args: precisions: graphs to make and gate; ship: graphs to put into the bundle, of those that pass;
        latent_outputs: also give `latent` and `token_weights`; card: path of the CARD.md text, None for a made one;
        about: sections of the made card, heading → lines (sources, weaknesses).
    """

    model_id: str = "relevance-tiers"
    precisions: tuple[Literal["fp32", "fp16", "int8w", "int8", "unfused"], ...] = ("fp32", "int8w")
    ship: tuple[Literal["fp32", "fp16", "int8w", "int8", "unfused"], ...] = ("int8w",)
    latent_outputs: bool = False
    gate_pairs: int = Field(default=1000, ge=50)
    golden: str | None = None
    card: str | None = None
    about: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    licences: dict[str, str] = Field(default_factory=dict)
    locales: dict[str, Literal["supported", "weak", "unsupported"]] = Field(default_factory=dict)


class GridRecipe(Section):
    """Command `grid`: which systems, how often, and with which hyper-parameters.

    Args: systems: names of `training.grid.systems`; sweeps: response curves beside them; seeds: one training each;
        jobs: processes at a time on a CPU; tuning: a ledger of dev figures by system and trial, relative to the
        recipes' folder, None for the recipe's own values; trials: tuning trials a system, the same number for all;
        tuning_queries: labelled queries that a trial trains on, None for all; privileged_fields: item fields that only
        the rival `privileged_input` reads, privileged_tokens: its length of a pair; draws: of the hierarchical
        bootstrap; rivals: the family that differences to `ours` are corrected over; teachers: names of
        `training.grid.teacher_systems`, for command `teachers`.
    """

    systems: tuple[str, ...] = ()
    sweeps: tuple[Literal["lambda", "codes", "length", "encoder"], ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    jobs: int = Field(default=2, ge=1)
    tuning: str | None = None
    trials: int = Field(default=4, ge=1, le=4)
    tuning_queries: int | None = Field(default=None, ge=1)
    privileged_fields: tuple[str, ...] = ("brand", "color")
    privileged_tokens: int = Field(default=96, ge=8)
    draws: int = Field(default=10_000, ge=50)
    ours: str = "lrkd_gat"
    rivals: tuple[str, ...] = ("bert", "label_kd", "ced_kd", "mkd", "crsd")
    teachers: tuple[str, ...] = ()

    @field_validator("systems", "seeds", "rivals", "teachers")
    @classmethod
    def _each_once(cls, values: tuple[object, ...]) -> tuple[object, ...]:
        if len(set(values)) != len(values):
            raise ValueError(f"expected each value once, found {values}")
        return values


class Recipe(Section):
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
    prototypes: PrototypesRecipe = PrototypesRecipe()
    annotate: AnnotateRecipe = AnnotateRecipe()
    teacher: TeacherRecipe = TeacherRecipe()
    student: StudentRecipe = StudentRecipe()
    calibrate: CalibrateRecipe = CalibrateRecipe()
    evaluate: EvaluateRecipe = EvaluateRecipe()
    export: ExportRecipe = ExportRecipe()
    grid: GridRecipe = GridRecipe()

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
    """Read a recipe by name (one of `training/recipes`) or path, with `a.b=value` overrides: TOML, or `null`.

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
        value = None if text == "null" else text
    *parents, last = key.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise RecipeError(f"--set {override}: expected {parent!r} to be a section")
    data[last] = value
