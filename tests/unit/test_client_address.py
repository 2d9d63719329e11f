"""Whose address a request comes from, whatever proxies and liars have written."""

from __future__ import annotations

import ipaddress
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.client_address import ClientAddresses, hops_max, unknown_address

trusted = ClientAddresses([ip_network("10.0.0.0/8"), ip_network("fd00::/8")])
proxy = "10.0.0.1"


def asked(peer: str | None, *forwarded: str | bytes) -> dict[str, Any]:
    headers = [
        (b"x-forwarded-for", value if isinstance(value, bytes) else value.encode())
        for value in forwarded
    ]
    client = None if peer is None else (peer, 4711)
    return {"client": client, "headers": [(b"host", b"here"), *headers]}


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        # Nobody in between.
        ("203.0.113.9", (), "203.0.113.9"),
        # Not from a proxy of ours: what it says of others is nothing.
        ("203.0.113.9", ("1.2.3.4",), "203.0.113.9"),
        # One proxy, then two, of which the outer one is ours too.
        (proxy, ("203.0.113.9",), "203.0.113.9"),
        (proxy, ("203.0.113.9, 10.9.9.9",), "203.0.113.9"),
        # What the client has sent itself stands further left.
        (proxy, ("1.2.3.4, 203.0.113.9",), "203.0.113.9"),
        (proxy, ("10.3.3.3, 203.0.113.9, 10.9.9.9",), "203.0.113.9"),
        (proxy, ("junk, 203.0.113.9",), "203.0.113.9"),
        # Several headers are one list.
        (proxy, ("1.2.3.4", "203.0.113.9"), "203.0.113.9"),
        (proxy, ("203.0.113.9", "10.2.2.2"), "203.0.113.9"),
        # Ports, brackets, white space.
        (proxy, ("203.0.113.9:4711",), "203.0.113.9"),
        (proxy, (" \t203.0.113.9 ",), "203.0.113.9"),
        (proxy, ("[2001:db8::9]:4711",), "2001:db8::9"),
        (proxy, ("[2001:db8::9]",), "2001:db8::9"),
        (proxy, ("2001:DB8:0:0::9",), "2001:db8::9"),
        (proxy, ("fe80::1%eth0",), "fe80::1"),
        # IPv4 in IPv6, on either side of the comma.
        ("::ffff:10.0.0.1", ("::ffff:203.0.113.9",), "203.0.113.9"),
        ("::ffff:203.0.113.9", (), "203.0.113.9"),
        ("fd00::1", ("2001:db8::9",), "2001:db8::9"),
        # Inside alone: the outermost of ours is the client.
        (proxy, ("10.4.4.4, 10.9.9.9",), "10.4.4.4"),
        # Nothing, or nothing that is an address: the last that could be followed.
        (proxy, (), proxy),
        (proxy, ("",), proxy),
        (proxy, ("unknown",), proxy),
        (proxy, ("203.0.113.9, _hidden",), proxy),
        (proxy, ("203.0.113.9, junk, 10.9.9.9",), "10.9.9.9"),
        (proxy, ("203.0.113.9,",), proxy),
        (proxy, (b"\xff\xfe",), proxy),
        (proxy, ("203.0.113.09",), proxy),
        (proxy, ("1.2.3.4.5",), proxy),
        (proxy, ("[",), proxy),
        # Over a Unix socket, or something that names itself.
        (None, ("203.0.113.9",), unknown_address),
        ("testclient", ("203.0.113.9",), unknown_address),
    ],
)
def test_the_client_is_the_rightmost_address_that_is_no_proxy_of_ours(
    peer: str | None, forwarded: tuple[str | bytes, ...], client: str
) -> None:
    assert trusted.of(asked(peer, *forwarded)) == client


def test_without_trusted_proxies_nobody_is_believed() -> None:
    assert ClientAddresses().of(asked(proxy, "203.0.113.9")) == proxy


def test_a_chain_without_end_is_followed_no_further_than_the_limit() -> None:
    # Built by somebody inside; the first is never looked at.
    chain = ", ".join(["203.0.113.9", *["10.9.9.9"] * hops_max])
    assert trusted.of(asked(proxy, chain)) == "10.9.9.9"
    assert trusted.of(asked(proxy, ", ".join(chain.split(", ")[:-1]))) == "203.0.113.9"
    assert trusted.of(asked(proxy, "1.2.3.4," * 100_000 + "203.0.113.9")) == "203.0.113.9"


@given(st.lists(st.binary(max_size=60), max_size=3))
def test_whatever_the_header_holds_the_answer_is_an_address(values: list[bytes]) -> None:
    ipaddress.ip_address(trusted.of(asked(proxy, *values)))


@given(
    st.text(alphabet="0123456789abcdef.:,[]% ", max_size=60),
    st.ip_addresses().filter(
        lambda ip: not ip.is_private and getattr(ip, "ipv4_mapped", 0) in (None, 0)
    ),
)
def test_no_client_can_claim_another_address(claimed: str, own: Any) -> None:
    """The proxy appends where a request came from to whatever stood there."""
    assert trusted.of(asked(proxy, f"{claimed}, {own}")) == str(own)
