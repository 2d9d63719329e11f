"""What is done to many keys on the data page: a page of many, sent in, taken out, deleted."""

from __future__ import annotations

import json
import re
import sys

import pytest
from playwright.sync_api import FilePayload, Page, expect

from tests.browser.accessibility import issues, unguarded
from tests.browser.conftest import NewVisitor
from tests.browser.data_owner import Owner
from tests.browser.running_platform import Person, RunningPlatform
from tests.browser.visitor import Visitor

data = "/console/data"
many = 100_000


def name_of(number: int) -> str:
    return f"group-{number % 100:02}/item-{number:06}"


@pytest.fixture(scope="module")
def hundred_thousand(platform: RunningPlatform) -> str:
    """A namespace of the demo account's, which may ask often enough."""
    namespace = "a hundred thousand"
    headers = {"X-Namespace": namespace}
    with platform.gateway(platform.demo["api_key"], **headers) as client:
        for start in range(0, many, 1000):
            numbers = range(start, start + 1000)
            operations = [
                {"op": "put", "key": name_of(number), "value": str(number)} for number in numbers
            ]
            answer = client.post("/v1/batch", json={"operations": operations})
            assert {result["status"] for result in answer.json()["results"]} == {200}
    return namespace


def lines_of(*items: object) -> bytes:
    return b"".join(json.dumps(item, ensure_ascii=False).encode() + b"\n" for item in items)


def upload(page: Page, name: str, content: bytes) -> None:
    page.get_by_role("button", name="Upload").click()
    file = FilePayload(name=name, mimeType="application/x-ndjson", buffer=content)
    page.get_by_label("File", exact=True).set_input_files(file)
    page.get_by_role("dialog").get_by_role("button", name="Upload").click()


def downloaded(page: Page) -> dict[str, dict[str, object]]:
    page.get_by_role("button", name="Download").click()
    with page.expect_download() as kept:
        page.get_by_role("dialog").get_by_role("button", name="Download").click()
    lines = [json.loads(line) for line in kept.value.path().read_bytes().splitlines()]
    page.get_by_role("dialog").get_by_role("button", name="Close").last.click()
    return {line.pop("key"): line for line in lines}


def test_a_page_of_a_hundred_thousand_keys_is_there_at_once(
    visitor: Visitor, hundred_thousand: str
) -> None:
    namespace = hundred_thousand.replace(" ", "%20")
    page = visitor.log_in_as_demo(data)
    expected = sorted(name_of(number) for number in range(many))
    taken_ms: list[float] = []
    url = f"{data}?namespace={namespace}&view=list"
    for number in range(4):
        visitor.open(url)
        timing = "performance.getEntriesByType('navigation')[0]"
        taken_ms.append(page.evaluate(f"{timing}.responseEnd - {timing}.requestStart"))
        names = page.locator("table .data-name").all_inner_texts()
        assert names == expected[100 * number : 100 * number + 100]
        url = str(page.get_by_role("link", name="Next page").get_attribute("href"))
    expect(page.locator("#listing")).to_contain_text("100,000 keys")
    # In the middle, by a search on the server.
    visitor.open(f"{data}?namespace={namespace}&view=list&prefix=group-50/item-05")
    taken_ms.append(page.evaluate(f"{timing}.responseEnd - {timing}.requestStart"))
    assert page.locator("table .data-name").first.inner_text() == "group-50/item-050050"
    visitor.open(f"{data}?namespace={namespace}")
    taken_ms.append(page.evaluate(f"{timing}.responseEnd - {timing}.requestStart"))
    expect(page.locator(".data-tree summary")).to_have_count(100)
    page.locator("summary", has_text="group-42/").click()
    expect(page.get_by_role("link", name="item-000042")).to_be_visible()
    page.get_by_role("button", name="Show more").first.click()
    expect(page.get_by_role("link", name="item-010042")).to_be_focused()
    shown = ", ".join(f"{each:.0f}" for each in taken_ms)
    sys.stdout.write(f"pages of 100,000 keys: {shown} ms\n")


