"""The data page and the page of a key: looking, changing, two who change, names that mean harm."""

from __future__ import annotations

import json
import re
from urllib.parse import quote

import pytest
from playwright.sync_api import Page, expect

from tests.browser.data_owner import Owner, data, key_page, value_of
from tests.browser.running_platform import Person, RunningPlatform
from tests.browser.visitor import Visitor

hostile = [
    "<script>document.title='owned'</script>",
    '"><img src=x onerror="document.title=\'owned\'">',
    "'; drop table users; --{{7*7}}${7*7}",
    "a b%20c%2F#d?e&f=g+h",
    "//two//empty//",
    "..",
    "../../etc/passwd",
    "snow \u2603 \U0001f600 e\u0301",
    "line\nend\ttab\r\x01\x7f",
    "\u202egnp.exe",
    " edges ",
    "é" * 512,
    "key/incr",
    "%",
]


@pytest.fixture
def owner(platform: RunningPlatform, person: Person) -> Owner:
    return Owner(platform, person)


def at(visitor: Visitor, person: Person, path: str) -> Page:
    visitor.log_in(person, data)
    return visitor.open(path)


def test_a_key_is_made_found_changed_and_deleted(visitor: Visitor, person: Person) -> None:
    page = visitor.log_in(person, data)
    expect(page.get_by_role("heading", name="Nothing is stored here yet")).to_be_visible()
    page.get_by_role("link", name="New key").first.click()
    page.get_by_label("Key", exact=True).fill("users/ada/name")
    page.get_by_label("Value", exact=True).fill("Ada")
    page.get_by_label("Expiry").select_option("after")
    page.get_by_label("Time to live").fill("soon")
    visitor.expects("status of 400")
    page.get_by_role("button", name="Make the key").click()
    expect(page.locator("#value-ttl-problem")).to_contain_text("soon")
    page.get_by_label("Time to live").fill("1h")
    page.get_by_role("button", name="Add metadata").click()
    page.get_by_label("Name", exact=True).fill("by")
    page.get_by_label("Content", exact=True).fill("Zoë ✓")
    page.get_by_role("button", name="Make the key").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("users/ada/name")
    assert value_of(page) == "Ada"
    assert page.get_by_label("Content", exact=True).input_value() == "Zoë ✓"
    expires = page.locator("[data-fact=expires] time").get_attribute("datetime")

    page.get_by_label("Value", exact=True).fill("Ada Lovelace")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_role("status").filter(has_text="Saved")).to_be_visible()
    assert value_of(page) == "Ada Lovelace"
    kept = page.locator("[data-fact=expires] time").get_attribute("datetime")
    assert expires is not None
    assert kept is not None
    assert kept[:16] == expires[:16]
    expect(page.locator("#replicas").get_by_text("has it")).to_have_count(3)
    page.get_by_role("link", name="Eventual").click()
    expect(page.get_by_text("one replica, node-")).to_be_visible()
    assert value_of(page) == "Ada Lovelace"

    visitor.follow(page.get_by_role("link", name="default"))
    visitor.follow(page.get_by_role("link", name="all"))
    page.locator("summary", has_text="users/").click()
    page.locator("summary", has_text="ada/").click()
    visitor.follow(page.get_by_role("link", name=re.compile("^name")))
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Delete", exact=True).click()
    expect(page).to_have_url(re.compile("prefix="))
    visitor.open(data)
    expect(page.get_by_role("heading", name="Nothing is stored here yet")).to_be_visible()


def test_what_is_there_is_not_written_over_by_a_new_key(
    visitor: Visitor, person: Person, owner: Owner
) -> None:
    owner.put("taken", b"mine")
    page = at(visitor, person, f"{data}/new?key=taken")
    visitor.expects("status of 412")
    page.get_by_label("Value", exact=True).fill("yours")
    page.get_by_role("button", name="Make the key").click()
    expect(page.locator("#new-key-problem")).to_have_text("There is a key of this name already.")
    assert owner.get("taken") == b"mine"


