"""The entry of the `ydht` command."""

from __future__ import annotations

import signal


def main() -> None:
    """Run the command of this process's command line, and exit with its code.

    Ctrl-C ends the process at once and silently, until a command that has something to put in
    order says otherwise. It may come while modules are being imported: they come after that.
    """
    # Unless it is ignored, as in a job that a shell has put into the background.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from services.cli.commands import main

    main(prog_name="ydht")


if __name__ == "__main__":
    main()
