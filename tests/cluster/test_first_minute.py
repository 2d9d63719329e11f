"""What the README has a first-time user type, typed: letter for letter, but for the port."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path

from services.runtime.database_url import DatabaseAddress
from tests.integration.usermanager_process import usermanager_process
from tests.tidy.tree import root


def tour() -> str:
    found = re.search(
        r"<!-- tour -->\n```sh\n(.*?)```\n<!-- /tour -->", (root / "README.md").read_text(), re.S
    )
    assert found is not None, "the README has no tour"
    return found[1]


async def typed(script: str) -> tuple[int, bytes, bytes]:
    process = await asyncio.create_subprocess_exec(
        "bash", "-e", "-u", "-o", "pipefail", "-c", script,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output, errors


async def test_the_first_minute_is_as_the_readme_tells_it(
    tmp_path: Path, database_address: DatabaseAddress
) -> None:
    async with usermanager_process(tmp_path, database_address) as usermanager:
        script = tour().replace("localhost:8081", f"127.0.0.1:{usermanager.port}")
        assert "8081" not in script
        code, output, errors = await typed(script.replace("python3", sys.executable))
        assert (code, errors) == (0, b"")
        documents = []
        text = output.decode()
        while text:
            document, end = json.JSONDecoder().raw_decode(text)
            documents.append(document)
            text = text[end:].lstrip()
        account, made, listed = documents
        assert (account["email"], account["username"]) == ("ada@example.com", "ada")
        assert re.fullmatch(r"ydht_[0-9A-Za-z]{49}", made["key"])
        assert made["scopes"] == ["read", "write"]
        [key] = listed["api_keys"]
        assert listed["count"] == 1
        assert (key["id"], key["name"]) == (made["id"], "my first key")
        assert "key" not in key

        # Typed twice, the account is there already, and the rest does the same.
        code, output, _ = await typed(script.replace("python3", sys.executable))
        assert code == 0
        assert b'"code":"already_exists"' in output
