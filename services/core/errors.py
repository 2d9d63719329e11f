"""Every error a caller can meet, in one tree, divided by what the caller can do about it.

    YdhtError
    ├── FixRequest       4xx          the request is wrong; sending it again changes nothing
    ├── RetryLater       429 503 507  nothing was applied; the same request may succeed later
    ├── UnknownOutcome   504          it may or may not have been applied; look before repeating
    ├── InternalError    500          a bug of ours, logged with the request id
    ├── PeerError        -            the other end of a link broke the protocol: close the link
    └── FatalError       -            this process must stop and say why (settings, corruption)
        └── RestartLater -            so must it, but another start may do better (a taken port)

The first four carry a code of `CATALOGUE` and travel to clients as problem+json (RFC 9457).
The others never leave a process; of the last two its exit code tells. Any other exception is a
bug and is answered `internal`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(slots=True, frozen=True)
class ErrorCode:
    """One stable machine word, the status it travels with, and its short human text."""

    code: str
    status: int
    title: str

    @property
    def retryable(self) -> bool:
        """Whether nothing was applied and the very same request may succeed later."""
        return self.status in (429, 503, 507)


def _codes(status: int, **titles: str) -> dict[str, ErrorCode]:
    return {code: ErrorCode(code, status, title) for code, title in titles.items()}


CATALOGUE: Mapping[str, ErrorCode] = {
    **_codes(
        400,
        invalid_consistency="Invalid consistency level. Must be 'strong' or 'eventual'",
        invalid_ttl="Invalid TTL",
        invalid_key="Invalid key",
        invalid_namespace="Invalid namespace",
        invalid_header="Invalid header",
        invalid_cursor="Invalid cursor",
        invalid_query="Invalid query",
        invalid_body="Invalid request body",
        invalid_json="Request body is not valid JSON",
    ),
    **_codes(
        401,
        missing_api_key="Missing X-API-Key header",
        invalid_api_key="Invalid API key",
        unauthorized="Not authorized",
        invalid_credentials="Invalid credentials",
    ),
    **_codes(
        403,
        insufficient_scope="API key lacks the scope for this request",
        key_not_allowed="Key is outside the prefix this API key is limited to",
        csrf="Form expired or sent from another site",
    ),
    **_codes(404, key_not_found="Key not found", not_found="Not found"),
    **_codes(405, method_not_allowed="Method not allowed"),
    **_codes(408, request_timeout="Request took too long to arrive"),
    **_codes(
        409,
        already_exists="Already exists",
        limit_reached="Limit reached",
        not_an_integer="Value is not an integer",
    ),
    **_codes(412, precondition_failed="Precondition failed"),
    **_codes(
        413,
        value_too_large="Value too large",
        metadata_too_large="Metadata too large",
        body_too_large="Request body too large",
        response_too_large="Result does not fit the answer",
    ),
    **_codes(414, key_too_long="Key too long"),
    **_codes(415, unsupported_media_type="Unsupported media type"),
    **_codes(429, rate_limited="Rate limit exceeded", quota_exhausted="Daily quota exhausted"),
    **_codes(431, headers_too_large="Request headers too large"),
    **_codes(500, internal="Internal error"),
    **_codes(
        503,
        no_quorum="Not enough replicas are reachable",
        no_replicator="No replicator is reachable",
        overloaded="Overloaded",
        auth_unavailable="API key could not be checked",
        database_unavailable="Database is unavailable",
        gateway_unavailable="Data service is unavailable",
        keygen_unavailable="ID service is unavailable",
        clock_skew="Clock skew is too large",
        cluster_forming="Cluster is still forming",
        shutting_down="Shutting down",
    ),
    **_codes(504, unknown_outcome="Outcome unknown: the write may or may not have been applied"),
    **_codes(507, storage_full="Storage is full"),
}

# A client that hears nothing better waits this long: about one link reconnect or hedge.
retry_after_s_default = 1


class YdhtError(Exception):
    """Base of everything this code base raises on purpose."""


class ClientError(YdhtError):
    """An error that travels to a client under a code of the catalogue.

    `detail` names the member, the limit or the dependency in question. `members` are added to
    the problem document as they stand, and `headers` to the answer.
    """

    statuses: ClassVar[frozenset[int]] = frozenset()

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        members: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{code}: {detail}")
        self.entry = CATALOGUE[code]
        if self.entry.status not in self.statuses:
            raise ValueError(f"{code} is a {self.entry.status}, not for {type(self).__name__}")
        self.detail = detail
        self.members: Mapping[str, Any] = members or {}
        self.headers: Mapping[str, str] = headers or {}

    @property
    def code(self) -> str:
        return self.entry.code

    @property
    def status(self) -> int:
        return self.entry.status

    @property
    def retryable(self) -> bool:
        return self.entry.retryable

    def problem(self, request_id: str) -> dict[str, Any]:
        """The problem+json document of this error, ready to be serialised."""
        entry = self.entry
        return {
            "type": f"/docs/errors#{entry.code}",
            "title": entry.title,
            "status": entry.status,
            "code": entry.code,
            "error": entry.title,
            "detail": self.detail,
            "request_id": request_id,
            **self.members,
        }


def kept(error: ClientError) -> ClientError:
    """The error, to be kept beyond the handling of it.

    Without its context and the frames that it has come by, as long as it was not raised from
    another: these have in hand all that was being done, such as what
    a client has sent, down to the connection; and where one of them belongs to who keeps the error,
    none of it would be freed before the cycle collector comes by.
    """
    error.__context__ = None
    return error.with_traceback(None)


class FixRequest(ClientError):
    """The request is at fault; the detail says which part and what would be accepted."""

    statuses = frozenset({400, 401, 403, 404, 405, 408, 409, 412, 413, 414, 415, 431})


class RetryLater(ClientError):
    """Nothing was applied; the same request may succeed after `retry_after_s`."""

    statuses = frozenset({429, 503, 507})

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        retry_after_s: int = retry_after_s_default,
        members: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            code,
            detail,
            members=members,
            headers={"Retry-After": str(retry_after_s), **(headers or {})},
        )
        self.retry_after_s = retry_after_s


class UnknownOutcome(ClientError):
    """The write may or may not have been applied; `operation_id` finds it in the logs."""

    statuses = frozenset({504})

    def __init__(self, detail: str, *, operation_id: str | None = None) -> None:
        members = {} if operation_id is None else {"operation_id": operation_id}
        super().__init__("unknown_outcome", detail, members=members)


class InternalError(ClientError):
    """A bug. The detail tells the client nothing but where to look."""

    statuses = frozenset({500})

    def __init__(self, detail: str = "A bug on our side; the log has it by its request id") -> None:
        super().__init__("internal", detail)


class PeerError(YdhtError):
    """The other end of a link sent what the protocol does not allow; only closing helps."""


class FatalError(YdhtError):
    """This process cannot go on, nor could its next start until somebody has mended the cause.

    The text is one line: what is wrong, where, and what to do. The exit code is one that nothing
    else ends with, so that a supervisor of any make can be told not to try again.
    """

    # EX_CONFIG of sysexits.h: not among the codes of shells, of Python and of click.
    exit_code: ClassVar[int] = 78


class RestartLater(FatalError):
    """This process cannot go on, but the same start may succeed later, with nothing mended.

    What failed it was passing, or may have been: a port, a full disk, another process.
    """

    exit_code = 1
