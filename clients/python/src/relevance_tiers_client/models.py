"""What goes over the wire, typed: requests strict, answers open, so that a newer service's fields pass by unread."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, with_config
from typing_extensions import TypedDict

MAX_DEADLINE_MS = 600_000
_INT64 = 2**63
_TIERS = 5

Id = Annotated[str, Field(max_length=512)] | Annotated[int, Field(ge=-_INT64, lt=_INT64)]


class Item(BaseModel):
    """A catalogue record to score; `/info` says which of its fields the model reads.

    Args: id: comes back unchanged; two items may have the same.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    id: Id
    title: str = Field(min_length=1)
    brand: str | None = None
    color: str | None = None
    text: str | None = None
    attributes: dict[str, str] = Field(default_factory=dict)


@with_config(ConfigDict(extra="forbid", strict=True))
class ScoreOptions(TypedDict, total=False):
    """What a call of `score` may ask besides query and items; what is left out is the service's default.

    Keys: locale: decides cut points and calibration; min_tier: filter tier instead of the policy's; return_filtered:
        what `filtered` holds; top_k: at most so many results; sort: order of `results`; deadline_ms: of the whole call;
        on_overload: refuse, or answer unscored; priority: share of the engine; explain: give each row an
        `explanation`, where `/info` offers them; request_id: the name of the call in the service's logs.
    """

    locale: Annotated[str | None, Field(max_length=64)]
    min_tier: Annotated[int | None, Field(ge=0, lt=_TIERS)]
    return_filtered: Literal["none", "ids", "full"]
    top_k: Annotated[int | None, Field(ge=1)]
    sort: Literal["input", "score"]
    deadline_ms: Annotated[int | None, Field(ge=1, le=MAX_DEADLINE_MS)]
    on_overload: Literal["reject", "partial"]
    priority: Literal["low", "normal", "high"]
    explain: bool
    request_id: Annotated[str | None, Field(pattern=r"^[A-Za-z0-9._:/+=@-]{1,128}$")]


@with_config(ConfigDict(extra="forbid", strict=True))
class Asked(TypedDict):
    """One call as the caller made it."""

    query: Annotated[str, Field(min_length=1, pattern=r"\S")]
    items: Annotated[list[Item], Field(min_length=1)]
    options: ScoreOptions


class _Answer(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class Rationale(_Answer):
    """What speaks for an item's label from one perspective: the typical rationale nearest to what the model thought.

    Where none is `close`, `text`, `label_share` and `agrees` are None: there is nothing to be said from there.
    """

    perspective: str
    text: str | None
    similarity: float
    label_share: dict[str, float] | None
    agrees: bool | None
    close: bool


class Word(_Answer):
    """A word that was read, the blank behind it included, and its share of the model's attention."""

    text: str
    side: str
    weight: float


class RuleFired(_Answer):
    """The business rule that decided the tier, what it asks for, and the tier by the cut points alone."""

    name: str
    cap_tier: int | None
    floor_tier: int | None
    tier_by_score: int


class Boundary(_Answer):
    """How far the score lies above the next cut point, below the next one, and above the filter edge."""

    below: float | None
    above: float | None
    filter: float | None


class Explanation(_Answer):
    """Why an item got its tier, as far as the model can tell; `probabilities` are those of the classes."""

    rationales: list[Rationale]
    words: list[Word]
    rule: RuleFired | None
    boundary: Boundary
    probabilities: dict[str, float]


class Result(_Answer):
    """One item of the answer; unscored items have a `reason`, and no score, tier, label and explanation.

    `source` and `reason` are open: a source that this client does not know means "not by the model", a reason
    "unscored". `rules` names the business rules that fired, where some did.
    """

    id: str | int
    index: int
    score: float | None
    tier: int | None
    label: str | None
    kept: bool
    truncated: bool
    source: str
    reason: str | None = None
    rules: list[str] | None = None
    explanation: Explanation | None = None


class FilteredId(_Answer):
    """A filtered item of which only the id was asked for."""

    id: str | int
    index: int


class Counts(_Answer):
    """How many items there were, got a score, were kept, were filtered; scored items of each tier."""

    items: int
    scored: int
    kept: int
    filtered: int
    by_tier: dict[str, int]


class Usage(_Answer):
    """Pairs scored, tokens read, tokens computed on with padding."""

    pairs: int
    tokens: int
    padded_tokens: int


class Timing(_Answer):
    """Milliseconds: waiting for the engine, tokenising, in the session, all together.

    Of a call that was sent in several requests, the first three are added up and the last is the time that passed here
    from the first request to the last answer.
    """

    queue: float
    tokenize: float
    infer: float
    total: float


class ScoreResponse(_Answer):
    """The answer: kept items in `results`, the others in `filtered` as `return_filtered` asked."""

    request_id: str
    model: str
    calibration: str
    policy: str
    results: list[Result]
    policy_locale: str
    fields_used: list[str]
    filtered: list[Result | FilteredId]
    counts: Counts
    partial: bool
    usage: Usage
    timing_ms: Timing


class Limits(_Answer):
    """What one request may hold; of explained items 0 where none are explained."""

    max_items: int = Field(ge=1)
    max_explained_items: int = 0
    max_body_bytes: int = Field(ge=1)
    max_query_tokens: int
    max_pair_tokens: int
    max_chars_per_field: int
    max_queued_requests: int


class Explanations(_Answer):
    """Whether answers can be explained, and why not; from which perspectives, and whether words are weighed."""

    offered: bool
    reason: str | None = None
    perspectives: list[str] = Field(default_factory=list)
    words: bool = False


class CutPoints(_Answer):
    """Scores at which the tier changes, and what was certified about them."""

    cut_points: list[float]
    certified: bool
    epsilon: float | None = None
    n_exact: int | None = None
    bound: float | None = None
    bootstrap_bound: float | None = None
    support: str | None = None


class Info(_Answer):
    """What is being served, and its limits."""

    bundle: str
    model: str
    precision: str
    provider: str
    calibration: str
    policy: str
    scheme: dict[str, Any]
    fields: list[str]
    filter_tier: int
    locales: dict[str, CutPoints]
    pooled: CutPoints
    aliases: dict[str, str]
    limits: Limits
    explanations: Explanations = Explanations(offered=False)
    default_deadline_ms: int
    keep_unscored: bool
    mode: str
    versions: dict[str, str]
