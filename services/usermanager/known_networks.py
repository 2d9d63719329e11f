"""From where an account has logged in lately, so that guessing elsewhere is not in its way.

How often an account may be tried from everywhere together is bounded, and who has enough networks
can use that up. An owner who comes from where he came before is not asked to pay from it, but has
a budget of that network and account (`sessions`): nobody else can use it up who is not there.

A network is one address of IPv4, or what one customer has of IPv6 (`network_of`), for a neighbour
is somebody else. It is known for 30 days after a login, which is kept among the throttles, by
hash; that a crash of PostgreSQL forgets. It is also known as long as a session lasts that was begun
there, which a crash does not forget. A new password forgets none of them: who had the old one has
as many tries from there as from anywhere, and no more. Asked about an account that there is not,
the same is looked up, and nothing is found.
"""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from typing import Final

from services.runtime.client_address import network_of
from services.runtime.clock import Clock
from services.runtime.postgres import Connection, Database
from services.runtime.request_body import invalid_members
from services.usermanager.audit import Audit, Note
from services.usermanager.throttle import subject_of

# As long as a session lasts that is not used.
kept: Final = timedelta(days=30)
_name: Final = "known network of account"

# Addresses are kept in their canonical text; what is none, such as that of a Unix socket, is passed
# over before it is taken for one. An account has a hundred sessions at most.
_IS_KNOWN: Final = """
    SELECT EXISTS (SELECT FROM throttles WHERE subject = $1 AND free_at > $2) OR EXISTS (
        SELECT FROM sessions AS session JOIN users AS owner ON owner.id = session.user_id
        WHERE owner.email_folded = $3 AND session.expires_at > now() AND CASE
            WHEN session.address ~ '[.:]' THEN session.address::inet <<= $4::text::inet END
    )
"""
_REMEMBER: Final = """
    INSERT INTO throttles (subject, free_at) VALUES ($1, $2)
    ON CONFLICT (subject) DO UPDATE SET free_at = excluded.free_at
"""


class KnownNetworks:
    """Accounts are named by their folded email address, for there need not be one."""

    def __init__(self, database: Database, clock: Clock, log: Audit) -> None:
        self._database = database
        self._clock = clock
        self._audit = log

    async def has(self, email_folded: str, address: str) -> bool:
        """Whether the account has logged in from around there lately. May raise RetryLater."""
        network = network_of(address)
        async with self._database.connection() as connection:
            found = await connection.fetchval(
                _IS_KNOWN,
                _subject(email_folded, network),
                self._now(),
                email_folded,
                network if _is_address(address) else None,
            )
        return bool(found)

    async def remember(self, connection: Connection, email_folded: str, address: str) -> None:
        """It has now, once the transaction of the connection has committed."""
        subject = _subject(email_folded, network_of(address))
        await connection.execute(_REMEMBER, subject, self._now() + kept)

    async def admit(self, user_id: int, email_folded: str, address: str, actor: str) -> str:
        """Take the network of an address for one of the account's, as an operator may who knows
        where its owner is. Returns the network; FixRequest if it is no address."""
        if not _is_address(address):
            raise invalid_members([("address", "is not an IP address, such as 203.0.113.7")])
        canonical = str(ipaddress.ip_address(address))
        details = {"network": network_of(canonical)}
        async with self._database.transaction() as connection:
            await self.remember(connection, email_folded, canonical)
            await self._audit.write(
                connection, user_id, Note("network_admitted", actor, None, details)
            )
        return details["network"]

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.wall_ms() / 1000, UTC)


def _subject(email_folded: str, network: str) -> bytes:
    return subject_of(_name, f"{email_folded}\0{network}")


def _is_address(text: str) -> bool:
    try:
        # With a zone it says which interface, not who.
        return "%" not in text and bool(ipaddress.ip_address(text).exploded)
    except ValueError:
        return False
