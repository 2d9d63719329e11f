"""The OpenAPI 3.1 document of a service, from the same types that check its requests.

Every operation has its parameters with their bounds, its body, its answer, and the errors it can
end in, by their codes. Equal endpoints give equal bytes, whoever asks and whenever.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

import msgspec
from msgspec import inspect as types
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from services.core.errors import CATALOGUE
from services.runtime.endpoints import Access, Endpoint
from services.runtime.problem import problem_type
from services.runtime.signing import signature_header

openapi_version: Final = "3.1.0"
path_of_document: Final = "/openapi.json"

_json: Final = "application/json"
_reference: Final = "#/components/schemas/{name}"
_bearer: Final = "access_token"
_signature: Final = "cluster_signature"
# What a request can end in before anybody has looked at what it asks for, or by a bug.
_errors_of_all: Final = ("invalid_header", "headers_too_large", "invalid_body", "internal")
_errors_of_access: Final[Mapping[Access, tuple[str, ...]]] = {
    Access.OPEN: (),
    Access.BEARER: ("unauthorized", "rate_limited"),
    # A signature covers the body, which is read for it; and each is remembered.
    Access.INTERNAL: ("unauthorized", "body_too_large", "request_timeout", "overloaded"),
}
_errors_of_body: Final = (
    "invalid_json",
    "unsupported_media_type",
    "body_too_large",
    "request_timeout",
)
_retry_after: Final = {
    "description": "Whole seconds after which the same request may succeed",
    "schema": {"type": "integer", "minimum": 0},
}


class WrongMember(msgspec.Struct, frozen=True):
    """One member of a request that is wrong, and why."""

    member: str
    detail: str


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error, as RFC 9457 has it: `code` is for programs, `error` and `detail` for people."""

    type: str
    title: str
    status: int
    code: str
    error: str
    detail: str
    request_id: str
    # The first member that is wrong, and all of them, where any are.
    member: str | msgspec.UnsetType = msgspec.UNSET
    errors: list[WrongMember] | msgspec.UnsetType = msgspec.UNSET
    # By what the logs tell of a write that may or may not have been applied.
    operation_id: str | msgspec.UnsetType = msgspec.UNSET
    # The API key that one was rotated into before.
    replaced_by: int | msgspec.UnsetType = msgspec.UNSET
    # False of an API key that is not, or not any more, good.
    valid: bool | msgspec.UnsetType = msgspec.UNSET


def openapi_document(
    title: str,
    version: str,
    endpoints: Iterable[Endpoint],
    *,
    description: str = "",
    server_url: str | None = None,
    errors: Sequence[str] = (),
) -> dict[str, Any]:
    """The document. `errors` are codes that every operation of this service can end in."""
    listed = list(endpoints)
    schemas = _Schemas(listed)
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in listed:
        operation = _operation(endpoint, schemas, errors)
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = operation
    document: dict[str, Any] = {
        "openapi": openapi_version,
        "info": {"title": title, "version": version},
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "securitySchemes": {
                _bearer: {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
                _signature: {
                    "type": "apiKey",
                    "in": "header",
                    "name": signature_header,
                    "description": "For services of the cluster alone: HMAC of the request",
                },
            },
        },
    }
    if description:
        document["info"]["description"] = description
    if server_url is not None:
        document["servers"] = [{"url": server_url}]
    return document


def document_route(document: Mapping[str, Any]) -> Route:
    """The route that gives the document, which is encoded once."""
    content = msgspec.json.encode(document, order="deterministic")

    async def answer(_: Request) -> Response:
        return Response(content, media_type=_json)

    return Route(path_of_document, answer)


