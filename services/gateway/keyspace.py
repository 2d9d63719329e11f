"""Which keys a request by an API key is about: one namespace of its tenant, or less of it."""

from __future__ import annotations

from typing import Final

from services.core.errors import FixRequest
from services.core.key import check_namespace, key_bytes_max, namespace_prefix
from services.runtime.credential import Credential

namespace_header: Final = "X-Namespace"
# Enough of a key to recognise it.
shown_bytes_max: Final = 100


def storage_prefix(credential: Credential, namespace: str) -> bytes:
    """What storage keys of the namespace begin with. FixRequest if there can be no such one."""
    return namespace_prefix(
        credential.tenant, check_namespace(namespace.encode(), namespace_header)
    )


def checked_prefix(credential: Credential, prefix: str) -> bytes:
    """The prefix of keys in bytes; FixRequest unless this API key may see all that begin so."""
    found = prefix.encode()
    if len(found) > key_bytes_max:
        raise FixRequest(
            "key_too_long",
            f"the prefix is {len(found)} bytes; no key has more than {key_bytes_max}",
        )
    if not found.startswith(credential.key_prefix):
        raise FixRequest(
            "key_not_allowed",
            "This API key is limited to keys that begin with "
            f"{shown(credential.key_prefix)}; ask with a prefix that does",
        )
    return found


def check_allowed(credential: Credential, key: bytes) -> None:
    if not key.startswith(credential.key_prefix):
        raise FixRequest(
            "key_not_allowed",
            f"This API key is limited to keys that begin with {shown(credential.key_prefix)}",
        )


def check_unlimited(credential: Credential) -> None:
    """Of what is about whole namespaces."""
    if credential.key_prefix:
        raise FixRequest(
            "key_not_allowed",
            f"This API key is limited to keys that begin with {shown(credential.key_prefix)}, and "
            "namespaces have others",
        )


def absent(key: bytes) -> FixRequest:
    return FixRequest("key_not_found", f"There is no key {shown(key)} in this namespace")


def shown(key: bytes) -> str:
    """A key, or what keys begin with, in quotes; a long one is cut, which an ellipsis tells of."""
    if len(key) <= shown_bytes_max:
        return repr(key.decode("utf-8", "replace"))
    # Not within a character.
    return repr(key[:shown_bytes_max].decode("utf-8", "ignore") + "…")
