"""The rerank dialects of other servers: what their clients send, and what these read back.

Unlike `/score` they ignore unknown fields, return every document unless asked for the best n, and know no tiers.
Shapes: text-embeddings-inference (`texts`, an array comes back), Jina, vLLM and Infinity (`documents`), Cohere v2.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json

from relevance.bundle import Bundle
from relevance.errors import EmptyRequestError, SchemaError, TooLargeError
from relevance.pairs import Item
from service.responses import SCORE_DECIMALS
from service.schemas import MOST_ITEMS, TooLongListError, parse_body
from service.scorer import Scored

Dialect = Literal["texts", "documents", "cohere"]
_SCORE_EDGE = 1e-7
"""How near to 0 and 1 a score may come before its logit is taken."""


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


class RerankDocument(_Lenient):
    """A document as an object: a catalogue record with a title, or a text."""

    title: str | None = None
    text: str | None = None
    brand: str | None = None
    color: str | None = None


class RerankRequest(_Lenient):
    """One query and the documents to rank for it, in any of the dialects; exactly one list of the two is there.

    `top_n` null or 0 means all; `raw_scores` asks for logits; `locale` chooses the calibration, as in `/score`.
    """

    query: str = Field(min_length=1, pattern=r"\S")
    documents: Annotated[list[str | RerankDocument] | None, Field(max_length=MOST_ITEMS)] = None
    texts: Annotated[list[str] | None, Field(max_length=MOST_ITEMS)] = None
    top_n: int | None = Field(default=None, ge=0)
    return_documents: bool | None = None
    return_text: bool | None = None
    raw_scores: bool | None = None
    locale: str | None = Field(default=None, max_length=64)

    @property
    def dialect(self) -> Dialect:
        """Whose list of documents this request carries."""
        return "texts" if self.documents is None else "documents"


def parse_rerank_request(body: bytes, *, max_items: int, only_documents: bool) -> tuple[RerankRequest, list[Item]]:
    """Read the body of a rerank call.

    Args: only_documents: whether the route knows `documents` alone.
    Raises: MalformedBodyError, SchemaError, EmptyRequestError, TooLargeError, as `/score`.
    """
    try:
        asked = parse_body(RerankRequest, body)
    except TooLongListError as error:
        name = error.problems[0][0].removeprefix("/")
        raise TooLargeError(f"{name}: expected at most {max_items}, found more than {MOST_ITEMS}") from None
    if (asked.documents is None) == (asked.texts is None) or (only_documents and asked.documents is None):
        expected = "documents" if only_documents else "one of documents and texts"
        found = [name for name in ("documents", "texts") if getattr(asked, name) is not None]
        raise SchemaError((("/documents", f"Expected {expected}, found {' and '.join(found) or 'neither'}"),))
    name, given = ("texts", asked.texts) if asked.documents is None else ("documents", asked.documents)
    if not given:
        raise EmptyRequestError(f"{name}: expected at least 1, found none")
    if len(given) > max_items:
        raise TooLargeError(f"{name}: expected at most {max_items}, found {len(given)}")
    return asked, [_item(document, place) for place, document in enumerate(given)]


def ranked(asked: RerankRequest, scored: Scored) -> list[tuple[int, float]]:
    """Give (index, score) of the documents asked for, best first, equal scores in input order.

    The score is the calibrated one in [0, 1], or its logit where raw scores were asked for.
    """
    order = np.argsort(-scored.score_B, kind="stable")[: asked.top_n or None]
    shown = _logit(scored.score_B) if asked.raw_scores else scored.score_B
    return list(zip(order.tolist(), np.round(shown[order], SCORE_DECIMALS).tolist(), strict=True))


def texts_body(asked: RerankRequest, scored: Scored) -> bytes:
    """Give the array that text-embeddings-inference answers: `[{index, score, text?}]`.

    Elasticsearch's parser throws on any other field.
    """
    texts = asked.texts or []
    rows: list[dict[str, Any]] = [{"index": index, "score": score} for index, score in ranked(asked, scored)]
    if asked.return_text:
        for row in rows:
            row["text"] = texts[row["index"]]
    return to_json(rows)


def documents_body(asked: RerankRequest, scored: Scored, bundle: Bundle, *, request_id: str, now: float) -> bytes:
    """Give the object that Jina, vLLM and Infinity answer; a returned document is an object with a `text`."""
    tokens = int(scored.length_B.sum())
    content = {
        "object": "rerank",
        "id": request_id,
        "created": int(now),
        "model": bundle.manifest.model_id,
        "results": _results(asked, scored),
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return to_json(content)


def cohere_body(asked: RerankRequest, scored: Scored, *, request_id: str) -> bytes:
    """Give the object that Cohere's second version answers."""
    content = {
        "id": request_id,
        "results": _results(asked, scored),
        "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 1.0}},
    }
    return to_json(content)


def models_body(bundle: Bundle) -> dict[str, Any]:
    """Give the list of models that OpenAI's clients read: the one that is served."""
    created = int(datetime.fromisoformat(bundle.manifest.created).timestamp())
    model = {"id": bundle.manifest.model_id, "object": "model", "created": created, "owned_by": "relevance-tiers"}
    return {"object": "list", "data": [model]}


def _item(document: str | RerankDocument, place: int) -> Item:
    if isinstance(document, str):
        return Item(title=document)
    if document.title:
        return Item(title=document.title, brand=document.brand, color=document.color, text=document.text)
    if document.text is None:
        raise SchemaError(((f"/documents/{place}", "Expected a text, or an object with a text or a title"),))
    return Item(title=document.text)


def _results(asked: RerankRequest, scored: Scored) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"index": index, "relevance_score": score} for index, score in ranked(asked, scored)]
    if asked.return_documents:
        for row in rows:
            row["document"] = _returned((asked.documents or [])[row["index"]])
    return rows


def _returned(document: str | RerankDocument) -> dict[str, str]:
    return {"text": document} if isinstance(document, str) else document.model_dump(exclude_none=True)


def _logit(score_B: NDArray[np.float64]) -> NDArray[np.float64]:
    inside_B = np.clip(score_B, _SCORE_EDGE, 1 - _SCORE_EDGE)
    return np.log(inside_B / (1 - inside_B))
