"""What browsers and programs call themselves, in words that their owners recognise.

A guess for people, who see the whole text beside it; nothing is decided by it.
"""

from __future__ import annotations

import re
from typing import Final

# In this order: most browsers also name those that they came after.
_browsers: Final = (
    ("Edg", "Edge"),
    ("OPR", "Opera"),
    ("Firefox", "Firefox"),
    ("HeadlessChrome", "Chrome without a window"),
    ("Chrome", "Chrome"),
    ("Safari", "Safari"),
)
_systems: Final = (
    ("iPhone", "iPhone"),
    ("iPad", "iPad"),
    ("Android", "Android"),
    ("Windows", "Windows"),
    ("Mac OS X", "macOS"),
    ("CrOS", "ChromeOS"),
    ("Linux", "Linux"),
)
# curl/8.1, python-httpx/0.28: the first word of programs is their name.
_program: Final = re.compile(r"([\w.-]{1,40})/[\w.]")


def shown_agent(text: str) -> str:
    if text.startswith("Mozilla/"):
        browser = next((name for sign, name in _browsers if f"{sign}/" in text), "A browser")
        system = next((name for sign, name in _systems if sign in text), None)
        return browser if system is None else f"{browser} on {system}"
    match = _program.match(text)
    return match[1] if match else "unknown"
