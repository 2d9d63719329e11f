"""What a service says that ends because its disk has failed it."""

from __future__ import annotations

import errno
import os

from services.core.errors import FatalError, RestartLater


def disk_failure(error: OSError) -> FatalError:
    """What ends a service that the disk has refused something: what, where, and what to do."""
    where, why = error.filename, error.strerror
    if error.errno in (errno.EACCES, errno.EPERM):
        return FatalError(
            f"{where} may not be read or written by this account, uid {os.geteuid()} ({why}): run "
            "this as the owner of its data, or give the data to this account"
        )
    if error.errno == errno.EROFS:
        return FatalError(
            f"{where} may not be written ({why}): mount that file system for writing, or set "
            "DATA_DIR to a directory elsewhere"
        )
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return FatalError(
            f"{where} cannot be a directory ({why}): that name, or one above it, is a file's; move "
            "the file away, or set DATA_DIR to a directory elsewhere"
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RestartLater(f"{where} cannot be written ({why}): free space there, start again")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return RestartLater(
            f"{where} cannot be opened ({why}): raise the limit on open files, start again"
        )
    return RestartLater(
        f"the disk failed at {where}: {why}; nothing that was acknowledged is lost, mend the disk "
        "and start again"
    )
