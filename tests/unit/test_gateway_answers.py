"""How answers about one key look."""

from __future__ import annotations

import json
from email.utils import parsedate_to_datetime

import pytest

from services.core.errors import FixRequest, PeerError
from services.core.hlc import pack_version
from services.core.record import Metadata, Record, with_created_at
from services.gateway.answers import (
    Dates,
    changed_answer,
    counted_answer,
    dates_max,
    placed_members,
    problem_answer,
    value_lines,
)

second = 1_700_000_000
version = pack_version(second * 1000 << 16, 1)


def lines(record: Record) -> dict[str, str]:
    raw = value_lines(record.encode(), b"node-2", Dates()).decode("latin-1")
    assert raw.endswith("\r\n")
    pairs = [line.split(": ", 1) for line in raw.removesuffix("\r\n").split("\r\n")]
    assert len({name for name, _ in pairs}) == len(pairs)
    return dict(pairs)


def test_a_plain_value_is_octets_that_nobody_sniffs_or_shares() -> None:
    assert lines(Record(version, b"x")) == {
        "ETag": f'"{version.hex()}"',
        "Last-Modified": "Tue, 14 Nov 2023 22:13:20 GMT",
        "X-Node-ID": "node-2",
        "Content-Type": "application/octet-stream",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "private, no-cache",
    }


def test_what_was_stored_beside_a_value_comes_back_with_it() -> None:
    metadata = Metadata(content_type=b"text/plain; charset=utf-8", user=((b"colour", b"r\xe9d"),))
    found = lines(Record(version, b"x", expires_at_ms=second * 1000 + 250, metadata=metadata))
    assert found["Content-Type"] == "text/plain; charset=utf-8"
    assert found["X-Metadata-colour"] == "r\xe9d"
    assert found["X-Expires-At"] == "2023-11-14T22:13:20.250Z"
    assert found["X-Content-Type-Options"] == "nosniff"


def test_a_value_of_a_strong_write_has_no_other_lines() -> None:
    record = Record(version, b"x").encode()
    meta = with_created_at(b"", 5)
    strong = record[:21] + len(meta).to_bytes(2, "big") + meta + record[23:]
    assert sorted(value_lines(strong, b"n", Dates()).split(b"\r\n")) == sorted(
        value_lines(record, b"n", Dates()).split(b"\r\n")
    )


def test_metadata_that_no_client_could_have_stored_forge_no_header() -> None:
    record = Record(version, b"x", metadata=Metadata(user=((b"a", b"bcdefgh"),))).encode()
    with pytest.raises(PeerError):
        value_lines(record.replace(b"bcdefgh", b"b\r\nX: y"), b"n", Dates())


def test_dates_are_those_of_the_second_and_bounded() -> None:
    dates = Dates()
    for offset in range(dates_max + 10):
        made = dates.line(pack_version((second + offset) * 1000 + 999 << 16, 1))
        told = parsedate_to_datetime(made.decode().removeprefix("Last-Modified: ").strip())
        assert told.timestamp() == second + offset
    assert len(dates) <= dates_max


def test_the_latest_time_of_a_version_can_be_told() -> None:
    line = Dates().line(b"\xff" * 12)
    assert line == b"Last-Modified: Fri, 31 Dec 9999 23:59:59 GMT\r\n"


@pytest.mark.parametrize("key", ["user:123", 'a"b\\c', "Größe/数", "\x00\n", "a" * 1024])
def test_a_change_is_told_in_json_whatever_the_key(key: str) -> None:
    placed = placed_members("node-1", 3)
    status, _, body = changed_answer(key.encode(), placed, version, b"eventual", 0)
    assert status == 200
    assert json.loads(body) == {
        "success": True,
        "key": key,
        "primary_node": "node-1",
        "replicas": 2,
        "etag": version.hex(),
        "consistency": "eventual",
        "expires_at": None,
    }
    _, _, body = changed_answer(key.encode(), placed, version, b"strong", second * 1000)
    assert json.loads(body)["expires_at"] == "2023-11-14T22:13:20.000Z"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(42, 42), (-1, -1), (2**53 - 1, 2**53 - 1), (2**53, str(2**53)), (-(2**63), str(-(2**63)))],
)
def test_a_number_that_readers_would_round_is_told_as_text(value: int, shown: object) -> None:
    document = json.loads(counted_answer(b"n", value, version, 0).body)
    assert document == {"key": "n", "value": shown, "etag": version.hex(), "expires_at": None}


def test_a_problem_is_told_with_its_headers_and_the_request_it_is_of() -> None:
    error = FixRequest("method_not_allowed", "no", headers={"Allow": "GET"})
    status, head, body = problem_answer(error, b"id-1")
    assert status == 405
    assert b"Content-Type: application/problem+json\r\n" in head
    assert b"Cache-Control: no-store\r\n" in head
    assert b"Allow: GET\r\n" in head
    assert json.loads(body)["request_id"] == "id-1"
