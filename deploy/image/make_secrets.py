"""Make the secrets of an installation, each in a file of its own, as `*_FILE` variables read them.

    python deploy/image/make_secrets.py DIRECTORY [--postgres DIRECTORY] [--grafana DIRECTORY]

In the first directory it makes what services read: `cluster_secret`, `jwt_secret`, `key_pepper`.
With --postgres it makes the `password` of a PostgreSQL there, and the `database_url` for services
that reach it at the host `postgres`; with --grafana the `password` of Grafana's `admin`.

A file that is there stays as it is, so this may run before every start. One that appears is whole
and durable.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from pathlib import Path

from services.core.errors import FatalError
from services.runtime.env_file import generate_env, secret_bytes

service_secrets = ("CLUSTER_SECRET", "JWT_SECRET", "KEY_PEPPER")
# Services run as who makes these.
own_mode = 0o400
# Others run as somebody else, and each can see its own directory only.
others_mode = 0o444


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the secrets of an installation, once.")
    parser.add_argument("services", type=Path, metavar="DIRECTORY")
    parser.add_argument("--postgres", type=Path, metavar="DIRECTORY")
    parser.add_argument("--grafana", type=Path, metavar="DIRECTORY")
    asked = parser.parse_args()
    try:
        make(asked.services, asked.postgres, asked.grafana)
    except OSError as error:
        sys.stderr.write(f"ydht: cannot write {error.filename}: {error.strerror}\n")
        sys.exit(FatalError.exit_code)


def make(services: Path, postgres: Path | None, grafana: Path | None) -> None:
    generated = generate_env()
    for name in service_secrets:
        keep(services / name.lower(), generated[name], own_mode)
    if postgres is not None:
        password = keep(postgres / "password", secrets.token_urlsafe(secret_bytes), others_mode)
        keep(services / "database_url", f"postgresql://ydht:{password}@postgres/ydht", own_mode)
    if grafana is not None:
        keep(grafana / "password", secrets.token_urlsafe(secret_bytes), others_mode)


def keep(path: Path, text: str, mode: int) -> str:
    """Have the file hold the text, unless there is one already; what it holds then."""
    if path.exists():
        return path.read_text().rstrip("\n")
    path.parent.mkdir(mode=0o700 if mode == own_mode else 0o755, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text + "\n")
        os.fchmod(descriptor, mode)
        file.flush()
        os.fsync(descriptor)
    draft.rename(path)
    directory = os.open(path.parent, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
    sys.stdout.write(f"Wrote {path}.\n")
    return text


if __name__ == "__main__":
    main()
