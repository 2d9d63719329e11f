"""The data pages without a browser: who is let at what, what goes to a shell, a gateway away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from urllib.parse import quote, unquote_to_bytes, urlsplit

import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from services.core.errors import FixRequest
from services.runtime.database_url import DatabaseAddress
from services.usermanager.pages.console_data_changes import kept_beside, metadata_of, ttl_of
from services.usermanager.pages.console_data_curl import Curl
from services.usermanager.pages.console_data_links import link, namespace_path, shown
from services.usermanager.pages.console_data_listing import (
    ListedKey,
    Listing,
    Trail,
    View,
    trail_chars_max,
)
from services.usermanager.pages.console_data_namespaces import declaration
from tests.integration.pages_world import Browser, PagesWorld, pages_world

key = "key=a%2Fb&namespace=default"
reading = [
    "/console/data",
    "/console/data?view=list&prefix=a",
    "/console/data?part=level",
    "/console/data/namespaces",
    f"/console/data/key?{key}",
    f"/console/data/value?{key}",
    "/console/data/export",
    "/console/data/count?prefix=a",
]
changing = [
    ("PUT", f"/console/data/value?{key}"),
    ("DELETE", f"/console/data/value?{key}"),
    ("PATCH", f"/console/data/value?{key}&ttl=1h"),
    ("POST", f"/console/data/increment?{key}"),
    ("POST", "/console/data/delete?prefix=a"),
    ("POST", "/console/data/namespaces/delete?namespace=a"),
]


# What a shell makes of a line: the words that curl would be given.
as_words = """curl() { for word in "$@"; do printf '%s\\0' "$word"; done; }
"""


async def words_of(line: str) -> list[str]:
    shell = await asyncio.create_subprocess_exec(
        "/bin/sh",
        "-euc",
        as_words + line,
        env={"YDHT_API_KEY": "from the environment"},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await shell.communicate()
    assert shell.returncode == 0
    return out.decode().split("\0")[:-1]


@pytest_asyncio.fixture
async def world(database_address: DatabaseAddress) -> AsyncIterator[PagesWorld]:
    async with pages_world(database_address) as world:
        yield world


@pytest_asyncio.fixture
async def ada(world: PagesWorld) -> Browser:
    browser = world.browser()
    await browser.sign_up("ada")
    return browser


async def test_while_the_gateway_is_away_each_page_says_so(ada: Browser) -> None:
    for path in reading:
        answer = await ada.get(path)
        assert (path, answer.status_code) == (path, 503)
        assert "The data service cannot be reached just now; nothing was changed" in answer.text
        assert "Try again" in answer.text


async def test_a_change_while_the_gateway_is_away_is_refused_and_not_unknown(ada: Browser) -> None:
    for method, path in changing:
        answer = await ada.ask(method, path, Accept="application/json", X_CSRF_Token=ada.token)
        assert (path, answer.status_code) == (path, 503)
        assert answer.json()["code"] == "gateway_unavailable"


async def test_nothing_is_changed_without_the_token_of_a_page(ada: Browser) -> None:
    no_token: dict[str, str] = {}
    other_site = {"X_CSRF_Token": ada.token, "Sec_Fetch_Site": "cross-site"}
    for method, path in changing:
        for headers in (no_token, {"X_CSRF_Token": "x"}, other_site):
            answer = await ada.ask(
                method, path, data=None, **{"Accept": "application/json", **headers}
            )
            assert (answer.status_code, answer.json()["code"]) == (403, "csrf")


async def test_a_stranger_is_sent_to_log_in_or_refused(world: PagesWorld) -> None:
    stranger = world.browser()
    for path in reading:
        answer = await stranger.get(path)
        assert answer.status_code == 303
        assert answer.headers["location"].startswith("/login?next=/console/data")
        answer = await stranger.ask("GET", path, Accept="application/json")
        assert answer.status_code == 401


async def test_while_no_replicator_can_be_asked_the_replicas_say_so(ada: Browser) -> None:
    answer = await ada.get(f"/console/data/replicas?{key}")
    assert answer.status_code == 200
    assert "cannot be reached" in answer.text


async def test_a_query_that_makes_no_sense_is_refused_by_name(ada: Browser) -> None:
    queries = {
        "": "key",
        "key=a&consistency=perhaps": "consistency",
        "key=a&by=many": "by",
        "key=a&key=b": "key",
        "key=%FF": "key",
        "key=a&<script>=1": "<script>",
    }
    for query, member in queries.items():
        path = f"/console/data/increment?{query}"
        answer = await ada.ask("POST", path, Accept="application/json", X_CSRF_Token=ada.token)
        assert answer.status_code == 400
        assert [each["member"] for each in answer.json()["errors"]] == [member]
        assert "<script>" not in (await ada.get(f"/console/data/key?{query}")).text


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"name": "", "kind": "store"}, "Fill this in"),
        ({"name": "a", "kind": "heap"}, "Choose a store or a cache"),
        ({"name": "a", "kind": "cache"}, "how many keys"),
        ({"name": "a", "kind": "cache", "max_items": "-1"}, "how many keys"),
        ({"name": "a", "kind": "cache", "max_items": "1e9"}, "how many keys"),
        ({"name": "é" * 128, "kind": "store"}, "1 to 255 bytes"),
    ],
)
def test_what_is_wrong_with_a_declaration_names_its_field(
    fields: dict[str, str], wrong: str
) -> None:
    with pytest.raises(FixRequest) as caught:
        declaration(fields["name"], fields["kind"], fields.get("max_items", ""))
    assert wrong in caught.value.detail


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)


@given(names)
@settings(max_examples=200)
def test_a_name_survives_an_address(name: str) -> None:
    path = urlsplit(link("/key", namespace="n", key=name)).query.split("key=")[1]
    assert unquote_to_bytes(path).decode() == name
    assert unquote_to_bytes(namespace_path(name)).decode() == f"/v1/namespaces/{name}"
    assert not set(namespace_path(name)[len("/v1/namespaces/") :]) & set("/.?#")


@given(names)
def test_what_is_shown_has_nothing_that_cannot_be_seen(name: str) -> None:
    assert not set(shown(name)) & {*map(chr, range(0x20)), "\x7f", "\u202e", "\u2066", "\u200b"}


def test_what_can_be_seen_is_shown_as_it_is() -> None:
    assert shown("Zoë ✓ \U0001f469\u200d\U0001f680 <b>") == "Zoë ✓ \U0001f469\u200d\U0001f680 <b>"
    assert shown("a\n\u202eb\x00") == "a\\n\\u202eb\\u0000"


@pytest.mark.parametrize(
    "name",
    [
        "$(touch owned)",
        "`id`",
        "a'b\"c",
        "a\nb",
        "; exit 3",
        "..",
        "a/../b",
        "\\",
        "-X DELETE",
        "é☃",
    ],
)
async def test_lines_for_a_shell_say_what_they_mean_whatever_a_key_is(name: str) -> None:
    lines = Curl("http://gateway", name.replace("\n", " ")).of_key(name)
    for line in lines:
        words = await words_of(line.text)
        targets = [word for word in words if word.startswith("http://gateway")]
        assert len(targets) == 1
        path = urlsplit(targets[0]).path.removeprefix("/v1/kv/").removesuffix("/incr")
        assert unquote_to_bytes(path).decode() == name
        assert f"X-Namespace: {name}".replace("\n", " ") in words
        assert "X-API-Key: from the environment" in words
        assert ("--path-as-is" in words) == ("/." in targets[0])


async def test_lines_about_prefixes_and_namespaces_are_whole_commands() -> None:
    lines = Curl("http://gateway", "default").of_prefix("a'b/", "/")
    lines += Curl.of_namespaces("http://gateway")
    for line in lines:
        words = await words_of(line.text)
        assert sum(word.startswith("http://gateway/v1/") for word in words) == 1
        if "--data-binary" in words:
            json.loads(words[words.index("--data-binary") + 1])


def test_rows_of_a_tree_are_in_the_order_of_their_bytes() -> None:
    def key_of(name: str) -> ListedKey:
        return ListedKey(name, 1, "e", datetime(2030, 1, 1, tzinfo=UTC), None)

    view = View("default", "a/", "tree", "/")
    rows = view.rows(Listing([key_of("a/"), key_of("a/z"), key_of("a/é")], ["a/b/", "a//"], None))
    assert [row.name for row in rows] == ["(nothing behind the prefix)", "/", "b/", "z", "é"]
    assert [words for words, _ in View("default", "a//b", "tree", "/").crumbs()] == ["a/", "/"]
    assert view.crumbs()[0][1].endswith("prefix=a%2F&view=tree&delimiter=%2F")
    assert quote("a//", safe="") in rows[1].level_url


@pytest.mark.parametrize(
    ("content_type", "metadata"),
    [
        ("text/html\r\nX-Evil: 1", {}),
        ("é", {}),
        ("", {"a": "b\r\nSet-Cookie: c"}),
        ("", {"a b": "c"}),
        ("", {"": "c"}),
        ("", {"a": "1", "A": "2"}),
        ("", {"a": "x" * 1025}),
        ("", {"ü": "c"}),
    ],
)
def test_what_cannot_be_kept_beside_a_value_never_becomes_a_header(
    content_type: str, metadata: dict[str, str]
) -> None:
    with pytest.raises(FixRequest) as refused:
        kept_beside(content_type, metadata)
    # Who has typed into fields of a page knows of no headers.
    assert "X-Metadata" not in refused.value.detail


@pytest.mark.parametrize("text", ["[]", "1", '{"a": 1}', "{", '{"a": null}'])
def test_metadata_is_an_object_of_texts(text: str) -> None:
    with pytest.raises(FixRequest, match="metadata"):
        metadata_of(text)


def test_an_expiry_that_is_kept_is_what_is_left_of_it() -> None:
    assert ttl_of("", datetime(2030, 1, 1, tzinfo=UTC), 1893456000_000 - 1500) == "1500ms"
    assert ttl_of("1h", None, 0) == "1h"
    with pytest.raises(FixRequest, match="passed meanwhile"):
        ttl_of("", datetime(2030, 1, 1, tzinfo=UTC), 1893456000_000)


def test_a_trail_leads_back_as_far_as_an_address_has_room() -> None:
    trail, cursor = Trail.of(""), ""
    assert trail.back() is None
    cursors = [f"c{number:03d}" + "x" * 500 for number in range(20)]
    for following in cursors:
        trail, cursor = Trail.of(trail.behind(cursor)), following
        assert len(",".join(trail.cursors)) <= trail_chars_max
    seen = []
    while (back := trail.back()) is not None:
        seen.append(back["cursor"])
        trail = Trail.of(back.get("trail", ""))
    assert seen == cursors[-2 : -2 - len(seen) : -1]
    assert len(seen) >= 7
    second = Trail.of(Trail.of("").behind(""))
    assert second.back() == {}
    assert Trail.of(second.behind("a")).back() == {"cursor": "a", "trail": "."}


@pytest.mark.parametrize("name", ["a\nb", "a\r\nX-Evil: 1", " a", "a ", "a\0", "", "n" * 256])
async def test_a_namespace_that_no_header_can_name_is_refused_and_no_outage(
    ada: Browser, name: str
) -> None:
    of_keys = f"key=a&namespace={quote(name)}"
    asked = [
        ("GET", f"/console/data?namespace={quote(name)}"),
        ("GET", f"/console/data/key?{of_keys}"),
        ("GET", f"/console/data/value?{of_keys}"),
        ("GET", f"/console/data/export?namespace={quote(name)}"),
        ("PUT", f"/console/data/value?{of_keys}"),
        ("DELETE", f"/console/data/value?{of_keys}"),
        ("PATCH", f"/console/data/value?{of_keys}&ttl=1h"),
        ("POST", f"/console/data/increment?{of_keys}"),
        ("POST", f"/console/data/delete?prefix=a&namespace={quote(name)}"),
    ]
    for method, path in asked:
        answer = await ada.ask(method, path, Accept="application/json", X_CSRF_Token=ada.token)
        told = (answer.status_code, answer.json()["code"])
        assert (method, path, *told) == (method, path, 400, "invalid_namespace")
    with pytest.raises(FixRequest):
        declaration(name, "store", "")


@pytest.mark.parametrize("condition", ["a\nb", "a b", " a", "a\r\nX-Evil: 1", "\0", 'a"b', "☃"])
async def test_a_condition_that_no_etag_is_is_refused_and_changes_nothing(
    ada: Browser, condition: str
) -> None:
    query = f"key=a&condition={quote(condition)}"
    for method, more in (("PUT", ""), ("DELETE", ""), ("PATCH", "&ttl=1h")):
        path = f"/console/data/value?{query}{more}"
        answer = await ada.ask(method, path, Accept="application/json", X_CSRF_Token=ada.token)
        assert (method, answer.status_code) == (method, 400)
        assert answer.json()["code"] == "invalid_header"


async def test_a_time_without_a_zone_is_no_expiry_to_keep(ada: Browser) -> None:
    for text, member in (("2030-01-01T00:00:00", ["expires_at"]), ("2030-01-01T00:00:00Z", [])):
        path = f"/console/data/value?key=a&expires_at={text}"
        answer = await ada.ask("PUT", path, Accept="application/json", X_CSRF_Token=ada.token)
        wrong = [each["member"] for each in answer.json().get("errors", [])]
        assert wrong == member


async def test_metadata_comes_in_a_header_and_in_no_address(ada: Browser) -> None:
    ada.headers |= {"Accept": "application/json", "X-CSRF-Token": ada.token}
    answer = await ada.ask("PUT", "/console/data/value?key=a&metadata=%7B%7D")
    assert [each["member"] for each in answer.json()["errors"]] == ["metadata"]
    answer = await ada.ask("PUT", "/console/data/value?key=a", X_Metadata="[]")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_header")
