"""Storage keys."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.errors import FixRequest, PeerError
from services.core.key import (
    KeyParts,
    check_key,
    check_namespace,
    check_namespace_prefix,
    key_bytes_max,
    namespace_bytes_max,
    namespace_prefix,
    split_storage_key,
    storage_key,
    storage_key_bytes_max,
    successor,
    tenant_max,
    tenant_prefix,
)

tenants = st.integers(0, tenant_max)
namespaces = st.binary(min_size=1, max_size=namespace_bytes_max)
keys = st.binary(min_size=1, max_size=key_bytes_max)


def test_the_layout_of_a_storage_key_is_fixed() -> None:
    assert storage_key(0x0102, b"ab", b"key") == b"\0\0\0\0\0\0\x01\x02\x02abkey"


@given(tenants, namespaces, keys)
def test_a_storage_key_splits_into_what_it_was_made_of(
    tenant: int, namespace: bytes, key: bytes
) -> None:
    made = storage_key(tenant, namespace, key)
    assert split_storage_key(made) == KeyParts(tenant, namespace, key)
    assert made.startswith(namespace_prefix(tenant, namespace))
    assert made.startswith(tenant_prefix(tenant))


short = st.binary(min_size=1, max_size=3)


@given(st.integers(0, 2), short, short, st.integers(0, 2), short, short)
def test_no_key_of_another_namespace_has_the_prefix_of_this_one(
    tenant: int, namespace: bytes, key: bytes, other: int, other_namespace: bytes, other_key: bytes
) -> None:
    made = storage_key(other, other_namespace, other_key)
    inside = (tenant, namespace) == (other, other_namespace)
    assert made.startswith(namespace_prefix(tenant, namespace)) == inside
    if inside:
        assert (storage_key(tenant, namespace, key) < made) == (key < other_key)


def test_the_greatest_parts_fit() -> None:
    made = storage_key(tenant_max, b"n" * namespace_bytes_max, b"k" * key_bytes_max)
    assert len(made) == storage_key_bytes_max
    assert split_storage_key(made).tenant == tenant_max


def test_parts_that_do_not_fit_are_refused() -> None:
    for tenant in (-1, tenant_max + 1):
        with pytest.raises(ValueError, match="a tenant is"):
            tenant_prefix(tenant)
    for namespace in (b"", b"n" * 256):
        with pytest.raises(ValueError, match="a namespace is"):
            namespace_prefix(1, namespace)


def test_a_storage_key_cut_anywhere_before_its_key_is_the_peers_fault() -> None:
    made = storage_key(1, b"default", b"k")
    for size in range(len(made)):
        with pytest.raises(PeerError):
            split_storage_key(made[:size])


def test_a_corrupted_namespace_length_never_breaks_the_split() -> None:
    made = bytearray(storage_key(1, b"default", b"key"))
    for length in range(256):
        made[8] = length
        if 1 <= length <= 9:
            parts = split_storage_key(bytes(made))
            assert parts.namespace + parts.key == b"defaultkey"
        else:
            with pytest.raises(PeerError, match=f"namespace of {length} bytes"):
                split_storage_key(bytes(made))


def test_a_key_above_its_limit_behind_a_short_namespace_is_refused() -> None:
    with pytest.raises(PeerError):
        split_storage_key(storage_key(1, b"n", b"k" * (key_bytes_max + 1)))
    with pytest.raises(PeerError):
        split_storage_key(storage_key(1, b"n" * 255, b"k" * (key_bytes_max + 1)))


@given(st.binary(max_size=1400))
def test_any_bytes_are_a_storage_key_or_a_clean_error(data: bytes) -> None:
    try:
        parts = split_storage_key(data)
    except PeerError:
        return
    assert storage_key(*parts) == data


@pytest.mark.parametrize(
    ("key", "code"),
    [
        (b"", "invalid_key"),
        (b"k" * 1025, "key_too_long"),
        (b"\xff", "invalid_key"),
        (b"ok\xc3", "invalid_key"),
        (b"\xed\xa0\x80", "invalid_key"),
        (b"\xff" * 1025, "key_too_long"),
    ],
)
def test_a_key_that_no_client_may_use_names_its_code(key: bytes, code: str) -> None:
    with pytest.raises(FixRequest) as caught:
        check_key(key)
    assert caught.value.code == code


@pytest.mark.parametrize("key", [b"k", b"a/b/c", b"\x00", "é".encode() * 512, b"k" * 1024])
def test_a_key_within_the_limits_is_given_back(key: bytes) -> None:
    assert check_key(key) is key


@pytest.mark.parametrize(
    "namespace", [b"", b"n" * 256, b"a\x00", b"a\n", b"\x7f", b"\xff", b"\xc3"]
)
def test_a_namespace_that_no_client_may_use_is_refused(namespace: bytes) -> None:
    with pytest.raises(FixRequest) as caught:
        check_namespace(namespace)
    assert caught.value.code == "invalid_namespace"


@pytest.mark.parametrize("namespace", [b"default", b"n" * 255, "größe".encode(), b"a b"])
def test_a_namespace_within_the_limits_is_given_back(namespace: bytes) -> None:
    assert check_namespace(namespace) is namespace


@given(st.binary(max_size=4), st.binary(max_size=6))
def test_the_successor_of_a_prefix_stands_right_behind_all_that_begin_with_it(
    start: bytes, other: bytes
) -> None:
    behind = successor(start)
    assert (behind is None) == (not start.strip(b"\xff"))
    if behind is not None:
        assert start < behind
        assert (start <= other < behind) == other.startswith(start)


def test_only_whole_prefixes_of_namespaces_pass() -> None:
    whole = namespace_prefix(7, b"default")
    assert check_namespace_prefix(whole) == whole
    for wrong in (b"", bytes(9), whole[:-1], whole + b"k"):
        with pytest.raises(PeerError):
            check_namespace_prefix(wrong)
