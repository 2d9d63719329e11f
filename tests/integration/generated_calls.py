"""Who makes the requests that schemathesis generates, and what they know.

Random credentials are refused by the first line that looks at them, and say little about the
lines behind it. So each request comes from somebody who has an account, from an address of its
own, and in many of those that are valid by the schema random values give way to what only a real
client would know: a password, a refresh token, the id of a key, the present minute. Requests that
break the schema on purpose stay as they are, and those that are to come without a credential do.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import requests
from requests.auth import AuthBase
from schemathesis import BaseSchema, Case, GenerationMode, HookContext
from schemathesis.generation.meta import TestPhase
from schemathesis.hooks import GLOBAL_HOOK_DISPATCHER

from services.runtime.clock import SystemClock
from services.runtime.signing import Signer, signature_header
from tests.integration.crowd import Member
from tests.integration.node_process import secret

# An account has room for a hundred API keys; who may have made some gives way to the next.
calls_per_member: Final = 40

AnyCase = Case[Any]
Amend = Callable[[AnyCase, Member, random.Random], None]


class GeneratedCalls(AuthBase):
    """The calls of one run. They are made one at a time."""

    def __init__(self, members: Sequence[Member], seed: int) -> None:
        self._members: Iterator[Member] = iter(members)
        self._draw = random.Random(seed)
        self._signer = Signer(secret, SystemClock())
        self._member = next(self._members)
        self._calls = 0
        # Of the request that is about to be sent.
        self._caller = self._member
        self._is_internal = False

    @contextmanager
    def making(self, schema: BaseSchema) -> Iterator[None]:
        """Make the calls of the block. This hook can only be set for all schemas at once."""
        schema.auth.set_from_requests(self)
        hook = self._before_call
        GLOBAL_HOOK_DISPATCHER.register_hook_with_name(hook, "before_call")
        try:
            yield
        finally:
            GLOBAL_HOOK_DISPATCHER.unregister(hook)

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Put the credential on a request that is otherwise as it will be sent."""
        if not self._is_internal:
            request.headers["Authorization"] = f"Bearer {self._caller.access_token}"
            return request
        body = request.body or b""
        assert isinstance(body, bytes | str)
        assert request.method is not None
        request.headers[signature_header] = self._signer.sign(
            request.method,
            request.path_url,
            [(name, str(value)) for name, value in request.headers.items()],
            body.encode() if isinstance(body, str) else body,
        )
        return request

    def _before_call(self, context: HookContext, case: AnyCase, kwargs: dict[str, Any]) -> None:
        """Choose who makes the call, and tell the case what they know."""
        label = case.operation.label
        meta = case.meta
        # A story goes on with ids that an earlier answer told the same account.
        in_story = meta is not None and meta.phase.name == TestPhase.STATEFUL
        security = case.operation.definition.raw.get("security", [])
        self._is_internal = any("cluster_signature" in scheme for scheme in security)
        self._caller = self._who(label, in_story=in_story)
        number = self._draw.randrange(1 << 24)
        place = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        case.headers["X-Forwarded-For"] = place
        if label == "GET /key-events":
            _do_not_wait(case)
        if meta is not None and meta.generation.mode != GenerationMode.POSITIVE:
            return
        if in_story and case.path_parameters:
            return
        amend, share = _amends.get(label, (_as_it_is, 0.0))
        if self._draw.random() < share:
            amend(case, self._caller, self._draw)

    def _who(self, label: str, *, in_story: bool) -> Member:
        """Who is to make the next call. In a story it is one account, but for what would end it."""
        if in_story:
            return next(self._members) if label in _ends_session else self._member
        caller = self._member
        self._calls += 1
        if label in _ends_session | _spends_key or self._calls % calls_per_member == 0:
            self._member = next(self._members)
        return caller


def _put(case: AnyCase, **members: Any) -> None:
    if isinstance(case.body, dict):
        case.body = {**case.body, **members}


def _sign_up(case: AnyCase, _: Member, draw: random.Random) -> None:
    name = f"somebody-{draw.getrandbits(64):x}"
    _put(case, email=f"{name}@example.com", username=name, password=f"password of {name}")


