"""Fetches what vendor.toml lists from the npm packages: `make vendor`.

A package is packed by npm, with whatever registry npm is set to; its licence has to be the one that
is listed. Nothing of a package runs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

root = Path(__file__).parents[1]
listing = root / "web" / "vendor.toml"


def assets() -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = tomllib.loads(listing.read_text())["asset"]
    return found


def fetch(asset: Mapping[str, Any]) -> None:
    wanted = f"{asset['package']}@{asset['version']}"
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", wanted, "--silent", "--pack-destination", folder]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - of our list
        (packed,) = Path(folder).glob("*.tgz")
        with tarfile.open(packed) as archive:
            licence = json.loads(_content(archive, "package.json"))["license"]
            if licence != asset["licence"]:
                sys.exit(f"{wanted} is under {licence}, and not {asset['licence']}: look at it")
            for source, target in asset["files"].items():
                (root / target).write_bytes(_content(archive, source))
                sys.stdout.write(f"{target}  {wanted}\n")


def _content(archive: tarfile.TarFile, path: str) -> bytes:
    file = archive.extractfile(f"package/{path}")
    if file is None:
        sys.exit(f"the package has no file {path}")
    return file.read()


if __name__ == "__main__":
    for each in assets():
        fetch(each)
