"""Bearer tokens: made, read, refused."""

from __future__ import annotations

import base64
import json
from typing import Any

import jwt
import pytest

from server.errors import AuthenticationFailed
from server.identity import tokens

CLIENT = "svc/issuer"
SECRET = "iJ7cTQvERSuQhyT0mKs_NwAAbbCCddEEffGGhhIIjjKK"
NOW = 1735787100.0
DAY = 86400.0


def verified(token: str, *, secret: str = SECRET, now: float = NOW) -> tuple[tokens.Claims, float]:
    claims = tokens.read(token)
    return claims, tokens.verify(token, claims, secret, now)


def refusal(token: str, *, secret: str = SECRET, now: float = NOW) -> str:
    with pytest.raises(AuthenticationFailed) as caught:
        verified(token, secret=secret, now=now)
    message = caught.value.message
    assert secret not in message
    assert caught.value.__cause__ is None
    return message


def foreign(claims: dict[str, Any], **header: Any) -> str:
    """A token as any other program's JWT library makes it."""
    return jwt.encode({"iss": CLIENT, "exp": NOW + 60} | claims, SECRET, algorithm="HS256", headers=header)


def b64(value: object) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def test_a_minted_token_says_who_until_when_and_with_which_credentials() -> None:
    token = tokens.mint(
        CLIENT, SECRET, certificate='{"version":1}', authorized_scopes=["a"], lifetime_s=60, now=NOW
    )
    claims, end = verified(token)
    assert (claims.client_id, end) == (CLIENT, NOW + 60)
    assert (claims.certificate, claims.authorized_scopes) == ({"version": 1}, ["a"])
    assert jwt.decode(token, SECRET, algorithms=["HS256"], options={"verify_exp": False})["iss"] == CLIENT


def test_a_certificate_may_come_as_the_text_that_payloads_carry() -> None:
    assert tokens.read(foreign({"certificate": '{"version":1}'})).certificate == {"version": 1}
    for text in ("", "null", "[]", "1", "{", '"{}"'):
        assert tokens.read(foreign({"certificate": text})).certificate == text


def test_absent_and_null_claims_are_none_and_an_empty_list_is_not() -> None:
    assert tokens.read(tokens.mint(CLIENT, SECRET)).authorized_scopes is None
    assert tokens.read(foreign({"certificate": None})).certificate is None
    assert tokens.read(tokens.mint(CLIENT, SECRET, authorized_scopes=[])).authorized_scopes == []


def test_other_libraries_tokens_with_other_claims_and_short_secrets_are_fine() -> None:
    verified(foreign({"iat": NOW + 200, "nbf": NOW + 299, "aud": "x", "sub": 3, "jti": 4}, kid="k"))
    short = "s" * 22
    verified(tokens.mint(CLIENT, short, now=NOW), secret=short)


def test_the_default_lifetime_is_a_quarter_of_an_hour() -> None:
    assert verified(tokens.mint(CLIENT, SECRET, now=NOW))[1] == NOW + 900


@pytest.mark.parametrize("expires", [NOW, NOW - 1, NOW - 400 * DAY, 0])
def test_an_expired_token(expires: float) -> None:
    assert refusal(foreign({"exp": expires})) == "bearer token has expired"


def test_31_days_ahead_and_no_more() -> None:
    verified(foreign({"exp": NOW + 31 * DAY}))
    assert refusal(foreign({"exp": NOW + 31 * DAY + 1})) == "bearer token must not last longer than 31 days"
    assert "31 days" in refusal(foreign({"exp": 1e300}))


def test_a_token_without_end() -> None:
    token = jwt.encode({"iss": CLIENT}, SECRET, algorithm="HS256")
    assert refusal(token) == "bearer token must have an exp claim"


@pytest.mark.parametrize("value", ["soon", True, [1]])
def test_an_end_that_is_no_number(value: object) -> None:
    token = f"{b64({'alg': 'HS256'})}.{b64({'iss': CLIENT, 'exp': value})}"
    signed = (
        f"{token}.{b64(jwt.PyJWS().get_algorithm_by_name('HS256').sign(token.encode(), SECRET.encode()))}"
    )
    assert refusal(signed) == "bearer token's exp claim must be a number of seconds"


def test_a_token_for_later() -> None:
    assert refusal(foreign({"nbf": NOW + 301})) == "bearer token is not valid yet"


def test_a_foreign_signature() -> None:
    message = refusal(tokens.mint(CLIENT, "y" * 44, now=NOW))
    assert message == "bearer token is not signed with the access token of 'svc/issuer'"


def test_changed_claims() -> None:
    head, _, signature = tokens.mint(CLIENT, SECRET, now=NOW).split(".")
    forged = f"{head}.{b64({'iss': CLIENT, 'exp': NOW + 60, 'authorizedScopes': ['*']})}.{signature}"
    assert "not signed with" in refusal(forged)


@pytest.mark.parametrize("algorithm", ["none", "None", "HS512", "RS256", "", None, 7])
def test_another_algorithm(algorithm: object) -> None:
    _, claims, signature = tokens.mint(CLIENT, SECRET, now=NOW).split(".")
    for tail in ("", signature):
        message = refusal(f"{b64({'alg': algorithm, 'typ': 'JWT'})}.{claims}.{tail}")
        assert message == "bearer token must be signed with HS256"


def test_a_really_unsigned_token() -> None:
    token = jwt.encode({"iss": CLIENT, "exp": NOW + 60}, "", algorithm="none")
    assert refusal(token) == "bearer token must be signed with HS256"


@pytest.mark.parametrize(
    "garbage",
    [
        "",
        ".",
        "..",
        "...",
        "abc",
        "a.b",
        "a.b.c.d",
        "é.ü.ö",
        "\ud800.\ud800.\ud800",
        "a.!!!.c",
        "a.AAA.c",
        f"a.{b64(b'{')}.c",
        f"a.{b64([1])}.c",
        f"a.{b64(b'{' + b'[' * 9000)}.c",
        f"a.{b64({'iss': CLIENT, 'exp': NOW + 60})}.c",
        f"{b64([1])}.{b64({'iss': CLIENT, 'exp': NOW + 60})}.",
        f"{b64({'alg': 'HS256'})}.{b64({'iss': CLIENT, 'exp': NOW + 60})}.*",
        f"{b64({'alg': 'HS256', 'crit': ['x'], 'x': 1})}.{b64({'iss': CLIENT, 'exp': NOW + 60})}.",
    ],
)
def test_garbage_is_refused_as_malformed(garbage: str) -> None:
    assert refusal(garbage).startswith("bearer token is malformed: ")


@pytest.mark.parametrize("issuer", [None, 7, "", "a b", "a\n", "x" * 1001, ["svc/issuer"]])
def test_an_issuer_that_can_be_no_client(issuer: object) -> None:
    token = f"a.{b64({'iss': issuer, 'exp': NOW + 60})}.c"
    assert refusal(token) == "bearer token must have a clientId as its iss claim"


def test_an_oversize_token_is_refused_unread() -> None:
    token = foreign({"x": "y" * tokens.MAX_TOKEN_BYTES})
    assert refusal(token) == "bearer token is longer than 16384 bytes"
    verified(foreign({"x": "y" * 11_000}))
