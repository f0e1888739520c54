"""The routes: scoring, health, self-description, metrics, documentation, administration."""

from __future__ import annotations

import asyncio
import ipaddress
import platform
from time import monotonic, perf_counter
from typing import Any

import onnxruntime
from fastapi import APIRouter, HTTPException, Request, Response
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from pydantic_core import to_json

from relevance import __version__
from relevance.errors import NotReadyError
from relevance.pairs import Item
from relevance.policy import POOLED, CutPoints
from service.batcher import Answer, Work
from service.bodies import read_json_body
from service.docs_page import docs_page
from service.lifecycle import Engine, Service
from service.problems import MEDIA_TYPE
from service.responses import Timings, score_body
from service.schemas import ScoreRequest, ScoreResponse, parse_score_request

router = APIRouter()
_INLINE_BYTES = 16 * 1024
_INLINE_ROWS = 64
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {
        "description": description,
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    for status, description in {
        400: "Not JSON, or no items",
        413: "Body or list of items over the limit",
        415: "Another content type than application/json",
        422: "JSON that breaks the schema, or a query over the token limit",
        429: "Shed by admission; Retry-After says when to come back",
        500: "The engine failed on this request",
        503: "Starting or failed to start",
        504: "No item was scored before the deadline",
    }.items()
}
_NOT_READY: dict[int | str, dict[str, Any]] = {503: _PROBLEMS[503]}
_SCORE_BODY = {
    "required": True,
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ScoreRequest"}}},
}


@router.post(
    "/score",
    summary="Score the items of one query",
    responses={200: {"model": ScoreResponse, "description": "Tiers and scores"}, **_PROBLEMS},
    openapi_extra={"requestBody": _SCORE_BODY},
)
async def score(request: Request) -> Response:
    """Give each item a calibrated score, a tier 0–4 and whether it is kept."""
    began, arrived = perf_counter(), monotonic()
    service = _service(request)
    engine, batcher = service.running()
    settings = service.settings
    body = await read_json_body(request, max_bytes=settings.max_body_bytes)
    if len(body) <= _INLINE_BYTES:
        asked, items = _parse(body, settings.max_items)
    else:
        loop = asyncio.get_running_loop()
        asked, items = await loop.run_in_executor(batcher.front, _parse, body, settings.max_items)
    request.state.n_items = len(items)
    work = Work(
        query=asked.query,
        items=items,
        locale=asked.locale,
        min_tier=asked.min_tier,
        deadline=arrived + (asked.deadline_ms or settings.default_deadline_ms) / 1000,
        on_overload=asked.on_overload,
    )
    answer = await batcher.score(work)
    if asked.locale is not None and answer.scored.policy_locale == POOLED:
        service.telemetry.fallbacks.inc()
    timing_ms = _timings(answer, perf_counter() - began)
    request.state.partial = bool(answer.scored.reason_B.any())
    request.state.log = {
        "items": len(items),
        "policy_locale": answer.scored.policy_locale,
        "kept": int(answer.scored.kept_B.sum()),
        "unscored": int((answer.scored.reason_B != 0).sum()),
        "tokens": answer.scored.tokens,
        "timing_ms": timing_ms,
    }

    def render() -> bytes:
        request_id = request.state.request_id
        return score_body(asked, answer.scored, engine.bundle, request_id=request_id, timing_ms=timing_ms)

    if len(items) <= _INLINE_ROWS:
        content = render()
    else:
        content = await asyncio.get_running_loop().run_in_executor(batcher.front, render)
    return Response(content, media_type="application/json")


@router.get("/livez", summary="Is the process alive", responses=_NOT_READY)
async def livez(request: Request) -> Response:
    """Answer from the event loop; 503 when the engine thread has died."""
    service = _service(request)
    return _health(service, ok=service.batcher is None or service.batcher.alive)


@router.get("/readyz", summary="May traffic come", responses=_NOT_READY)
async def readyz(request: Request) -> Response:
    """Say whether the golden replay has passed and the service is not draining."""
    service = _service(request)
    alive = service.batcher is not None and service.batcher.alive
    return _health(service, ok=service.phase == "ready" and alive)


@router.get("/startupz", summary="Has the start finished", responses=_NOT_READY)
async def startupz(request: Request) -> Response:
    """Say whether the bundle was verified, replayed and warmed."""
    service = _service(request)
    return _health(service, ok=service.phase in {"ready", "draining"})


@router.get("/info", summary="What is being served, and its limits", responses=_NOT_READY)
async def info(request: Request) -> Response:
    """Describe the bundle, the policy of each locale, the limits and the versions."""
    service = _service(request)
    engine, _ = service.running()
    return _json(_describe(service, engine))


@router.get("/metrics", summary="Prometheus series")
async def metrics(request: Request) -> Response:
    """Give every series in the text format."""
    return Response(_service(request).telemetry.exposition(), media_type=CONTENT_TYPE_PLAIN_0_0_4)


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> Response:
    """Show the API on one page that loads nothing else."""
    headers = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
    return Response(docs_page(request.app.openapi()), media_type="text/html", headers=headers)


@router.post(
    "/admin/drain",
    summary="Turn readiness off; loopback only",
    responses={403: _PROBLEMS[400] | {"description": "Not from loopback"}},
)
async def drain(request: Request) -> Response:
    """Let readiness say 503 while requests are still answered."""
    if not _is_loopback(request):
        raise HTTPException(403, "expected a caller on the loopback interface")
    service = _service(request)
    service.drain()
    return _json({"phase": service.phase})


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _parse(body: bytes, max_items: int) -> tuple[ScoreRequest, list[Item]]:
    asked = parse_score_request(body, max_items=max_items)
    items = [Item(i.title, i.id, i.brand, i.color, i.text, i.attributes) for i in asked.items]
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
    return _json({"status": "ok", "phase": service.phase})


def _json(content: object) -> Response:
    return Response(to_json(content), media_type="application/json")


def _is_loopback(request: Request) -> bool:
    try:
        address = ipaddress.ip_address(request.client.host if request.client else "")
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _describe(service: Service, engine: Engine) -> dict[str, Any]:
    bundle, settings = engine.bundle, service.settings
    manifest, policy = bundle.manifest, bundle.policy
    locales = {name: policy.cut_points(name) for name in sorted({*policy.locales, *manifest.locales})}
    return {
        "bundle": manifest.bundle_id,
        "model": manifest.model_id,
        "created": manifest.created,
        "precision": engine.session.precision,
        "provider": engine.session.provider,
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
        "limits": {
            "max_items": settings.max_items,
            "max_body_bytes": settings.max_body_bytes,
            "max_query_tokens": manifest.limits.max_query_tokens,
            "max_pair_tokens": manifest.limits.max_pair_tokens,
            "max_chars_per_field": bundle.template.max_chars,
            "max_queued_pairs": settings.max_queued_pairs,
        },
        "default_deadline_ms": settings.default_deadline_ms,
        "keep_unscored": settings.keep_unscored,
        "threads": settings.threads,
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
