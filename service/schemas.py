"""What goes over the wire: request and response schemas. Strict: no coercion, no unknown fields."""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, with_config
from typing_extensions import TypedDict

from relevance.errors import EmptyRequestError, MalformedBodyError, SchemaError, TooLargeError
from relevance.labels import N_TIERS

MOST_ITEMS = 16384
"""Items beyond which a list is not even parsed to its end; `max_items` may only be lower."""
_MOST_PROBLEMS = 20
_MOST_FAULTS = 10_000
"""More are counted and not listed: a list of hundreds of thousands takes seconds, in which nothing else runs."""
_MOST_POINTER_CHARS = 64
_INT64 = 2**63
_MESSAGES = {
    "string_pattern_mismatch": "Expected a text, found only white space",
    "extra_forbidden": "Expected no such field",
}


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


Id = Annotated[str, Field(max_length=512)] | Annotated[int, Field(ge=-_INT64, lt=_INT64)]


Text = Annotated[str | None, Field(json_schema_extra={"default": None})]
Texts = Annotated[dict[str, str], Field(json_schema_extra={"default": {}})]


@with_config(ConfigDict(extra="forbid", strict=True))
class ItemIn(TypedDict):
    """An item to score; `/info` says which of the fields the model reads."""

    # A dictionary, not a model: a list of them holds the interpreter for a quarter of the time.

    id: Id
    title: Annotated[str, Field(min_length=1)]
    brand: NotRequired[Text]
    color: NotRequired[Text]
    text: NotRequired[Text]
    attributes: NotRequired[Texts]


class ScoreRequest(_Wire):
    """One query and the items to score against it."""

    query: str = Field(min_length=1, pattern=r"\S")
    locale: str | None = Field(default=None, max_length=64)
    items: list[ItemIn] = Field(max_length=MOST_ITEMS)
    min_tier: int | None = Field(default=None, ge=0, lt=N_TIERS)
    return_filtered: Literal["none", "ids", "full"] = "none"
    top_k: int | None = Field(default=None, ge=1)
    sort: Literal["input", "score"] = "input"
    deadline_ms: int | None = Field(default=None, ge=1, le=600_000)
    on_overload: Literal["reject", "partial"] = "reject"
    priority: Literal["low", "normal", "high"] = "normal"
    explain: bool = False


class ReloadRequest(_Wire):
    """What to serve next; a path that is left out stays as served, an empty body reads what the process started with.

    `bundle_id` is what the bundle there must be.
    """

    bundle: str | None = Field(default=None, min_length=1)
    policy: str | None = Field(default=None, min_length=1)
    bundle_id: str | None = Field(default=None, pattern="^[0-9a-f]{16}$")


class ModeRequest(_Wire):
    """Whether items are scored, or all kept unscored."""

    mode: Literal["score", "passthrough"]


class RationaleOut(_Wire):
    """The prototype rationale of one perspective that lies nearest to the pair's latent.

    `label_share`: of the labels of the training pairs it stands for; `agrees`: whether the commonest of those is the
    item's label. Under the perspective's floor it says nothing of this pair: `close` is false and text, shares and
    agreement are null.
    """

    perspective: str
    text: str | None
    similarity: float = Field(ge=-1, le=1)
    label_share: dict[str, float] | None
    agrees: bool | None
    close: bool


class WordOut(_Wire):
    """A word that was read, the blank behind it included, and its share of the attention that the latent is made with.

    The texts of a side put together are what was read of it; of a truncated item the last word may have been read in
    part. The marks around query and item have the rest of the weight.
    """

    text: str
    side: Literal["query", "item"]
    weight: float = Field(ge=0, le=1)


class RuleOut(_Wire):
    """The business rule that decided the tier, what it asks for, and the tier by the cut points alone."""

    name: str
    cap_tier: int | None
    floor_tier: int | None
    tier_by_score: int


class BoundaryOut(_Wire):
    """How far the score lies above the next cut point, below the next one, and above the filter edge (negative: below).

    Null where there is no such cut point, or nothing is filtered by score. A business rule may decide otherwise.
    """

    below: float | None
    above: float | None
    filter: float | None


