"""The `/docs` page: the OpenAPI document as plain HTML, no script, nothing loaded from anywhere."""

from __future__ import annotations

import json
from html import escape
from typing import Any

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b;background:#fff}
h2{margin-top:2.2rem;font-size:1.15rem}code,pre{font:13px/1.45 ui-monospace,monospace}
pre{background:#f4f4f4;padding:.8rem;overflow:auto}table{border-collapse:collapse;width:100%}
td,th{border-bottom:1px solid #ddd;padding:.3rem .6rem;text-align:left;vertical-align:top}
@media(prefers-color-scheme:dark){body{color:#e8e8e8;background:#161616}pre{background:#242424}td,th{border-color:#444}}
"""


def docs_page(openapi: dict[str, Any]) -> str:
    """Render an OpenAPI document: each operation with its answers, then each schema with its fields."""
    info = openapi["info"]
    operations = "".join(
        _operation(path, method, operation)
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    )
    schemas = "".join(_schema(name, schema) for name, schema in openapi["components"]["schemas"].items())
    title = escape(f"{info['title']} {info['version']}")
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>"
        f"<h1>{title}</h1><p>{escape(info.get('description', ''))}</p>"
        "<p>The same as a file: <a href=openapi.json>openapi.json</a></p>"
        f"{operations}<h1>Schemas</h1>{schemas}</html>"
    )


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    answers = "".join(
        f"<tr><td><code>{escape(status)}</code><td>{escape(answer['description'])}<td>{escape(_kinds(answer))}"
        for status, answer in operation["responses"].items()
    )
    summary, description = operation.get("summary", ""), operation.get("description", "")
    body = operation.get("requestBody")
    asks = f"<p>Body: <code>{escape(_kinds(body))}</code></p>" if body else ""
    return (
        f"<h2><code>{method.upper()} {escape(path)}</code> {escape(summary)}</h2><p>{escape(description)}</p>{asks}"
        f"<table>{answers}</table>"
    )


def _kinds(holder: dict[str, Any]) -> str:
    return ", ".join(
        f"{media_type} {content.get('schema', {}).get('$ref', '').rpartition('/')[2]}".strip()
        for media_type, content in holder.get("content", {}).items()
    )


def _schema(name: str, schema: dict[str, Any]) -> str:
    required = set(schema.get("required", ()))
    fields = "".join(
        f"<tr><td><code>{escape(field)}</code><td>{'required' if field in required else ''}"
        f"<td><code>{escape(json.dumps({k: v for k, v in rules.items() if k != 'title'}))}</code>"
        for field, rules in schema.get("properties", {}).items()
    )
    description = escape(schema.get("description", ""))
    return f"<h2 id={escape(name)}>{escape(name)}</h2><p>{description}</p><table>{fields}</table>"
