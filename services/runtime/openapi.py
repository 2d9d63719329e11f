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
from services.runtime.endpoints import Access, Endpoint, Raw
from services.runtime.key_access import key_header
from services.runtime.problem import problem_type
from services.runtime.signing import signature_header
from services.runtime.text_members import TextMembers

openapi_version: Final = "3.1.0"
path_of_document: Final = "/openapi.json"

_json: Final = "application/json"
_unauthorized: Final = 401
_reference: Final = "#/components/schemas/{name}"
_schemes: Final[Mapping[str, Mapping[str, str]]] = {
    "access_token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
    "api_key": {"type": "apiKey", "in": "header", "name": key_header},
    "api_key_as_bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key, for clients that can send it in no other way",
    },
    "cluster_signature": {
        "type": "apiKey",
        "in": "header",
        "name": signature_header,
        "description": "For services of the cluster alone: HMAC of the request",
    },
}
# Any one of them will do.
_schemes_of_access: Final[Mapping[Access, tuple[str, ...]]] = {
    Access.OPEN: (),
    Access.BEARER: ("access_token",),
    Access.API_KEY: ("api_key", "api_key_as_bearer"),
    Access.INTERNAL: ("cluster_signature",),
}
# What a request can end in before anybody has looked at what it asks for, or by a bug.
_errors_of_all: Final = ("invalid_header", "headers_too_large", "invalid_query", "internal")
_errors_of_access: Final[Mapping[Access, tuple[str, ...]]] = {
    Access.OPEN: (),
    Access.BEARER: ("unauthorized", "rate_limited"),
    Access.API_KEY: (
        "missing_api_key",
        "invalid_api_key",
        "insufficient_scope",
        "rate_limited",
        "auth_unavailable",
        # Of a body that has no meaning, too.
        "body_too_large",
        "request_timeout",
    ),
    # A signature covers the body, which is read for it; and each is remembered.
    Access.INTERNAL: ("unauthorized", "body_too_large", "request_timeout", "overloaded"),
}
_errors_of_body: Final = (
    "invalid_body",
    "invalid_json",
    "unsupported_media_type",
    "body_too_large",
    "request_timeout",
)
# Where there is to be none.
_errors_of_no_body: Final = ("invalid_body", "body_too_large", "request_timeout")
_retry_after: Final = {
    "description": "Whole seconds after which the same request may succeed",
    "schema": {"type": "integer", "minimum": 0},
}
_challenge: Final = {
    "description": "By which scheme to say who asks",
    "schema": {"type": "string"},
}
# Of every answer to an API key that is good.
_allowance: Final = {
    "RateLimit-Policy": {
        "description": "How many requests (q) may be made in so many seconds (w)",
        "schema": {"type": "string", "examples": ['"default";q=100;w=60']},
    },
    "RateLimit": {
        "description": "How many tokens are left (r), and in how many seconds all are there (t)",
        "schema": {"type": "string", "examples": ['"default";r=7;t=2']},
    },
}
_request_id: Final = {
    "description": "By what the logs tell of this request; the client's own, if it sent one",
    "schema": {"type": "string"},
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
    # Of the value that is there, where it is not as a condition wants it; null if there is none.
    etag: str | msgspec.UnsetType | None = msgspec.UNSET


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
        path = endpoint.path.replace(":path}", "}")
        paths.setdefault(path, {})[endpoint.method.lower()] = operation
    document: dict[str, Any] = {
        "openapi": openapi_version,
        "info": {"title": title, "version": version},
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "securitySchemes": {
                name: _schemes[name]
                for name in sorted(
                    {name for of in listed for name in _schemes_of_access[of.access]}
                )
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
            used += (
                of
                for of in (endpoint.body_type, endpoint.answer_type)
                if of is not None and not isinstance(of, Raw)
            )
            for of in (
                endpoint.path_type,
                endpoint.query_type,
                endpoint.header_type,
                endpoint.answer_headers,
            ):
                # One by one, so that an equal type is not told twice.
                if of is not None and of not in texts:
                    texts.append(of)
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

    def content(self, of: Any) -> dict[str, Any]:
        """What a body or an answer of this type looks like, by its media type."""
        if isinstance(of, Raw):
            schema = {"type": "string", "format": "binary", "description": of.description}
            return {media_type: {"schema": schema} for media_type in of.media_types}
        return {_json: {"schema": self.of(of)}}

    def headers(self, of: type[Any] | None) -> dict[str, Any]:
        """The members of a Struct as headers of an answer."""
        return {
            parameter["name"]: {key: parameter[key] for key in _of_header if key in parameter}
            for parameter in self.parameters("header", of)
        }

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


_of_header: Final = ("description", "schema")


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
        "security": [{name: []} for name in _schemes_of_access[endpoint.access]],
        "responses": _responses(endpoint, schemas, errors_of_service),
    }
    if endpoint.tag:
        operation["tags"] = [endpoint.tag]
    if description := _description(endpoint):
        operation["description"] = description
    parameters = [
        *schemas.parameters("path", endpoint.path_type),
        *schemas.parameters("query", endpoint.query_type),
        *schemas.parameters("header", endpoint.header_type),
    ]
    if parameters:
        operation["parameters"] = parameters
    if endpoint.body_type is not None:
        operation["requestBody"] = {
            "required": not endpoint.body_optional,
            "content": schemas.content(endpoint.body_type),
        }
    return operation


def _description(endpoint: Endpoint) -> str:
    needed = ""
    if endpoint.access is Access.API_KEY:
        needed = f"Needs an API key with the scope `{endpoint.scope}`."
    return " ".join(filter(None, (endpoint.description, needed)))


def _responses(
    endpoint: Endpoint, schemas: _Schemas, errors_of_service: Sequence[str]
) -> dict[str, Any]:
    success: dict[str, Any] = {"description": HTTPStatus(endpoint.status).phrase}
    if endpoint.answer_type is not None:
        success["content"] = schemas.content(endpoint.answer_type)
    of_all = _headers_of_all(endpoint)
    if headers := {**schemas.headers(endpoint.answer_headers), **of_all}:
        success["headers"] = headers
    by_status: dict[int, list[str]] = {}
    for code in dict.fromkeys((*_errors_of(endpoint), *errors_of_service)):
        by_status.setdefault(CATALOGUE[code].status, []).append(code)
    responses = {str(endpoint.status): success}
    for status, meaning in sorted((endpoint.also or {}).items()):
        responses[str(status)] = {"description": meaning, "headers": of_all}
    for status, codes in sorted(by_status.items()):
        problem = responses[str(status)] = _problem(schemas, codes)
        if endpoint.access is Access.API_KEY:
            # Whose key is not good is told nothing about it.
            known = {"X-Request-ID": _request_id} if status == _unauthorized else of_all
            problem["headers"] = {**problem.get("headers", {}), **known}
    return responses


def _headers_of_all(endpoint: Endpoint) -> dict[str, Any]:
    if endpoint.access is not Access.API_KEY:
        return {}
    return {**_allowance, "X-Request-ID": _request_id}


def _errors_of(endpoint: Endpoint) -> Iterable[str]:
    yield from _errors_of_all
    yield from _errors_of_access[endpoint.access]
    if endpoint.path_type is not None and endpoint.handler is not None:
        yield "not_found"
    yield from TextMembers(endpoint.query_type).codes
    yield from TextMembers(endpoint.header_type, "invalid_header").codes
    if isinstance(endpoint.body_type, Raw):
        yield "request_timeout"
    elif endpoint.body_type is not None:
        yield from _errors_of_body
    elif endpoint.bodiless:
        yield from _errors_of_no_body
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
    elif any(CATALOGUE[code].status == _unauthorized for code in codes):
        response["headers"] = {"WWW-Authenticate": _challenge}
    return response
