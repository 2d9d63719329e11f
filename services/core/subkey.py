"""Keys for one purpose each, derived from one of the platform's secrets.

What is signed, proved or hashed with one of them says nothing about the others, so that no part
of the platform can be fed what was made for another. Purposes in use: "ydht http", "ydht link",
"ydht digests"; and of the secret that access tokens are signed with, "ydht forms" and "ydht next
refresh token".
"""

from __future__ import annotations

import hmac


def subkey(cluster_secret: str, purpose: bytes) -> bytes:
    """32 bytes that only the holder of the secret can make, different for each purpose."""
    return hmac.digest(cluster_secret.encode(), purpose, "sha256")
