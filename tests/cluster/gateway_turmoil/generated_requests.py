"""Who makes the requests that schemathesis generates for a gateway, and what they know.

Each comes with a good API key. Of those that are valid by the schema many are told what only a real
client would know: keys that there are, an etag, a time to live. Requests that break the schema on
purpose stay as they are.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import requests
from requests.auth import AuthBase
from schemathesis import BaseSchema, Case, GenerationMode, HookContext
from schemathesis.hooks import GLOBAL_HOOK_DISPATCHER

AnyCase = Case[Any]

# So that what one has filled up is not what all the others meet.
calls_per_key: Final = 500
keys: Final = ("a", "b", "a/b", "counter", "caf\u00e9")
ttls: Final = ("90s", "1h30m", "7d", "3600")
share_of_known: Final = 0.7


class GeneratedRequests(AuthBase):
    """The requests of one run. They are made one at a time."""

    def __init__(self, api_keys: Sequence[str], seed: int) -> None:
        self._api_keys = api_keys
        self._draw = random.Random(seed)
        self._calls = 0

    @contextmanager
    def making(self, schema: BaseSchema) -> Iterator[None]:
        """Make the requests of the block. This hook can only be set for all schemas at once."""
        schema.auth.set_from_requests(self)
        hook = self._before_call
        GLOBAL_HOOK_DISPATCHER.register_hook_with_name(hook, "before_call")
        try:
            yield
        finally:
            GLOBAL_HOOK_DISPATCHER.unregister(hook)

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Put the credential on a request that is otherwise as it will be sent."""
        self._calls += 1
        number = self._calls // calls_per_key
        request.headers["X-API-Key"] = self._api_keys[number % len(self._api_keys)]
        return request

    def _before_call(self, context: HookContext, case: AnyCase, kwargs: dict[str, Any]) -> None:
        """Tell the case what its maker knows."""
        meta = case.meta
        if meta is not None and meta.generation.mode != GenerationMode.POSITIVE:
            return
        # Nobody can make one up.
        _leave_out(case.query, "cursor")
        if self._draw.random() >= share_of_known:
            return
        for name in ("X-Namespace", "If-Match", "If-None-Match"):
            if self._draw.random() < share_of_known:
                _leave_out(case.headers, name)
        if "key" in case.path_parameters:
            case.path_parameters["key"] = self._key(case.operation.label)
        if "/v1/kv/{key}" in case.operation.label and "ttl" in case.query:
            case.query["ttl"] = self._draw.choice(ttls)
        if case.operation.label.startswith("PUT /v1/namespaces/"):
            if self._draw.random() < 0.5:
                case.body = {"kind": "store"}
            else:
                case.body = {"kind": "cache", "max_items": 100}
        elif "{name}" in case.operation.label:
            case.path_parameters["name"] = "default"

    def _key(self, label: str) -> str:
        # What is put there is seldom a number; a counter is not put over.
        return "counts" if label.endswith("/incr") else self._draw.choice(keys)


def _leave_out(members: Any, name: str) -> None:
    if name in members:
        del members[name]
