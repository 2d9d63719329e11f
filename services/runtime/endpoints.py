"""HTTP endpoints as values: what one takes, gives and refuses, in the types that check it.

A service lists its `Endpoint`s. `routes` makes Starlette routes of them that hand a handler
nothing but values of its types, and openapi.py makes the document that describes them, so that
the two cannot disagree. A handler returns the answer, a value of `answer_type`, or raises a
ClientError; it knows nothing of HTTP.

What a request is refused for, in this order:

    who asks        401 unauthorized     no good bearer token, or no good signature
    the path        404 not_found        a parameter that nothing can be called by
    the query       400 invalid_body     names each member that is wrong, unknown or repeated
    the body        413, 415, 400        likewise
    how much        429 rate_limited     of one caller too many requests are under way

Query and path are text: what is read from them is text, times, choices, and whole numbers, which
are plain decimal ones.
"""

from __future__ import annotations

import asyncio
import enum
import re
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar
from urllib.parse import parse_qsl

import msgspec
from msgspec import inspect as types
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, request_response
from starlette.types import ASGIApp, Receive, Scope, Send

from services.core.errors import FixRequest
from services.runtime.client_address import ClientAddresses
from services.runtime.request_body import BodyLimit, detail_chars_max, invalid_members, read_struct
from services.runtime.shares import ShareLimit, Shares
from services.runtime.signing import RequireSignature, Verifier

P = TypeVar("P")
Q = TypeVar("Q")
B = TypeVar("B")

# Forms and small documents; an endpoint that takes more says so.
body_bytes_default: Final = 64 * 1024
# What browsers call themselves is kept for people to recognise them by.
user_agent_chars_max: Final = 200
# More members than any query of ours has, fewer than it takes to keep a process busy.
query_members_max: Final = 64
# Requests of one caller. Those that run hold connections to the database, of which there are ten
# (postgres.connections_max_default), some while they wait for each other; so not one caller's
# alone. A page that loads all it shows at once still gets it.
calls_of_caller: Final = ShareLimit(4, 16, 3.0, "rate_limited", "requests of this account")

_integer: Final = re.compile(r"0|-?[1-9][0-9]{0,18}", re.ASCII)
_bearer: Final = re.compile(r"Bearer +([\x21-\x7e]{1,4096})", re.IGNORECASE | re.ASCII)
_challenge: Final = "WWW-Authenticate"


@dataclass(slots=True, frozen=True)
class Client:
    """Who is at the other end of the connection."""

    address: str
    # What it calls itself: printable, and cut.
    user_agent: str


@dataclass(slots=True, frozen=True)
class Caller:
    """Who a bearer token says it is."""

    user_id: int
    session_id: int


@dataclass(slots=True, frozen=True)
class Call(Generic[P, Q, B]):
    """One request as its handler sees it; None where the endpoint has no such type."""

    path: P
    query: Q
    body: B
    client: Client
    signed_in: Caller | None = None

    @property
    def caller(self) -> Caller:
        """Who asks, on an endpoint that asks for a bearer token."""
        if self.signed_in is None:
            raise RuntimeError("this endpoint asks nobody who they are")
        return self.signed_in


class Access(enum.Enum):
    """Who may call an endpoint."""

    OPEN = "anybody"
    BEARER = "who has logged in"
    INTERNAL = "services of this cluster, by signature"


@dataclass(slots=True, frozen=True)
class Endpoint:
    """One operation. The types are msgspec Structs; their constraints are the validation.

    A Struct of a body should forbid unknown fields: a misspelt member must not be ignored.
    """

    method: str
    path: str
    # The operationId.
    name: str
    summary: str
    handler: Callable[[Call[Any, Any, Any]], Awaitable[object]]
    access: Access = Access.BEARER
    path_type: type[Any] | None = None
    query_type: type[Any] | None = None
    body_type: type[Any] | None = None
    # Whether the body may be left out, which then counts as {}.
    body_optional: bool = False
    body_bytes_max: int = body_bytes_default
    # Whether the handler may wait for something to happen: it is cancelled if the client leaves.
    waits: bool = False
    status: int = 200
    # None: the answer is empty.
    answer_type: Any = None
    # Codes of the catalogue, beyond those that the members above lead to.
    errors: tuple[str, ...] = ()
    tag: str = ""


