"""The routes: scoring, health, self-description, metrics, documentation."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Callable, Coroutine
from functools import partial
from time import monotonic, perf_counter
from typing import Any, TypeVar

import numpy as np
import onnxruntime
from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from pydantic_core import to_json

from relevance import __version__
from relevance.errors import ClientGoneError, NotReadyError
from relevance.labels import N_TIERS
from relevance.pairs import Item
from relevance.policy import POOLED, CutPoints
from service.batcher import INLINE_ROWS, Answer, Work
from service.bodies import read_json_body
from service.docs_page import docs_page
from service.lifecycle import Service
from service.model import Model
from service.problems import MEDIA_TYPE
from service.responses import Timings, score_body
from service.schemas import ScoreRequest, ScoreResponse, parse_score_request

router = APIRouter()
_INLINE_BYTES = 32 * 1024
Asked = TypeVar("Asked")
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {
        "description": description,
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    for status, description in {
        400: "Not JSON, or no items",
        401: "No valid API key, where keys are asked for",
        408: "The body did not arrive in time",
        413: "Body or list of items over the limit",
        415: "Another content type than application/json, or another encoding than gzip or deflate",
        422: "JSON that breaks the schema, or a query over the token limit",
        429: "Shed by admission; Retry-After says when to come back",
        500: "The engine failed on this request",
        503: "Starting or failed to start",
        504: "No item was scored before the deadline",
    }.items()
}
_NOT_READY: dict[int | str, dict[str, Any]] = {503: PROBLEMS[503]}
_SCORE_BODY = {
    "required": True,
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ScoreRequest"}}},
}


@router.post(
    "/score",
    summary="Score the items of one query",
    responses={200: {"model": ScoreResponse, "description": "Tiers and scores"}, **PROBLEMS},
    openapi_extra={"requestBody": _SCORE_BODY},
)
async def score(request: Request) -> Response:
    """Give each item a calibrated score, a tier 0–4 and whether it is kept."""
    began, arrived = perf_counter(), monotonic()
    service = service_of(request)
    batcher = service.running()
    asked, items = await read_asked(request, partial(_parse, max_items=service.settings.max_items))
    work = Work(
        query=asked.query,
        items=items,
        locale=asked.locale,
        min_tier=asked.min_tier,
        deadline=deadline_of(request, arrived, asked.deadline_ms),
        on_overload=asked.on_overload,
        priority=asked.priority,
        span=request.state.span,
        explain=asked.explain,
    )
    if service.mode == "passthrough":
        answer = batcher.pass_through(work)
    else:
        answer = await scored_answer(request, work)
    timing_ms = report(request, work=work, answer=answer, began=began)
    render = partial(
        score_body, asked, answer.scored, answer.model, request_id=request.state.request_id, timing_ms=timing_ms
    )
    return await rendered(request, render, answer)


async def read_asked(request: Request, parse: Callable[[bytes], tuple[Asked, list[Item]]]) -> tuple[Asked, list[Item]]:
    """Read a body and give what it asks and its items; a large one is parsed off the event loop.

    Raises: RequestError: of reading or of parsing.
    """
    service = service_of(request)
    body = await read_json_body(request, max_bytes=service.settings.max_body_bytes)
    if len(body) <= _INLINE_BYTES:
        asked, items = parse(body)
    else:
        asked, items = await asyncio.get_running_loop().run_in_executor(service.running().front, parse, body)
    request.state.n_items = len(items)
    return asked, items


def deadline_of(request: Request, arrived: float, deadline_ms: int | None) -> float:
    """Give the `time.monotonic` by which a request wants its answer: its body's word, its header's, or the default."""
    service = service_of(request)
    return arrived + (deadline_ms or request.state.deadline_ms or service.settings.default_deadline_ms) / 1000


async def scored_answer(request: Request, work: Work) -> Answer:
    """Score a request's items while its client is there, and let drift, shadow and pair log see the answer.

    Raises: ClientGoneError; whatever scoring raises.
    """
    service = service_of(request)
    answer = await _while_connected(request, service.running().score(work))
    service.observe(work, answer)
    return answer


async def rendered(request: Request, render: Callable[[], bytes], answer: Answer) -> Response:
    """Give the response whose body is built now, off the event loop where it is long or holds explanations."""
    batcher = service_of(request).running()
    if len(answer.scored.score_B) <= INLINE_ROWS and answer.scored.basis is None:
        content = render()
    else:
        content = await asyncio.get_running_loop().run_in_executor(batcher.front, render)
    batcher.sent(answer)
    return Response(content, media_type="application/json")


async def _while_connected(request: Request, scoring: Coroutine[Any, Any, Answer]) -> Answer:
    """Await an answer, dropping the work when the client goes away.

    Raises: ClientGoneError: it went; whatever the scoring raises.
    """
    answer = asyncio.ensure_future(scoring)
    gone = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientGoneError("the client closed the connection before its answer")
        return answer.result()
    finally:
        gone.cancel()
        answer.cancel()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue


def report(request: Request, *, work: Work, answer: Answer, began: float) -> Timings:
    """Leave what the log line and the headers say of an answer, and give its times."""
    scored, state = answer.scored, request.state
    if work.locale is not None and scored.policy_locale == POOLED:
        service_of(request).telemetry.fallbacks.inc()
    timing_ms = _timings(answer, perf_counter() - began)
    state.partial = bool(scored.reason_B.any())
    state.server_timing = timing_ms
    state.log = {
        "items": len(work.items),
        "policy_locale": scored.policy_locale,
        "kept": int(scored.kept_B.sum()),
        "tiers": np.bincount(scored.tier_B[scored.reason_B == 0], minlength=N_TIERS).tolist(),
        "unscored": int((scored.reason_B != 0).sum()),
        "cached": int(scored.cached_B.sum()),
        "tokens": scored.tokens,
        "bundle": answer.model.bundle.manifest.bundle_id,
        "timing_ms": timing_ms,
    }
    return timing_ms


@router.get("/livez", summary="Is the process alive", responses=_NOT_READY)
async def livez(request: Request) -> Response:
    """Answer from the event loop; 503 when an engine is lost or a batch does not come back."""
    service = service_of(request)
    return _health(service, ok=service.alive)


@router.get("/readyz", summary="May traffic come", responses=_NOT_READY)
async def readyz(request: Request) -> Response:
    """Say whether the golden replay has passed, batches run, and the service is not draining."""
    service = service_of(request)
    return _health(service, ok=service.ready)


@router.get("/startupz", summary="Has the start finished", responses=_NOT_READY)
async def startupz(request: Request) -> Response:
    """Say whether the bundle was verified, replayed and warmed."""
    service = service_of(request)
    return _health(service, ok=service.phase in {"ready", "draining"})


@router.get("/info", summary="What is being served, and its limits", responses=_NOT_READY)
async def info(request: Request) -> Response:
    """Describe the bundle, the policy of each locale, the limits and the versions."""
    service = service_of(request)
    return json_response(_describe(service, service.model))


@router.get("/metrics", summary="Prometheus series", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Give every series in the text format."""
    return Response(service_of(request).exposition(), media_type=CONTENT_TYPE_PLAIN_0_0_4)


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> Response:
    """Show the API on one page that loads nothing else."""
    headers = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
    return Response(docs_page(request.app.openapi()), media_type="text/html", headers=headers)


