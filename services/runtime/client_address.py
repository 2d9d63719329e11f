"""From which address a request comes, when proxies of ours may stand in between.

A connection's own peer is the client, unless that is a trusted proxy (`TRUSTED_PROXIES`): then
each proxy has appended to `X-Forwarded-For` whom it was called by, and the client is the
rightmost address that is not itself a trusted proxy. Whatever stands left of it was sent by the
client, and proves nothing. Where the header ends in something that is no address, or is missing,
the last proxy that could be followed stands for the client: an address to throttle, never a way
around it.

Who is slowed down is counted by networks, for an address costs little where there are many.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Final

from starlette.types import Scope

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# Of a connection that has no address, as those over a Unix socket.
unknown_address: Final = "unknown"
# More proxies in a row than anybody has; what stands further left is not looked at.
hops_max: Final = 16

# What an internet provider gives to one customer at least, and so the least that costs another.
ipv6_network_bits: Final = 64
# And what it gives at most to whoever asks.
ipv6_site_bits: Final = 48
# What is rented as one: 256 addresses that cost little more than one of them.
ipv4_site_bits: Final = 24

_header: Final = b"x-forwarded-for"


class ClientAddresses:
    """Tells clients' addresses, given which networks the trusted proxies are in."""

    def __init__(self, trusted: Sequence[Network] = ()) -> None:
        self._trusted = tuple(trusted)

    def of(self, scope: Scope) -> str:
        """The canonical text of the client's address; IPv4 also where it came mapped to IPv6."""
        peer = scope.get("client")
        return self.behind(peer[0] if peer else unknown_address, scope["headers"])

    def behind(self, peer: str, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """The same, of the address at the connection's other end and the headers it sent."""
        address = _parsed(peer)
        if address is None:
            return unknown_address
        if self._trusts(address):
            for text in _hops(headers):
                hop = _parsed(text)
                if hop is None:
                    break
                address = hop
                if not self._trusts(hop):
                    break
        return str(address)

    def _trusts(self, address: Address) -> bool:
        # An address is never in a network of the other version, which is what is meant.
        return any(address in network for network in self._trusted)


def network_of(address: str) -> str:
    """Whose an address is at least: itself, or the network of IPv6 around it. What is no address
    stands for itself, here and below."""
    return _around(address, None, ipv6_network_bits)


def wide_network_of(address: str) -> str:
    """The same of IPv6, where a customer has as many networks as can easily be had."""
    return _around(address, None, ipv6_site_bits)


def site_of(address: str) -> str:
    """The same of both versions."""
    return _around(address, ipv4_site_bits, ipv6_site_bits)


def _around(address: str, ipv4_bits: int | None, ipv6_bits: int) -> str:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    bits = ipv4_bits if parsed.version == 4 else ipv6_bits
    if bits is None:
        return address
    return str(ipaddress.ip_network((parsed, bits), strict=False))


def _hops(headers: Iterable[tuple[bytes, bytes]]) -> list[str]:
    """What proxies wrote, nearest first. Several headers are one list, in their order."""
    whole = b",".join(value for name, value in headers if name == _header)
    if not whole:
        return []
    return [hop.decode("latin-1") for hop in reversed(whole.rsplit(b",", hops_max)[-hops_max:])]


def _parsed(text: str) -> Address | None:
    """The address in the ways that proxies write it: with a port, and IPv6 in brackets."""
    text = text.strip(" \t")
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        # A zone says which interface a link-local address is behind, not who it is.
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
