"""Pictures of every page for the documentation: `make screenshots`.

    python -m tests.browser.screenshots [DIRECTORY]

A platform of its own is started, its demo account filled (demo_data.py), and each page taken as it
is on a desk, some of them in dark and on a phone.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from playwright.sync_api import Page, sync_playwright

from services.runtime.settings import link_port_offset
from tests.browser.demo_data import fill, looked_up
from tests.browser.running_platform import ports_of_up, running_platform
from tests.browser.visitor import phone, visiting
from tests.free_ports import is_free
from tests.tidy.tree import root

usual_directory: Final = root / "docs" / "images"
# The ports that the documentation speaks of, as pictures are to show them.
usual_base: Final = 8080
desk: Final = {"width": 1280, "height": 800}
# What is in a README is loaded by everybody who looks at it.
picture_bytes_max: Final = 200_000


@dataclass(slots=True, frozen=True)
class Picture:
    name: str
    path: str
    scheme: Literal["light", "dark"] = "light"
    is_phone: bool = False
    is_stranger: bool = False
    # Of an account that has just been made, and not of the demo account.
    is_new: bool = False
    # Something that is there once the page is drawn.
    awaited: str = "h1"


cluster: Final = f"/console/cluster?key={looked_up}"
pictures: Final = (
    Picture("landing", "/", is_stranger=True, awaited="text=3 of 3 up"),
    Picture("landing-dark", "/", "dark", is_stranger=True, awaited="text=3 of 3 up"),
    Picture("landing-phone", "/", is_phone=True, is_stranger=True, awaited="text=3 of 3 up"),
    Picture("signup", "/signup", is_stranger=True),
    Picture("login", "/login", "dark", is_stranger=True),
    Picture("welcome", "/console/welcome", is_new=True, awaited="#first-key"),
    Picture("overview", "/console"),
    Picture("overview-dark", "/console", "dark"),
    Picture("overview-phone", "/console", is_phone=True),
    Picture("data", "/console/data"),
    Picture("data-key", f"/console/data/key?key={looked_up}&namespace=default"),
    Picture("data-phone", "/console/data", "dark", is_phone=True),
    Picture("data-new", "/console/data/new?key=flags/"),
    Picture("data-namespaces", "/console/data/namespaces"),
    Picture("keys", "/console/keys"),
    Picture("keys-new", "/console/keys/new"),
    Picture("usage", "/console/usage?range=7d"),
    Picture("usage-dark", "/console/usage?range=7d", "dark"),
    Picture("ids", "/console/ids"),
    Picture("cluster", cluster, awaited=".ring"),
    Picture("cluster-dark", cluster, "dark", awaited=".ring"),
    Picture("cluster-phone", cluster, is_phone=True, awaited=".ring"),
    Picture("account", "/console/account"),
    Picture("docs", "/docs", is_stranger=True),
    Picture("docs-consistency", "/docs/consistency", is_stranger=True),
    Picture("docs-errors", "/docs/errors#key_not_found", "dark", is_stranger=True),
    Picture("docs-api", "/docs/api/gateway#putValue", is_stranger=True),
    Picture("docs-limits", "/docs/limits", is_stranger=True),
    Picture("docs-operate", "/docs/operate", is_stranger=True),
    Picture("docs-phone", "/docs/limits", is_phone=True, is_stranger=True),
)


def take(directory: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit(
            "Chromium is not installed; on Debian and Ubuntu: apt-get install chromium"
        )
    directory.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        running_platform(Path(folder), usual_base if is_usual_base_free() else None) as platform,
        sync_playwright() as playwright,
    ):
        fill(platform)
        arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--font-render-hinting=none"]
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        with closing(browser):
            with visiting(platform, browser) as visitor:
                visitor.log_in_as_demo()
                session = visitor.context.storage_state()
            with visiting(platform, browser) as visitor:
                visitor.log_in(platform.person("ada"))
                new_session = visitor.context.storage_state()
            for picture in pictures:
                known = new_session if picture.is_new else session
                options = {
                    "viewport": phone if picture.is_phone else desk,
                    "color_scheme": picture.scheme,
                    "reduced_motion": "reduce",
                    "storage_state": None if picture.is_stranger else known,
                }
                with visiting(platform, browser, **options) as visitor:
                    page = visitor.open(picture.path)
                    page.locator(picture.awaited).first.wait_for()
                    take_one(page, directory / f"{picture.name}.png")


def take_one(page: Page, path: Path) -> None:
    # What is loaded after the page itself, and drawn by scripts.
    page.wait_for_load_state("networkidle")
    page.screenshot(path=path, animations="disabled")
    size = path.stat().st_size
    sys.stdout.write(f"{path.name}: {size:,} bytes\n")
    if size > picture_bytes_max:
        raise SystemExit(f"{path} has {size:,} bytes; {picture_bytes_max:,} are the most")


def is_usual_base_free() -> bool:
    ports = range(usual_base, usual_base + ports_of_up)
    return all(is_free(port) and is_free(port + link_port_offset) for port in ports)


if __name__ == "__main__":
    take(Path(sys.argv[1]) if len(sys.argv) > 1 else usual_directory)