def test_thousands_of_keys_are_sent_in_taken_out_and_deleted(
    visitor: Visitor, platform: RunningPlatform
) -> None:
    page = visitor.log_in_as_demo(f"{data}?namespace=sent-in")
    upload(
        page,
        "many.ndjson",
        lines_of(*({"key": f"k/{n:05}", "value": str(n)} for n in range(3_000))),
    )
    dialog = page.get_by_role("dialog", name="Upload")
    expect(dialog.get_by_text("3,000 keys put.", exact=True)).to_be_visible(timeout=40_000)
    visitor.follow(dialog.get_by_role("button", name="Close").last)
    expect(page.locator("#listing")).to_contain_text("3,000 keys")
    found = downloaded(page)
    assert found == {f"k/{n:05}": {"value": str(n)} for n in range(3_000)}

    visitor.open(f"{data}?namespace=sent-in&prefix=k/0")
    page.get_by_role("button", name="Delete by prefix").click()
    dialog = page.get_by_role("dialog", name="Delete by prefix")
    expect(dialog.get_by_text("3,000 keys would be deleted.")).to_be_visible()
    go = dialog.get_by_role("button", name="Delete", exact=True)
    expect(go).to_be_disabled()
    dialog.get_by_label("Type the prefix to confirm").fill("k/")
    expect(go).to_be_disabled()
    dialog.get_by_label("Type the prefix to confirm").fill("k/0")
    go.click()
    expect(dialog.get_by_text(re.compile("3,000 keys deleted"))).to_be_visible()
    visitor.follow(dialog.get_by_role("button", name="Close").last)
    expect(page.get_by_role("heading", name="No key begins so")).to_be_visible()


def test_what_is_taken_out_goes_in_again_as_it_was(visitor: Visitor, person: Person) -> None:
    items: dict[str, dict[str, object]] = {
        "text": {"value": "Zoë\r\n\u0000"},
        "bytes": {"value_base64": "/wD+"},
        "page": {"value": "<b>x</b>", "content_type": "text/html", "metadata": {"by": "Zoë ✓"}},
        "late": {"value": "1", "expires_at": "2031-01-01T00:00:00Z"},
        "<script>\n\r/../": {"value": ""},
        "large": {"value": "y" * 400_000},
        # Few characters, and more bytes than a signed request may have.
        "wide": {"value": "漢" * 25_000},
    }
    page = visitor.log_in(person, data)
    upload(page, "x.ndjson", lines_of(*({"key": key, **item} for key, item in items.items())))
    dialog = page.get_by_role("dialog", name="Upload")
    expect(dialog.get_by_text("7 keys put.", exact=True)).to_be_visible()
    visitor.follow(dialog.get_by_role("button", name="Close").last)
    expect(page.locator("#listing")).to_contain_text("7 keys")
    found = downloaded(page)
    late = str(found["late"].pop("expires_at"))
    assert late.startswith(("2031-01-01T00:00:0", "2030-12-31T23:59:5"))
    del items["late"]["expires_at"]
    assert found == items


def test_lines_that_are_wrong_are_named_and_keep_no_other_out(
    visitor: Visitor, person: Person
) -> None:
    wrong = [
        b"not json",
        b"[1]",
        b'{"value": "no key"}',
        b'{"key": "both", "value": "1", "value_base64": "MQ=="}',
        b'{"key": "other", "value": "1", "surprise": true}',
        b'{"key": "base", "value_base64": "!"}',
        b'{"key": "ttl", "value": "1", "ttl": "soon"}',
        b'{"key": "past", "value": "1", "expires_at": "2001-01-01T00:00:00Z"}',
        b'{"key": "half \\ud800", "value": "1"}',
        b'{"key": "' + b"k" * 1025 + b'", "value": "1"}',
        b'{"key": "<img src=x onerror=alert(1)>", "value": 1}',
    ]
    page = visitor.log_in(person, data)
    good = lines_of({"key": "first", "value": "1"}), lines_of({"key": "last", "value": "2"})
    upload(page, "x.ndjson", good[0] + b"\n\n" + b"\n".join(wrong) + b"\n" + good[1])
    dialog = page.get_by_role("dialog", name="Upload")
    expect(dialog.get_by_text("2 keys put, 11 lines refused.")).to_be_visible()
    dialog.get_by_text("Lines that were refused").click()
    rows = dialog.locator("li")
    assert {row.get_attribute("value") for row in rows.all()} == {str(n) for n in range(4, 15)}
    assert dialog.locator("li img").count() == 0
    visitor.follow(dialog.get_by_role("button", name="Close").last)
    expect(page.locator("table .data-name, .data-tree a.data-name")).to_have_count(2)


