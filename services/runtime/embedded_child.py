"""What stands between the owner of the embedded server and PostgreSQL's own binaries.

Run as a script, never imported: `python -I -S embedded_child.py PARENT USER COMMAND…`. It gives
up root for `USER` (`uid:gid`, or `-` to stay), asks the kernel to end this process when its
parent dies, and becomes `COMMAND`. A script rather than a `preexec_fn`, which may deadlock in a
process with threads.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(parent: str, user: str, command: list[str]) -> None:
    if user != "-":
        uid, _, gid = user.partition(":")
        os.setgroups([])
        os.setgid(int(gid))
        os.setuid(int(uid))
    # After the change of user, which clears it. SIGINT is PostgreSQL's fast shutdown.
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != int(parent):
        sys.exit("the process that started this one is gone")
    # Python ignores these two, and an ignored signal stays ignored across exec.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    os.umask(0o077)
    os.chdir("/")
    os.execv(command[0], command)  # noqa: S606  Fixed arguments of embedded.py, no shell wanted.


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2], sys.argv[3:])
    except OSError as error:
        sys.exit(f"cannot run {sys.argv[3]}: {error}")