def test_two_who_change_one_value_are_told_of_each_other(
    visitor: Visitor, person: Person, owner: Owner
) -> None:
    owner.put("shared", b"first")
    page = at(visitor, person, key_page("shared"))
    visitor.expects("status of 412")
    assert value_of(page) == "first"
    # Longer than what is shown of it, which ends within a character.
    owner.put("shared", b"<b>theirs</b>" + "é".encode() * 30_000)
    page.get_by_label("Value", exact=True).fill("mine")
    page.get_by_role("button", name="Save", exact=True).click()
    dialog = page.get_by_role("dialog", name="Somebody else has changed it")
    expect(dialog.locator("[data-theirs]")).to_have_text(re.compile("^<b>theirs</b>é+ …$"))
    expect(dialog.locator("[data-mine]")).to_have_text("mine")
    assert (owner.get("shared") or b"").startswith(b"<b>theirs</b>")

    dialog.get_by_role("button", name="Go on editing").click()
    assert value_of(page) == "mine"
    # Between looking and deciding it can change again.
    page.get_by_role("button", name="Save", exact=True).click()
    expect(dialog).to_be_visible()
    owner.put("shared", b"theirs again")
    dialog.get_by_role("button", name="Save mine over it").click()
    expect(dialog.locator("[data-problem]")).to_contain_text("nothing was changed")
    assert owner.get("shared") == b"theirs again"
    dialog.get_by_role("button", name="Go on editing").click()
    page.get_by_role("button", name="Save", exact=True).click()
    expect(dialog.locator("[data-theirs]")).to_have_text("theirs again")
    dialog.get_by_role("button", name="Save mine over it").click()
    expect(page.get_by_role("status").filter(has_text="Saved")).to_be_visible()
    assert owner.get("shared") == b"mine"


def test_bytes_stay_what_they_are_in_every_form(
    visitor: Visitor, person: Person, owner: Owner
) -> None:
    exact = b'{"big": 12345678901234567890, "x": 1.50}'
    values = {
        "binary": bytes(range(256)),
        "dos": b"one\r\ntwo\r\n",
        "mixed": b"one\r\ntwo\n",
        "mark": b"\xef\xbb\xbftext",
        "exact": exact,
        "nothing": b"",
    }
    owner.put_all(values)
    page = visitor.log_in(person, data)
    for key, value in values.items():
        visitor.open(key_page(key))
        shown = value_of(page)
        for form in ("Base64", "Hex", "Text"):
            page.get_by_label(form, exact=True).click(force=True)
        if key in ("binary", "mixed"):
            expect(page.locator("#value-problem")).not_to_be_empty()
        page.get_by_label("Hex", exact=True).check(force=True)
        assert bytes.fromhex(page.get_by_label("Value", exact=True).input_value()) == value, key
        if key == "dos":
            # A change of the text keeps the line ends that it had.
            page.get_by_label("Text", exact=True).check(force=True)
            page.get_by_label("Value", exact=True).fill(shown + "three\n")
            page.get_by_role("button", name="Save", exact=True).click()
            expect(page.get_by_role("status").filter(has_text="Saved")).to_be_visible()
            assert owner.get("dos") == b"one\r\ntwo\r\nthree\r\n"


def test_json_is_checked_and_tidied_without_touching_its_numbers(
    visitor: Visitor, person: Person, owner: Owner
) -> None:
    owner.put("doc", b'{"id":12345678901234567890,"list":[1,{}],"s":"a, {b}: \\"c\\""}')
    page = at(visitor, person, key_page("doc"))
    page.get_by_role("button", name="Tidy the JSON").click()
    tidy = value_of(page)
    assert "12345678901234567890" in tidy
    assert json.loads(tidy) == {
        "id": 12345678901234567890,
        "list": [1, {}],
        "s": 'a, {b}: "c"',
    }
    assert len(tidy.splitlines()) == 8
    page.get_by_label("Value", exact=True).fill('{"id": }')
    expect(page.locator("#value-problem")).to_contain_text("This is not JSON")
    page.get_by_role("button", name="Save", exact=True).click()
    assert json.loads(owner.get("doc") or b"")["list"] == [1, {}]


def test_a_large_value_comes_only_when_it_is_asked_for(
    visitor: Visitor, person: Person, owner: Owner
) -> None:
    owner.put("large", b"x" * (1 << 20))
    asked: list[str] = []
    visitor.page.on("request", lambda request: asked.append(request.url))
    page = at(visitor, person, key_page("large"))
    expect(page.get_by_text("has it", exact=True)).to_have_count(3)
    assert not [url for url in asked if "/console/data/value" in url]
    page.get_by_role("button", name="Show the value").click()
    assert len(value_of(page)) == 1 << 20
    page.get_by_label("Value", exact=True).evaluate("area => { area.value += 'y'; }")
    page.get_by_label("Value", exact=True).dispatch_event("input")
    expect(page.locator("#value-problem")).to_contain_text("at most")
    with page.expect_download() as kept:
        page.get_by_role("link", name="Download").click()
    assert kept.value.path().stat().st_size == 1 << 20