Authenticate = Callable[[str], Awaitable[Caller]]
Before = Callable[[], Awaitable[None]]


async def nothing_before() -> None:
    """For services that can always be asked."""


def routes(
    endpoints: Iterable[Endpoint],
    *,
    authenticate: Authenticate,
    verifier: Verifier,
    addresses: ClientAddresses,
    before: Before = nothing_before,
) -> list[BaseRoute]:
    """A route for each path. `authenticate` turns a bearer token into its caller, or raises;
    `before` is called ahead of it, and raises while no endpoint can be called at all."""
    by_path: dict[str, dict[str, ASGIApp]] = {}
    shares = Shares(calls_of_caller)
    for endpoint in endpoints:
        methods = by_path.setdefault(endpoint.path, {})
        if endpoint.method in methods:
            raise ValueError(f"{endpoint.method} {endpoint.path} is there already")
        answering = _Answering(endpoint, before, authenticate, addresses, shares)
        layers = [Middleware(BodyLimit, bytes_max=endpoint.body_bytes_max)]
        if endpoint.access is Access.INTERNAL:
            layers.append(Middleware(RequireSignature, verifier=verifier))
        methods[endpoint.method] = _layered(request_response(answering.answer), layers)
    return [
        Route(path, _Resource(methods), methods=[*methods]) for path, methods in by_path.items()
    ]


def _layered(app: ASGIApp, layers: Sequence[Middleware]) -> ASGIApp:
    for layer, args, options in reversed(layers):
        app = layer(app, *args, **options)
    return app


class _Resource:
    """The methods of one path, in one route: so a wrong method is told all that are possible."""

    def __init__(self, methods: Mapping[str, ASGIApp]) -> None:
        self._methods = dict(methods)
        if "GET" in methods:
            self._methods.setdefault("HEAD", methods["GET"])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._methods[scope["method"]](scope, receive, send)


class _Answering:
    """One endpoint as Starlette calls it."""

    def __init__(
        self,
        endpoint: Endpoint,
        before: Before,
        authenticate: Authenticate,
        addresses: ClientAddresses,
        shares: Shares,
    ) -> None:
        self._endpoint = endpoint
        self._before = before
        self._authenticate = authenticate
        self._addresses = addresses
        self._shares = shares
        self._path = _Members(endpoint.path_type)
        self._query = _Members(endpoint.query_type)

    async def answer(self, request: Request) -> Response:
        await self._before()
        endpoint = self._endpoint
        signed_in = None
        if endpoint.access is Access.BEARER:
            signed_in = await self._signed_in(request)
        call = Call(
            self._path_of(request),
            self._query_of(request),
            await self._body_of(request),
            self._client(request),
            signed_in,
        )
        if endpoint.waits:
            answer = await _while_there(request, self._handled(call))
        else:
            answer = await self._handled(call)
        # What is answered here concerns one person, and is true only now.
        headers = {"Cache-Control": "no-store"}
        if endpoint.answer_type is None:
            return Response(status_code=endpoint.status, headers=headers)
        body = msgspec.json.encode(answer)
        return Response(body, endpoint.status, headers, media_type="application/json")

    async def _handled(self, call: Call[Any, Any, Any]) -> object:
        if call.signed_in is None:
            return await self._endpoint.handler(call)
        async with self._shares.of(call.signed_in.user_id):
            return await self._endpoint.handler(call)

    async def _signed_in(self, request: Request) -> Caller:
        given = request.headers.getlist("authorization")
        if not given:
            raise FixRequest(
                "unauthorized",
                "The header Authorization: Bearer <access token> is missing; POST /login gives one",
                headers={_challenge: "Bearer"},
            )
        match = _bearer.fullmatch(given[0].strip(" \t"))
        if match is None or len(given) > 1:
            raise FixRequest(
                "unauthorized",
                "The header Authorization is not Bearer <access token>, once",
                headers={_challenge: "Bearer"},
            )
        try:
            return await self._authenticate(match[1])
        except FixRequest as error:
            headers = {_challenge: 'Bearer error="invalid_token"', **error.headers}
            raise FixRequest(
                error.code, error.detail, members=error.members, headers=headers
            ) from error

    def _path_of(self, request: Request) -> Any:
        value, wrong = self._path.read(request.path_params)
        if wrong:
            raise HTTPException(404)
        return value

    def _query_of(self, request: Request) -> Any:
        given: dict[str, str] = {}
        wrong: list[tuple[str, str]] = []
        for name, text in _query_pairs(request.scope["query_string"]):
            if name not in self._query.names:
                wrong.append((_shown(name), "is not a parameter of this query"))
            elif name in given:
                wrong.append((name, "is given more than once"))
            given[name] = text
        value, errors = self._query.read(given)
        if wrong or errors:
            raise invalid_members([*wrong, *errors])
        return value

    async def _body_of(self, request: Request) -> Any:
        if self._endpoint.body_type is None:
            return None
        if self._endpoint.body_optional and not await request.body():
            return msgspec.convert({}, self._endpoint.body_type)
        return await read_struct(request, self._endpoint.body_type)

    def _client(self, request: Request) -> Client:
        agent = request.headers.get("user-agent", "")[:user_agent_chars_max]
        shown = "".join(character if character.isprintable() else "?" for character in agent)
        return Client(self._addresses.of(request.scope), shown)


