"""Ending with the supervisor, however it ends.

`ydht up` hands each child the read end of a pipe and never writes to it. The kernel closes the
write end when the supervisor is gone, kill -9 included, and the child reads end-of-file.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping

from services.core.errors import FatalError

# The number of the inherited descriptor stands in this variable.
descriptor_variable = "YDHT_SUPERVISOR_FD"


def watch_supervisor(on_gone: Callable[[], None], environ: Mapping[str, str]) -> Callable[[], None]:
    """Call `on_gone` once, from the running loop, when the supervisor is gone.

    Returns a function that ends the watching; calling it again does nothing. Without the
    variable there is no supervisor and nothing to watch. A variable that names no descriptor is
    a FatalError: a child that could not be ended must not start.
    """
    text = environ.get(descriptor_variable)
    if text is None:
        return lambda: None
    try:
        descriptor = int(text)
        os.set_inheritable(descriptor, False)  # noqa: FBT003  Takes no keyword.
        # Siblings share this pipe; whoever reads must never wait for a byte another one took.
        os.set_blocking(descriptor, False)
    except (ValueError, OSError) as error:
        raise FatalError(
            f"{descriptor_variable}={text!r} names no open descriptor; it is set by `ydht up`"
            " alone: unset it to run this service by itself"
        ) from error
    loop = asyncio.get_running_loop()
    watching = True

    def close() -> None:
        nonlocal watching
        if watching:
            watching = False
            loop.remove_reader(descriptor)
            os.close(descriptor)

    def readable() -> None:
        try:
            gone = not os.read(descriptor, 1)
        except BlockingIOError:
            return
        except OSError:
            gone = True
        if gone:
            close()
            on_gone()

    try:
        loop.add_reader(descriptor, readable)
    except (OSError, ValueError) as error:
        raise FatalError(f"{descriptor_variable}={text!r} cannot be watched: {error}") from error
    return close