def test_names_and_values_that_mean_harm_are_shown_and_do_nothing(
    visitor: Visitor, person: Person, owner: Owner
) -> None:
    script = (
        b"<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    )
    owner.put_all(dict.fromkeys(hostile, script))
    owner.put(hostile[0], script, Content_Type="text/html", X_Metadata_x="<script>1</script>")
    page = at(visitor, person, f"{data}?view=list")
    links = page.locator("table .data-name")
    expect(links).to_have_count(len(hostile))
    found = {
        page.url.split("/console")[0] + str(each.get_attribute("href")) for each in links.all()
    }
    for url in sorted(found):
        page.goto(url)
        assert value_of(page) == script.decode()
        expect(page.locator("#replicas").get_by_text("has it", exact=True)).to_have_count(3)
        assert page.locator("main script, main img").count() == 0
        assert page.title() != "owned"
    # What can be looked at can be changed, too.
    changed = ["..", "line\nend\ttab\r\x01\x7f", "key/incr"]
    for key in changed:
        visitor.open(key_page(key))
        value_of(page)
        page.get_by_label("Value", exact=True).fill("tame")
        page.get_by_role("button", name="Save", exact=True).click()
        expect(page.get_by_role("status").filter(has_text="Saved")).to_be_visible()
    assert owner.get_all(hostile) == [b"tame" if key in changed else script for key in hostile]
    # Each is found by itself, and makes no markup of the search, the crumbs or the lines for curl.
    for key in hostile[:2]:
        visitor.open(f"{data}?prefix={quote(key, safe='')}&delimiter=%3A")
        expect(page.locator(".data-tree .data-name").first).to_have_text(key)
        assert page.locator("main script, main img").count() == 0


def test_expiries_and_counters_are_changed_by_themselves(
    visitor: Visitor, person: Person, owner: Owner
) -> None:
    owner.put("count", b"41", X_Metadata_by="ada")
    page = at(visitor, person, key_page("count"))
    page.get_by_label("Count it up by").fill("-2")
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.get_by_role("status").filter(has_text="Counted")).to_be_visible()
    assert value_of(page) == "39"
    page.get_by_label("Let it expire after").fill("2h")
    page.get_by_role("button", name="Set", exact=True).click()
    expect(page.locator("[data-fact=expires] time")).to_be_visible()
    assert page.get_by_label("Content", exact=True).input_value() == "ada"
    page.get_by_role("button", name="Let it never expire").click()
    expect(page.locator("[data-fact=expires]")).to_have_text("never")
    visitor.expects("status of 4")
    page.get_by_label("Let it expire after").fill("-1s")
    page.get_by_role("button", name="Set", exact=True).click()
    expect(page.locator("#expiry-ttl-problem")).to_contain_text("negative")
    owner.put("count", b"many")
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.locator("#increment-by-problem")).to_contain_text("integer")


def test_what_has_expired_or_never_was_is_said_to_be_absent(
    visitor: Visitor, person: Person, owner: Owner
) -> None:
    owner.put("brief", b"x", "?ttl=1s")
    page = visitor.log_in(person, data)
    visitor.expects("status of 404")
    for _ in range(20):
        visitor.open(key_page("brief"))
        if page.get_by_role("heading", name="There is no such key").is_visible():
            break
        page.wait_for_timeout(200)
    expect(page.get_by_role("heading", name="There is no such key")).to_be_visible()
    page.get_by_role("link", name="Make it").click()
    expect(page.get_by_label("Key", exact=True)).to_have_value("brief")


def test_a_search_goes_on_while_one_types_and_stays_in_the_address(
    visitor: Visitor, person: Person, owner: Owner
) -> None:
    owner.put_all(dict.fromkeys(("user:1", "user:2", "usage", "other/1"), b"v"))
    page = visitor.log_in(person, data)
    page.get_by_role("searchbox", name="Prefix").press_sequentially("use")
    expect(page.get_by_text("other/")).to_have_count(0)
    expect(page).to_have_url(re.compile("prefix=use"))
    page.get_by_label("Grouped by", exact=True).select_option(":")
    expect(page.locator("summary", has_text="user:")).to_be_visible()
    page.get_by_role("radio", name="List").check()
    expect(page.get_by_role("link", name="user:2")).to_be_visible()
    page.get_by_role("searchbox", name="Prefix").fill("nobody")
    expect(page.get_by_role("heading", name="No key begins so")).to_be_visible()
    expect(page).to_have_url(re.compile("prefix=nobody"))
    page.go_back()
    expect(page.get_by_role("link", name="user:2")).to_be_visible()
    page.reload()
    expect(page.get_by_role("link", name="user:2")).to_be_visible()
