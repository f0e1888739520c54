"""The sections of a recipe that say how a student is built and trained; unknown keys are errors."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from relevance.text import TextTemplate


class Section(BaseModel):
    """A part of a recipe: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class EncoderRecipe(Section):
    """The student's BERT body.

    Args: name: a hub name, a path, `package:NAME`, or `scratch` with the sizes given here; tokenizer: the same for its
        vocabulary, or `run:STAGE/FILE` for one that a stage of the run made; freeze_layers: so many of the lowest
        layers, and the embeddings below them, keep their weights in the fine-tuning; keep_states: what these make of a
        pair is computed once, without dropout, and kept under OUT/frozen (4 bytes × width × tokens a pair) for all
        epochs and, in a grid, all systems.
    """

    name: str = "bert-base-multilingual-uncased"
    tokenizer: str | None = None
    freeze_layers: int = Field(default=0, ge=0)
    keep_states: bool = False
    layers: int = Field(default=4, ge=1)
    width: int = Field(default=128, ge=8)
    heads: int = Field(default=4, ge=1)


class PretrainRecipe(Section):
    """Stage `pretrain`, for an encoder from scratch: so many steps over the training texts, without labels."""

    steps: int = Field(default=2000, ge=1)
    batch_size: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)


class ExtractorRecipe(Section):
    """The latent reasoning extractor.

    Args: hidden_dim: None is the encoder's width; codes: K of Poly; slots: one extractor a perspective, each guided by
        its own rationales, mixed by a gate (ours).
    """

    kind: Literal["none", "cls", "mlp", "poly", "gat", "gatv2"] = "gat"
    hidden_dim: int | None = Field(default=None, ge=1)
    codes: int = Field(default=32, ge=1)
    slots: bool = False


class GuidanceRecipe(Section):
    """What the latent is pulled towards, and how (λ is `student.guidance_weight`).

    Args: loss: `mse` is the paper's sum of squares (eq. 8), `cosine` and `infonce` are ours; perspectives: whose
        embeddings, None for all that were made; target: `cot`, or a control that carries no reasoning: embeddings
        `shuffled` among pairs of one class, their `constant` mean, `random` unit vectors, or the `one_hot` label;
        centre: subtract each perspective's mean over the training pairs, of which embeddings have a large one;
        store: stage folder of the embeddings; pairs: guide by `all` rationales, by those whose verdict is the pair's
        label (`agree`), or by those whose writer was not fitted on the pair (`unseen`); pca: project the embeddings to
        the latent's width by a fixed PCA instead of learning a map; temperature: of InfoNCE.
    """

    loss: Literal["mse", "cosine", "infonce"] = "mse"
    perspectives: tuple[str, ...] | None = None
    target: Literal["cot", "shuffled", "constant", "random", "one_hot"] = "cot"
    centre: bool = True
    store: str = "embed"
    pairs: Literal["all", "agree", "unseen"] = "all"
    pca: bool = False
    temperature: float = Field(default=0.05, gt=0)


class CedKdRecipe(Section):
    """CED-KD: an auxiliary decoder writes the rationale from the token states; training only.

    Args: weight: α of the mean token loss; layers, heads: of the decoder; max_tokens: of a rationale.
    """

    weight: float = Field(default=0.5, gt=0)
    layers: int = Field(default=2, ge=1)
    heads: int = Field(default=4, ge=1)
    max_tokens: int = Field(default=128, ge=8)


class MkdRecipe(Section):
    """MKD (arXiv:2411.13045): a teacher's class distribution, and its evidence as BIO tags; training only.

    Args: soft_weight: α of T² KL; temperature: T; tag_weight: γ of the CRF loss per token.
    """

    soft_weight: float = Field(default=0.5, ge=0)
    temperature: float = Field(default=2.0, gt=0)
    tag_weight: float = Field(default=0.1, ge=0)


class CrsdRecipe(Section):
    """CRSD (arXiv:2510.11056): a second view with the rationale in the input teaches the first; training only.

    Args: contrast_weight: λ_c of InfoNCE; kl_weight: λ_kl; temperature: of InfoNCE; max_tokens: of the second view.
    """

    contrast_weight: float = Field(default=0.1, ge=0)
    kl_weight: float = Field(default=0.5, ge=0)
    temperature: float = Field(default=0.05, gt=0)
    max_tokens: int = Field(default=256, ge=16)


