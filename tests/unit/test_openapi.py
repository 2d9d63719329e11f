"""The document that describes a service says what its endpoints do, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime
from typing import Annotated, Any, Literal

import httpx
import msgspec
import pytest
from msgspec import Meta, Struct
from starlette.applications import Starlette

from services.core.errors import CATALOGUE, FixRequest, UnknownOutcome
from services.runtime.endpoints import Access, Call, Endpoint
from services.runtime.openapi import Problem, document_route, openapi_document
from services.runtime.request_body import invalid_members
from tests.tidy.tree import root


class Path(Struct):
    thing_id: Annotated[int, Meta(ge=1, description="Its number")]


class Query(Struct, rename={"from_": "from"}):
    limit: Annotated[int, Meta(ge=1, le=10)] = 5
    from_: Annotated[str, Meta(max_length=9)] | None = None
    step: Literal["minute", "hour"] | None = None


class Part(Struct):
    name: str


class Order(Struct, forbid_unknown_fields=True):
    parts: Annotated[list[Part], Meta(max_length=3)]
    note: str | None = None


class Visit(Struct):
    at: Annotated[datetime, Meta(tz=True)]
    until: datetime | None = None


class Thing(Struct):
    """Something that is made to order."""

    id: int
    parts: list[Part]
    made_at: datetime
    sold_at: Annotated[datetime | None, Meta(description="If it was")]
    seen: dict[str, Visit]


async def unused(_: Call[Any, Any, Any]) -> None:
    raise AssertionError("nobody calls it")


listed = [
    Endpoint(
        "POST",
        "/things",
        "makeThing",
        "Make a thing",
        unused,
        body_type=Order,
        status=201,
        answer_type=Thing,
        errors=("already_exists", "rate_limited"),
        tag="Things",
    ),
    Endpoint("GET", "/things", "listThings", "List", unused, Access.OPEN, query_type=Query),
    Endpoint(
        "DELETE", "/things/{thing_id}", "dropThing", "Drop", unused, path_type=Path, status=204
    ),
    Endpoint("POST", "/told", "tell", "Tell", unused, Access.INTERNAL, body_type=Part),
    Endpoint("POST", "/set", "set", "Set", unused, body_type=Part, body_optional=True, status=204),
]


@pytest.fixture
def document() -> dict[str, Any]:
    return openapi_document(
        "things", "1", listed, server_url="https://here", errors=("database_unavailable",)
    )


def codes(operation: dict[str, Any]) -> dict[int, list[str]]:
    """The codes of every error that an operation says it can end in, by status."""
    found = {}
    for status, response in operation["responses"].items():
        if int(status) >= 400:
            (schema,) = response["content"].values()
            assert list(response["content"]) == ["application/problem+json"]
            reference, code = schema["schema"]["allOf"]
            assert reference == {"$ref": "#/components/schemas/Problem"}
            found[int(status)] = code["properties"]["code"]["enum"]
    return found


def test_an_operation_has_its_body_its_answer_and_its_name(document: dict[str, Any]) -> None:
    operation = document["paths"]["/things"]["post"]
    assert operation["operationId"] == "makeThing"
    assert operation["tags"] == ["Things"]
    assert operation["requestBody"] == {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Order"}}},
    }
    made = operation["responses"]["201"]
    assert made["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Thing"}
    assert "content" not in document["paths"]["/set"]["post"]["responses"]["204"]
    assert document["paths"]["/set"]["post"]["requestBody"]["required"] is False
    schemas = document["components"]["schemas"]
    assert set(schemas) == {"Order", "Part", "Problem", "Thing", "Visit", "WrongMember"}
    assert schemas["Order"]["additionalProperties"] is False
    assert schemas["Order"]["properties"]["parts"]["maxItems"] == 3
    assert schemas["Thing"]["description"] == "Something that is made to order."


def test_every_time_is_told_to_be_one(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    time = {"type": "string", "format": "date-time"}
    assert schemas["Thing"]["properties"]["made_at"] == time
    assert schemas["Thing"]["properties"]["sold_at"]["anyOf"] == [time, {"type": "null"}]
    assert schemas["Visit"]["properties"]["at"] == time
    assert schemas["Visit"]["properties"]["until"]["anyOf"] == [time, {"type": "null"}]


def test_parameters_stand_one_by_one_with_their_bounds(document: dict[str, Any]) -> None:
    assert document["paths"]["/things"]["get"]["parameters"] == [
        {
            "name": "limit",
            "in": "query",
            "required": False,
            "schema": {
                "type": "integer",
                "format": "int64",
                "minimum": 1,
                "maximum": 10,
                "default": 5,
            },
        },
        # Text cannot be null: who means nothing leaves it out.
        {
            "name": "from",
            "in": "query",
            "required": False,
            "schema": {"type": "string", "maxLength": 9},
        },
        {"name": "step", "in": "query", "required": False, "schema": {"enum": ["hour", "minute"]}},
    ]
    (parameter,) = document["paths"]["/things/{thing_id}"]["delete"]["parameters"]
    assert parameter == {
        "name": "thing_id",
        "in": "path",
        "required": True,
        "description": "Its number",
        "schema": {"type": "integer", "format": "int64", "minimum": 1},
    }


def test_every_operation_tells_the_errors_it_can_end_in(document: dict[str, Any]) -> None:
    of_all = {431: ["headers_too_large"], 500: ["internal"], 503: ["database_unavailable"]}
    assert codes(document["paths"]["/things"]["get"]) == {
        **of_all,
        400: ["invalid_header", "invalid_query"],
    }
    assert codes(document["paths"]["/things"]["post"]) == {
        **of_all,
        400: ["invalid_body", "invalid_header", "invalid_json", "invalid_query"],
        401: ["unauthorized"],
        408: ["request_timeout"],
        409: ["already_exists"],
        413: ["body_too_large"],
        415: ["unsupported_media_type"],
        429: ["rate_limited"],
    }
    assert codes(document["paths"]["/things/{thing_id}"]["delete"])[404] == ["not_found"]
    assert codes(document["paths"]["/told"]["post"])[503] == ["database_unavailable", "overloaded"]
    for path in document["paths"].values():
        for operation in path.values():
            for status, response in operation["responses"].items():
                waits = "Retry-After" in response.get("headers", {})
                assert waits == (int(status) in (429, 503)), "what may succeed later says when"
            for status, found in codes(operation).items():
                assert {CATALOGUE[code].status for code in found} == {status}


def test_who_may_call_is_told_by_the_scheme(document: dict[str, Any]) -> None:
    paths = document["paths"]
    assert paths["/things"]["get"]["security"] == []
    assert paths["/things"]["post"]["security"] == [{"access_token": []}]
    assert paths["/told"]["post"]["security"] == [{"cluster_signature": []}]
    schemes = document["components"]["securitySchemes"]
    assert schemes["access_token"]["scheme"] == "bearer"
    assert schemes["cluster_signature"]["name"] == "X-Ydht-Signature"


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    def references(node: object) -> list[str]:
        if isinstance(node, dict):
            own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
            return own + [found for value in node.values() for found in references(value)]
        if isinstance(node, list):
            return [found for value in node for found in references(value)]
        return []

    found = references(document)
    assert found
    for reference in found:
        place: Any = document
        for name in reference.removeprefix("#/").split("/"):
            place = place[name]


def test_errors_are_what_the_document_says_they_are() -> None:
    plain = FixRequest("not_found", "Nothing is here").problem("an id")
    wrong = invalid_members([("email", "is missing"), ("password", "is short")]).problem("an id")
    lost = UnknownOutcome("It was lost", operation_id="xid-7").problem("an id")
    more = {"replaced_by": 7, "valid": False}
    others = FixRequest("already_exists", "It was rotated", members=more).problem("an id")
    for problem in (plain, wrong, lost, others):
        assert msgspec.to_builtins(msgspec.convert(problem, Problem)) == problem


def test_a_service_without_endpoints_has_a_document() -> None:
    document = openapi_document("nothing", "1", [])
    assert document["paths"] == {}
    assert "servers" not in document


async def test_the_route_gives_the_document(document: dict[str, Any]) -> None:
    app = Starlette(routes=[document_route(document)])
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://here"
    ) as client:
        answer = await client.get("/openapi.json")
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json() == document


def test_the_document_is_the_same_bytes_in_every_process() -> None:
    """Sets and hashes must not decide about the order of anything."""
    script = (
        "import msgspec\n"
        "from tests.unit.test_openapi import listed\n"
        "from services.runtime.openapi import openapi_document\n"
        "document = openapi_document('things', '1', listed)\n"
        "print(msgspec.json.encode(document, order='deterministic').decode())\n"
    )
    told = {
        subprocess.run(  # noqa: S603  The script above.
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": seed},
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(told) == 1
    assert len(told.pop()) > 1000
