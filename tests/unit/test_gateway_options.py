"""What the headers of a request about one key ask for, and what is wrong with them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.core.errors import ClientError, FixRequest
from services.core.record import Metadata
from services.gateway.keyspace import absent
from services.gateway.options import Options, namespace_default
from services.gateway.unheeded import check_heeded

version = bytes.fromhex("01a1ff28b32f000000000001")
origin_field = (b"origin", b"https://app.example")
tag = b'"' + version.hex().encode() + b'"'


def options(*fields: tuple[bytes, bytes]) -> Options:
    made = Options([(b"x-api-key", b"k"), *fields])
    assert made.problem is None, made.problem
    return made


def problem(*fields: tuple[bytes, bytes]) -> ClientError:
    made = Options([(b"x-api-key", b"k"), *fields])
    assert made.problem is not None
    return made.problem


def test_without_headers_everything_is_as_the_contract_has_it() -> None:
    made = options()
    assert (made.strong, made.conditional, made.namespace) == (False, False, namespace_default)
    assert (made.meta(), made.request_id, made.origin) == (b"", None, b"")


@pytest.mark.parametrize(("text", "strong"), [(b"strong", True), (b"eventual", False)])
def test_a_consistency_is_one_of_two_words(text: bytes, strong: bool) -> None:
    assert options((b"x-consistency", text)).strong is strong


@pytest.mark.parametrize("text", [b"", b"STRONG", b"strong, eventual", b"quorum", b"strong\xff"])
def test_any_other_consistency_is_refused_in_the_words_of_the_contract(text: bytes) -> None:
    refused = problem((b"x-consistency", text))
    assert refused.code == "invalid_consistency"
    assert refused.detail == "Invalid consistency level. Must be 'strong' or 'eventual'"


def test_the_same_header_twice_is_fine_only_if_it_says_the_same() -> None:
    assert options((b"x-namespace", b"a"), (b"x-namespace", b"a")).namespace == b"a"
    for name, one, other in [
        (b"x-namespace", b"a", b"b"),
        (b"x-consistency", b"strong", b"eventual"),
        (b"content-type", b"text/plain", b"text/html"),
    ]:
        refused = problem((name, one), (name, other))
        assert refused.code == "invalid_header"
        assert name.decode() in refused.detail.lower()


@pytest.mark.parametrize("name", [b"", b"a" * 256, b"a\x01", b"\xff", b"a\x7f"])
def test_a_namespace_that_cannot_be_is_refused(name: bytes) -> None:
    assert problem((b"x-namespace", name)).code == "invalid_namespace"


def test_a_namespace_may_be_any_text() -> None:
    name = "Größe 数".encode()
    assert options((b"x-namespace", name)).namespace == name


def test_conditions_name_versions_or_all() -> None:
    made = options((b"if-match", tag))
    assert made.if_match is not None
    assert (made.if_match.versions, made.if_match.any) == ((version,), False)
    made = options((b"if-match", b"*"), (b"if-none-match", b"*"))
    assert made.if_match is not None
    assert made.if_match.any
    assert made.if_none_match is not None
    assert made.if_none_match.match(version)


@pytest.mark.parametrize("header", [b"if-match", b"if-none-match"])
def test_an_etag_of_ours_may_come_bare_as_json_has_it(header: bytes) -> None:
    made = options((header, version.hex().encode()))
    tags = made.if_match if header == b"if-match" else made.if_none_match
    assert tags is not None
    assert tags.versions == (version,)


@pytest.mark.parametrize(
    ("name", "value", "methods", "code"),
    [
        (b"content-encoding", b"gzip", ["PUT"], "unsupported_media_type"),
        (b"content-encoding", b"gzip, identity", ["PUT"], "unsupported_media_type"),
        (b"content-range", b"bytes 0-4/10", ["PUT"], "invalid_header"),
        (b"x-metadata-a", b"1", ["PATCH", "POST"], "invalid_header"),
        (b"if-unmodified-since", b"x", ["PUT", "DELETE", "PATCH", "POST"], "invalid_header"),
        (b"if-modified-since", b"x", ["PUT", "DELETE", "PATCH", "POST"], "invalid_header"),
    ],
)
def test_what_a_method_could_only_ignore_is_refused(
    name: bytes, value: bytes, methods: list[str], code: str
) -> None:
    made = options((name, value))
    for method in ("GET", "HEAD", "PUT", "DELETE", "PATCH", "POST"):
        if method in methods:
            with pytest.raises(FixRequest) as refused:
                check_heeded(method.encode(), made.unheeded)
            assert refused.value.code == code
        else:
            check_heeded(method.encode(), made.unheeded)


@pytest.mark.parametrize("value", [b"", b"identity", b"Identity"])
def test_a_value_that_is_as_it_is_may_say_so(value: bytes) -> None:
    assert options((b"content-encoding", value)).unheeded == ()


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        (b"if-match", b"nonsense x", "If-Match: 'nonsense x' is no entity tag"),
        (b"if-none-match", b'"', "If-None-Match: '\"' is no entity tag"),
        (b"x-namespace", b"", "X-Namespace is 0 bytes"),
        (b"x-namespace", b"a" * 256, "X-Namespace is 256 bytes"),
        (b"x-namespace", b"\xff", "X-Namespace is not valid UTF-8"),
        (b"x-namespace", b"a\tb", "X-Namespace contains a control character"),
    ],
)
def test_what_is_wrong_names_its_header(name: bytes, value: bytes, told: str) -> None:
    assert problem((name, value)).detail.startswith(told)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (b"", "X-Metadata-: 0 characters follow X-Metadata-; a name has 1 to 255"),
        (
            b"n" * 256,
            f"X-Metadata-{'n' * 40}…: 256 characters follow X-Metadata-; a name has 1 to 255",
        ),
    ],
)
def test_a_name_of_metadata_that_is_empty_or_too_long_is_told_so(name: bytes, told: str) -> None:
    with pytest.raises(FixRequest) as refused:
        options((b"x-metadata-" + name, b"v")).meta()
    assert (refused.value.code, refused.value.detail) == ("invalid_header", told)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (b"a" * 100, "'" + "a" * 100 + "'"),
        (b"a" * 101, "'" + "a" * 100 + "…'"),
        ("é".encode() * 500, "'" + "é" * 50 + "…'"),
        (b"a" + "é".encode() * 500, "'a" + "é" * 49 + "…'"),
    ],
)
def test_a_key_that_is_cut_ends_with_an_ellipsis(key: bytes, text: str) -> None:
    assert absent(key).detail == f"There is no key {text} in this namespace"


def test_several_etags_may_come_in_one_header_or_in_many() -> None:
    other = bytes(12)
    both = tag + b' , "' + other.hex().encode() + b'"'
    for made in (
        options((b"if-match", both)),
        options((b"if-match", tag), (b"if-match", b'"' + other.hex().encode() + b'"')),
    ):
        assert made.if_match is not None
        assert made.if_match.versions == (version, other)


def test_a_weak_etag_matches_reads_and_no_change() -> None:
    weak = b"W/" + tag
    made = options((b"if-match", weak), (b"if-none-match", weak))
    assert made.if_match is not None
    assert made.if_match.versions == ()
    assert made.if_none_match is not None
    assert made.if_none_match.match(version)


def test_etags_of_other_servers_match_nothing_and_are_no_fault() -> None:
    made = options((b"if-match", b'"abc,def", W/"x"'))
    assert made.if_match is not None
    assert (made.if_match.versions, made.if_match.any) == ((), False)


@pytest.mark.parametrize("text", [b"", b"abc", b'"abc', b"*, *", b'"a" "b"', b'"a";'])
@pytest.mark.parametrize("header", [b"if-match", b"if-none-match"])
def test_what_is_no_etag_is_refused(header: bytes, text: bytes) -> None:
    assert problem((header, text)).code == "invalid_header"


def test_more_etags_than_anybody_has_are_refused() -> None:
    refused = problem((b"if-match", b", ".join([tag] * 65)))
    assert refused.code == "invalid_header"
    assert "64" in refused.detail


def test_metadata_and_type_are_kept_beside_the_value() -> None:
    made = options(
        (b"content-type", b"image/png"), (b"x-metadata-b", b"2"), (b"x-metadata-a", b"1")
    )
    kept = Metadata.decode(made.meta())
    assert kept.content_type == b"image/png"
    assert kept.user == ((b"a", b"1"), (b"b", b"2"))


@pytest.mark.parametrize("text", [b"application/x-www-form-urlencoded", b""])
def test_the_type_that_curl_says_of_anything_is_none(text: bytes) -> None:
    assert options((b"content-type", text)).meta() == b""


def test_metadata_are_bounded_and_named_once() -> None:
    with pytest.raises(FixRequest) as large:
        options((b"x-metadata-a", b"x" * 1024)).meta()
    assert large.value.code == "metadata_too_large"
    with pytest.raises(FixRequest) as twice:
        options((b"x-metadata-a", b"1"), (b"x-metadata-a", b"2")).meta()
    assert twice.value.code == "invalid_header"
    with pytest.raises(FixRequest):
        options((b"x-metadata-", b"1")).meta()


def test_a_request_id_is_echoed_if_it_can_be() -> None:
    assert options((b"x-request-id", b"abc-1")).request_id == b"abc-1"
    for unfit in (b"a b", b"", b"x" * 129, b"\xff"):
        # Each request with these headers gets its own.
        assert options((b"x-request-id", unfit)).request_id is None


def test_whose_it_is_stands_whatever_else_is_wrong() -> None:
    made = Options([(b"x-api-key", b"k"), (b"x-consistency", b"no")])
    assert made.api_key == b"k"
    assert made.nobody is None
    assert Options([(b"x-consistency", b"no")]).nobody is not None


def test_the_api_key_may_come_as_a_bearer_token() -> None:
    assert Options([(b"authorization", b"Bearer abc")]).api_key == b"abc"
    nobody = Options([]).nobody
    assert nobody is not None
    assert nobody.code == "missing_api_key"


fields = st.lists(
    st.tuples(
        st.sampled_from(
            [
                b"x-api-key",
                b"authorization",
                b"x-consistency",
                b"x-namespace",
                b"if-match",
                b"if-none-match",
                b"content-type",
                b"origin",
                b"x-request-id",
                b"x-metadata-a",
                b"x-ydht-signature",
            ]
        ),
        st.binary(max_size=40),
    ),
    max_size=8,
)


@given(fields)
def test_no_header_is_a_bug(given_fields: list[tuple[bytes, bytes]]) -> None:
    made = Options(given_fields)
    try:
        kept = Metadata.decode(made.meta())
    except FixRequest:
        return
    assert kept.user == tuple(sorted(made.user_metadata))


@pytest.mark.parametrize(
    "wrong",
    [
        [(b"x-namespace", b"a"), (b"x-namespace", b"b")],
        [(b"x-namespace", b"")],
        [(b"x-consistency", b"sometimes")],
    ],
)
def test_a_page_is_let_read_whatever_is_wrong(wrong: list[tuple[bytes, bytes]]) -> None:
    for fields in ([*wrong, origin_field], [origin_field, *wrong]):
        made = Options(fields)
        assert made.origin == b"https://app.example"
        assert made.problem is not None
