"""Digests: what two replicas compare to learn where they differ.

    leaf:     XOR over its keys of blake2b-64(storage key · version), keyed by salt and person
    leaves:   slot → 64 x u64 big-endian        of a key: the 6 bits of its hash behind the slot
    summary:  blake2b-64 of a slot's leaves

XOR makes a leaf follow each change in O(1), and independent of the order of changes. A secret
key keeps a tenant from choosing keys whose hashes cancel out. Digests depend on keys and versions
alone: dropping the value of an expired record leaves them as they are.

`toggle` is on the path of every write, and twice on that of an overwrite, where hashing was a sixth
of what a node computes. So the secret stands where blake2b takes a salt and a personal name, which
it mixes into the state that it starts from. As its `key` it would be a block to be hashed before
ours, which is one block itself: 0.43 µs instead of 0.28 µs in CPython 3.11. To copy a state costs
half of what it costs to make one.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b
from struct import Struct

from services.core.errors import PeerError
from services.core.hlc import Version
from services.core.ring import leaf_bits, leaf_count, slot_count
from services.core.subkey import subkey

leaf_bytes = 8
leaves_bytes = leaf_count * leaf_bytes
digests_bytes = slot_count * leaves_bytes
summary_bytes = 8
digest_key_bytes = blake2b.SALT_SIZE + blake2b.PERSON_SIZE

_zeros = bytes(leaves_bytes)
_leaves = Struct(f">{leaf_count}Q")


def digest_key(cluster_secret: str) -> bytes:
    """The key of a cluster's digests."""
    return subkey(cluster_secret, b"ydht digests")


class Digests:
    """The leaves of all slots, 8 MiB of them.

    A leaf is addressed by its place, `slot << leaf_bits | leaf`; see `ring.place_of`. They lie in
    `memory`, `digests_bytes` of zeros; a system has some that takes nothing before it is touched.
    """

    __slots__ = ("_keyed", "_leaves")

    def __init__(self, key: bytes, memory: memoryview | None = None) -> None:
        if len(key) != digest_key_bytes:
            raise ValueError(f"the key of digests is {digest_key_bytes} bytes, not {len(key)}")
        salt, person = key[: blake2b.SALT_SIZE], key[blake2b.SALT_SIZE :]
        self._keyed = blake2b(digest_size=leaf_bytes, salt=salt, person=person)
        self._leaves = (memory or memoryview(bytearray(digests_bytes))).cast("Q")

    def hash_of(self, storage_key: bytes, version: Version) -> int:
        """What this key at this version adds to its leaf."""
        state = self._keyed.copy()
        # A version has a fixed length, so that no two pairs run together into the same bytes.
        state.update(storage_key + version)
        return int.from_bytes(state.digest(), "big")

    def toggle(self, place: int, storage_key: bytes, version: Version) -> None:
        """Add a key at a version to its leaf, or take it out: the same operation."""
        state = self._keyed.copy()
        state.update(storage_key + version)
        self._leaves[place] ^= int.from_bytes(state.digest(), "big")

    def replace(self, place: int, storage_key: bytes, old: Version, new: Version) -> None:
        """Take a key at its old version out of its leaf, and add it at the new one."""
        one, other = self._keyed.copy(), self._keyed.copy()
        one.update(storage_key + old)
        other.update(storage_key + new)
        self._leaves[place] ^= int.from_bytes(one.digest(), "big") ^ int.from_bytes(
            other.digest(), "big"
        )

    def leaves(self, slot: int) -> bytes:
        """The leaves of a slot as they travel and lie on disk."""
        first = slot << leaf_bits
        return _leaves.pack(*self._leaves[first : first + leaf_count])

    def load(self, slot: int, leaves: bytes) -> None:
        """Take over the leaves of a slot. `PeerError` unless they are as many as they must be."""
        first = slot << leaf_bits
        self._leaves[first : first + leaf_count] = array("Q", _decode(leaves))

    def clear(self, slot: int) -> None:
        self.load(slot, _zeros)

    def summary(self, slot: int) -> bytes:
        return summary_of(self.leaves(slot))


def summary_of(leaves: bytes) -> bytes:
    """Equal for equal leaves, and for others only with the odds of 1 to 2**64."""
    return blake2b(leaves, digest_size=summary_bytes).digest()


def encode_leaves(leaves: Sequence[int]) -> bytes:
    return _leaves.pack(*leaves)


def differing(one: bytes, other: bytes) -> list[int]:
    """The numbers of the leaves in which two replicas of a slot differ."""
    if one == other:
        return []
    pairs = zip(_decode(one), _decode(other), strict=True)
    return [leaf for leaf, (left, right) in enumerate(pairs) if left != right]


def _decode(leaves: bytes) -> tuple[int, ...]:
    if len(leaves) != leaves_bytes:
        raise PeerError(f"the leaves of a slot are {leaves_bytes} bytes, not {len(leaves)}")
    return _leaves.unpack(leaves)
