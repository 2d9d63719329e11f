"""How a command ends that could not do what it was asked. The codes have their names in sysexits.h:

65  refused: what was asked is not allowed, or makes no sense                 EX_DATAERR
66  there is no such key                                                      EX_NOINPUT
67  there is no such account or API key                                       EX_NOUSER
73  the condition does not hold; nothing was changed                          EX_CANTCREAT
74  it may have been done or not: look before trying again                    EX_IOERR
75  nobody can be reached, or later is better; nothing was changed            EX_TEMPFAIL
77  the API key is not good, or not for this                                  EX_NOPERM
78  something has to be set up first                                          EX_CONFIG
"""

from __future__ import annotations

import os

from services.core.errors import FatalError


class NotDoneError(FatalError):
    """What has no code of its own: the output cannot be written, or a bug at the other end."""

    exit_code = 1


class RefusedError(FatalError):
    exit_code = os.EX_DATAERR


class NoSuchKeyError(FatalError):
    exit_code = os.EX_NOINPUT


class NotThereError(FatalError):
    exit_code = os.EX_NOUSER


class ConditionError(FatalError):
    exit_code = os.EX_CANTCREAT


class UnknownEndError(FatalError):
    exit_code = os.EX_IOERR


class UnreachableError(FatalError):
    exit_code = os.EX_TEMPFAIL


class NotAllowedError(FatalError):
    exit_code = os.EX_NOPERM


class KeyNotAllowedError(NotAllowedError):
    """Of this one key; others it may be good for."""