def _log_in(case: AnyCase, member: Member, _: random.Random) -> None:
    _put(case, email=member.email, password=member.password)


def _refresh(case: AnyCase, member: Member, _: random.Random) -> None:
    _put(case, refresh_token=member.refresh_token)


def _close(case: AnyCase, member: Member, _: random.Random) -> None:
    _put(case, password=member.password)


def _change_password(case: AnyCase, member: Member, draw: random.Random) -> None:
    _put(case, current_password=member.password, new_password=f"new {draw.getrandbits(64):x}")


def _validate_key(case: AnyCase, member: Member, _: random.Random) -> None:
    case.body = {"key": member.api_key}


def _name_key(case: AnyCase, member: Member, _: random.Random) -> None:
    case.path_parameters = {"key_id": member.key_id}


def _rotate_key(case: AnyCase, member: Member, draw: random.Random) -> None:
    _name_key(case, member, draw)
    case.body = {"overlap": draw.choice(["0s", "90s", "24h", "30d"])}


def _name_session(case: AnyCase, member: Member, _: random.Random) -> None:
    case.path_parameters = {"session_id": member.session_id}


def _report_usage(case: AnyCase, _: Member, draw: random.Random) -> None:
    """Of the present minute, which is one that is kept; and from a gateway nobody has heard of,
    so that no number is too far behind its last."""
    minute = datetime.now(UTC).replace(second=0, microsecond=0).isoformat()
    rollups = case.body.get("rollups") if isinstance(case.body, dict) else None
    if isinstance(rollups, list):
        now = [{**row, "minute": minute} if isinstance(row, dict) else row for row in rollups]
        _put(case, rollups=now, sender=f"gateway-{draw.getrandbits(32)}")


def _ask_for_usage(case: AnyCase, _: Member, draw: random.Random) -> None:
    """Of some part of the last two days."""
    until = datetime.now(UTC) - timedelta(minutes=draw.randrange(1, 1_440))
    since = until - timedelta(minutes=draw.randrange(1, 1_440))
    query = {"from": since.isoformat(), "to": until.isoformat()}
    case.query = {**(case.query or {}), **query}


def _from_the_start(case: AnyCase, _: Member, __: random.Random) -> None:
    """A cursor is nothing that a client makes."""
    case.query = {name: value for name, value in (case.query or {}).items() if name != "cursor"}


def _as_it_is(_: AnyCase, __: Member, ___: random.Random) -> None:
    pass


def _do_not_wait(case: AnyCase) -> None:
    """Nobody is to wait for the answer to a poll that is about nothing."""
    query = case.query or {}
    wait_s = str(query.get("wait_s", ""))
    if not wait_s or wait_s.isdigit():
        case.query = {**query, "wait_s": 0}


# By operation, and how often: of passwords and tokens almost always, for every random one of them
# is refused alike.
_amends: Final[dict[str, tuple[Amend, float]]] = {
    "POST /signup": (_sign_up, 0.5),
    "POST /login": (_log_in, 0.9),
    "POST /refresh": (_refresh, 0.9),
    "DELETE /me": (_close, 0.9),
    "POST /me/password": (_change_password, 0.9),
    "POST /validate-key": (_validate_key, 0.9),
    "DELETE /apikeys/{key_id}": (_name_key, 0.5),
    "POST /apikeys/{key_id}/rotate": (_rotate_key, 0.5),
    "DELETE /sessions/{session_id}": (_name_session, 0.5),
    "GET /apikeys": (_from_the_start, 0.7),
    "GET /sessions": (_from_the_start, 0.7),
    "GET /usage": (_ask_for_usage, 0.7),
    "GET /usage/stats": (_ask_for_usage, 0.7),
    "POST /usage": (_report_usage, 0.5),
}
# After these an account cannot go on, or not do the same again.
_ends_session: Final = {
    "DELETE /me",
    "POST /me/password",
    "POST /logout",
    "POST /refresh",
    "DELETE /sessions/{session_id}",
}
_spends_key: Final = {"DELETE /apikeys/{key_id}", "POST /apikeys/{key_id}/rotate"}
