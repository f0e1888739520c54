"""What a newer OpenAPI document breaks for clients of an older one: pure functions over the two documents.

A request is written by the old client and read by the new service, a response the other way round. The reader must
take whatever the writer may send; the old client is tolerant: it skips fields and enum values that it does not know.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]

ANNOTATIONS = {"title", "description", "default", "examples", "deprecated"}
UPPER = ("maxLength", "maxItems", "maxProperties", "maximum", "exclusiveMaximum")
LOWER = ("minLength", "minItems", "minProperties", "minimum", "exclusiveMinimum")
EQUAL = ("pattern", "format", "multipleOf", "uniqueItems")
SHAPE = {"type", "enum", "const", "items", "properties", "required", "additionalProperties", "anyOf", "oneOf"}
COMPARED = {*ANNOTATIONS, *UPPER, *LOWER, *EQUAL, *SHAPE}


def breaks(old: Schema, new: Schema, *, routes: frozenset[str]) -> list[str]:
    """Give one line for each way in which the new document breaks clients of the old one; new routes break nobody."""
    found = []
    for path in sorted(routes):
        for method, operation in old["paths"][path].items():
            where = f"{method.upper()} {path}"
            current = new["paths"].get(path, {}).get(method)
            if current is None:
                found.append(f"{where}: removed")
            else:
                found += operation_breaks(inlined(operation, old), inlined(current, new), where)
    return found


def inlined(node: Any, document: Schema) -> Any:
    """Give a node of a document with every reference replaced by what it leads to; there must be no circles."""
    if isinstance(node, list):
        return [inlined(one, document) for one in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        target: Any = document
        for step in node["$ref"].removeprefix("#/").split("/"):
            target = target[step]
        node = {**target, **{key: value for key, value in node.items() if key != "$ref"}}
        return inlined(node, document)
    return {key: inlined(value, document) for key, value in node.items()}


def operation_breaks(old: Schema, new: Schema, where: str) -> Iterator[str]:
    """Give what changed for the worse in one route and method."""
    if new.get("security") and {} not in new["security"] and not old.get("security"):
        yield f"{where}: needs a key now"
    yield from parameter_breaks(old, new, where)
    yield from body_breaks(old.get("requestBody", {}), new.get("requestBody", {}), f"{where} request")
    for status, response in old.get("responses", {}).items():
        here = f"{where} {status}"
        if status not in new.get("responses", {}):
            yield f"{here}: removed"
            continue
        current = new["responses"][status].get("content", {})
        for media, content in response.get("content", {}).items():
            if media not in current:
                yield f"{here}: {media} is not answered any more"
            else:
                yield from unread(current[media].get("schema", {}), content.get("schema", {}), here, tolerant=True)


def parameter_breaks(old: Schema, new: Schema, where: str) -> Iterator[str]:
    """Give the parameters that were removed, narrowed or newly required."""
    before, after = ({(p["in"], p["name"]): p for p in side.get("parameters", ())} for side in (old, new))
    for key, parameter in after.items():
        if parameter.get("required") and not before.get(key, {}).get("required"):
            yield f"{where} {' '.join(key)}: required now"
    for key, parameter in before.items():
        here = f"{where} {' '.join(key)}"
        if key not in after:
            yield f"{here}: removed"
        else:
            yield from unread(parameter.get("schema", {}), after[key].get("schema", {}), here, tolerant=False)


def body_breaks(old: Schema, new: Schema, where: str) -> Iterator[str]:
    """Give the ways in which a request body that was right is wrong now."""
    if new.get("required") and not old.get("required"):
        yield f"{where}: required now"
    for media, content in old.get("content", {}).items():
        if media not in new.get("content", {}):
            yield f"{where}: {media} is not read any more"
        else:
            reader = new["content"][media].get("schema", {})
            yield from unread(content.get("schema", {}), reader, where, tolerant=False)


def unread(writer: Schema, reader: Schema, where: str, *, tolerant: bool) -> Iterator[str]:
    """Give why a reader may not understand what a writer may send.

    Args: tolerant: the reader is an old client: fields it does not know are skipped, enum values are taken as text,
        but every field it does know must still be told of; else it is the service, which refuses what it does not know
        and must not change what a field that is left out means.
    """
    if not tolerant and "default" in writer and writer["default"] != reader.get("default", ...):
        yield f"{where}: default {writer['default']!r} is {reader.get('default')!r} now"
    readers = variants(reader)
    for written in variants(writer):
        namesakes = [one for one in readers if "title" in written and one.get("title") == written["title"]]
        faults = [list(variant_faults(written, one, where, tolerant=tolerant)) for one in namesakes or readers]
        if all(faults):
            alike = [some for some, one in zip(faults, namesakes or readers, strict=True) if kind(one) == kind(written)]
            known = " or ".join(kind(one) for one in readers)
            yield from alike[0] if alike else [f"{where}: {kind(written)} where {known} is understood"]


def variants(schema: Schema) -> list[Schema]:
    """Give the alternatives of a schema, each with one type; what stands beside `anyOf` holds for all of them."""
    for key in ("anyOf", "oneOf"):
        if key in schema:
            rest = {k: v for k, v in schema.items() if k != key and k not in ANNOTATIONS}
            return [one for alternative in schema[key] for one in variants({**rest, **alternative})]
    if isinstance(schema.get("type"), list):
        return [one for name in schema["type"] for one in variants({**schema, "type": name})]
    if kind(schema) == "integer":
        return [inclusive(schema)]
    return [schema]


def inclusive(schema: Schema) -> Schema:
    """Give a schema of integers with its exclusive bounds written as inclusive ones."""
    made = {key: value for key, value in schema.items() if not key.startswith("exclusive")}
    if "exclusiveMaximum" in schema:
        made["maximum"] = min(schema["exclusiveMaximum"] - 1, schema.get("maximum", float("inf")))
    if "exclusiveMinimum" in schema:
        made["minimum"] = max(schema["exclusiveMinimum"] + 1, schema.get("minimum", float("-inf")))
    return made


def kind(schema: Schema) -> str:
    """Give the type of an alternative."""
    return str(schema.get("type", "anything"))


def variant_faults(writer: Schema, reader: Schema, where: str, *, tolerant: bool) -> Iterator[str]:
    """Give why a reader of one type may not understand a writer of one type."""
    if writer == reader or not set(reader) - ANNOTATIONS:
        return
    unknown = sorted({*writer, *reader} - COMPARED)
    if unknown:
        yield f"{where}: changed, and this comparison does not know {', '.join(unknown)}"
    if kind(writer) != kind(reader) and (kind(writer), kind(reader)) != ("integer", "number"):
        yield f"{where}: {kind(writer)} where {kind(reader)} is understood"
        return
    yield from value_faults(writer, reader, where, tolerant=tolerant)
    if kind(reader) == "array":
        yield from unread(writer.get("items", {}), reader.get("items", {}), f"{where}[]", tolerant=tolerant)
    if kind(reader) == "object":
        yield from field_faults(writer, reader, where, tolerant=tolerant)


def value_faults(writer: Schema, reader: Schema, where: str, *, tolerant: bool) -> Iterator[str]:
    """Give the values of one type that the reader does not take."""
    allowed = choices(reader)
    if allowed is not None and not tolerant:
        sent = choices(writer)
        lost = ["any other value"] if sent is None else [repr(value) for value in sent if value not in allowed]
        if lost:
            yield f"{where}: {', '.join(lost)} is not taken any more"
    if tolerant:
        return
    for names, sign in ((UPPER, 1), (LOWER, -1)):
        for name in names:
            if name in reader and (name not in writer or sign * writer[name] > sign * reader[name]):
                yield f"{where}: {name} {writer.get(name, 'none')} is {reader[name]} now"
    for name in EQUAL:
        if name in reader and writer.get(name) != reader[name]:
            yield f"{where}: {name} {writer.get(name, 'none')} is {reader[name]} now"


def choices(schema: Schema) -> list[Any] | None:
    """Give the values of an enumeration or a constant, None where any value of the type will do."""
    if "const" in schema:
        return [schema["const"]]
    found: list[Any] | None = schema.get("enum")
    return found


def field_faults(writer: Schema, reader: Schema, where: str, *, tolerant: bool) -> Iterator[str]:
    """Give the fields that the reader misses, refuses or misunderstands."""
    sent, read = writer.get("properties", {}), reader.get("properties", {})
    for name in read if tolerant else sent:
        if name not in sent or name not in read:
            yield f"{where}.{name}: removed"
        else:
            yield from unread(sent[name], read[name], f"{where}.{name}", tolerant=tolerant)
    for name in reader.get("required", ()):
        if name not in writer.get("required", ()) and (name in sent or not tolerant):
            yield f"{where}.{name}: {'may be left out' if tolerant else 'required'} now"
    others, taken = writer.get("additionalProperties", True), reader.get("additionalProperties", True)
    if others is not False and taken is False and not tolerant:
        yield f"{where}: other fields are refused now"
    elif others is not False and isinstance(taken, dict):
        yield from unread({} if others is True else others, taken, f"{where}.*", tolerant=tolerant)
