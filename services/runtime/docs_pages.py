"""The documentation of a service in a browser: openapi.json as a page, and a page of all errors.

Both are rendered once, from the same document that programs read, and are plain HTML with one style
sheet: no script, nothing from elsewhere, and a policy that allows neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import jinja2
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from services.core.errors import CATALOGUE
from services.runtime.docs_templates import (
    api_template,
    errors_template,
    layout_template,
    style_sheet,
)
from services.runtime.error_advice import advice

policy: Final = (
    "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_headers: Final = {
    "Content-Security-Policy": policy,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # As long as a deployment may take to be noticed.
    "Cache-Control": "public, max-age=300",
}
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


def docs_routes(document: Mapping[str, Any]) -> list[BaseRoute]:
    """/docs, /docs/errors and the style sheet of both."""
    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.DictLoader(
            {"layout": layout_template, "api": api_template, "errors": errors_template}
        ),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    title = document["info"]["title"]
    api = environment.get_template("api").render(
        title=title,
        about=document["info"].get("description", ""),
        tags=_by_tag(document),
        schemas=_schemas(document),
    )
    errors = environment.get_template("errors").render(
        title=title, entries=[(entry, advice[entry.code]) for entry in CATALOGUE.values()]
    )
    return [
        _page("/docs", api, "text/html"),
        _page("/docs/errors", errors, "text/html"),
        _page("/docs/style.css", style_sheet, "text/css"),
    ]


def _page(path: str, content: str, media_type: str) -> Route:
    async def answer(_: Request) -> Response:
        return Response(content, headers=_headers, media_type=media_type)

    return Route(path, answer)


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


def _schemas(document: Mapping[str, Any]) -> list[tuple[str, str, list[Row]]]:
    return [
        (name, schema.get("description", ""), list(_members(schema)))
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
    return f", {0 if low is None else low} to {high}"


def _usual(schema: Mapping[str, Any]) -> str:
    usual = schema.get("default")
    return "" if usual in (None, "") else f"; else {usual}"