def test_an_upload_is_stopped_between_two_batches(visitor: Visitor, person: Person) -> None:
    page = visitor.log_in(person, data)
    # More than the console may send at once, so that it has to wait.
    visitor.expects("status of 429")
    items = ({"key": f"k{n:06}", "value": "v" * 20} for n in range(40_000))
    upload(page, "x.ndjson", lines_of(*items))
    dialog = page.get_by_role("dialog", name="Upload")
    expect(dialog.get_by_text(re.compile(r"[1-9][\d,]* keys put"))).to_be_visible()
    dialog.get_by_role("button", name="Stop").click()
    expect(dialog.get_by_text(re.compile(r"^Stopped\."))).to_be_visible()
    visitor.follow(dialog.get_by_role("button", name="Close").last)
    expect(page.locator("#listing")).to_contain_text(re.compile(r"\d,?\d* keys"))
    assert "40,000 keys" not in page.locator("#listing").inner_text()


def test_namespaces_are_declared_looked_at_and_deleted(visitor: Visitor, person: Person) -> None:
    page = visitor.log_in(person, f"{data}/namespaces")
    expect(page.get_by_role("heading", name="No namespace is used yet")).to_be_visible()
    visitor.expects("status of 400")
    page.get_by_label("Name", exact=True).fill("<i>täglich</i> ..")
    page.get_by_role("radio", name="Cache").check()
    page.get_by_role("button", name="Declare").click()
    expect(page.locator("#field-max_items-problem")).to_contain_text("how many keys")
    page.get_by_label("Keys that a cache keeps").fill("500")
    page.get_by_role("button", name="Declare").click()
    row = page.get_by_role("row").filter(has_text="<i>täglich</i> ..")
    expect(row).to_contain_text("500 keys")
    expect(row).to_contain_text("cache")

    visitor.follow(row.get_by_role("link"))
    visitor.follow(page.get_by_role("link", name="New key").first)
    page.get_by_label("Key", exact=True).fill("a")
    page.get_by_label("Value", exact=True).fill("1")
    page.get_by_role("button", name="Make the key").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("a")
    page.get_by_label("Value", exact=True).fill("2")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_role("status").filter(has_text="Saved")).to_be_visible()
    expect(page.get_by_role("button", name="Set", exact=True)).to_have_count(0)

    visitor.open(f"{data}/namespaces")
    row.get_by_role("button", name="Delete").click()
    dialog = page.get_by_role("dialog", name="Delete a namespace")
    dialog.get_by_label("Type its name to confirm").fill("<i>täglich</i> ..")
    dialog.get_by_role("button", name="Delete", exact=True).click()
    expect(dialog.get_by_text(re.compile("1 key deleted"))).to_be_visible()
    visitor.follow(dialog.get_by_role("button", name="Close").last)
    expect(page.get_by_role("heading", name="No namespace is used yet")).to_be_visible()


def test_the_dialogs_have_no_serious_issues(
    new_visitor: NewVisitor, platform: RunningPlatform, person: Person
) -> None:
    Owner(platform, person).put("abc", b"1")
    visitor = new_visitor(**unguarded, color_scheme="dark")
    visitor.log_in(person, data)
    page = visitor.open(f"{data}?prefix=b")
    # Where nothing begins so, there is nothing to delete.
    expect(page.get_by_role("heading", name="No key begins so")).to_be_visible()
    expect(page.get_by_role("button", name="Delete by prefix")).to_have_count(0)
    visitor.open(f"{data}?prefix=a")
    expect(page.locator("#listing")).to_contain_text("in the whole namespace")
    for name in ("Upload", "Download", "Delete by prefix"):
        page.get_by_role("button", name=name).click()
        expect(page.get_by_role("dialog", name=name)).to_be_visible()
        assert issues(page) == [], name
        page.keyboard.press("Escape")
