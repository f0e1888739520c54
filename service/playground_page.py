"""The playground at `/`: one page and its assets, read once from the package, answered from memory."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from fastapi import APIRouter, HTTPException, Request, Response

FOLDER = Path(__file__).parent / "playground"
PAGE = "index.html"
_HEADERS = {
    # No-cache asks before each use, so that page and scripts of two versions never meet; the ETag makes that cheap.
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
}
_MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}


@dataclass(frozen=True, slots=True)
class Asset:
    """A file of the playground as it is sent."""

    content: bytes
    media_type: str
    etag: str


def read_assets() -> dict[str, Asset]:
    """Give the playground's files by name."""
    assets = {}
    for path in sorted(FOLDER.iterdir()):
        content = path.read_bytes()
        assets[path.name] = Asset(content, _MEDIA_TYPES[path.suffix], f'"{sha256(content).hexdigest()[:32]}"')
    return assets


def playground_router() -> APIRouter:
    """Give the routes of the page and its assets; they stand in no contract, so not in the OpenAPI document."""
    router = APIRouter(include_in_schema=False)
    assets = read_assets()
    page = assets.pop(PAGE)

    @router.get("/")
    async def playground(request: Request) -> Response:
        """Show the page."""
        return _answer(request, page)

    @router.get("/playground/{name}")
    async def asset(request: Request, name: str) -> Response:
        """Give a file that the page names."""
        if name not in assets:
            raise HTTPException(404)
        return _answer(request, assets[name])

    return router


def _answer(request: Request, asset: Asset) -> Response:
    headers = _HEADERS | {"ETag": asset.etag}
    known = request.headers.get("if-none-match", "")
    if asset.etag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
        return Response(status_code=304, headers=headers)
    return Response(asset.content, media_type=asset.media_type, headers=headers)
