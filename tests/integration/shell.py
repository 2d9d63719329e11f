"""Where an operator types commands: real processes, whose ends and words are looked at."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.integration.ended import ended
from tests.integration.usermanager_process import good_password

usage_error = 2
ada = "ada@example.com"


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def json(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


class Shell:
    """Where an operator types commands."""

    def __init__(self, data_dir: Path, **environment: str) -> None:
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/"),
            "DATA_DIR": str(data_dir),
            **environment,
        }

    async def type(self, *words: str | bytes, stdin: str = "") -> Said:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "services.cli",
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self.environment,
            cwd=Path(__file__).parents[2],
        )
        found = await ended(process, stdin.encode())
        return Said(found.code, found.out.decode(), found.err)

    async def done(self, *words: str, stdin: str = "") -> Said:
        said = await self.type(*words, stdin=stdin)
        assert said.code == 0, said
        return said

    async def refused(self, code: int, *words: str | bytes, stdin: str = "") -> str:
        """What is said about it, in one line unless it is about how the command is used."""
        said = await self.type(*words, stdin=stdin)
        assert (said.code, said.out) == (code, ""), said
        if code != usage_error:
            assert said.err.startswith("ydht: ")
            assert said.err.count("\n") == 1
        return said.err

    async def create(self, email: str = ada, *words: str) -> dict[str, Any]:
        said = await self.done(
            *("user", "create", email, "--password-stdin", "--json", *words),
            stdin=good_password + "\n",
        )
        (account,) = said.json
        return account
