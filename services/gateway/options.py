"""What the headers of a request ask for, whatever its path and method.

They are read once for each set of headers: a client that sends the same ones again on a connection
is looked up there (runtime/exchange.py). So nothing here depends on the time, the path or the
method, and what is wrong is kept to be said once it is known who asks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from services.core.errors import ClientError, FixRequest, kept
from services.core.hlc import Version, parse_etag
from services.core.key import check_namespace, namespace_prefix
from services.core.operations import versions_max
from services.core.record import Metadata
from services.gateway.keyspace import namespace_header
from services.gateway.unheeded import is_noted, metadata_mark
from services.runtime.credential import Credential
from services.runtime.edge import given_request_id
from services.runtime.key_access import api_key_in
from services.runtime.signing import signature_header

Fields = Sequence[tuple[bytes, bytes]]

namespace_default: Final = b"default"
# What curl says of a body whose type it was not told; no value is meant to be kept as a form.
_types_unsaid: Final = (b"", b"application/x-www-form-urlencoded")
_signature: Final = signature_header.lower().encode("ascii")
_tag: Final = re.compile(rb'(?:W/)?"[^"]*"')
_tags: Final = re.compile(rb'(?:W/)?"[^"]*"(?:[ \t]*,[ \t]*(?:W/)?"[^"]*")*')
# Of these a second one would contradict the first.
_single: Final = frozenset((b"x-consistency", b"x-namespace", b"content-type", b"origin"))


class Tags:
    """The versions that an If-Match or If-None-Match names; `any` for `*`."""

    __slots__ = ("any", "versions")

    def __init__(self, versions: tuple[Version, ...], *, any_: bool) -> None:
        self.versions = versions
        self.any = any_

    def match(self, version: Version) -> bool:
        return self.any or version in self.versions


class Options:
    """One set of headers, understood. With a `problem` the rest means nothing but whose it is."""

    __slots__ = (
        "_meta",
        "api_key",
        "content_type",
        "credential",
        "if_match",
        "if_none_match",
        "namespace",
        "nobody",
        "origin",
        "prefix",
        "problem",
        "request_id",
        "signed",
        "strong",
        "unheeded",
        "user_metadata",
    )

    def __init__(self, fields: Fields) -> None:
        self.problem: ClientError | None = None
        self.api_key = b""
        # Why there is no API key, if there is none.
        self.nobody: ClientError | None = None
        # Whether it comes from the console, signed.
        self.signed = any(name == _signature for name, _ in fields)
        self.strong = False
        self.namespace = namespace_default
        self.if_match: Tags | None = None
        self.if_none_match: Tags | None = None
        self.content_type = b""
        self.origin = b""
        self.user_metadata: tuple[tuple[bytes, bytes], ...] = ()
        # The names of what some methods could only ignore (unheeded.py).
        self.unheeded: tuple[bytes, ...] = ()
        # Given by the client, or None: each request without one gets its own.
        self.request_id = given_request_id(fields)
        # Whose it is, once that is known, and what that one's storage keys begin with.
        self.credential: Credential | None = None
        self.prefix = b""
        self._meta: bytes | None = None
        try:
            self.api_key = api_key_in(fields)
        except ClientError as error:
            self.nobody = kept(error)
        try:
            self._read(fields)
        except ClientError as error:
            self.problem = kept(error)

    def belongs_to(self, credential: Credential) -> None:
        self.credential = credential
        self.prefix = namespace_prefix(credential.tenant, self.namespace)

    @property
    def conditional(self) -> bool:
        return self.if_match is not None or self.if_none_match is not None

    def meta(self) -> bytes:
        """What is kept beside a value, encoded. FixRequest if it cannot be."""
        if self._meta is None:
            metadata = Metadata(content_type=self.content_type, user=self.user_metadata)
            self._meta = metadata.encode()
        return self._meta

    def _read(self, fields: Fields) -> None:
        found: dict[bytes, bytes] = {}
        metadata: list[tuple[bytes, bytes]] = []
        conditions: dict[bytes, list[bytes]] = {}
        unheeded: list[bytes] = []
        twice = None
        for name, value in fields:
            if name in _single:
                if found.setdefault(name, value) != value:
                    twice = name
            elif name.startswith(metadata_mark):
                metadata.append((name[len(metadata_mark) :], value))
            elif name in (b"if-match", b"if-none-match"):
                conditions.setdefault(name, []).append(value)
            elif is_noted(name, value):
                unheeded.append(name)
        # Before anything is found fault with: a page has to be let read what is wrong.
        self.origin = found.get(b"origin", b"")
        if twice is not None:
            raise _twice(twice)
        self.user_metadata = tuple(metadata)
        if metadata:
            unheeded.append(metadata_mark)
        self.unheeded = tuple(unheeded)
        self.content_type = found.get(b"content-type", b"")
        if self.content_type.lower() in _types_unsaid:
            self.content_type = b""
        self.namespace = check_namespace(
            found.get(b"x-namespace", namespace_default), namespace_header
        )
        self.strong = _is_strong(found.get(b"x-consistency"))
        self.if_match = _tags_of("If-Match", conditions.get(b"if-match"), weakly=False)
        self.if_none_match = _tags_of(
            "If-None-Match", conditions.get(b"if-none-match"), weakly=True
        )


def _is_strong(text: bytes | None) -> bool:
    if text is None or text == b"eventual":
        return False
    if text == b"strong":
        return True
    raise FixRequest(
        "invalid_consistency",
        "Invalid consistency level. Must be 'strong' or 'eventual'",
    )


def _tags_of(header: str, values: list[bytes] | None, *, weakly: bool) -> Tags | None:
    if values is None:
        return None
    whole = b", ".join(values)
    if whole == b"*":
        return Tags((), any_=True)
    # Tags of our own making may also come bare, as JSON has them.
    texts = _tag.findall(whole) if _tags.fullmatch(whole) else [whole]
    if len(texts) > versions_max:
        raise FixRequest(
            "invalid_header", f"{header} names {len(texts)} etags; at most {versions_max} are taken"
        )
    versions = [_version_of(header, text, weakly=weakly) for text in texts]
    return Tags(tuple([version for version in versions if version is not None]), any_=False)


def _version_of(header: str, text: bytes, *, weakly: bool) -> Version | None:
    try:
        return parse_etag(text.decode("latin-1"), weakly=weakly)
    except FixRequest as error:
        raise FixRequest(error.code, f"{header}: {error.detail}") from None


def _twice(name: bytes) -> FixRequest:
    shown = "-".join(part.capitalize() for part in name.decode("ascii").split("-"))
    shown = shown.replace("Api", "API")
    return FixRequest("invalid_header", f"{shown} is given more than once, with different values")
