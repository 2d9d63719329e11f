"""One platform and one browser for all tests of pages; for each test a visitor of its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from tests.browser.running_platform import Person, RunningPlatform, running_platform
from tests.browser.visitor import Visitor, patience_ms, visiting

here = Path(__file__).parent
chromium = shutil.which("chromium")

NewVisitor = Callable[..., Visitor]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without the system's Chromium nothing here can run; where CI has none, that is a failure."""
    needs = pytest.mark.skipif(
        chromium is None and not os.environ.get("CI"),
        reason="Chromium is not installed; on Debian and Ubuntu: apt-get install chromium",
    )
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(needs)
            # The first test starts the platform.
            item.add_marker(pytest.mark.timeout(240))


@pytest.fixture(scope="package")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPlatform]:
    with running_platform(tmp_path_factory.mktemp("platform")) as platform:
        yield platform


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    assert chromium is not None, "Chromium is not installed, and CI must not do without these tests"
    # What is on its way may take as long as what is clicked.
    expect.set_options(timeout=patience_ms)
    with sync_playwright() as playwright:
        # No sandbox for root, and no shared memory to speak of in containers.
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def new_visitor(platform: RunningPlatform, browser: Browser) -> Iterator[NewVisitor]:
    """Makes visitors: `new_visitor(viewport=phone, color_scheme="dark")`."""
    with ExitStack() as stack:

        def new(**options: Any) -> Visitor:
            return stack.enter_context(visiting(platform, browser, **options))

        yield new


@pytest.fixture
def visitor(new_visitor: NewVisitor) -> Visitor:
    return new_visitor()


@pytest.fixture
def person(platform: RunningPlatform) -> Person:
    """Somebody who has just signed up."""
    return platform.person()
