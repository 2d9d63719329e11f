"""HTTP endpoints as values: what one takes, gives and refuses, in the types that check it.

A service lists its `Endpoint`s. `routes` makes Starlette routes of them that hand a handler
nothing but values of its types, and openapi.py makes the document that describes them, so that
the two cannot disagree. A handler returns the answer, a value of `answer_type`, or raises a
ClientError; it knows nothing of HTTP.

What a request is refused for, in this order:

    who asks        401 unauthorized     no good bearer token, or no good signature
                    401, 429, 403        of API keys, as key_access.py has it
    the path        404 not_found        a parameter that nothing can be called by, if its type
                                         names no other code
    the query       400 invalid_query    names each member that is wrong, unknown or repeated
    the headers     400 invalid_header   likewise, of those that the endpoint has a type for
    the body        413, 415, 400 invalid_body, likewise
    what it costs   429 rate_limited     more tokens than this API key has left
    how much        429 rate_limited     of one caller too many requests are under way

Path, query and headers are text, which text_members.py reads. Their types may name other codes to
refuse them with.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Generic, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, request_response
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from services.core.errors import FixRequest
from services.core.key_checks import Scope
from services.runtime.bearer import bearer_token, not_taken
from services.runtime.body_room import BodyRoom, Held
from services.runtime.client_address import ClientAddresses
from services.runtime.credential import Credential
from services.runtime.key_access import Admitted, KeyAccess, Need
from services.runtime.leaving import while_there
from services.runtime.problem import path_chars_max
from services.runtime.request_body import BodyLimit, check_is_json, decode_struct, read_body
from services.runtime.shares import ShareLimit, Shares
from services.runtime.signing import RequireSignature, Verifier
from services.runtime.text_members import TextMembers, Wrong, is_text, refusal

P = TypeVar("P")
Q = TypeVar("Q")
B = TypeVar("B")

# Forms and small documents; an endpoint that takes more says so.
body_bytes_default: Final = 64 * 1024
# What browsers call themselves is kept for people to recognise them by.
user_agent_chars_max: Final = 200
# Requests of one caller. Those that run hold connections to the database, of which there are ten
# (postgres.connections_max_default), some while they wait for each other; so not one caller's
# alone. A page that loads all it shows at once still gets it.
calls_of_caller: Final = ShareLimit(4, 16, 3.0, "rate_limited", "requests of this account")
# Of an account by its API keys. Each asks every node; so many keep all of them busy.
calls_of_tenant: Final = ShareLimit(32, 256, 3.0, "rate_limited", "requests of this account")

_json: Final = "application/json"
# What a path is refused with whose type names no other code.
_nothing_there: Final = "not_found"


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
    # Of the endpoint's `header_type`.
    headers: Any = None
    api_key: Credential | None = None

    @property
    def caller(self) -> Caller:
        """Who asks, on an endpoint that asks for a bearer token."""
        if self.signed_in is None:
            raise RuntimeError("this endpoint asks nobody who they are")
        return self.signed_in

    @property
    def credential(self) -> Credential:
        """What asks, on an endpoint that asks for an API key."""
        if self.api_key is None:
            raise RuntimeError("this endpoint asks nobody for an API key")
        return self.api_key


class Access(enum.Enum):
    """Who may call an endpoint."""

    OPEN = "anybody"
    BEARER = "who has logged in"
    API_KEY = "an API key with the endpoint's scope"
    INTERNAL = "services of this cluster, by signature"


@dataclass(slots=True, frozen=True)
class Raw:
    """Bytes as they are, where other endpoints have JSON."""

    description: str
    media_types: tuple[str, ...] = ("application/octet-stream",)


Headers = Iterable[tuple[bytes, bytes]]
Handler = Callable[[Call[Any, Any, Any]], Awaitable[object]]


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
    # None: it is only described here, and answered elsewhere.
    handler: Handler | None
    access: Access = Access.BEARER
    # What an API key must be good for.
    scope: Scope = "read"
    # What a request by an API key is counted as.
    counted_as: str = ""
    # What it costs, in tokens, by its body.
    cost: Callable[[Any], int] | None = None
    path_type: type[Any] | None = None
    query_type: type[Any] | None = None
    header_type: type[Any] | None = None
    # Refuses headers that no member of `header_type` can stand for.
    look_at_headers: Callable[[Headers], None] | None = None
    body_type: type[Any] | Raw | None = None
    # Refuses a body that would take long to decode and be refused then.
    look: Callable[[bytes], None] | None = None
    # Whether the body may be left out, which then counts as {}.
    body_optional: bool = False
    body_bytes_max: int = body_bytes_default
    # Whether a body is refused where there is no type for one: who sends it counts on it.
    bodiless: bool = False
    # Whether the handler may wait for something to happen: it is cancelled if the client leaves.
    waits: bool = False
    status: int = 200
    # None: the answer is empty.
    answer_type: Any = None
    # A Struct of the headers that come with it, only described.
    answer_headers: type[Any] | None = None
    # Other statuses that are no errors, and what they mean; without a body.
    also: Mapping[int, str] | None = None
    # Codes of the catalogue, beyond those that the members above lead to.
    errors: tuple[str, ...] = ()
    description: str = ""
    tag: str = ""


Authenticate = Callable[[str], Awaitable[Caller]]
Before = Callable[[], Awaitable[None]]


async def nothing_before() -> None:
    """For services that can always be asked."""


async def nobody(_: str) -> Caller:
    """For services that nobody logs in to."""
    raise FixRequest("unauthorized", "Nobody logs in here")


def routes(
    endpoints: Iterable[Endpoint],
    *,
    verifier: Verifier,
    addresses: ClientAddresses,
    authenticate: Authenticate = nobody,
    keys: KeyAccess | None = None,
    before: Before = nothing_before,
    room: BodyRoom | None = None,
) -> list[BaseRoute]:
    """A route for each path that is answered here. `authenticate` turns a bearer token into its
    caller, or raises; `keys` admits API keys; `before` is called ahead of them, and raises while no
    endpoint can be called at all. `room` is for large bodies, if others take some of it too."""
    by_path: dict[str, dict[str, ASGIApp]] = {}
    office = _Office(before, authenticate, keys, addresses, room or BodyRoom())
    for endpoint in endpoints:
        if endpoint.handler is None:
            continue
        if endpoint.access is Access.API_KEY and (keys is None or not endpoint.counted_as):
            raise ValueError(f"{endpoint.method} {endpoint.path} cannot be asked by API keys")
        methods = by_path.setdefault(endpoint.path, {})
        if endpoint.method in methods:
            raise ValueError(f"{endpoint.method} {endpoint.path} is there already")
        answering = _Answering(endpoint, endpoint.handler, office)
        app = request_response(answering.answer)
        if endpoint.access is Access.INTERNAL:
            app = RequireSignature(app, verifier)
        methods[endpoint.method] = BodyLimit(app, endpoint.body_bytes_max)
    return [
        Route(path, _Resource(methods), methods=[*methods]) for path, methods in by_path.items()
    ]


class _Resource:
    """The methods of one path, in one route: so a wrong method is told all that are possible."""

    limits_bodies = True

    def __init__(self, methods: Mapping[str, ASGIApp]) -> None:
        self._methods = dict(methods)
        if "GET" in methods:
            self._methods.setdefault("HEAD", methods["GET"])

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        await self._methods[scope["method"]](scope, receive, send)


class _Office:
    """What the endpoints of a service share: whom they let in, and how much at once."""

    def __init__(
        self,
        before: Before,
        authenticate: Authenticate,
        keys: KeyAccess | None,
        addresses: ClientAddresses,
        room: BodyRoom,
    ) -> None:
        self.before = before
        self.authenticate = authenticate
        self.keys = keys
        self.addresses = addresses
        self.of_callers = Shares(calls_of_caller)
        self.of_tenants = Shares(calls_of_tenant)
        self.room = room


class _Answering:
    """One endpoint as Starlette calls it."""

    def __init__(self, endpoint: Endpoint, handler: Handler, office: _Office) -> None:
        self._endpoint = endpoint
        self._handler = handler
        self._office = office
        self._path = TextMembers(endpoint.path_type, _nothing_there)
        self._query = TextMembers(endpoint.query_type)
        self._headers = TextMembers(endpoint.header_type, "invalid_header")

    async def answer(self, request: Request) -> Response:
        office, endpoint = self._office, self._endpoint
        await office.before()
        if endpoint.access is Access.API_KEY and office.keys is not None:
            need = Need(endpoint.scope, endpoint.counted_as, endpoint.cost is not None)
            address = office.addresses.of(request.scope)
            respond = partial(self._admitted, request)
            return await office.keys.answer(request, need, address, respond)
        signed_in = None
        if endpoint.access is Access.BEARER:
            signed_in = await self._signed_in(request)
        call = await self._call(request, signed_in=signed_in)
        return self._response(await self._handled(request, call))

    async def _admitted(self, request: Request, admitted: Admitted) -> Response:
        """The answer to a request by an API key."""
        endpoint = self._endpoint
        with self._office.room.held(admitted.whose) as held:
            call = await self._call(request, admitted=admitted, held=held)
            if endpoint.cost is not None:
                admitted.spend(endpoint.cost(call.body))
            async with self._office.of_tenants.of(admitted.whose):
                return self._response(await self._handled(request, call))

    async def _call(
        self,
        request: Request,
        *,
        signed_in: Caller | None = None,
        admitted: Admitted | None = None,
        held: Held | None = None,
    ) -> Call[Any, Any, Any]:
        return Call(
            self._path_of(request),
            _value(self._query.of_query(request.scope["query_string"])),
            headers=self._headers_of(request),
            body=await self._body_of(request, admitted, held),
            client=self._client(request),
            signed_in=signed_in,
            api_key=None if admitted is None else admitted.credential,
        )

    async def _handled(self, request: Request, call: Call[Any, Any, Any]) -> object:
        handling = self._shared(call)
        return await (while_there(request, handling) if self._endpoint.waits else handling)

    async def _shared(self, call: Call[Any, Any, Any]) -> object:
        if call.signed_in is None:
            return await self._handler(call)
        async with self._office.of_callers.of(call.signed_in.user_id):
            return await self._handler(call)

    def _response(self, answer: object) -> Response:
        endpoint = self._endpoint
        # What is answered here concerns one person, and is true only now.
        headers = {"Cache-Control": "no-store"}
        if endpoint.answer_type is None:
            return Response(status_code=endpoint.status, headers=headers)
        if isinstance(answer, Encoded):
            return Response(answer.content, endpoint.status, headers, answer.media_type)
        if isinstance(answer, Headed):
            headers |= answer.headers
            answer = answer.value
        body = msgspec.json.encode(answer)
        return Response(body, endpoint.status, headers, _json)

    async def _signed_in(self, request: Request) -> Caller:
        token = bearer_token(request)
        try:
            return await self._office.authenticate(token)
        except FixRequest as error:
            raise not_taken(error) from error

    def _path_of(self, request: Request) -> Any:
        value, wrong = self._path.of_path(request.path_params)
        # Where it was not, the path has been made into other text that is.
        if wrong or not is_text(request.scope.get("raw_path") or b""):
            code = next(iter(self._path.codes), _nothing_there)
            if code != _nothing_there:
                raise FixRequest(code, "The name in the path is not valid UTF-8")
            raise FixRequest(code, f"Nothing is at {request.url.path[:path_chars_max]}")
        return value

    def _headers_of(self, request: Request) -> Any:
        fields = request.scope["headers"]
        if self._endpoint.look_at_headers is not None:
            self._endpoint.look_at_headers(fields)
        return _value(self._headers.of_headers(fields))

    async def _body_of(self, request: Request, of_key: Admitted | None, held: Held | None) -> Any:
        endpoint = self._endpoint
        of = endpoint.body_type
        if of is None:
            if endpoint.bodiless and await read_body(request, held):
                problem = f"{endpoint.method} takes no body here; nothing was changed"
                raise FixRequest("invalid_body", problem)
            return None
        optional = endpoint.body_optional
        if not isinstance(of, Raw) and not optional:
            check_is_json(request)
        body = await read_body(request, held)
        if of_key is not None:
            of_key.body_bytes = len(body)
        if isinstance(of, Raw):
            return body
        if optional and not body:
            return msgspec.convert({}, of)
        if optional:
            check_is_json(request)
        if endpoint.look is not None:
            endpoint.look(body)
        return decode_struct(body, of)

    def _client(self, request: Request) -> Client:
        agent = request.headers.get("user-agent", "")[:user_agent_chars_max]
        shown = "".join(character if character.isprintable() else "?" for character in agent)
        return Client(self._office.addresses.of(request.scope), shown)


@dataclass(slots=True, frozen=True)
class Headed:
    """An answer with headers of its own, as the endpoint's `answer_headers` describes them."""

    value: object
    headers: Mapping[str, str]


@dataclass(slots=True, frozen=True)
class Encoded:
    """An answer that its handler has encoded: it is not JSON, or it had to be measured."""

    content: bytes
    media_type: str = _json


def _value(read: tuple[Any, list[Wrong]]) -> Any:
    value, wrong = read
    if wrong:
        raise refusal(wrong)
    return value
