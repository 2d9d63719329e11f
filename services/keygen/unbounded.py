"""No token buckets: what bounds who asks for keys is the quota of the day.

Giving out a key costs less than refusing one. Buckets are for what keeps a cluster busy.
"""

from __future__ import annotations

from services.core.bucket import Bucket
from services.core.plans import Limits, public
from services.runtime.allowance import Allowance, Allowances


class _Unbounded(Allowance):
    __slots__ = ()

    def take(self, tokens: int, now_ns: int) -> int:
        return 0

    def wait_ns(self, tokens: int, now_ns: int) -> int:
        return 0

    def limit(self, tenant: Limits, own: Limits, now_ns: int) -> None:
        pass

    def lines(self, now_ns: int) -> bytes:
        return b""


class Unbounded(Allowances):
    """The same allowance for everybody, of which nothing is told."""

    def __init__(self) -> None:
        super().__init__()
        self._one = _Unbounded(Bucket(public.limits(), 0))

    def of_key(
        self, tenant: int, of_tenant: Limits, key_id: int, of_key: Limits, now_ns: int
    ) -> Allowance:
        return self._one

    def release(self, tenant: int, key_id: int) -> None:
        pass

    def of_console(self, tenant: int, now_ns: int) -> Allowance:
        return self._one

    @property
    def for_anybody(self) -> Allowance:
        return self._one
