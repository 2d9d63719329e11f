"""Where somebody types `ydht kv` commands: real processes, with bytes that go in and come out."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.integration.ended import Ended, ended

root = Path(__file__).parents[3]


class Terminal:
    def __init__(self, namespace: str, **environment: str) -> None:
        self.namespace = namespace
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/"),
            **environment,
        }

    def at(self, url: str) -> Terminal:
        return Terminal(self.namespace, **{**self.environment, "YDHT_URL": url})

    def with_key(self, api_key: str) -> Terminal:
        return Terminal(self.namespace, **{**self.environment, "YDHT_API_KEY": api_key})

    async def begin(self, *words: str | bytes) -> asyncio.subprocess.Process:
        """Of `ydht kv`, with a pipe at every end."""
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.cli", "kv", *words, "--namespace", self.namespace),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self.environment,
            cwd=root,
        )

    async def type(self, *words: str | bytes, stdin: bytes = b"") -> Ended:
        process = await self.begin(*words)
        return await ended(process, stdin)

    async def done(self, *words: str | bytes, stdin: bytes = b"") -> Ended:
        found = await self.type(*words, stdin=stdin)
        assert found.code == 0, found
        return found

    async def fails(self, code: int, *words: str | bytes, stdin: bytes = b"") -> str:
        """What is said of it: nothing on stdout, and one line on stderr."""
        found = await self.type(*words, stdin=stdin)
        assert (found.code, found.out) == (code, b""), found
        assert found.err.startswith("ydht: ")
        assert found.err.count("\n") == 1, found.err
        return found.err

    async def keys(self, *words: str) -> list[str]:
        return (await self.done("ls", *words)).out.decode().splitlines()


def lines(documents: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in documents)
