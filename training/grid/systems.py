"""Every system a grid can hold: the papers' methods, plainer rivals, ablations, and controls that can kill the claim.

A system is a set of recipe keys over one common recipe, so that input, budget, metrics and report are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from relevance.errors import RecipeError
from training.recipe import Recipe
from training.student_recipe import StudentRecipe

Group = Literal["baseline", "rival", "ours", "ablation", "control", "ceiling", "ensemble", "sweep"]
Kind = Literal["student", "baseline", "average", "annotated", "teacher"]
LRKD = "arXiv:2601.21611"
OURS = "ours"
PRIVILEGED = "grid.privileged_fields"
"""Stands for the item fields that the recipe names as hidden from the students."""
PRIVILEGED_TOKENS = "grid.privileged_tokens"
"""Stands for the length of a pair that has room for them."""
PROGRAMMATIC = "programmatic"
"""Folder of the programmatic annotator's rationales, beside those of an LLM teacher."""


@dataclass(frozen=True, slots=True)
class System:
    """One row of the comparison.

    Args: kind: trained as a `student`, a `baseline` of `training.baselines`, an `average` of members' predictions,
        `annotated` by a stage, or an LLM `teacher` (see `training.grid.teacher_systems`); paper: where it comes from;
        overrides: dotted recipe key → value; members: of an average, or what must have ended before; search: the tuning
        trials, of which a recipe runs its first `grid.trials`; tuned_as: the system whose best trial counts for this
        one too: a control or an ablation keeps λ and rates of what it is held against.
    """

    name: str
    title: str
    group: Group
    paper: str
    kind: Kind = "student"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    members: tuple[str, ...] = ()
    search: tuple[Mapping[str, Any], ...] = ()
    tuned_as: str | None = None


_PLAIN = {"student.extractor.kind": "none", "student.guidance_weight": 0.0}
_GAT = {"student.extractor.kind": "gat"}
_LABEL_KD = {**_PLAIN, "student.fit.soft_label_weight": 1.0}
PAPER_SCHEDULE = {
    "student.fit.epochs": 5,
    "student.fit.batch_size": 256,
    "student.fit.freeze_embeddings": False,
    "student.encoder.freeze_layers": 0,
    "student.encoder.keep_states": False,
    "student.class_weights": "none",
    "student.query_weights": "none",
}
_PAPER_PRESET = {
    "student.fit.learning_rate": 2e-6,
    "student.fit.head_learning_rate": 2e-6,
    "student.guidance_weight": 0.1,
    "student.guidance.centre": False,
    **PAPER_SCHEDULE,
}
"""lr 2e-6 for every layer, λ = 0.1 to targets as they are, 5 epochs, batches of 256 (arXiv:2601.21611, section 4.1)."""


