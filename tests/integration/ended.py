"""What came of a command: it is given all that it may read, and waited for."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

end_s_max = 60.0


@dataclass(frozen=True, slots=True)
class Ended:
    code: int
    out: bytes
    err: str

    @property
    def json(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


async def ended(process: asyncio.subprocess.Process, stdin: bytes = b"") -> Ended:
    # `communicate` would write at a later moment, when who has nothing to read may have ended.
    if process.stdin is not None and not process.stdin.is_closing():
        process.stdin.write(stdin)
        process.stdin.close()
    async with asyncio.timeout(end_s_max):
        out, err = await process.communicate()
    assert process.returncode is not None
    assert b"Traceback" not in err, err.decode()
    # Of a descriptor that is no pipe of ours nothing is known.
    return Ended(process.returncode, out or b"", err.decode())