class FitRecipe(Section):
    """One pass of optimisation: the warm-up and the fine-tuning of a student share this schema.

    Args: head_learning_rate: of everything but the encoder; layer_decay: factor on the learning rate per layer
        downwards; warmup_fraction: of all steps; soft_label_weight: of the cross-entropy against annotated
        probabilities where a pair has them; rank_weight: of the pairwise loss within queries; freeze_embeddings: keep
        the encoder's word embeddings fixed; patience: epochs without a better dev figure before stopping;
        max_pair_tokens: shorter than the recipe's, for speed; rate_factor: on both learning rates, for tuning.
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
    rate_factor: float = Field(default=1.0, gt=0)


class StudentRecipe(Section):
    """Stage `student`.

    Args: pretrain: start from the encoder of stage `pretrain`; fit: the fine-tuning on labelled pairs; warm_up: before
        it, on annotated pairs without labels (stage `annotate`), None for no warm-up; warm_up_start: what the
        fine-tuning takes from it, the whole `student`, or its `encoder` alone, so that students of any build can start
        from one warm-up; warm_up_template: what the warm-up reads, None for the recipe's template; pooling: what stands
        beside the latent in the head: raw [CLS], [CLS] and the masked mean, or `segments` (see
        `training.student.model.Student`); head_width: hidden units of the head, None for a linear one; feature_weight:
        of the training-only regression on annotated features; guidance_weight: λ of arXiv:2601.21611 eq. 9; guidance:
        its target and form; rationale_terms: rival ways to use rationales, with a section each; warm_up_guidance: guide
        the latent in the warm-up too, by the rationales of the pairs without labels (`embed.annotated`); soft_labels:
        which of the annotated distributions, `all` or one perspective's; class_weights: `none`, or `sqrt_inverse`
        frequency; query_weights: `sqrt_inverse` gives each pair of a query of n pairs the weight 1 / √n; field_dropout:
        chance that an optional item field is hidden from one pair in one epoch; random_negatives: pairs with another
        query's item added as least relevant, per labelled pair, and their weight; seeds: one fine-tuning each, their
        weights averaged; max_queries: train on so many of the labelled queries, None for all; exact_only: also on pairs
        of sources that hold only the most relevant class (a grid compares systems without them: teachers and plainer
        baselines never learn from them); predicted: splits to give predictions of; round_weights: round the encoder to
        what int8w stores before anything is calibrated; bf16: autocast, where the device has instructions for it.
    """

    encoder: EncoderRecipe = EncoderRecipe()
    pretrain: PretrainRecipe | None = None
    extractor: ExtractorRecipe = ExtractorRecipe()
    warm_up: FitRecipe | None = None
    warm_up_start: Literal["student", "encoder"] = "student"
    warm_up_template: TextTemplate | None = None
    fit: FitRecipe = FitRecipe()
    pooling: Literal["cls", "cls_mean", "segments"] = "cls"
    head_width: int | None = Field(default=None, ge=1)
    feature_weight: float = Field(default=0.0, ge=0)
    guidance_weight: float = Field(default=0.1, ge=0)
    warm_up_guidance: bool = False
    guidance: GuidanceRecipe = GuidanceRecipe()
    rationale_terms: tuple[Literal["ced_kd", "mkd", "crsd"], ...] = ()
    ced_kd: CedKdRecipe = CedKdRecipe()
    mkd: MkdRecipe = MkdRecipe()
    crsd: CrsdRecipe = CrsdRecipe()
    soft_labels: Literal["all", "user", "struct", "rule"] = "all"
    class_weights: Literal["none", "sqrt_inverse"] = "none"
    query_weights: Literal["none", "sqrt_inverse"] = "none"
    field_dropout: float = Field(default=0.0, ge=0, lt=1)
    random_negatives: float = Field(default=0.0, ge=0, le=4)
    random_negative_weight: float = Field(default=0.2, ge=0)
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    max_queries: int | None = Field(default=None, ge=1)
    exact_only: bool = True
    predicted: tuple[Literal["dev", "cal", "test"], ...] = ("dev", "cal", "test")
    round_weights: bool = False
    bf16: bool = False
    checkpoint_steps: int = Field(default=200, ge=1)

    @model_validator(mode="after")
    def _states_that_stay(self) -> StudentRecipe:
        if self.encoder.keep_states and (self.encoder.freeze_layers == 0 or self.field_dropout > 0):
            raise ValueError(
                "expected student.encoder.freeze_layers of at least 1 and student.field_dropout = 0 with "
                f"student.encoder.keep_states, found {self.encoder.freeze_layers} and {self.field_dropout}"
            )
        return self

    @model_validator(mode="after")
    def _chosen_by_label(self) -> StudentRecipe:
        if self.warm_up_guidance and self.guidance.pairs != "all":
            raise ValueError(
                "expected student.guidance.pairs = 'all' with student.warm_up_guidance, whose pairs have no labels, "
                f"found {self.guidance.pairs!r}"
            )
        return self


def hashed_student(recipe: StudentRecipe, without: set[str] | None = None) -> dict[str, Any]:
    """Give a student's section as its stages hash it: a key that came later is told only where it is set.

    Args: without: keys that a stage does not read.
    """
    told = recipe.model_dump(mode="json", exclude=without)
    if recipe.guidance.pairs == "all" and "guidance" in told:
        del told["guidance"]["pairs"]
    if recipe.warm_up_start == "student":
        told.pop("warm_up_start", None)
    if recipe.exact_only:
        told.pop("exact_only", None)
    if not recipe.encoder.keep_states and "encoder" in told:
        del told["encoder"]["keep_states"]
    return told
