"""The gateway's document: every route of the contract, and single keys as the lane answers them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from services.core.errors import CATALOGUE
from services.gateway import kv_document
from services.gateway.json_api import JsonApi, Surroundings
from services.gateway.kv import methods
from services.gateway.options import Options
from services.runtime.clock import SystemClock
from services.runtime.endpoints import Access
from tests.unit.gateway_world import GatewayWorld


@pytest.fixture(scope="module")
def api() -> JsonApi:
    world = GatewayWorld()
    return JsonApi(
        world, Surroundings("secret", "http://keygen", "https://api.example"), SystemClock()
    )


def operations(api: JsonApi) -> dict[str, dict[str, Any]]:
    return {
        f"{method.upper()} {path}": operation
        for path, of in api.document["paths"].items()
        for method, operation in of.items()
    }


def test_every_route_is_described(api: JsonApi) -> None:
    assert set(operations(api)) == {
        "GET /v1/kv/{key}",
        "HEAD /v1/kv/{key}",
        "PUT /v1/kv/{key}",
        "DELETE /v1/kv/{key}",
        "PATCH /v1/kv/{key}",
        "POST /v1/kv/{key}/incr",
        "GET /v1/kv",
        "DELETE /v1/kv",
        "POST /v1/batch",
        "GET /v1/namespaces",
        "GET /v1/namespaces/{name}",
        "PUT /v1/namespaces/{name}",
        "DELETE /v1/namespaces/{name}",
        "POST /v1/ids",
    }
    assert api.document["servers"] == [{"url": "https://api.example"}]


def test_every_operation_may_be_late_and_have_too_large_a_body(api: JsonApi) -> None:
    for operation in operations(api).values():
        assert {"408", "413"} <= operation["responses"].keys()
        assert "body_too_large" in operation["responses"]["413"]["description"]
    large = {
        name
        for name, operation in operations(api).items()
        if "value_too_large" in operation["responses"]["413"]["description"]
    }
    assert large == {"PUT /v1/kv/{key}"}


def test_every_operation_takes_an_api_key_either_way_and_tells_what_is_left(api: JsonApi) -> None:
    for operation in operations(api).values():
        assert operation["security"] == [{"api_key": []}, {"api_key_as_bearer": []}]
        for status, answer in operation["responses"].items():
            assert ("RateLimit" in answer["headers"]) == (status != "401")
            assert ("Retry-After" in answer["headers"]) == (status in ("429", "503", "507"))
            assert "X-Request-ID" in answer["headers"]
        codes = operation["responses"]["401"]["content"]["application/problem+json"]
        assert codes["schema"]["allOf"][1]["properties"]["code"]["enum"] == [
            "invalid_api_key",
            "missing_api_key",
        ]


def test_codes_stand_with_their_statuses(api: JsonApi) -> None:
    for name, operation in operations(api).items():
        for status, answer in operation["responses"].items():
            if int(status) < 400:
                continue
            schema = answer["content"]["application/problem+json"]["schema"]
            for code in schema["allOf"][1]["properties"]["code"]["enum"]:
                assert CATALOGUE[code].status == int(status), name


def test_what_takes_no_body_says_that_one_is_refused(api: JsonApi) -> None:
    told = operations(api)
    for name in ("POST /v1/ids", "DELETE /v1/kv", "DELETE /v1/namespaces/{name}"):
        for status, code in (("400", "invalid_body"), ("413", "body_too_large")):
            of = told[name]["responses"][status]["content"]["application/problem+json"]["schema"]
            assert code in of["allOf"][1]["properties"]["code"]["enum"], name
    assert "415" in told["PUT /v1/kv/{key}"]["responses"]


def test_single_keys_are_described_as_the_lane_has_them() -> None:
    described = {endpoint.method: endpoint for endpoint in kv_document.endpoints()}
    assert {name.decode(): method.scope for name, method in methods.items()} == {
        name: endpoint.scope for name, endpoint in described.items()
    }
    assert all(endpoint.access is Access.API_KEY for endpoint in described.values())


def test_the_headers_of_single_keys_are_those_that_the_lane_reads() -> None:
    given = {
        "X-Namespace": b"other",
        "X-Consistency": b"strong",
        "If-Match": b'"' + b"0" * 24 + b'"',
        "If-None-Match": b"*",
        "X-Request-ID": b"an-id",
    }
    described = {
        field.encode_name
        for endpoint in kv_document.endpoints()
        if endpoint.header_type is not None
        for field in msgspec.structs.fields(endpoint.header_type)
    }
    assert described == set(given)
    options = Options([(name.lower().encode(), value) for name, value in given.items()])
    assert (options.namespace, options.strong, options.request_id) == (b"other", True, b"an-id")
    assert options.if_match is not None
    assert options.if_none_match is not None
