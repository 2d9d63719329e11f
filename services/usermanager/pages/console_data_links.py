"""Where things of the data pages are, and how names that tenants chose are shown.

A key is any UTF-8: it has to survive an address as it is, and be seen for what it is. So it stands
in the query, never in a field of a form, where browsers would make other line ends of its own; and
what would be invisible, or turn the text around it, is shown as JSON writes it.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

here: Final = "/console/data"
namespace_default: Final = "default"
namespace_header: Final = "X-Namespace"
consistency_header: Final = "X-Consistency"

# Control characters, what turns the direction of writing, and what takes no room.
_unseen: Final = (
    *range(0x20),
    *range(0x7F, 0xA0),
    0x061C,
    0x200B,
    *range(0x200E, 0x2010),
    *range(0x2028, 0x202F),
    *range(0x2060, 0x206A),
    0xFEFF,
)
_signs: Final = {
    **{code: f"\\u{code:04x}" for code in _unseen},
    ord("\n"): "\\n",
    ord("\r"): "\\r",
    ord("\t"): "\\t",
}


def shown(name: str) -> str:
    """The name, with escapes for what could not be seen."""
    return name.translate(_signs)


def link(page: str = "", **members: str) -> str:
    """A path of these pages: link("/key", namespace="default", key="a/b")."""
    query = "&".join(f"{name}={quote(text, safe='')}" for name, text in members.items())
    return f"{here}{page}" + (f"?{query}" if query else "")


def namespace_path(name: str) -> str:
    """The gateway's path of a namespace, which may be called `..` too."""
    return "/v1/namespaces/" + quote(name, safe="").replace(".", "%2E")
