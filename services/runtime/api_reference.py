"""An OpenAPI document as people read it: its operations by tag, and the shapes they speak of.

It is made of what openapi.py writes, by whichever service, and knows nothing of HTML: the pages of
a service alone (docs_pages.py) show it, and so does the documentation of the whole platform.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from services.core.errors import PeerError

_methods: Final = ("get", "head", "put", "post", "patch", "delete")
_reference: Final = "#/components/schemas/"


class Shape(NamedTuple):
    """A type as people read it, and the schema of ours that it is, if it is one."""

    text: str
    schema: str | None = None


class Row(NamedTuple):
    """A parameter or a member."""

    name: str
    place: str
    shape: Shape
    required: bool
    about: str


class Answer(NamedTuple):
    status: str
    about: str
    shape: Shape | None
    # Of an error.
    codes: Sequence[str]


class Operation(NamedTuple):
    id: str
    method: str
    path: str
    summary: str
    about: str
    rows: Sequence[Row]
    body: Shape | None
    answers: Sequence[Answer]
    # Names of the credentials any one of which will do; none are needed if there are none.
    credentials: Sequence[str]


class Schema(NamedTuple):
    """A schema of ours."""

    name: str
    about: str
    rows: Sequence[Row]


class Reference(NamedTuple):
    title: str
    about: str
    tags: Mapping[str, Sequence[Operation]]
    schemas: Sequence[Schema]
    # Where the service is, if it says so.
    url: str | None


def told_reference(content: bytes) -> Reference:
    """The same of a document as another service tells it; PeerError if it is none that openapi.py
    has written."""
    try:
        return reference_of(msgspec.json.decode(content))
    except (msgspec.DecodeError, LookupError, TypeError, AttributeError, ValueError) as error:
        raise PeerError(f"this is no document of ours: {error!r}") from error


def reference_of(document: Mapping[str, Any]) -> Reference:
    servers = document.get("servers", ())
    return Reference(
        document["info"]["title"],
        document["info"].get("description", ""),
        _by_tag(document),
        _schemas(document),
        servers[0]["url"] if servers else None,
    )


def _by_tag(document: Mapping[str, Any]) -> dict[str, list[Operation]]:
    found: dict[str, list[Operation]] = {}
    for path, operations in document["paths"].items():
        for method in _methods:
            if (operation := operations.get(method)) is not None:
                tag = (operation.get("tags") or [""])[0]
                found.setdefault(tag, []).append(_operation(method, path, operation))
    return found


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> Operation:
    body = operation.get("requestBody")
    return Operation(
        operation["operationId"],
        method.upper(),
        path,
        operation["summary"],
        operation.get("description", ""),
        [
            Row(
                parameter["name"],
                parameter["in"],
                _shape(parameter["schema"]),
                parameter["required"],
                parameter.get("description", ""),
            )
            for parameter in operation.get("parameters", ())
        ],
        None if body is None else _content(body),
        [_answer(status, response) for status, response in operation["responses"].items()],
        [name for scheme in operation.get("security", ()) for name in scheme],
    )


def _answer(status: str, response: Mapping[str, Any]) -> Answer:
    shape = _content(response)
    if int(status) < 400 or shape is None:
        return Answer(status, response["description"], shape, ())
    (content,) = response["content"].values()
    return Answer(status, "", None, content["schema"]["allOf"][1]["properties"]["code"]["enum"])


def _content(of: Mapping[str, Any]) -> Shape | None:
    content = of.get("content")
    if not content:
        return None
    schema = next(iter(content.values()))["schema"]
    if schema.get("format") == "binary":
        return Shape(schema.get("description", "bytes"))
    return _shape(schema)


def _schemas(document: Mapping[str, Any]) -> list[Schema]:
    return [
        Schema(name, schema.get("description", ""), list(_members(schema)))
        for name, schema in sorted(document["components"]["schemas"].items())
    ]


def _members(schema: Mapping[str, Any]) -> Iterator[Row]:
    required = schema.get("required", ())
    for name, member in schema.get("properties", {}).items():
        yield Row(name, "", _shape(member), name in required, member.get("description", ""))


def _shape(schema: Mapping[str, Any]) -> Shape:
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(_reference)
        return Shape(name, name)
    if "anyOf" in schema:
        shapes = [_shape(one) for one in schema["anyOf"]]
        named = next((shape.schema for shape in shapes if shape.schema), None)
        return Shape(" or ".join(shape.text for shape in shapes), named)
    if "enum" in schema:
        return Shape(" or ".join(map(str, schema["enum"])) + _usual(schema))
    kind = schema.get("type", "anything")
    if kind == "array":
        items = _shape(schema.get("items", {}))
        most = f", at most {schema['maxItems']}" if "maxItems" in schema else ""
        return Shape(f"list of {items.text}{most}", items.schema)
    if schema.get("format") == "date-time":
        kind = "time"
    return Shape(f"{kind}{_bounds(schema)}{_usual(schema)}")


def _bounds(schema: Mapping[str, Any]) -> str:
    low = schema.get("minimum", schema.get("minLength"))
    high = schema.get("maximum", schema.get("maxLength"))
    if low is None and high is None:
        return ""
    if high is None:
        return f", from {low}"
    if high == 0:
        return ", empty"
    return f", {0 if low is None else low} to {high}"


def _usual(schema: Mapping[str, Any]) -> str:
    usual = schema.get("default")
    return "" if usual in (None, "") else f"; else {usual}"
