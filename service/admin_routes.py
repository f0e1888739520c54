"""The routes of those who run the service: drain, reload, roll back, mode, shadow.

With API keys configured the request boundary asks for one; without, only callers on the loopback interface are heard.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, HTTPException, Request, Response

from service.bodies import read_json_body
from service.lifecycle import Service
from service.routes import PROBLEMS, json_response, service_of
from service.schemas import ModeRequest, ReloadRequest, parse_body

_MOST_BYTES = 16 * 1024


def _only_operators(request: Request) -> None:
    if service_of(request).settings.api_keys is not None:
        return
    try:
        address = ipaddress.ip_address(request.client.host if request.client else "")
    except ValueError:
        raise HTTPException(403, "expected a caller on the loopback interface") from None
    mapped = getattr(address, "ipv4_mapped", None)
    if not (mapped or address).is_loopback:
        raise HTTPException(403, "expected a caller on the loopback interface")


_FORBIDDEN = PROBLEMS[400] | {"description": "Not from loopback, and no API keys are configured"}
_REFUSED = PROBLEMS[400] | {"description": "Refused; what ran before still runs"}
_BODY_PROBLEMS: dict[int | str, dict[str, Any]] = {status: PROBLEMS[status] for status in (400, 408, 413, 415, 422)}
admin_router = APIRouter(
    prefix="/admin", dependencies=[Depends(_only_operators)], responses={401: PROBLEMS[401], 403: _FORBIDDEN}
)


def _body(schema: str) -> dict[str, object]:
    reference = {"$ref": f"#/components/schemas/{schema}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": reference}}}}


@admin_router.post("/drain", summary="Turn readiness off")
async def drain(request: Request) -> Response:
    """Let readiness say 503 while requests are still answered."""
    service = service_of(request)
    service.drain()
    return json_response({"phase": service.phase})


@admin_router.post(
    "/reload",
    summary="Replace the bundle, or its policy alone, without a pause",
    responses={**_BODY_PROBLEMS, 409: _REFUSED, 503: PROBLEMS[503]},
    openapi_extra=_body("ReloadRequest"),
)
async def reload(request: Request) -> Response:
    """Load, verify, replay, warm, then swap; on any failure nothing has changed."""
    asked = parse_body(ReloadRequest, await read_json_body(request, max_bytes=_MOST_BYTES) or b"{}")
    service = service_of(request)
    replaced = await service.reload(
        Path(asked.bundle) if asked.bundle else None,
        policy=Path(asked.policy) if asked.policy else None,
        bundle_id=asked.bundle_id,
    )
    return _served(service, replaced)


@admin_router.post(
    "/rollback",
    summary="Go back to what was served before the last reload",
    responses={409: _REFUSED, 503: PROBLEMS[503]},
)
async def rollback(request: Request) -> Response:
    """Serve again what was served before the last reload."""
    service = service_of(request)
    return _served(service, await service.rollback())


@admin_router.post(
    "/mode",
    summary="Turn the kill switch",
    responses=_BODY_PROBLEMS,
    openapi_extra=_body("ModeRequest"),
)
async def mode(request: Request) -> Response:
    """Score items, or keep them all unscored (`passthrough`)."""
    asked = parse_body(ModeRequest, await read_json_body(request, max_bytes=_MOST_BYTES))
    service = service_of(request)
    service.set_mode(asked.mode)
    return json_response({"mode": service.mode})


@admin_router.get(
    "/shadow",
    summary="How far the shadow bundle agrees",
    responses={404: PROBLEMS[400] | {"description": "No shadow bundle is configured"}},
)
async def shadow(request: Request) -> Response:
    """Report the agreement of the shadow bundle on sampled traffic."""
    service = service_of(request)
    if service.shadow is None:
        raise HTTPException(404, "expected a shadow bundle (RELEVANCE_SHADOW_BUNDLE), found none")
    return json_response(service.shadow.report())


def _served(service: Service, replaced: str) -> Response:
    bundle = service.model.bundle
    return json_response(
        {
            "replaced": replaced,
            "bundle": bundle.manifest.bundle_id,
            "model": bundle.manifest.model_id,
            "calibration": bundle.calibrator.version,
            "policy": bundle.policy.version,
        }
    )
