"""The cluster's page: a ring of three nodes, a key found on it, and what changes meanwhile."""

from __future__ import annotations

import json
import os
import re
import signal

from playwright.sync_api import Page, expect

from services.core.cluster import ClusterMap
from services.core.key import storage_key
from services.core.ring import slot_of
from tests.browser.running_platform import Person, RunningPlatform
from tests.browser.visitor import Visitor, patience_ms
from tests.plain_http import plain_get

path = "/console/cluster"
markup = "<img src=x onerror=alert(1)>"


def map_of(platform: RunningPlatform) -> ClusterMap:
    """As the replicator tells it."""
    up = json.loads((platform.data_dir / "up.json").read_text())
    told = plain_get(f"{up['replicator']}/cluster").json()
    return ClusterMap.decode(json.dumps(told["map"]).encode())


def find(page: Page, key: str, namespace: str = "default", account: str = "") -> None:
    page.get_by_label("Namespace").fill(namespace)
    page.get_by_label("Account").fill(account)
    page.get_by_label("Key", exact=True).fill(key)
    page.keyboard.press("Enter")


def lit(page: Page) -> list[str]:
    """The nodes that light up, from the outer band inwards."""
    names: list[str] = page.locator(".ring.has-choice .is-chosen").evaluate_all(
        "all => all.sort((a, b) => a.dataset.band - b.dataset.band).map(one => one.dataset.of)"
    )
    return names


def test_a_cluster_that_is_well_says_so_and_shows_its_ring(visitor: Visitor) -> None:
    page = visitor.log_in_as_demo(path)
    expect(page.get_by_text("Everything is well.").first).to_be_visible()
    ring = page.get_by_role("img", name=re.compile("16,384 slots on a ring"))
    expect(ring).to_be_visible()
    rows = page.get_by_role("table", name="Nodes").get_by_role("row")
    expect(rows).to_have_count(4)
    for number, row in enumerate(rows.all()[1:], start=1):
        expect(row).to_contain_text(f"node-{number}")
        expect(row).to_contain_text("live")
        expect(row).to_contain_text("16,384")
        expect(row).not_to_contain_text("unknown")


def test_a_key_is_found_by_keyboard_and_its_replicas_light_up(visitor: Visitor) -> None:
    known = map_of(visitor.platform)
    page = visitor.log_in_as_demo(path)
    for account, namespace, key in ((1, "default", "user:42"), (7, "other", f"{markup} / %2F é")):
        find(page, key, namespace, "" if account == 1 else str(account))
        slot = slot_of(storage_key(account, namespace.encode(), key.encode()))
        expect(page.get_by_role("heading", name=f"Slot {slot:,}")).to_be_visible()
        expect(page.locator(".lookup-found .mono").first).to_have_text(key)
        owners = list(known.owners(slot))
        assert page.locator(".owners .mono").all_inner_texts() == owners
        expect(page.locator("[data-number]")).to_have_text(f"{slot:,}")
        assert lit(page) == owners
        turned = page.locator("[data-hand]").get_attribute("transform") or ""
        match = re.match(r"rotate\(([\d.]+) ", turned)
        assert match is not None, turned
        assert abs(float(match[1]) - 360 * (slot + 0.5) / 16_384) < 0.01
        expect(page.get_by_label("Key", exact=True)).to_be_focused()
    assert not page.locator("img").count()


def test_what_is_wrong_with_a_key_is_said_beside_it(visitor: Visitor) -> None:
    visitor.expects("status of 400|Error Code 400")
    page = visitor.log_in_as_demo(path)
    find(page, "k" * 1_025)
    problem = page.locator("#field-key-problem")
    expect(problem).to_contain_text("at most 1024 are allowed")
    expect(page.get_by_label("Key", exact=True)).to_have_attribute("aria-invalid", "true")
    find(page, "k", account="nobody")
    expect(page.locator("#field-account-problem")).to_contain_text("by its number")
    expect(problem).to_be_empty()


def test_a_node_is_shown_alone_and_with_the_others_again(visitor: Visitor) -> None:
    page = visitor.log_in_as_demo(path)
    button = page.get_by_role("button", name=re.compile("node-2"))
    button.press("Enter")
    expect(button).to_have_attribute("aria-pressed", "true")
    assert lit(page) == ["node-2"] * 3
    button.press("Enter")
    assert lit(page) == []


def test_an_open_page_shows_a_node_that_hangs_and_comes_back(visitor: Visitor) -> None:
    visitor.expects("status of 503|Error Code 503")
    pid = visitor.platform.pids["node-2"]
    page = visitor.log_in_as_demo(path)
    expect(page.locator("#cluster-verdict")).to_have_attribute("data-verdict", "well")
    os.kill(pid, signal.SIGSTOP)
    try:
        expect(page.locator("#cluster-verdict")).to_contain_text(
            re.compile("node-2 (does not answer|cannot be reached) since")
        )
        expect(page.locator("tr[data-node=node-2]")).to_contain_text(
            re.compile("silent|unreachable")
        )
        expect(page.get_by_role("status").first).to_have_text("Not everything is well.")
    finally:
        os.kill(pid, signal.SIGCONT)
    expect(page.locator("#cluster-verdict")).to_contain_text("is well.", timeout=patience_ms)
    expect(page.get_by_role("status").first).to_have_text("Everything is well.")


def test_while_the_replicator_hangs_the_page_says_so_and_still_finds_keys(visitor: Visitor) -> None:
    visitor.expects("status of 503|Error Code 503")
    pid = visitor.platform.pids["replicator"]
    page = visitor.log_in_as_demo(path)
    os.kill(pid, signal.SIGSTOP)
    try:
        verdict = page.locator("#cluster-verdict")
        expect(verdict).to_have_attribute("data-verdict", "away", timeout=patience_ms)
        answer = page.reload()
        assert answer is not None
        assert answer.status == 503
        expect(page.get_by_role("alert")).to_contain_text("No replicator answers.")
        expect(page.locator(".ring")).to_be_visible()
        find(page, "user:42")
        expect(page.get_by_role("heading", name=re.compile("^Slot "))).to_be_visible()
    finally:
        os.kill(pid, signal.SIGCONT)
    expect(page.locator("#cluster-verdict")).to_contain_text("is well.", timeout=patience_ms)


def test_a_page_that_is_held_does_not_look_again(visitor: Visitor) -> None:
    page = visitor.log_in_as_demo(path)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    with page.expect_response(re.compile("/console/cluster/state")):
        pass
    page.get_by_role("button", name="Live").click()
    asked.clear()
    page.wait_for_timeout(3_500)
    assert not asked


def test_others_than_operators_are_not_led_there(visitor: Visitor, person: Person) -> None:
    visitor.expects("status of 404")
    page = visitor.log_in(person)
    expect(page.get_by_role("link", name="Cluster")).to_have_count(0)
    for each in (path, f"{path}/state", f"{path}/key?key=a"):
        assert page.request.get(visitor.platform.url + each).status == 404
