"""Storage keys: whose key it is comes first, so that no tenant can name another's.

    storage key:  tenant u64 BE  ·  len(namespace) u8  ·  namespace  ·  key

All keys of one namespace, and of one tenant, share a byte prefix, and within it they sort as
the clients' own keys do. Like versions and records they are plain `bytes`: a caller that works
in one namespace keeps `namespace_prefix(…)` and appends to it.
"""

from __future__ import annotations

from typing import NamedTuple

from services.core.errors import FixRequest, PeerError

# What clients may send: the length of a path segment that every proxy lets through.
key_bytes_max = 1024
# Its length is one byte of the storage key.
namespace_bytes_max = 255
tenant_max = (1 << 64) - 1

# Every storage key has a tenant, the length of a namespace, a namespace, and a key.
_fixed_bytes = 9
storage_key_bytes_max = _fixed_bytes + namespace_bytes_max + key_bytes_max
storage_key_bytes_min = _fixed_bytes + 1 + 1


class KeyParts(NamedTuple):
    tenant: int
    namespace: bytes
    key: bytes


def check_key(key: bytes) -> bytes:
    """The key itself if a client may use it, else `FixRequest`."""
    if len(key) > key_bytes_max:
        raise FixRequest(
            "key_too_long", f"the key is {len(key)} bytes; at most {key_bytes_max} are allowed"
        )
    if not key:
        raise FixRequest("invalid_key", f"the key is empty; it is 1 to {key_bytes_max} bytes")
    if not key.isascii():
        _check_utf8("invalid_key", "the key", key)
    return key


def check_namespace(namespace: bytes, name: str = "the namespace") -> bytes:
    """The namespace itself if a client may use it, else `FixRequest`, which calls it by `name`.

    Control characters are refused, because a namespace travels in a header.
    """
    if not 1 <= len(namespace) <= namespace_bytes_max:
        raise FixRequest(
            "invalid_namespace",
            f"{name} is {len(namespace)} bytes; it is 1 to {namespace_bytes_max} bytes",
        )
    if not namespace.isascii():
        _check_utf8("invalid_namespace", name, namespace)
    if min(namespace) < 0x20 or 0x7F in namespace:
        raise FixRequest("invalid_namespace", f"{name} contains a control character")
    return namespace


def tenant_prefix(tenant: int) -> bytes:
    """What every storage key of this tenant begins with."""
    if not 0 <= tenant <= tenant_max:
        raise ValueError(f"a tenant is 0 to {tenant_max}, not {tenant}")
    return tenant.to_bytes(8, "big")


def namespace_prefix(tenant: int, namespace: bytes) -> bytes:
    """What every storage key of this namespace begins with, and no other."""
    size = len(namespace)
    if not 1 <= size <= namespace_bytes_max:
        raise ValueError(f"a namespace is 1 to {namespace_bytes_max} bytes, not {size}")
    return tenant_prefix(tenant) + size.to_bytes(1, "big") + namespace


def storage_key(tenant: int, namespace: bytes, key: bytes) -> bytes:
    """The storage key of a key and namespace that have been checked."""
    return namespace_prefix(tenant, namespace) + key


def successor(prefix: bytes) -> bytes | None:
    """The least bytes above everything that begins with `prefix`; None if there are none."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes((kept[-1] + 1,)) if kept else None


def check_storage_key(data: bytes) -> bytes:
    """The bytes themselves if `split_storage_key` takes them; for the hot path."""
    size = len(data)
    if not storage_key_bytes_min <= size <= storage_key_bytes_max or not (
        0 < data[8] < size - _fixed_bytes <= data[8] + key_bytes_max
    ):
        split_storage_key(data)
    return data


def check_namespace_prefix(prefix: bytes) -> bytes:
    """The bytes themselves if they are what every storage key of some namespace begins with."""
    if len(prefix) <= _fixed_bytes or len(prefix) != _fixed_bytes + prefix[8]:
        raise PeerError(f"{len(prefix)} bytes are not the prefix of a namespace")
    return prefix


def split_storage_key(data: bytes) -> KeyParts:
    """The parts of a storage key; `PeerError` if the bytes are not one."""
    if not storage_key_bytes_min <= len(data) <= storage_key_bytes_max:
        raise PeerError(
            f"a storage key is {storage_key_bytes_min} to {storage_key_bytes_max} bytes, "
            f"not {len(data)}"
        )
    end = _fixed_bytes + data[8]
    key = data[end:]
    if end == _fixed_bytes or not 1 <= len(key) <= key_bytes_max:
        raise PeerError(
            f"a storage key of {len(data)} bytes cannot hold a namespace of {data[8]} bytes "
            f"and a key of 1 to {key_bytes_max} bytes"
        )
    return KeyParts(int.from_bytes(data[:8], "big"), data[_fixed_bytes:end], key)


def _check_utf8(code: str, what: str, text: bytes) -> None:
    try:
        text.decode()
    except UnicodeDecodeError as error:
        raise FixRequest(
            code, f"{what} is not valid UTF-8: {error.reason} at byte {error.start}"
        ) from error