class ExplanationOut(_Wire):
    """Why an item got its tier, as far as the model can tell."""

    rationales: list[RationaleOut]
    words: list[WordOut]
    rule: RuleOut | None
    boundary: BoundaryOut
    probabilities: dict[str, float]


class ResultOut(_Wire):
    """One item of the answer.

    `reason` is there only when the item is unscored, `rules` only where rules fired, `explanation` only when asked for.
    """

    id: str | int
    index: int
    score: float | None
    tier: int | None
    label: str | None
    kept: bool
    truncated: bool
    source: Literal["model", "cache", "unscored"]
    reason: Literal["deadline", "overload", "nan", "error", "passthrough"] | None = None
    rules: list[str] | None = None
    explanation: ExplanationOut | None = None


class FilteredOut(_Wire):
    """A filtered item when only ids were asked for."""

    id: str | int
    index: int


class Counts(_Wire):
    """How many items there were, got a score, were kept by the filter, were filtered; scored items of each tier."""

    items: int
    scored: int
    kept: int
    filtered: int
    by_tier: dict[str, int]


class Usage(_Wire):
    """Pairs scored, tokens read, tokens computed on with padding."""

    pairs: int
    tokens: int
    padded_tokens: int


class Timing(_Wire):
    """Milliseconds: waiting for the engine, tokenising, in the session, all together."""

    queue: float
    tokenize: float
    infer: float
    total: float


class ScoreResponse(_Wire):
    """The answer: kept items in `results`, the others in `filtered` as `return_filtered` asks."""

    request_id: str
    model: str
    calibration: str
    policy: str
    results: list[ResultOut]
    policy_locale: str
    fields_used: list[str]
    filtered: list[FilteredOut | ResultOut]
    counts: Counts
    partial: bool
    usage: Usage
    timing_ms: Timing


class ProblemError(_Wire):
    """One fault of a request: a JSON pointer and what was expected there."""

    pointer: str
    message: str


class Problem(_Wire):
    """Problem details (RFC 9457), with `error`, `error_type` and `message` for clients of other servers."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    request_id: str
    errors: list[ProblemError]
    error: str
    error_type: str
    message: str
    retry_after_ms: int | None = None


M = TypeVar("M", bound=BaseModel)


def parse_score_request(body: bytes, *, max_items: int) -> ScoreRequest:
    """Read the body of `POST /score`.

    Raises: MalformedBodyError: not JSON in UTF-8; SchemaError: breaks the schema; EmptyRequestError; TooLargeError:
        more than `max_items` items.
    """
    try:
        request = parse_body(ScoreRequest, body)
    except TooLongListError:
        raise TooLargeError(f"items: expected at most {max_items}, found more than {MOST_ITEMS}") from None
    if not request.items:
        raise EmptyRequestError("items: expected at least 1, found none")
    if len(request.items) > max_items:
        raise TooLargeError(f"items: expected at most {max_items}, found {len(request.items)}")
    return request


class TooLongListError(SchemaError):
    """A list of more entries than the schema reads."""


def parse_body(model: type[M], body: bytes) -> M:
    """Read a JSON body.

    Raises: MalformedBodyError: not JSON in UTF-8; TooLongListError; SchemaError: breaks the schema in another way.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        if (count := error.error_count()) > _MOST_FAULTS:
            raise SchemaError((("", f"expected a body of this schema, found {count} faults in it"),)) from None
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        if faults[0]["type"] == "json_invalid":
            raise MalformedBodyError(f"expected JSON in UTF-8: {faults[0]['msg']}") from None
        kind = TooLongListError if any(fault["type"] == "too_long" for fault in faults) else SchemaError
        raise kind(
            tuple(
                (_pointer(fault["loc"]), _MESSAGES.get(fault["type"], fault["msg"]))
                for fault in faults[:_MOST_PROBLEMS]
            )
        ) from None


def _pointer(location: tuple[int | str, ...]) -> str:
    # The kinds that a value may be of are no part of its place.
    if len(location) > 3 and location[:1] == ("items",) and location[2] == "id":
        location = location[:3]
    elif location[:1] == ("documents",):
        location = location[:2]
    parts = (str(part)[:_MOST_POINTER_CHARS].replace("~", "~0").replace("/", "~1") for part in location)
    return "".join(f"/{part}" for part in parts)
