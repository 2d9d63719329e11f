"""What the README says that the code knows: its parts between marks are made from the code.

python -m tests.tidy.readme      rewrite them
"""

from __future__ import annotations

import re

from services.cli.table import UpSettings
from services.dhtnode.settings import NodeSettings
from services.gateway.settings import GatewaySettings
from services.keygen.settings import KeygenSettings
from services.replicator.settings import ReplicatorSettings
from services.runtime.settings import ServiceSettings, SettingRow, describe
from services.usermanager.settings import UserManagerSettings
from tests.tidy.tree import root

readme = root / "README.md"
# Each service adds its own.
every_settings: tuple[type[ServiceSettings], ...] = (
    UpSettings,
    UserManagerSettings,
    GatewaySettings,
    NodeSettings,
    ReplicatorSettings,
    KeygenSettings,
)


def settings_table() -> str:
    lines = ["| variable | default | what it is |", "| --- | --- | --- |"]
    rows: dict[str, SettingRow] = {}
    for row in (row for of in every_settings for row in describe(of)):
        # What several read is told in the words of the first.
        rows.setdefault(row.name, row)
    for row in rows.values():
        default = f"`{row.default}`" if row.default not in ("", "required") else row.default
        lines.append(f"| `{row.name}` | {default} | {row.help} |".replace("|  |", "| |"))
    return "\n".join(lines)


def made_anew(text: str) -> str:
    """The README with every part that is made from code made anew."""
    start, end = "<!-- settings -->\n", "\n<!-- /settings -->"
    return re.sub(f"{start}.*?{end}", lambda _: start + settings_table() + end, text, flags=re.S)


if __name__ == "__main__":
    readme.write_text(made_anew(readme.read_text()))
