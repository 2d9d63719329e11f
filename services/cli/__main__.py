"""The entry of the `ydht` command."""

# What the module `signal` wraps into enums. Importing that takes a millisecond in which Ctrl-C
# would show a traceback; this one is part of the interpreter. Nothing else is imported here.
import _signal  # type: ignore[import-not-found]


def main() -> None:
    """Run the command of this process's command line, and exit with its code.

    Ctrl-C ends the process at once and silently, until a command that has something to put in
    order says otherwise. It may come while modules are being imported: they come after that.
    Only what Python does before it reads its first line of ours is out of reach.
    """
    # Unless it is ignored, as in a job that a shell has put into the background.
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    from services.cli.commands import main

    main(prog_name="ydht")


if __name__ == "__main__":
    main()
