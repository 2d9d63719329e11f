"""What pages are made of, without a database: assets, paths, tokens, and words for people."""

from __future__ import annotations

import gzip
import tomllib
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request

from services.core.errors import FixRequest
from services.runtime.problem import as_problem, exception_handlers
from services.usermanager.pages.assets import Assets, web_directory
from services.usermanager.pages.cookies import Cookies
from services.usermanager.pages.csrf import Csrf
from services.usermanager.pages.gateway_calls import path_of
from services.usermanager.pages.local_path import local_path
from services.usermanager.pages.page import errors_of, parse_form
from services.usermanager.pages.render import shown_size
from services.usermanager.pages.security_headers import security_headers
from services.usermanager.pages.user_agents import shown_agent
from tests.tidy.tree import root

secret = "tests sign their forms 0b27f1 with this"


def client(assets: Assets) -> httpx.AsyncClient:
    app = Starlette(routes=assets.routes(), exception_handlers=exception_handlers(as_problem))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://pages")


async def test_an_asset_is_kept_for_good_under_its_version_and_never_under_another() -> None:
    assets = Assets(web_directory() / "static")
    async with client(assets) as browser:
        answer = await browser.get(assets.url("css/base.css"))
        assert answer.headers["content-encoding"] == "gzip"
        assert "immutable" in answer.headers["cache-control"]
        assert answer.content == (web_directory() / "static/css/base.css").read_bytes()
        answer = await browser.get("/assets/of-an-earlier-start/css/base.css")
        assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-cache")
        plain = await browser.get(assets.url("js/app.js"), headers={"Accept-Encoding": "identity"})
        assert "content-encoding" not in plain.headers
        assert plain.headers["content-type"] == "text/javascript; charset=utf-8"


@pytest.mark.parametrize(
    "path", ["nothing.css", "../templates/layout.html", "%2e%2e/templates/layout.html", "css", ""]
)
async def test_nothing_else_of_the_disk_is_an_asset(path: str) -> None:
    assets = Assets(web_directory() / "static")
    async with client(assets) as browser:
        assert (await browser.get(f"/assets/{assets.version}/{path}")).status_code == 404


def test_a_change_of_any_asset_changes_all_their_addresses(tmp_path: Path) -> None:
    (tmp_path / "a.css").write_text("a {}")
    before = Assets(tmp_path).url("a.css")
    (tmp_path / "b.js").write_text("1")
    between = Assets(tmp_path).url("a.css")
    (tmp_path / "b.js").write_text("2")
    assert len({before, between, Assets(tmp_path).url("a.css")}) == 3
    with pytest.raises(KeyError):
        Assets(tmp_path).url("c.js")


def test_every_script_of_others_is_listed_with_its_licence_and_nothing_else_is() -> None:
    listed = tomllib.loads((root / "web/vendor.toml").read_text())["asset"]
    files = {target for asset in listed for target in asset["files"].values()}
    there = {
        str(path.relative_to(root))
        for folder in ("web/static/vendor", "tests/browser/vendor")
        for path in (root / folder).iterdir()
    }
    assert files == there
    for asset in listed:
        assert asset["licence"] in ("0BSD", "MIT", "MPL-2.0")
        if asset["name"] != "axe-core":
            (first, *_) = asset["files"].values()
            assert asset["version"] in (root / first).read_text()


def test_no_template_has_anything_that_the_policy_would_refuse() -> None:
    for path in (root / "web/templates").rglob("*.html"):
        text = path.read_text()
        for refused in ("<style", " style=", "<script>", " onclick=", " onload=", "hx-on", "js:"):
            assert refused not in text, f"{path.name}: {refused}"
        assert "|safe" not in text, path.name


def test_the_scripts_and_sheets_of_the_first_page_are_small() -> None:
    assets = web_directory() / "static"
    sheets = ["tokens", "base", "components", "layout", "landing", "try_it"]
    files = [assets / "css" / f"{name}.css" for name in sheets]
    files += (assets / "js").glob("*.js")
    assert sum(len(gzip.compress(path.read_bytes())) for path in files) < 40_000