def _trials(*values: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """Give each value of a method's own key at the recipe's learning rates, then at twice these."""
    return tuple({**value, "student.fit.rate_factor": factor} for factor in (1.0, 2.0) for value in values)


_RATES = tuple({"student.fit.rate_factor": factor} for factor in (1.0, 2.0, 0.5, 4.0))
_WEIGHTS = _trials({"student.guidance_weight": 0.1}, {"student.guidance_weight": 1.0})


def _lrkd(name: str, title: str, group: Group, paper: str, **overrides: Any) -> System:  # noqa: ANN401 - recipe values
    keys = {key.replace("__", "."): value for key, value in overrides.items()}
    if group == "ours":
        return System(name, title, group, paper, overrides={**_GAT, **keys}, search=_WEIGHTS)
    return System(name, title, group, paper, overrides={**_GAT, **keys}, tuned_as="lrkd_gat")


def _guided(name: str, title: str, group: Group, paper: str, **keys: Any) -> System:  # noqa: ANN401 - recipe values
    return _lrkd(name, title, group, paper, **{f"student__guidance__{key}": value for key, value in keys.items()})


def _as_lrkd(name: str, title: str, **keys: Any) -> System:  # noqa: ANN401 - recipe values
    """Give LRKD-GAT with other rationales or other pairs guided, and with its λ and rates: no trials of its own."""
    guidance = {f"student.guidance.{key}": value for key, value in keys.items()}
    return System(name, title, "ours", OURS, overrides={**_GAT, **guidance}, tuned_as="lrkd_gat")


_ALL = (
    System("majority", "always the commonest class", "baseline", "–", "baseline"),
    System("bm25", "BM25", "baseline", "–", "baseline"),
    System("tfidf", "TF-IDF cosine", "baseline", "–", "baseline"),
    System("bi_encoder", "bi-encoder, zero-shot", "baseline", "–", "baseline"),
    System("lexical", "cosine and word overlap, logistic regression", "baseline", "–", "baseline"),
    System("bert", "BERT cross-encoder", "baseline", LRKD, overrides=_PLAIN, search=_RATES),
    System(
        "label_kd", "label distillation", "rival", "arXiv:1503.02531", overrides=_LABEL_KD,
        search=_trials({"student.fit.soft_label_weight": 0.5}, {"student.fit.soft_label_weight": 1.0}),
    ),
    System(
        "privileged_input", "hidden fields in the input", "rival", OURS,
        overrides={**_PLAIN, "template.fields": PRIVILEGED, "max_pair_tokens": PRIVILEGED_TOKENS}, search=_RATES,
    ),
    System(
        "ced_kd", "CED-KD", "rival", "CED-KD", overrides={**_PLAIN, "student.rationale_terms": ["ced_kd"]},
        search=_trials({"student.ced_kd.weight": 0.1}, {"student.ced_kd.weight": 0.5}),
    ),
    System(
        "mkd", "MKD", "rival", "arXiv:2411.13045", overrides={**_PLAIN, "student.rationale_terms": ["mkd"]},
        search=_trials({"student.mkd.tag_weight": 0.1}, {"student.mkd.tag_weight": 0.5}),
    ),
    System(
        "crsd", "CRSD", "rival", "arXiv:2510.11056", overrides={**_PLAIN, "student.rationale_terms": ["crsd"]},
        search=_trials({"student.crsd.contrast_weight": 0.1}, {"student.crsd.contrast_weight": 0.5}),
    ),
    _lrkd("lrkd_gat", "LRKD-GAT", "ours", LRKD),
    _lrkd("lrkd_mlp", "LRKD-MLP", "ours", LRKD, student__extractor__kind="mlp"),
    _lrkd("lrkd_poly", "LRKD-Poly", "ours", LRKD, student__extractor__kind="poly"),
    _lrkd("lrkd_gatv2", "LRKD-GATv2", "ours", OURS, student__extractor__kind="gatv2"),
    _lrkd("lrkd_slots", "LRKD, a slot a perspective", "ours", OURS, student__extractor__slots=True),
    _guided("lrkd_infonce", "LRKD, InfoNCE", "ours", OURS, loss="infonce"),
    _guided("lrkd_cosine", "LRKD, cosine", "ours", OURS, loss="cosine"),
    _guided("lrkd_pca", "LRKD, fixed PCA for P", "ours", OURS, pca=True),
    _lrkd("lrkd_label_kd", "LRKD-GAT and label distillation", "ours", OURS, student__fit__soft_label_weight=1.0),
    _as_lrkd("lrkd_programmatic", "LRKD-GAT, programmatic rationales", store=f"{PROGRAMMATIC}/embed"),
    _as_lrkd(
        "lrkd_programmatic_combined", "LRKD-GAT, programmatic rationales as one text",
        store=f"{PROGRAMMATIC}/embed", perspectives=["combined"],
    ),
    _as_lrkd("lrkd_agree", "LRKD-GAT, guided where the rationale's verdict is the label", pairs="agree"),
    _as_lrkd("lrkd_unseen", "LRKD-GAT, guided where the rationale's writer did not see the pair", pairs="unseen"),
    _guided("lrkd_combined", "LRKD-Combined", "ablation", LRKD, perspectives=["combined"]),
    _guided("lrkd_user", "LRKD, user intent only", "ablation", LRKD, perspectives=["user"]),
    _guided("lrkd_struct", "LRKD, structured analysis only", "ablation", LRKD, perspectives=["struct"]),
    _guided("lrkd_rule", "LRKD, business rule only", "ablation", LRKD, perspectives=["rule"]),
    _lrkd("lrkd_no_extractor", "LRKD without extractor", "ablation", LRKD, student__extractor__kind="cls"),
    System(
        "lrkd_no_guidance", "LRKD-GAT, λ = 0", "ablation", LRKD, overrides={**_GAT, "student.guidance_weight": 0.0},
        search=_RATES,
    ),
    _lrkd("lrkd_no_guidance_same", "λ = 0 at LRKD-GAT's rates", "ablation", OURS, student__guidance_weight=0.0),
    _guided("lrkd_shuffled", "targets shuffled within class", "control", OURS, target="shuffled"),
    _guided("lrkd_constant", "constant target", "control", OURS, target="constant"),
    _guided("lrkd_random", "random targets", "control", OURS, target="random"),
    _guided("lrkd_visible", "rationales of the visible text only", "control", OURS, store="visible/embed"),
    _guided("lrkd_one_hot", "one-hot label targets", "control", OURS, target="one_hot"),
    System("bert_paper", "BERT, the paper's preset", "control", LRKD, overrides={**_PAPER_PRESET, **_PLAIN}),
    System("lrkd_gat_paper", "LRKD-GAT, the paper's preset", "control", LRKD, overrides={**_GAT, **_PAPER_PRESET}),
    System(
        "lrkd_no_guidance_paper", "LRKD-GAT, λ = 0, the paper's preset", "control", LRKD,
        overrides={**_GAT, **_PAPER_PRESET, "student.guidance_weight": 0.0},
    ),
    *(
        System(
            f"label_kd_{perspective}", f"label distillation, {perspective} teacher", "ablation", LRKD,
            overrides={**_LABEL_KD, "student.soft_labels": perspective}, tuned_as="label_kd",
        )
        for perspective in ("user", "struct", "rule")
    ),
    System(
        "avg_ensemble", "Avg Ensemble of label distillations", "ensemble", LRKD, "average",
        members=("label_kd_user", "label_kd_struct", "label_kd_rule"),
    ),
    System(
        "lrkd_each", "average of one LRKD a perspective", "ensemble", OURS, "average",
        members=("lrkd_user", "lrkd_struct", "lrkd_rule"),
    ),
    System("teacher", "privileged teacher", "ceiling", OURS, "annotated"),
    System("title_reader", "the same reader of titles alone", "ceiling", OURS, "annotated"),
    System("oracle", "oracle on the true facts", "ceiling", OURS, "annotated"),
)  # fmt: skip
LSA = "lsa"
"""Folder of the embeddings by the bag-of-words encoder."""
SWEEPS: dict[str, tuple[str, str, tuple[Any, ...]]] = {
    "lambda": ("lrkd_gat", "student.guidance_weight", (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)),
    "codes": ("lrkd_poly", "student.extractor.codes", (1, 4, 16, 64)),
    "length": ("lrkd_gat", "max_pair_tokens", (20, 24, 32, 64)),
    "encoder": ("lrkd_gat", "student.guidance.store", (f"{LSA}/embed",)),
}
"""Response curves: the guidance weight λ, the codes K of Poly, the length of a pair, and the rationale encoder.

Sweep → the system it varies, the recipe key, the values; each point is a system named `sweep_KEY_VALUE`.
"""


def _sweep_points(sweep: str) -> list[System]:
    varied, key, values = SWEEPS[sweep]
    base = {system.name: system for system in _ALL}[varied]
    points = []
    for value in values:
        shown = LSA if sweep == "encoder" else f"{value:g}"
        overrides = {**base.overrides, key: value}
        title = f"{base.title}, {sweep} = {shown}"
        name = f"sweep_{sweep}_{shown}"
        points.append(System(name, title, "sweep", base.paper, overrides=overrides, tuned_as=varied))
    return points


SYSTEMS: dict[str, System] = {
    system.name: system for system in (*_ALL, *(point for sweep in SWEEPS for point in _sweep_points(sweep)))
}


def systems_of(recipe: Recipe, names: tuple[str, ...] = ()) -> list[System]:
    """Give a recipe's systems and the points of its sweeps, or some of them, averages last.

    Raises: RecipeError: if one is not known or not the recipe's, an average's member is missing, or there are none.
    """
    grid = recipe.grid
    unknown = [name for name in (*grid.systems, *grid.rivals, grid.ours, *names) if name not in SYSTEMS]
    if unknown:
        raise RecipeError(f"grid.systems: expected some of {', '.join(SYSTEMS)}; found {', '.join(unknown)}")
    for name in grid.systems:
        missing = set(SYSTEMS[name].members) - set(grid.systems)
        if missing:
            raise RecipeError(f"grid.systems: expected the members of {name!r} beside it, found no {sorted(missing)}")
    points = tuple(f"sweep_{sweep}_" for sweep in grid.sweeps)
    own = (*grid.systems, *(name for name in SYSTEMS if points and name.startswith(points)))
    foreign = set(names) - set(own)
    if foreign or not own:
        raise RecipeError(f"{recipe.name}: expected some of its systems ({', '.join(own)}), found {sorted(foreign)}")
    wanted = [SYSTEMS[name] for name in own if not names or name in names]
    return sorted(wanted, key=lambda system: system.kind == "average")


def check_common(recipe: Recipe) -> None:
    """Refuse a common recipe that is itself one of the methods: every system would be that method too.

    Raises: RecipeError: naming the key, the value a grid needs and the one found.
    """
    student, default = recipe.student, StudentRecipe()
    found = {
        "student.rationale_terms": (student.rationale_terms, default.rationale_terms),
        "student.soft_labels": (student.soft_labels, default.soft_labels),
        "student.fit.soft_label_weight": (student.fit.soft_label_weight, 0.0),
        "student.fit.rate_factor": (student.fit.rate_factor, 1.0),
        "student.fit.max_pair_tokens": (student.fit.max_pair_tokens, None),
        "student.guidance": (student.guidance, default.guidance),
        "student.extractor.slots": (student.extractor.slots, False),
    }
    wrong = [f"{key} = {needed}, found {value}" for key, (value, needed) in found.items() if value != needed]
    if student.guidance_weight <= 0:
        wrong.append(f"student.guidance_weight > 0, found {student.guidance_weight}")
    if wrong:
        raise RecipeError(f"{recipe.name}: expected in the common recipe of a grid {'; '.join(wrong)}")


def overridden(recipe: Recipe, overrides: Mapping[str, Any]) -> Recipe:
    """Give a recipe with dotted keys set.

    Raises: RecipeError: if a key does not exist or a value does not fit.
    """
    data = recipe.model_dump(mode="json")
    for key, value in overrides.items():
        *parents, last = key.split(".")
        section = data
        for parent in parents:
            section = section[parent]
        if last not in section:
            raise RecipeError(f"{key}: expected a recipe key, found none of this name")
        section[last] = value
        if value == PRIVILEGED:
            section[last] = ["title", *recipe.grid.privileged_fields]
        elif value == PRIVILEGED_TOKENS:
            section[last] = recipe.grid.privileged_tokens
    try:
        return Recipe.model_validate(data)
    except ValueError as error:
        raise RecipeError(f"{recipe.name}: {dict(overrides)} does not fit the recipe: {error}") from error
