"""The section of a recipe that says how an LLM teacher is prompted, fine-tuned and gated; unknown keys are errors.

The defaults are the numbers of arXiv:2601.21611, section 4.1 and Appendix B; what the paper leaves open is named.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from training.student_recipe import Section

TeacherPerspective = Literal["user", "struct", "rule"]


class PromptRecipe(Section):
    """What the teacher is asked.

    Args: version: a folder of `training/teacher/prompts`, or the path of one; rules: TOML of business rules, None for
        those of the prompt folder; reasoning_order: `think_first` (the paper's) puts the label last, `answer_first`
        puts it first; shots: worked examples per class in the system message, 0 for none; fields: item fields shown
        beside the title (`attributes` shows all, `attributes.NAME` one).
    """

    version: str = "v1"
    rules: str | None = None
    reasoning_order: Literal["think_first", "answer_first"] = "think_first"
    shots: int = Field(default=1, ge=0)
    fields: tuple[str, ...] = ("brand", "color", "attributes")


class SamplingRecipe(Section):
    """Who answers, and how answers are drawn.

    Args: kind: `local` (transformers in this process), `openai` (any OpenAI-compatible server) or `programmatic`;
        annotator: the writer of rationales behind `programmatic`; model: the server's name for the base model, which
        `generate` and `judge --policy base` ask; policy_model: its name for the run's fine-tuned policy, which all
        stages after `sft` ask, with `{fold}` for the fold's number when cross-fitting; base_url, key_variable: of the
        server, and the environment variable with its key;
        concurrency: requests in flight; retries: of one request; timeout_s: of one request; unanswered: share of the
        answers of one asking that may stay away for a reason that may pass, such as a timeout; prompt_price,
        completion_price: per million tokens, for the ledger; batch_size: sequences at a time, `local` only; thinking:
        the chat template's `enable_thinking`; extensions: send `top_k` and `enable_thinking`, which vLLM and SGLang
        read, and which strict servers (api.openai.com, `transformers serve`) refuse, so that they are asked with false.
    """

    kind: Literal["local", "openai", "programmatic"] = "local"
    annotator: Literal["programmatic", "marketplace"] = "programmatic"
    model: str | None = None
    policy_model: str | None = None
    base_url: str = "http://127.0.0.1:8000/v1"
    key_variable: str = "OPENAI_API_KEY"
    concurrency: int = Field(default=64, ge=1)
    retries: int = Field(default=5, ge=0)
    timeout_s: float = Field(default=120.0, gt=0)
    unanswered: float = Field(default=0.0, ge=0, le=1)
    temperature: float = Field(default=0.7, ge=0)
    top_p: float = Field(default=0.99, gt=0, le=1)
    top_k: int = Field(default=50, ge=0)
    max_new_tokens: int = Field(default=512, ge=1)
    prompt_price: float = Field(default=0.0, ge=0)
    completion_price: float = Field(default=0.0, ge=0)
    batch_size: int = Field(default=64, ge=1)
    thinking: bool = False
    extensions: bool = True


ASIDE = {
    "base_url",
    "key_variable",
    "concurrency",
    "retries",
    "timeout_s",
    "unanswered",
    "prompt_price",
    "completion_price",
    "batch_size",
    "policy_model",
}
"""Settings of sampling that change no answer, but for the rounding of another batch size; the policy that a server
knows by a name is told by its own hash."""


class DecoderRecipe(Section):
    """A small Qwen3-shaped decoder made from scratch (`teacher.base = "scratch"`), with a tokenizer of its own.

    Args: vocabulary: byte-level BPE entries; width: of the residual stream; layers, heads, kv_heads: of the body;
        context: positions.
    """

    vocabulary: int = Field(default=4096, ge=300)
    width: int = Field(default=192, ge=16)
    layers: int = Field(default=6, ge=1)
    heads: int = Field(default=6, ge=1)
    kv_heads: int = Field(default=2, ge=1)
    context: int = Field(default=512, ge=32)


class TeacherPretrainRecipe(Section):
    """Stage `teacher_pretrain`: next-token training from scratch on platform text and on instructions.

    Args: steps, batch_size: of sequences of `context` tokens packed from documents; instructed: share of documents that
        are prompts, of every view alike, with the programmatic annotator's rationale and its own guess of the label
        (never the gold one), so that the base follows prompts as a pre-trained model would; pairs that are reserved for
        preferences are not among them; answers_only: of a prompt with its answer only the answer is learned, so that no
        step is spent on titles that nobody can predict.
    """

    steps: int = Field(default=500, ge=1)
    batch_size: int = Field(default=16, ge=1)
    context: int = Field(default=256, ge=16)
    learning_rate: float = Field(default=1e-3, gt=0)
    warmup_fraction: float = Field(default=0.05, ge=0, le=1)
    instructed: float = Field(default=0.7, ge=0, le=1)
    answers_only: bool = False


class GenerateRecipe(Section):
    """Stage `generate`: rationales of labelled pairs by perspective, kept where the label agrees (eq. 1).

    Args: samples: per pair and perspective at most; resample: draw one first and the rest only where it was wrong or
        unreadable; kept_per_view: consistent rationales kept of a pair and perspective, shortest first; balance: cap
        each class at so many times the rarest class's kept rationales, None for no cap; min_words, max_words: of a kept
        rationale; max_pairs: labelled pairs asked about, None for all.
    """

    samples: int = Field(default=5, ge=1)
    resample: bool = True
    kept_per_view: int = Field(default=1, ge=1)
    balance: float | None = Field(default=None, ge=1)
    min_words: int = Field(default=3, ge=0)
    max_words: int = Field(default=400, ge=1)
    max_pairs: int | None = Field(default=None, ge=1)


class LoraRecipe(Section):
    """Low-rank adaptation; the paper gives no rank, scale or targets, these are ours."""

    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.05, ge=0, lt=1)
    targets: str = "all-linear"


class TeacherFitRecipe(Section):
    """One fine-tuning of the teacher.

    Args: batch_size: of one optimiser step over all devices; device_batch_size: of one forward pass; schedule: of the
        rate, as transformers names it; max_tokens: of prompt and response together, which no row may exceed; qlora:
        4-bit base (needs bitsandbytes and CUDA).
    """

    epochs: float = Field(default=3.0, gt=0)
    batch_size: int = Field(default=32, ge=1)
    device_batch_size: int = Field(default=4, ge=1)
    learning_rate: float = Field(default=5e-5, gt=0)
    warmup_fraction: float = Field(default=0.0, ge=0, le=1)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    max_tokens: int = Field(default=3072, ge=16)
    bf16: bool = True
    gradient_checkpointing: bool = True
    qlora: bool = False
    save_steps: int = Field(default=100, ge=1)


class PreferencesRecipe(Section):
    """Stage `preferences` (eq. 4): wrong answers of the SFT policy on pairs it never saw, against right ones.

    Args: reserved: share of training queries that SFT leaves out for this; samples: answers per pair and perspective
        (pass@k); perspectives: asked; asked_pairs: reserved pairs asked about, whole queries, None for all; max_pairs:
        preference pairs kept, None for all; same_size_as: run directory of
        which a size-matched control takes the number of preference pairs as its cap and the answers drawn of a pair
        (one perspective is asked 15 times where three were asked 5), None for no control; length_ratio: of chosen to
        rejected tokens at most, and at least its inverse; max_jaccard: word overlap above which two rationales say the
        same; builder: `conflict` is the paper's, `reward` pairs answers by CRSD's reward with at least `margin`.
    """

    reserved: float = Field(default=0.3, gt=0, lt=1)
    samples: int = Field(default=5, ge=1)
    perspectives: tuple[TeacherPerspective, ...] = ("user", "struct", "rule")
    asked_pairs: int | None = Field(default=None, ge=1)
    max_pairs: int | None = Field(default=None, ge=1)
    same_size_as: str | None = None
    length_ratio: float = Field(default=1.25, ge=1)
    max_jaccard: float = Field(default=0.9, gt=0, le=1)
    builder: Literal["conflict", "reward"] = "conflict"
    margin: float = Field(default=0.2, ge=0, le=1)


class DpoRecipe(TeacherFitRecipe):
    """Stage `dpo` (eq. 5, with its missing log, β and reference).

    Args: beta: strength of the pull to the SFT policy; sft_weight: of the likelihood of the chosen answer beside it;
        gate_pairs: dev pairs that decide whether DPO's policy or SFT's is the teacher; gate_margin: macro-F1 that
        DPO must win by.
    """

    batch_size: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=5e-6, gt=0)
    warmup_fraction: float = Field(default=0.1, ge=0, le=1)
    beta: float = Field(default=0.1, gt=0)
    sft_weight: float = Field(default=1.0, ge=0)
    gate_pairs: int = Field(default=500, ge=1)
    gate_margin: float = Field(default=0.0, ge=0)


class JudgeRecipe(Section):
    """Stage `judge`: what a teacher is worth.

    Args: pairs: of the split, whole queries, that are answered greedily, None for all; draw_pairs: of these, whole
        queries, that are answered `samples` times from each perspective, for pass@k curves, None for all of them;
        choice_pairs: dev pairs on which the best single perspective is chosen; faithfulness_pairs: of the early-answer
        and fact-corruption tests.
    """

    split: Literal["dev", "test"] = "test"
    pairs: int | None = Field(default=2000, ge=1)
    draw_pairs: int | None = Field(default=None, ge=1)
    samples: int = Field(default=5, ge=1)
    choice_pairs: int = Field(default=300, ge=1)
    faithfulness_pairs: int = Field(default=200, ge=0)


class LabelRecipe(Section):
    """Stage `annotate` with `annotate.teacher = "policy"`: labels, probabilities and rationales of pairs.

    Args: pairs: a .jsonl or .parquet file of pairs without labels, None for the training pairs; samples: answers a
        pair, for the vote; probabilities: `label_tokens` is the softmax over the label's tokens after the rationale,
        `votes` the share of the samples.
    """

    pairs: str | None = None
    samples: int = Field(default=1, ge=1)
    probabilities: Literal["label_tokens", "votes"] = "label_tokens"


class TeacherRecipe(Section):
    """The LLM teacher.

    Args: base: hub name or path of an instruction-tuned decoder, or `scratch` for the one of stage `teacher_pretrain`;
        method: `mpcot` or the rivals `progressive` (LREF's curriculum) and `crsd` (its teacher); perspectives: that SFT
        learns from, one for a Best-SingleCoT; equal_tokens_with: perspectives of another teacher: SFT reads as many
        tokens as that one's, by more epochs of its own rows, None for `sft.epochs`; lora: false trains all weights;
        folds: parts of the training queries, of which `fold` is left out of everything, to be annotated by a teacher
        that never saw it (1: none is); annotated_by: who writes rationales and labels for students: the fine-tuned
        `policy`, or the `base` model as it is, such as a hosted one.
    """

    base: str = "Qwen/Qwen3-14B"
    revision: str | None = None
    method: Literal["mpcot", "progressive", "crsd"] = "mpcot"
    perspectives: tuple[TeacherPerspective, ...] = ("user", "struct", "rule")
    equal_tokens_with: tuple[TeacherPerspective, ...] | None = None
    folds: int = Field(default=1, ge=1)
    fold: int = Field(default=0, ge=0)
    annotated_by: Literal["policy", "base"] = "policy"
    prompt: PromptRecipe = PromptRecipe()
    sampling: SamplingRecipe = SamplingRecipe()
    decoder: DecoderRecipe = DecoderRecipe()
    pretrain: TeacherPretrainRecipe = TeacherPretrainRecipe()
    generate: GenerateRecipe = GenerateRecipe()
    lora: LoraRecipe | None = LoraRecipe()
    sft: TeacherFitRecipe = TeacherFitRecipe()
    preferences: PreferencesRecipe = PreferencesRecipe()
    dpo: DpoRecipe = DpoRecipe()
    judge: JudgeRecipe = JudgeRecipe()
    label: LabelRecipe = LabelRecipe()

    @field_validator("lora", mode="before")
    @classmethod
    def _no_lora(cls, value: object) -> object:
        """Take TOML's `false`, which has no null."""
        return None if value is False else value
