"""The schema as PostgreSQL itself tells it, and as it is committed for people to read.

python -m tests.integration.schema_file      write migrations/schema.sql anew (`make schema`)
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from services.runtime.database_url import DatabaseAddress
from services.runtime.embedded import EmbeddedPostgres
from services.runtime.embedded_home import binaries, wheel_directory
from services.runtime.migrations import migrate, scripts_directory

schema_file = scripts_directory() / "schema.sql"
heading: Final = """\
-- The schema that the revisions in versions/ lead to, as pg_dump tells it. Written by
-- `make schema`, read by people alone: databases are made by `ydht migrate`.

"""
# Of each dump its own: versions to the third place, and the key of its restriction.
_passing: Final = re.compile(
    r"^(?:-- Dumped (?:from|by) .*|-- PostgreSQL database dump.*|\\(?:un)?restrict .*|--)\n", re.M
)


def dumped(address: DatabaseAddress) -> str:
    """All that defines the schema of a database, the same text whenever it is the same schema."""
    done = subprocess.run(  # noqa: S603  The wheel's own program, on a database of ours.
        [
            binaries(wheel_directory()) / "pg_dump",
            "--schema-only",
            "--no-owner",
            "--no-privileges",
            f"--host={address.host}",
            f"--port={address.port}",
            f"--username={address.user}",
            "--no-password",
            address.database,
        ],
        env={"PGPASSWORD": address.password, "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = _passing.sub("", done.stdout)
    return heading + re.sub(r"\n{3,}", "\n\n", lines).strip() + "\n"


async def write_anew() -> None:
    with tempfile.TemporaryDirectory() as directory:
        server = EmbeddedPostgres(
            Path(directory), "made up for a moment", durable=False, log=lambda _: None
        )
        async with server:
            await asyncio.to_thread(migrate, server.address)
            schema_file.write_text(await asyncio.to_thread(dumped, server.address))


if __name__ == "__main__":
    asyncio.run(write_anew())