async def _while_there(request: Request, handling: Coroutine[Any, Any, object]) -> object:
    """What is returned by who handles the request, which has been read to its end; if the client
    leaves before, it is cancelled, and ClientDisconnect is raised."""
    handler = asyncio.create_task(handling)
    leaving = asyncio.create_task(_until_left(request))
    try:
        await asyncio.wait((handler, leaving), return_when=asyncio.FIRST_COMPLETED)
        if handler.done():
            return handler.result()
        raise ClientDisconnect
    finally:
        handler.cancel()
        leaving.cancel()
        await asyncio.wait((handler, leaving))


async def _until_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue


class _Members:
    """A Struct that is read from text, member by member; without a Struct there are none."""

    def __init__(self, of: type[Any] | None) -> None:
        self._of = of
        fields = () if of is None else msgspec.structs.fields(of)
        self._fields = {field.encode_name: field for field in fields}
        self._integers = {name for name, field in self._fields.items() if _is_integer(field.type)}

    @property
    def names(self) -> Iterable[str]:
        return self._fields.keys()

    def read(self, given: Mapping[str, str]) -> tuple[Any, list[tuple[str, str]]]:
        """The value, and what is wrong with which member if it cannot be made."""
        if self._of is None:
            return None, []
        found: dict[str, Any] = {}
        wrong: list[tuple[str, str]] = []
        for name, member in self._fields.items():
            text = given.get(name)
            if text is None:
                if member.required:
                    wrong.append((name, "is missing"))
            elif name in self._integers and not _is_int64(text):
                wrong.append((name, "is not a whole number of 64 bits"))
            else:
                try:
                    # Lax, it would take null for what may be absent, and numbers for times.
                    strict = name not in self._integers
                    found[name] = msgspec.convert(text, member.type, strict=strict)
                except msgspec.ValidationError as error:
                    wrong.append((name, str(error)[:detail_chars_max]))
        if wrong:
            return None, wrong
        try:
            return msgspec.convert(found, self._of), []
        except msgspec.ValidationError as error:
            # Its members are right one by one, but not together.
            return None, [("query", str(error)[:detail_chars_max])]


def _is_int64(text: str) -> bool:
    """Whether it is a number as it is written in a URL; msgspec would also take 1e2 and null."""
    return _integer.fullmatch(text) is not None and -(2**63) <= int(text) < 2**63


def _is_integer(annotation: Any) -> bool:
    kind = types.type_info(annotation)
    kinds = kind.types if isinstance(kind, types.UnionType) else (kind,)
    return any(isinstance(one, types.IntType) for one in kinds)


def _query_pairs(query: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(
            query.decode("latin-1"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=query_members_max,
        )
    except UnicodeDecodeError:
        raise invalid_members([("query", "is not UTF-8")]) from None
    except ValueError:
        problem = f"has more than {query_members_max} parameters"
        raise invalid_members([("query", problem)]) from None


def _shown(name: str) -> str:
    return name[:detail_chars_max]
