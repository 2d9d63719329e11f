"""Which keys a request by an API key is about: one namespace of its tenant, or less of it."""

from __future__ import annotations

from services.core.errors import FixRequest
from services.core.key import check_namespace, key_bytes_max, namespace_prefix
from services.runtime.credential import Credential


def storage_prefix(credential: Credential, namespace: str) -> bytes:
    """What storage keys of the namespace begin with. FixRequest if there can be no such one."""
    return namespace_prefix(credential.tenant, check_namespace(namespace.encode()))


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


def shown(prefix: bytes) -> str:
    return repr(prefix.decode("utf-8", "replace"))