class _Schemas:
    """The JSON schemas of all types that endpoints have, each type once."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        used: list[Any] = [Problem]
        texts: list[Any] = []
        for endpoint in endpoints:
            used += filter(None, (endpoint.body_type, endpoint.answer_type))
            texts += filter(None, (endpoint.path_type, endpoint.query_type))
        found, self.components = msgspec.json.schema_components(used, ref_template=_reference)
        _mark_times(self.components, used)
        self._found = list(zip(used, found, strict=True))
        # Parameters are given one by one, and so are no component.
        told, structs = msgspec.json.schema_components(texts, ref_template=_reference)
        self._texts = [
            (of, structs[reference["$ref"].rpartition("/")[2]])
            for of, reference in zip(texts, told, strict=True)
        ]

    def of(self, annotation: Any) -> dict[str, Any]:
        return next(schema for used, schema in self._found if used is annotation)

    def parameters(self, place: str, of: type[Any] | None) -> list[dict[str, Any]]:
        """The members of a Struct as parameters in the path or the query."""
        if of is None:
            return []
        schema = next(schema for text, schema in self._texts if text is of)
        required = schema.get("required", ())
        return [
            _parameter(place, name, member, required=name in required)
            for name, member in schema["properties"].items()
        ]


def _mark_times(components: Mapping[str, Any], used: Sequence[Any]) -> None:
    """Say of every time that it is one. Ours have an offset, also where a type does not insist on
    it, and only of those that do msgspec says so."""
    waiting: list[types.Type] = list(types.multi_type_info(used))
    seen: set[type] = set()
    while waiting:
        kind = waiting.pop()
        if isinstance(kind, types.StructType) and kind.cls not in seen:
            seen.add(kind.cls)
            properties = components[kind.cls.__name__]["properties"]
            for member in kind.fields:
                waiting.append(member.type)
                if _is_time(member.type):
                    _mark_time(properties[member.encode_name])
        elif isinstance(kind, types.UnionType):
            waiting += kind.types
        elif isinstance(kind, types.Metadata):
            waiting.append(kind.type)
        elif isinstance(kind, types.ListType):
            waiting.append(kind.item_type)
        elif isinstance(kind, types.DictType):
            waiting.append(kind.value_type)


def _is_time(kind: types.Type) -> bool:
    if isinstance(kind, types.Metadata):
        return _is_time(kind.type)
    if isinstance(kind, types.UnionType):
        return any(map(_is_time, kind.types))
    return isinstance(kind, types.DateTimeType)


def _mark_time(schema: dict[str, Any]) -> None:
    for choice in (schema, *schema.get("anyOf", ())):
        if choice.get("type") == "string":
            choice["format"] = "date-time"


def _parameter(place: str, name: str, member: Mapping[str, Any], *, required: bool) -> Any:
    schema = _without_null(member)
    if schema.get("type") == "integer":
        schema = {**schema, "format": "int64"}
    parameter = {"name": name, "in": place, "required": required, "schema": schema}
    if "description" in schema:
        parameter["description"] = schema.pop("description")
    return parameter


def _without_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Text cannot be null: a parameter that may be is left out instead."""
    choices = [choice for choice in schema.get("anyOf", ()) if choice.get("type") != "null"]
    rest = {name: value for name, value in schema.items() if name != "anyOf"}
    if rest.get("default", "") is None:
        del rest["default"]
    if not choices:
        return rest
    return {**choices[0], **rest} if len(choices) == 1 else {"anyOf": choices, **rest}


def _operation(
    endpoint: Endpoint, schemas: _Schemas, errors_of_service: Sequence[str]
) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": endpoint.name,
        "summary": endpoint.summary,
        "security": _security(endpoint.access),
        "responses": _responses(endpoint, schemas, errors_of_service),
    }
    if endpoint.tag:
        operation["tags"] = [endpoint.tag]
    parameters = [
        *schemas.parameters("path", endpoint.path_type),
        *schemas.parameters("query", endpoint.query_type),
    ]
    if parameters:
        operation["parameters"] = parameters
    if endpoint.body_type is not None:
        operation["requestBody"] = {
            "required": not endpoint.body_optional,
            "content": {_json: {"schema": schemas.of(endpoint.body_type)}},
        }
    return operation


def _security(access: Access) -> list[dict[str, list[str]]]:
    schemes = {Access.BEARER: _bearer, Access.INTERNAL: _signature}
    return [{schemes[access]: []}] if access in schemes else []


def _responses(
    endpoint: Endpoint, schemas: _Schemas, errors_of_service: Sequence[str]
) -> dict[str, Any]:
    success: dict[str, Any] = {"description": HTTPStatus(endpoint.status).phrase}
    if endpoint.answer_type is not None:
        success["content"] = {_json: {"schema": schemas.of(endpoint.answer_type)}}
    by_status: dict[int, list[str]] = {}
    for code in dict.fromkeys((*_errors_of(endpoint), *errors_of_service)):
        by_status.setdefault(CATALOGUE[code].status, []).append(code)
    responses = {str(endpoint.status): success}
    for status, codes in sorted(by_status.items()):
        responses[str(status)] = _problem(schemas, codes)
    return responses


def _errors_of(endpoint: Endpoint) -> Iterable[str]:
    yield from _errors_of_all
    yield from _errors_of_access[endpoint.access]
    if endpoint.path_type is not None:
        yield "not_found"
    if endpoint.body_type is not None:
        yield from _errors_of_body
    yield from endpoint.errors


def _problem(schemas: _Schemas, codes: Sequence[str]) -> dict[str, Any]:
    told = "; ".join(f"`{code}`: {CATALOGUE[code].title}" for code in codes)
    schema = {
        "allOf": [schemas.of(Problem), {"properties": {"code": {"enum": sorted(codes)}}}],
    }
    response: dict[str, Any] = {
        "description": told,
        "content": {problem_type: {"schema": schema}},
    }
    if any(CATALOGUE[code].retryable for code in codes):
        response["headers"] = {"Retry-After": _retry_after}
    return response