def service_of(request: Request) -> Service:
    """Give the service behind a request."""
    service: Service = request.app.state.service
    return service


def _parse(body: bytes, *, max_items: int) -> tuple[ScoreRequest, list[Item]]:
    asked = parse_score_request(body, max_items=max_items)
    items = [Item(**item) for item in asked.items]
    return asked, items


def _timings(answer: Answer, total_s: float) -> Timings:
    scored = answer.scored
    return {
        "queue": round(answer.queue_s * 1000, 3),
        "tokenize": round(scored.tokenize_s * 1000, 3),
        "infer": round(scored.infer_s * 1000, 3),
        "total": round(total_s * 1000, 3),
    }


def _health(service: Service, *, ok: bool) -> Response:
    if not ok:
        raise NotReadyError(f"expected a ready service, found it {service.phase}")
    return json_response({"status": "ok", "phase": service.phase})


def json_response(content: object) -> Response:
    """Give a JSON response."""
    return Response(to_json(content), media_type="application/json")


def _describe(service: Service, model: Model) -> dict[str, Any]:
    bundle, settings = model.bundle, service.settings
    manifest, policy = bundle.manifest, bundle.policy
    locales = {name: policy.cut_points(name) for name in sorted({*policy.locales, *manifest.locales})}
    return {
        "bundle": manifest.bundle_id,
        "model": manifest.model_id,
        "created": manifest.created,
        "precision": model.session.precision,
        "provider": model.session.provider,
        "calibration": bundle.calibrator.version,
        "policy": policy.version,
        "scheme": bundle.scheme.to_dict(),
        "fields": bundle.template.fields,
        "filter_tier": policy.filter_tier,
        "locales": {
            name: {"support": manifest.locales.get(name, "unrated"), **_certificate(cuts)}
            for name, cuts in locales.items()
        },
        "pooled": _certificate(policy.pooled),
        "aliases": policy.aliases,
        "rules": [rule.model_dump(exclude_defaults=True) for rule in policy.rules],
        "limits": {
            "max_items": settings.max_items,
            "max_explained_items": min(settings.max_items, model.explanations.most),
            "max_body_bytes": settings.max_body_bytes,
            "max_query_tokens": manifest.limits.max_query_tokens,
            "max_pair_tokens": manifest.limits.max_pair_tokens,
            "max_chars_per_field": bundle.template.max_chars,
            "max_queued_requests": settings.max_queued_requests,
        },
        "explanations": model.explanations.describe(),
        "default_deadline_ms": settings.default_deadline_ms,
        "keep_unscored": settings.keep_unscored,
        "mode": service.mode,
        "engines": settings.n_engines,
        "threads": settings.session_threads,
        "tokens_per_second": round(model.speed.tokens_per_s),
        "quality": manifest.quality,
        "licences": manifest.licences,
        "versions": {
            "relevance-tiers": __version__,
            "onnxruntime": onnxruntime.__version__,
            "python": platform.python_version(),
        },
    }


def _certificate(cuts: CutPoints) -> dict[str, Any]:
    return {
        "certified": cuts.certified,
        "epsilon": cuts.epsilon,
        "n_exact": cuts.n_exact,
        "bound": cuts.bound,
        "bootstrap_bound": cuts.bootstrap_bound,
        "cut_points": cuts.values,
    }
