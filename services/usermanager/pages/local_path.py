"""Where a page may lead on to: paths of this site and nothing else."""

from __future__ import annotations

import re
from typing import Final

# What a person has as a bookmark.
path_chars_max: Final = 2_000

# One slash and then none: browsers take //host and /\host for another site, and drop tabs and
# line ends wherever they stand.
_local: Final = re.compile(r"/(?![/\\])[\x21-\x5b\x5d-\x7e]*", re.ASCII)


def local_path(text: str | None, otherwise: str) -> str:
    """The path, with its query, if it is one of this site."""
    if text is None or len(text) > path_chars_max or _local.fullmatch(text) is None:
        return otherwise
    return text
