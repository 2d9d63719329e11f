"""Coming in by the pages: the first page, sign-up, the first key, log-in and log-out."""

from __future__ import annotations

import re
import shlex
import subprocess

import pytest
from playwright.sync_api import Dialog, Page, expect

from tests.browser.conftest import NewVisitor
from tests.browser.running_platform import Person, RunningPlatform, good_password
from tests.browser.visitor import Visitor, phone

api_key = re.compile(r"ydht_[0-9A-Za-z]{49}")
markup = "<img src=x onerror=alert(1)>"


def fill_signup(page: Page, name: str) -> None:
    page.get_by_label("Email address").fill(f"{name}@example.com")
    page.get_by_label("User name").fill(name)
    page.get_by_label("Password", exact=True).fill(good_password)


def test_who_signs_up_gets_a_key_and_tries_it_at_once(visitor: Visitor) -> None:
    page = visitor.open("/")
    page.get_by_role("link", name="Get an API key").click()
    fill_signup(page, "grace")
    page.get_by_role("button", name="Create account").click()
    expect(page).to_have_url(f"{visitor.platform.url}/console/welcome")
    expect(page.get_by_role("heading", level=1)).to_have_text("Welcome, grace")
    key = page.locator("#first-key").inner_text()
    assert api_key.fullmatch(key)
    assert key in page.locator("#code-curl").inner_text()
    page.get_by_role("button", name="Store it and read it back").click()
    answers = page.get_by_role("log", name="Answers")
    expect(answers).to_contain_text("GET /v1/kv/greeting")
    expect(answers.locator(".try-it-good")).to_have_text([re.compile("^200 in")] * 2)
    expect(answers).to_contain_text("hello, world")
    with visitor.platform.gateway(key) as gateway:
        assert gateway.get("/v1/kv/greeting").text == "hello, world"
    page.reload()
    expect(page.get_by_text("Your first API key was shown once")).to_be_visible()
    assert not api_key.search(page.content())


def test_the_first_line_of_a_new_key_works_as_it_is_pasted(visitor: Visitor) -> None:
    page = visitor.open("/signup")
    fill_signup(page, "joan")
    page.get_by_role("button", name="Create account").click()
    line = page.locator("#code-curl").inner_text()
    said = subprocess.run(  # noqa: S603  As somebody does who is shown it.
        shlex.split(line.replace("\\\n", " ")), capture_output=True, text=True, check=True
    )
    assert '"success":true' in said.stdout


def test_the_demo_key_is_on_the_first_page_for_this_machine_alone(
    visitor: Visitor, new_visitor: NewVisitor
) -> None:
    platform = visitor.platform
    page = visitor.open("/")
    expect(page.locator("#code-curl")).to_contain_text(platform.demo["api_key"])
    line = page.locator("#code-curl").inner_text().split("\n\n")[0]
    said = subprocess.run(  # noqa: S603  As somebody does who is shown it.
        shlex.split(line.replace("\\\n", " ")), capture_output=True, text=True, check=True
    )
    assert '"success":true' in said.stdout
    page.get_by_role("button", name="Store it and read it back").click()
    expect(page.get_by_role("log", name="Answers")).to_contain_text("GET /v1/kv/greeting")
    # Whoever comes by way of a proxy is somewhere else.
    stranger = new_visitor(extra_http_headers={"X-Forwarded-For": "203.0.113.9"})
    page = stranger.open("/")
    assert not api_key.search(page.content())
    expect(page.locator("#code-curl")).to_contain_text("YOUR_API_KEY")


def test_the_first_page_shows_its_code_in_three_languages_and_how_the_platform_is(
    visitor: Visitor,
) -> None:
    page = visitor.open("/")
    expect(page.get_by_text("All systems operational")).to_be_visible()
    expect(page.get_by_text("3 of 3 up")).to_be_visible()
    page.get_by_role("tab", name="curl").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Python")).to_be_focused()
    expect(page.get_by_role("tabpanel")).to_contain_text("import httpx")
    page.keyboard.press("End")
    expect(page.get_by_role("tabpanel")).to_contain_text("await ydht")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="curl")).to_be_focused()
    page.get_by_role("tab", name="Python").click()
    page.reload()
    expect(page.get_by_role("tabpanel")).to_contain_text("import httpx")


def test_code_is_copied(new_visitor: NewVisitor) -> None:
    visitor = new_visitor(permissions=["clipboard-read", "clipboard-write"])
    page = visitor.open("/")
    expect(page.locator("#code-curl")).to_contain_text(visitor.platform.demo["api_key"])
    page.get_by_role("button", name="Copy").first.click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == page.locator("#code-curl").inner_text()


def test_who_has_no_mouse_signs_up(visitor: Visitor) -> None:
    page = visitor.open("/")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Get an API key")).to_be_focused()
    with page.expect_navigation(wait_until="load"):
        page.keyboard.press("Enter")
    expect(page.get_by_label("Email address")).to_be_focused()
    page.keyboard.type("keyboard@example.com")
    page.keyboard.press("Tab")
    page.keyboard.type("keyboard")
    page.keyboard.press("Tab")
    page.keyboard.type(good_password)
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Show or hide: Password")).to_be_focused()
    page.keyboard.press("Space")
    expect(page.get_by_label("Password", exact=True)).to_have_attribute("type", "text")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Create account")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page).to_have_url(f"{visitor.platform.url}/console/welcome")
    copy = page.get_by_role("button", name="Copy").first
    expect(copy).to_be_visible()
    for _ in range(30):
        if copy.evaluate("(button) => button === document.activeElement"):
            break
        page.keyboard.press("Tab")
    expect(copy).to_be_focused()


