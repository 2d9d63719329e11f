"""`ydht kv import` and `export` of files as people have them, and of files that are wrong."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.client.terminal import Terminal, lines
from tests.cluster.gateway_platform import Tenant
from tests.integration.ended import ended
from tests.integration.replicator_process import until_told

pytestmark = pytest.mark.asyncio(loop_scope="package")

usage, refused, not_allowed = 2, 65, 77
strong = ("--consistency", "strong")


async def test_what_is_exported_is_imported_as_it_was(terminal: Terminal) -> None:
    draw = random.Random(7)
    documents: list[dict[str, Any]] = [
        {"key": f"k/{number:04}", "value_base64": "gAEC/w=="}
        if number % 5 == 0
        else {"key": f"k/{number:04}", "value": "é\x00\n" * draw.randrange(40)}
        for number in range(1500)
    ]
    documents[3] |= {"content_type": "text/plain; charset=x", "metadata": {"by": "Zoë"}}
    documents[4]["expires_at"] = "2033-01-01T00:00:00Z"
    said = await terminal.done("import", *strong, stdin=lines(documents))
    assert said.out.startswith(b"1,500 put, 0 refused, in ")
    first = await terminal.done("export", "k/")
    assert first.err.startswith("1,500 keys, in ")
    assert len(first.json) == 1500
    assert first.json[3] == documents[3]
    assert first.json[4]["expires_at"].startswith("2033-01-01T00:00:0")
    assert [line["key"] for line in first.json] == [one["key"] for one in documents]
    elsewhere = Terminal(f"{terminal.namespace}-2", **terminal.environment)
    await elsewhere.done("import", *strong, stdin=first.out)
    second = await elsewhere.done("export")
    kept = [line for line in first.json if "expires_at" not in line]
    assert [line for line in second.json if "expires_at" not in line] == kept


async def test_lines_that_are_wrong_keep_no_other_out(terminal: Terminal) -> None:
    wrong = {
        b"{": "not JSON",
        b"\xff\xfe": "not JSON",
        b'{"key": "\xff", "value": ""}': "UTF-8",
        b"[1]": "it",
        b"null": "it",
        b'{"value": "x"}': "key",
        b'{"key": "a"}': "one of the two",
        b'{"key": "a", "value": "x", "value_base64": "eA=="}': "one of the two",
        b'{"key": 1, "value": "x"}': "key",
        b'{"key": "a", "value": "x", "by": 1}': "by",
        b'{"key": "a", "value_base64": "!"}': "base64",
        b'{"key": "a", "value_base64": "!", "content_type": "a/b"}': "base64",
        b'{"key": "a", "value": "x", "ttl": "soon"}': "ttl",
        b'{"key": "a", "value": "x", "ttl": "1h", "expires_at": "2033-01-01T00:00:00Z"}': "both",
        b'{"key": "a", "value": "x", "expires_at": "2033-01-01T00:00:00"}': "time zone",
        b'{"key": "a", "value": "x", "metadata": {"a b": "x"}}': "HTTP",
        b'{"key": "a", "value": "x", "metadata": {"a": "line\\nbreak"}}': "HTTP",
        b'{"key": "", "value": "x"}': "empty",
        b'{"key": "%s", "value": "x"}' % (b"k" * 1025): "1024",
        b'{"key": "a", "value": "%s"}' % (b"x" * (1 << 20) + b"x"): "1048576",
        b"[" * 5000: "object",
        b'{"key": "\\ud800", "value": "x"}': "",
    }
    stdin = b"\xef\xbb\xbf" + b"\r\n".join(
        b'{"key": "right/%d", "value": "x"}\n\n%s' % (number, line)
        for number, line in enumerate(wrong)
    )
    found = await terminal.type("import", "--json", *strong, stdin=stdin)
    assert found.code == 1, found
    *refusals, end = found.json
    assert end == {"put": len(wrong), "refused": len(wrong), "expired": 0, "done": True}
    by_line = {one["line"]: one["refused"] for one in refusals}
    for number, (line, word) in enumerate(wrong.items()):
        assert word in by_line[3 * number + 3], (line[:80], by_line[3 * number + 3])
    assert len(await terminal.keys()) == len(wrong)
    plain = await terminal.type("import", stdin=b"{\n" * 80)
    assert (plain.code, plain.err.count("\n")) == (1, 51)


async def test_the_last_of_several_lines_of_one_key_wins(terminal: Terminal) -> None:
    draw = random.Random(11)
    last: dict[str, str] = {}
    documents: list[dict[str, str]] = []
    for number in range(400):
        key = f"k{draw.randrange(12)}"
        last[key] = str(number)
        one = {"key": key, "value": str(number)}
        # These go alone, beside the batches.
        documents.append(one | {"content_type": "text/x"} if number % 3 == 0 else one)
    await terminal.done("import", *strong, stdin=lines(documents))
    found = (await terminal.done("export")).json
    assert {line["key"]: line["value"] for line in found} == last


async def test_what_has_expired_meanwhile_is_left_out_and_told(terminal: Terminal) -> None:
    documents: list[dict[str, Any]] = [
        {"key": "old", "value": "x", "expires_at": "2020-01-01T00:00:00Z"},
        {"key": "new", "value": "x", "ttl": None},
    ]
    said = await terminal.done("import", *strong, stdin=lines(documents))
    assert said.out.startswith(b"1 put, 0 refused, 1 expired already")
    assert await terminal.keys() == ["new"]


async def test_a_line_is_put_as_soon_as_it_comes(terminal: Terminal) -> None:
    process = await terminal.begin("import", *strong)
    assert process.stdin is not None
    process.stdin.write(b'{"key": "first", "value": "1"}\n{"key": "sec')

    async def look() -> bool | None:
        return await terminal.keys() == ["first"] or None

    await until_told(look, "the first line is put")
    found = await ended(process, b'ond", "value": "2"}')
    assert found.out.startswith(b"2 put, 0 refused")
    assert await terminal.keys() == ["first", "second"]


async def test_values_of_the_largest_size_go_in_and_come_out(terminal: Terminal) -> None:
    documents = [{"key": f"large/{one}", "value": "\x01" * (1 << 20)} for one in range(6)]
    documents.append({"key": "line", "value": "x"})
    await terminal.done("import", *strong, stdin=lines(documents))
    assert (await terminal.done("export")).json == documents
    long = b'{"key": "too long", "value": "%s"}\n' % (b"x" * (9 << 20))
    found = await terminal.type("import", *strong, stdin=long + lines(documents[-1:]))
    assert (found.code, found.out[:16]) == (1, b"1 put, 1 refused")


async def test_who_may_only_read_exports_all_the_same(terminal: Terminal, ada: Tenant) -> None:
    documents = [{"key": f"{number:03}", "value": str(number)} for number in range(50)]
    await terminal.done("import", *strong, stdin=lines(documents))
    reader = terminal.with_key((await ada.make_key("read")).key)
    assert (await reader.done("export")).json == documents
    found = await reader.type("import", stdin=lines(documents))
    assert found.code == not_allowed
    assert "--from-line 1 " in found.err


async def test_going_on_from_a_line_leaves_out_what_is_before(terminal: Terminal) -> None:
    documents = [{"key": f"{number}", "value": "x"} for number in range(1, 10)]
    await terminal.done("import", "--from-line", "7", *strong, stdin=lines(documents))
    assert await terminal.keys() == ["7", "8", "9"]
    both = ("--from-line", "7", "--position", "p")
    assert (await terminal.type("import", *both)).code == usage


async def test_a_position_of_something_else_is_refused(terminal: Terminal, tmp_path: Path) -> None:
    position = tmp_path / "position"
    source = tmp_path / "lines"
    source.write_bytes(lines([{"key": "a", "value": "x"}]))
    for text in (
        "",
        "{}",
        "[]",
        '{"of": 1, "position": {}}',
        json.dumps({"of": {"import": "stdin"}, "position": {"from_line": 2}}),
    ):
        position.write_text(text)
        found = await terminal.type("import", str(source), "--position", str(position))
        assert found.code == refused, (text, found)
        assert "remove it" in found.err
        assert position.read_text() == text