@given(st.text(max_size=80))
def test_a_path_leads_nowhere_else(text: str) -> None:
    path = local_path(text, "/console")
    assert path == "/console" or path == text
    assert path.startswith("/")
    assert path[1:2] not in ("/", "\\")
    assert path.isascii()
    assert path.isprintable()


@given(st.text(min_size=1, max_size=60))
def test_a_token_is_good_for_whom_it_was_made_and_for_nobody_else(whose: str) -> None:
    forms = Csrf(secret, None)
    token = forms.token(whose)
    forms.check(token, whose)
    for other, given_token in ((whose + "1", token), (whose, token[:-1]), (whose, "A" + token)):
        with pytest.raises(FixRequest) as refused:
            forms.check(given_token, other)
        assert refused.value.code == "csrf"
    with pytest.raises(FixRequest):
        Csrf(secret[::-1], None).check(token, whose)


@given(st.text(max_size=200))
def test_no_text_at_all_is_a_token(text: str) -> None:
    with pytest.raises(FixRequest):
        Csrf(secret, None).check(text, "session 1")


@pytest.mark.parametrize("origin", ["http://[", "http://[zz]", "://", "null", "http://other"])
def test_an_origin_that_is_not_ours_is_refused_however_it_is_written(origin: str) -> None:
    with pytest.raises(FixRequest):
        Csrf(secret, None).check_origin(Headers({"origin": origin, "host": "here:8081"}))


@pytest.mark.parametrize("text", [b"\xe9", b"=", b"AAAA", b"e30="])
def test_a_note_that_we_did_not_write_is_none(text: bytes) -> None:
    scope = {"type": "http", "headers": [(b"cookie", b"ydht-flash=" + text)]}
    assert Cookies(is_https=False).flash(Request(scope)) is None


@given(st.binary(min_size=1, max_size=40))
def test_the_path_of_a_key_is_one_that_nobody_changes_on_the_way(key: bytes) -> None:
    path = path_of(key)
    url = httpx.URL("http://gateway").join(path)
    assert url.raw_path.decode() == path


def test_forms_are_read_as_browsers_write_them() -> None:
    assert parse_form(b"a=1+2&b=%C3%A9&c=&a=3") == {"a": "3", "b": "é", "c": ""}
    for wrong in (b"a=%ff", b"\xff", b"&".join(b"a=1" for _ in range(101))):
        with pytest.raises(FixRequest):
            parse_form(wrong)


def test_what_is_wrong_stands_beside_its_field() -> None:
    listed = {"errors": [{"member": "email", "detail": "is taken"}]}
    assert errors_of(FixRequest("already_exists", "…", members=listed)) == {"email": "is taken"}
    one = FixRequest("invalid_body", "name: is too long", members={"member": "name"})
    assert errors_of(one) == {"name": "is too long"}
    assert errors_of(FixRequest("invalid_credentials", "No")) == {"": "No"}


def test_scripts_may_ask_the_gateway_and_nobody_else() -> None:
    headers = security_headers("https://API.example/v1/", is_https=True)
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy["connect-src"] == "'self' https://api.example"
    assert policy["script-src"] == policy["style-src"] == "'self'"
    assert "Strict-Transport-Security" in headers
    assert "Strict-Transport-Security" not in security_headers("http://a", is_https=False)


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1536, "1.5 KiB"),
        (2**20, "1.0 MiB"),
        (3e11, "279 GiB"),
    ],
)
def test_sizes_are_shown_as_people_compare_them(size: float, shown: str) -> None:
    assert shown_size(size) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("curl/8.1.2", "curl"),
        ("python-httpx/0.28.1", "python-httpx"),
        ("", "unknown"),
        (
            "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko)"
            " Chrome/140.0 Safari/537.36",
            "Chrome on Linux",
        ),
        (
            "Mozilla/5.0 (iPhone; CPU iPhone OS 19_0 like Mac OS X) AppleWebKit/605.1.15"
            " (KHTML, like Gecko) Version/19.0 Mobile/15E148 Safari/604.1",
            "Safari on iPhone",
        ),
    ],
)
def test_programs_are_called_what_their_owners_call_them(text: str, shown: str) -> None:
    assert shown_agent(text) == shown