def test_a_form_says_beside_each_field_what_is_wrong(visitor: Visitor) -> None:
    page = visitor.open("/signup")
    page.get_by_role("button", name="Create account").click()
    email = page.get_by_label("Email address")
    expect(email).to_be_focused()
    expect(email).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#field-email-problem")).to_have_text("Enter your email address")
    expect(email).to_have_accessible_description("Enter your email address")
    expect(page.locator("#field-username-problem")).to_have_text("Choose a user name")
    email.fill("ada@example.com")
    expect(page.locator("#field-email-problem")).to_be_empty()
    password = page.get_by_label("Password", exact=True)
    for typed, words in (
        ("password1", "Easy to guess"),
        ("ada@example.com", "Easy to guess"),
        (good_password, "Very good"),
    ):
        password.fill(typed)
        expect(page.locator("[data-words]")).to_have_text(words)
    assert password.get_attribute("autocomplete") == "new-password"
    assert email.get_attribute("autocomplete") == "username"


def test_a_name_that_is_taken_is_told_by_the_server(visitor: Visitor, person: Person) -> None:
    visitor.expects("status of 409")
    page = visitor.open("/signup")
    fill_signup(page, "somebody new")
    page.get_by_label("Email address").fill(person.email)
    page.get_by_role("button", name="Create account").click()
    expect(page.locator("#field-email-problem")).to_have_text("Email address is taken")
    expect(page.get_by_label("User name")).to_have_value("somebody new")
    expect(page.get_by_label("Password", exact=True)).to_have_value("")


def test_who_has_an_account_logs_in_and_out(visitor: Visitor, person: Person) -> None:
    page = visitor.log_in(person)
    expect(page.get_by_role("heading", level=1)).to_have_text("Account")
    page.get_by_role("button", name="Log out").first.click()
    expect(page.locator("#toasts")).to_contain_text("You are logged out")
    visitor.open("/console/account")
    expect(page).to_have_url(f"{visitor.platform.url}/login?next=/console/account")


def test_a_login_is_refused_in_words_that_tell_nothing_and_then_throttled(
    visitor: Visitor, person: Person
) -> None:
    visitor.expects("status of 4(01|29)")
    page = visitor.open("/login")
    for email in (person.email, "nobody@example.com"):
        page.get_by_label("Email address").fill(email)
        page.get_by_label("Password", exact=True).fill("not the one")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("alert")).to_have_text(
            "No account has this email address and password"
        )
        expect(page.get_by_label("Email address")).to_have_value(email)
    for _ in range(12):
        if page.get_by_text("You can try again in").is_visible():
            break
        page.get_by_label("Email address").fill(person.email)
        page.get_by_label("Password", exact=True).fill("not the one")
        with page.expect_navigation():
            page.get_by_role("button", name="Log in").click()
    expect(page.get_by_text("Not just now.")).to_be_visible()
    expect(page.get_by_text("Too many failed logins to this account")).to_be_visible()


def test_names_full_of_markup_run_nothing(visitor: Visitor, platform: RunningPlatform) -> None:
    eve = platform.person(markup)
    dialogs: list[str] = []

    def heard(dialog: Dialog) -> None:
        dialogs.append(dialog.message)
        dialog.dismiss()

    visitor.page.on("dialog", heard)
    page = visitor.log_in(eve)
    expect(page.get_by_role("heading", name=markup)).to_be_visible()
    visitor.open("/console/welcome")
    expect(page.get_by_role("heading", level=1)).to_have_text(f"Welcome, {markup}")
    assert page.locator("img").count() == 0
    assert dialogs == []


@pytest.mark.parametrize("path", ["/", "/signup", "/login", "/nothing"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_a_phone_in_light_and_dark(
    new_visitor: NewVisitor, path: str, scheme: str
) -> None:
    visitor = new_visitor(viewport=phone, color_scheme=scheme)
    visitor.expects("status of 404")
    page = visitor.open(path)
    assert page.evaluate("document.documentElement.scrollWidth") <= phone["width"]
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in re.findall(r"\d+", ground)[:3]) / 3
    assert (brightness < 60) if scheme == "dark" else (brightness > 200)


def test_light_or_dark_is_chosen_and_kept(new_visitor: NewVisitor) -> None:
    visitor = new_visitor(color_scheme="light")
    page = visitor.open("/")
    toggle = page.get_by_role("button", name="Dark colours")
    expect(toggle).to_have_attribute("aria-pressed", "false")
    toggle.click()
    expect(toggle).to_have_attribute("aria-pressed", "true")
    visitor.open("/login")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    expect(toggle).to_have_attribute("aria-pressed", "true")


def test_who_wants_less_motion_has_none(new_visitor: NewVisitor) -> None:
    page = new_visitor(reduced_motion="reduce").open("/")
    button = page.get_by_role("link", name="Get an API key")
    assert button.evaluate("(link) => getComputedStyle(link).transitionDuration") in (
        "1e-05s",
        "0.00001s",
    )


def test_without_scripts_people_sign_up_and_are_shown_their_key(new_visitor: NewVisitor) -> None:
    visitor = new_visitor(java_script_enabled=False)
    page = visitor.open("/signup")
    fill_signup(page, "plain")
    page.get_by_role("button", name="Create account").click()
    page.get_by_role("button", name="Show my first API key").click()
    assert api_key.fullmatch(page.locator("#first-key").inner_text())
