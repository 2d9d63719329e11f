"""Ids of rows, as PostgreSQL gives them out and as clients send them back."""

from __future__ import annotations

import re
from typing import Annotated, Final

from msgspec import Meta

from services.core.errors import FixRequest

# A bigint of PostgreSQL.
id_max: Final = 2**63 - 1
RowId = Annotated[int, Meta(ge=1, le=id_max)]

_cursor: Final = re.compile(r"[1-9][0-9]{0,18}", re.ASCII)


def page_below(cursor: str | None, listed: str) -> int:
    """Below which id a page goes on, of a list that has the highest first; `invalid_cursor` if
    no page of it can have given the cursor."""
    if cursor is None:
        return id_max
    if _cursor.fullmatch(cursor) is None or int(cursor) > id_max:
        raise FixRequest("invalid_cursor", f"The cursor is not one that {listed} has given")
    return int(cursor)
