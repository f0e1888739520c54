"""The rerank routes: the calls of other servers' clients, answered by the same model, every document with a score.

Their dialects have no word for an unscored document, so a call of which one stays unscored fails as a whole and tells
why; clients then fall back to their first stage's order. With the kill switch on nothing fails: every document comes
back in the caller's order with the score 1, which no threshold drops, and the header X-Mode says `passthrough`.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from time import monotonic, perf_counter
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response

from relevance.errors import DeadlineError, EngineError
from service.batcher import Answer, Work
from service.rerank_dialects import (
    RerankRequest,
    cohere_body,
    documents_body,
    models_body,
    parse_rerank_request,
    texts_body,
)
from service.routes import PROBLEMS, deadline_of, json_response, read_asked, rendered, report, scored_answer, service_of
from service.scorer import REASONS, Scored

rerank_router = APIRouter()
_NAMELESS: dict[str, Any] = {
    "description": "Every document with its score, best first",
    "content": {"application/json": {}},
}
_RESPONSES: dict[int | str, dict[str, Any]] = {200: _NAMELESS, **PROBLEMS}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/RerankRequest"}}},
    }
}


@rerank_router.post(
    "/rerank", summary="Rank texts or documents, in the dialect asked in", responses=_RESPONSES, openapi_extra=_BODY
)
async def rerank(request: Request) -> Response:
    """Answer `texts` as text-embeddings-inference does, `documents` as Jina, vLLM and Infinity do."""
    return await _rerank(request, only_documents=False)


@rerank_router.post("/v1/rerank", summary="Rank documents", responses=_RESPONSES, openapi_extra=_BODY)
async def rerank_v1(request: Request) -> Response:
    """Answer as Jina, vLLM and Infinity do."""
    return await _rerank(request, only_documents=True)


@rerank_router.post(
    "/v2/rerank", summary="Rank documents for Cohere's client", responses=_RESPONSES, openapi_extra=_BODY
)
async def rerank_v2(request: Request) -> Response:
    """Answer as the second version of Cohere's API does."""
    return await _rerank(request, only_documents=True, cohere=True)


@rerank_router.get("/v1/models", summary="The model that is served", responses={503: PROBLEMS[503]})
async def models(request: Request) -> Response:
    """List the one model, as OpenAI's clients expect it."""
    return json_response(models_body(service_of(request).model.bundle))


async def _rerank(request: Request, *, only_documents: bool, cohere: bool = False) -> Response:
    began, arrived = perf_counter(), monotonic()
    service, state = service_of(request), request.state
    batcher = service.running()
    most = service.settings.max_items
    parse = partial(parse_rerank_request, max_items=most, only_documents=only_documents)
    asked, items = await read_asked(request, parse)
    work = Work(
        query=asked.query,
        items=items,
        locale=asked.locale,
        min_tier=None,
        deadline=deadline_of(request, arrived, None),
        on_overload="reject",
        priority="normal",
        span=state.span,
    )
    passes = service.mode == "passthrough"
    if passes:
        answer = batcher.pass_through(work)
        answer = replace(answer, scored=replace(answer.scored, score_B=np.ones(len(items))))
    else:
        answer = await scored_answer(request, work)
        _refuse_unscored(answer.scored)
    timing_ms = report(request, work=work, answer=answer, began=began)
    response = await rendered(request, partial(_body, asked, answer, state.request_id, cohere=cohere), answer)
    if passes:
        response.headers["X-Mode"] = "passthrough"
    manifest = answer.model.bundle.manifest
    response.headers["X-Model-Version"] = f"{manifest.model_id}@{manifest.bundle_id}"
    response.headers["X-Calibration-Version"] = answer.model.bundle.calibrator.version
    if asked.dialect == "texts":
        stages = {"Total": "total", "Tokenization": "tokenize", "Queue": "queue", "Inference": "infer"}
        for header, stage in stages.items():
            response.headers[f"X-{header}-Time"] = str(round(timing_ms[stage]))  # type: ignore[literal-required]
        response.headers["X-Compute-Tokens"] = str(answer.scored.tokens)
    return response


def _body(asked: RerankRequest, answer: Answer, request_id: str, *, cohere: bool) -> bytes:
    if cohere:
        return cohere_body(asked, answer.scored, request_id=request_id)
    if asked.dialect == "texts":
        return texts_body(asked, answer.scored)
    return documents_body(asked, answer.scored, answer.model.bundle, request_id=request_id, now=time.time())


def _refuse_unscored(scored: Scored) -> None:
    """Fail the call of which a document stayed unscored.

    Raises: DeadlineError, EngineError.
    """
    unscored = scored.reason_B[scored.reason_B != 0]
    if not len(unscored):
        return
    reason = REASONS[int(unscored[0]) - 1]
    found = f"expected every document scored, found {len(unscored)} of {len(scored.reason_B)} without a score: {reason}"
    raise DeadlineError(found) if reason == "deadline" else EngineError(found)
