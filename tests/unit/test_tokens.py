"""Access tokens: what we issue is taken, and nothing that anybody else could make."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any, Final

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from services.core.errors import FixRequest
from services.runtime.clock import FakeClock, Timeline
from services.runtime.endpoints import Caller
from services.usermanager.tokens import Tokens, leeway_s, longest_s, token_chars_max
from tests.integration.accounts_world import cluster_secret, jwt_secret

hour_ms: Final = 3_600_000


def made(secret: str = jwt_secret, expiration_ms: int = hour_ms) -> tuple[Tokens, Timeline]:
    timeline = Timeline()
    return Tokens(secret, expiration_ms, FakeClock(timeline)), timeline


def compact(document: Any) -> str:
    return json.dumps(document, separators=(",", ":"))


def encoded(document: Any) -> str:
    return base64.urlsafe_b64encode(compact(document).encode()).decode().rstrip("=")


def decoded(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    header, claims, _ = token.split(".")
    one, other = (
        json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        for part in (header, claims)
    )
    return one, other


def signed(header: Any, claims: Any, key: str = jwt_secret, digest: str = "sha256") -> str:
    """A token with a good signature, whatever it says."""
    told = f"{encoded(header)}.{encoded(claims)}"
    signature = hmac.digest(key.encode(), told.encode(), digest)
    return f"{told}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


def refused(tokens: Tokens, token: str) -> str:
    with pytest.raises(FixRequest) as error:
        tokens.check(token)
    assert (error.value.code, error.value.status) == ("unauthorized", 401)
    assert len(token) < 10 or token not in error.value.detail
    return error.value.detail


def test_a_token_tells_whom_it_was_issued_to() -> None:
    tokens, _ = made()
    token = tokens.issue(12, 2**63 - 1)
    assert tokens.check(token) == Caller(12, 2**63 - 1)
    assert len(token) < token_chars_max
    header, claims = decoded(token)
    assert header == {"alg": "HS256", "typ": "JWT"}
    assert sorted(claims) == ["aud", "exp", "iat", "iss", "jti", "sid", "sub", "typ"]
    assert claims["exp"] - claims["iat"] == tokens.expires_in_s == 3600
    assert decoded(tokens.issue(12, 1))[1]["jti"] != claims["jti"]
    assert signed(header, claims) == token, "or the tests below would show nothing"


def test_a_token_with_alg_none_is_refused() -> None:
    tokens, _ = made()
    _, claims = decoded(tokens.issue(1, 1))
    for name in ("none", "None", "NONE", "nOnE", "", None, 0, [], ["none"], {"alg": "none"}):
        unsigned = f"{encoded({'alg': name, 'typ': 'JWT'})}.{encoded(claims)}."
        refused(tokens, unsigned)
        refused(tokens, unsigned + "c2ln")
        refused(tokens, signed({"alg": name, "typ": "JWT"}, claims))
    refused(tokens, signed({"typ": "JWT"}, claims))


def test_a_token_signed_with_a_wrong_key_is_refused() -> None:
    tokens, _ = made()
    others, _ = made(cluster_secret)
    refused(tokens, others.issue(1, 1))
    header, claims = decoded(tokens.issue(1, 1))
    for key in ("", jwt_secret[:-1], jwt_secret + " ", jwt_secret.upper(), "null"):
        refused(tokens, signed(header, claims, key))


@pytest.mark.parametrize(
    "audience",
    [
        "ydht",
        "ydht gateway",
        "YDHT USERMANAGER",
        "",
        None,
        ["ydht usermanager"],
        ["ydht usermanager", "ydht gateway"],
        {"ydht usermanager": 1},
        7,
    ],
)
def test_a_token_for_a_wrong_audience_is_refused(audience: object) -> None:
    tokens, _ = made()
    header, claims = decoded(tokens.issue(1, 1))
    refused(tokens, signed(header, {**claims, "aud": audience}))


def test_a_token_is_good_until_its_last_second_and_expired_from_then_on() -> None:
    tokens, timeline = made()
    token = tokens.issue(1, 1)
    timeline.advance(3599.999)
    assert tokens.check(token) == Caller(1, 1)
    timeline.advance(0.001)
    assert "has expired" in refused(tokens, token)
    timeline.advance(10**9)
    refused(tokens, token)


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "HS384"},
        {"alg": "HS512"},
        {"alg": "RS256"},
        {"alg": "ES256"},
        {"alg": "PS256"},
        {"alg": "EdDSA"},
        {"alg": "HS256 "},
        {"alg": "hs256"},
        {"alg": "HS256", "crit": ["exp"]},
        {"alg": "HS256", "crit": ["b64"], "b64": False},
        {"alg": "HS256", "b64": False},
        {"alg": "HS256", "kid": 7},
        [],
        "HS256",
        None,
    ],
)
def test_a_header_that_is_not_ours_is_refused_whatever_the_signature(header: object) -> None:
    tokens, _ = made()
    _, claims = decoded(tokens.issue(1, 1))
    for digest in ("sha256", "sha384", "sha512"):
        refused(tokens, signed(header, claims, digest=digest))


def test_a_token_of_another_algorithm_is_refused_though_its_signature_is_right() -> None:
    tokens, _ = made()
    _, claims = decoded(tokens.issue(1, 1))
    key = hashlib.sha512(jwt_secret.encode()).hexdigest()
    same_key, _ = made(key)
    refused(same_key, jwt.encode(claims, key, "HS512"))
    refused(same_key, jwt.encode(claims, key, "HS384"))
    own = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    refused(tokens, jwt.encode(claims, own, "RS256"))
    # A key that the token brings along proves nothing either.
    jwk = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(own.public_key()))
    for brought in ({"jwk": jwk}, {"jku": "https://eve.example/keys"}, {"kid": "../../dev/null"}):
        refused(tokens, jwt.encode(claims, own, "RS256", headers=brought))


wrong_claims: Final[dict[str, tuple[object, ...]]] = {
    "iss": ("", "YDHT", "eve", None, 7, ["ydht"], {}),
    "typ": ("", "refresh", "Access", None, 7, ["access"]),
    "sub": (
        "",
        "0",
        "-1",
        "01",
        "1.0",
        " 1",
        "1\n",
        "1e3",
        "٣",
        1,
        1.0,
        None,
        True,
        ["1"],
        "9" * 20,
        str(2**63),
    ),
    "sid": ("", "0", "-1", str(2**63), "0x1", "1_0", 1, None, False, {}),
    "exp": ("9999999999", 9999999999.5, None, True, -1, 0, [], {"$gt": 0}, 10**30, "NaN"),
    "iat": ("1", 1.5, None, -1, False),
    "jti": ("", "x", None, 7, "0" * 31, "0" * 33, "A" * 32, "0" * 32 + "\n"),
}


@pytest.mark.parametrize("name", ["aud", *wrong_claims])
def test_each_claim_must_be_there(name: str) -> None:
    tokens, _ = made()
    header, claims = decoded(tokens.issue(1, 1))
    del claims[name]
    refused(tokens, signed(header, claims))


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in wrong_claims.items() for value in values]
)
def test_each_claim_must_be_what_we_put_there(name: str, value: object) -> None:
    tokens, _ = made()
    header, claims = decoded(tokens.issue(1, 1))
    refused(tokens, signed(header, {**claims, name: value}))


@pytest.mark.parametrize("claim", ["iat", "nbf"])
def test_a_token_from_the_future_is_refused_beyond_what_clocks_differ_by(claim: str) -> None:
    tokens, _ = made()
    header, claims = decoded(tokens.issue(1, 2))
    ahead = {**claims, claim: claims["iat"] + leeway_s}
    assert tokens.check(signed(header, ahead)) == Caller(1, 2)
    ahead[claim] += 1
    refused(tokens, signed(header, ahead))


def test_a_token_that_is_good_for_longer_than_any_is_refused() -> None:
    tokens, timeline = made(expiration_ms=longest_s * 1000)
    assert tokens.check(tokens.issue(1, 2)) == Caller(1, 2)
    header, claims = decoded(tokens.issue(1, 2))
    claims["exp"] += leeway_s
    assert tokens.check(signed(header, claims)) == Caller(1, 2)
    claims["exp"] += 1
    refused(tokens, signed(header, claims))
    # Nor does it become one of ours with time.
    timeline.advance(2 * longest_s)
    refused(tokens, signed(header, {**claims, "exp": 2**40}))


def test_claims_that_are_no_claims_are_refused() -> None:
    tokens, _ = made()
    header, _ = decoded(tokens.issue(1, 1))
    documents: tuple[object, ...] = ([], "claims", None, 7, True, [1, 2], {})
    for claims in documents:
        refused(tokens, signed(header, claims))
    deep = json.loads("[" * 100 + "]" * 100)
    refused(tokens, signed(header, deep))
    refused(tokens, signed(deep, {}))


def test_a_token_with_any_character_changed_is_refused() -> None:
    tokens, _ = made()
    token = tokens.issue(1, 1)
    # Of the last one only four bits are the signature's: a decoder may ignore the other two.
    for place, character in enumerate(token[:-1]):
        refused(tokens, token[:place] + ("A" if character != "A" else "B") + token[place + 1 :])


def test_a_token_that_is_cut_anywhere_is_refused() -> None:
    tokens, _ = made()
    token = tokens.issue(1, 1)
    for place in range(len(token)):
        refused(tokens, token[:place])
        if place:
            refused(tokens, token[place:])


@given(st.text(max_size=200) | st.from_regex(r"\A[\w-]*\.[\w-]*\.[\w-]*\Z", fullmatch=True))
def test_no_text_breaks_the_check(text: str) -> None:
    tokens, _ = made()
    with pytest.raises(FixRequest):
        tokens.check(text)


@pytest.mark.parametrize(
    "text", ["", ".", "..", "...", "a.b.c", "\x00", "é.é.é", "\ud800.a.b", "A" * 10**6]
)
def test_what_is_no_token_is_refused(text: str) -> None:
    tokens, _ = made()
    refused(tokens, text)
