"""What keeps people from using a page, as axe-core finds it.

It has to be put into the page, which the page's own policy forbids: so it runs in a context that
does not keep policies, and no other test uses that context.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from playwright.sync_api import Page

axe = (Path(__file__).parent / "vendor" / "axe.min.js").read_text()
# Options of a context for `new_visitor`.
unguarded = {"bypass_csp": True}
serious = ("serious", "critical")
_run = """async () => (await axe.run(document, {
  runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
})).violations"""


# Colours that are on their way from one to another, such as under a mouse, are nobody's. What goes
# on for ever is not waited for.
_at_rest = """async () => {
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  const ending = document.getAnimations()
    .filter((each) => Number.isFinite(each.effect.getComputedTiming().endTime));
  await Promise.allSettled(ending.map((each) => each.finished));
}"""


def issues(page: Page) -> list[str]:
    """Every serious issue of a page, with where it is."""
    page.evaluate(_at_rest)
    page.evaluate(axe)
    found: list[dict[str, Any]] = page.evaluate(_run)
    return [
        f"{each['impact']} {each['id']}: {each['help']} at {node['target']}"
        for each in found
        if each["impact"] in serious
        for node in each["nodes"]
    ]
