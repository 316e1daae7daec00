"""Temporary credentials: the published vectors and every refusal of auth.md 4.3."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.domain.scopes import ScopeSet
from server.errors import AuthenticationFailed
from server.identity.certificates import (
    Issuer,
    VerifiedCertificate,
    derive_access_token,
    issue,
    issuer_of,
    verify,
)

ISSUER = "svc/issuer"
TOKEN = "iJ7cTQvERSuQhyT0mKs_NwAAbbCCddEEffGGhhIIjjKK"
SEED = "KpJvYUNXSYeWqc0vnsAq9wJgvWv5pTh6IYhd120YZTQA"
START, EXPIRY, NOW = 1735787045000, 1735788245000, 1735787100000
MINUTE = 60_000
V1_TEXT = (
    '{"version":1,"scopes":["scopeA","scopeB:*"],"start":1735787045000,"expiry":1735788245000,'
    '"seed":"KpJvYUNXSYeWqc0vnsAq9wJgvWv5pTh6IYhd120YZTQA",'
    '"signature":"EPPK9MO4r/fAHJZAX40DoaqUCzapzYrk4MLvF1skPtQ="}'
)
V1: dict[str, Any] = json.loads(V1_TEXT)
V2_NAME = "task-client/fN1SbArXTPSVFNUvaOlinQ/0/on/wg/wid/until/1735788245"
RUN = "fN1SbArXTPSVFNUvaOlinQ/0"
V2_SCOPES = [f"queue:reclaim-task:{RUN}", f"queue:resolve-task:{RUN}", f"queue:create-artifact:{RUN}"]
STAR = ScopeSet(["*"])


def check(
    certificate: object,
    name: str = ISSUER,
    *,
    now: float = NOW,
    scopes: ScopeSet = STAR,
    expires: float = math.inf,
) -> VerifiedCertificate:
    """What the authenticator does with a certificate: find its issuer, then verify."""
    issuer = Issuer(issuer_of(certificate, name), TOKEN, scopes, expires)
    return verify(certificate, client_id=name, issuer=issuer, now_ms=now)


def refusal(certificate: object, name: str = ISSUER, **how: Any) -> str:
    with pytest.raises(AuthenticationFailed) as caught:
        check(certificate, name, **how)
    assert TOKEN not in caught.value.message
    return caught.value.message


def made(**changes: Any) -> dict[str, Any]:
    """A properly signed certificate like V1 with other contents."""
    arguments: dict[str, Any] = {
        "scopes": ["scopeA", "scopeB:*"],
        "start_ms": START,
        "expiry_ms": EXPIRY,
        "seed": SEED,
    }
    certificate: dict[str, Any] = json.loads(issue(ISSUER, TOKEN, **arguments | changes).certificate)
    return certificate


def test_v1_an_unnamed_certificate_to_the_byte() -> None:
    """A-014, A-059 (V1)"""
    credentials = issue(
        ISSUER, TOKEN, scopes=["scopeA", "scopeB:*"], start_ms=START, expiry_ms=EXPIRY, seed=SEED
    )
    assert credentials.client_id == ISSUER
    assert credentials.access_token == "Ew2mEZdfwQeOyocMuO_knqlsor-N4izR24AbaSUg2wA"
    assert credentials.certificate == V1_TEXT
    assert check(V1) == VerifiedCertificate(("scopeA", "scopeB:*"), EXPIRY / 1000, EXPIRY / 1000 + 300)


def test_v2_a_named_certificate_to_the_byte() -> None:
    """A-015, A-059 (V2)"""
    credentials = issue(
        ISSUER,
        TOKEN,
        scopes=V2_SCOPES,
        start_ms=START,
        expiry_ms=EXPIRY,
        client_id=V2_NAME,
        seed=SEED,
    )
    assert credentials.client_id == V2_NAME
    assert credentials.access_token == "Ew2mEZdfwQeOyocMuO_knqlsor-N4izR24AbaSUg2wA"
    certificate = json.loads(credentials.certificate)
    assert certificate["signature"] == "mT2H0Q+Tr3bpY1BHtSw8U14x9jPup5rjOl56y0brmxo="
    assert list(certificate) == ["version", "scopes", "start", "expiry", "seed", "issuer", "signature"]
    assert check(certificate, V2_NAME).scopes == tuple(V2_SCOPES)


@pytest.mark.parametrize("now", [EXPIRY + 4 * MINUTE, EXPIRY + 5 * MINUTE, START - 5 * MINUTE])
def test_v8_the_clock_skew_is_allowed_for_to_the_millisecond(now: int) -> None:
    """A-017, A-059 (V8)"""
    check(V1, now=now)


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (EXPIRY + 5 * MINUTE + 1000, "ext.certificate.expiry < now"),
        (EXPIRY + 5 * MINUTE + 1, "ext.certificate.expiry < now"),
        (START - 300_001, "ext.certificate.start > now"),
    ],
)
def test_v8_beyond_it_nothing_is(now: int, message: str) -> None:
    """A-017, A-059 (V8)"""
    assert refusal(V1, now=now) == message


@pytest.mark.parametrize(
    "change",
    [
        {"scopes": ["scopeA"]},
        {"scopes": ["scopeB:*", "scopeA"]},
        {"start": START + 1},
        {"expiry": EXPIRY - 1},
        {"seed": "x" * 44},
        {"signature": "short"},
        {"signature": None},
        {"signature": "\ud800"},
        {"seed": "\ud800" * 44},
    ],
)
def test_v9_any_change_breaks_the_signature(change: dict[str, Any]) -> None:
    """A-018, A-059 (V9)"""
    assert refusal(V1 | change) == "ext.certificate.signature is not valid"


@pytest.mark.parametrize("issuer", ["", None, False, 0])
def test_v9_an_empty_issuer_is_none(issuer: object) -> None:
    """A-059 (V9)"""
    assert check(V1 | {"issuer": issuer}).scopes == ("scopeA", "scopeB:*")


@pytest.mark.parametrize(
    ("certificate", "message"),
    [
        ("text", "ext.certificate must be a JSON object"),
        (7, "ext.certificate must be a JSON object"),
        ([], "ext.certificate.version must be 1"),
        (V1 | {"version": 2}, "ext.certificate.version must be 1"),
        (V1 | {"version": True}, "ext.certificate.version must be 1"),
        (V1 | {"version": "1"}, "ext.certificate.version must be 1"),
        (V1 | {"seed": 44}, "ext.certificate.seed must be a string"),
        (V1 | {"seed": "short"}, "ext.certificate.seed must be 44 characters"),
        (V1 | {"start": "1"}, "ext.certificate.start must be a number"),
        (V1 | {"start": True}, "ext.certificate.start must be a number"),
        (V1 | {"start": math.nan}, "ext.certificate.start must be a number"),
        (V1 | {"expiry": None}, "ext.certificate.expiry must be a number"),
        (V1 | {"expiry": math.inf}, "ext.certificate.expiry must be a number"),
        (V1 | {"scopes": "*"}, "ext.certificate.scopes must be an array"),
        (V1 | {"scopes": {}}, "ext.certificate.scopes must be an array"),
        (V1 | {"scopes": ["a", 1]}, "ext.certificate.scopes must be an array of valid scopes"),
        (V1 | {"scopes": ["a\n"]}, "ext.certificate.scopes must be an array of valid scopes"),
        (V1 | {"issuer": 3}, "ext.certificate.issuer must be a string"),
        (V1 | {"issuer": []}, "ext.certificate.issuer must be a string"),
        (V1 | {"issuer": ISSUER}, "ext.certificate.issuer must differ from the supplied clientId"),
        (V1 | {"expiry": 10**400}, "ext.certificate cannot last longer than 31 days!"),
        (V1 | {"clientId": "x"}, "ext.certificate.clientId must only be used with ext.certificate.issuer"),
    ],
)
def test_a_016_each_malformed_part_has_its_message(certificate: object, message: str) -> None:
    """A-016, A-021"""
    assert refusal(certificate) == message


def test_a_017_31_days_pass_and_a_year_does_not() -> None:
    """A-017"""
    days = 86_400_000
    check(made(expiry_ms=START + 31 * days))
    too_long = V1 | {"expiry": START + 365 * days}
    assert refusal(too_long) == "ext.certificate cannot last longer than 31 days!"
    with pytest.raises(ValueError, match="31 days"):
        made(expiry_ms=START + 31 * days + 1)


def test_a_019_a_scope_the_issuer_lacks() -> None:
    """A-019"""
    message = refusal(V1, scopes=ScopeSet(["scopeA", "scopeB:x"]))
    assert message == (
        "ext.certificate issuer `svc/issuer` doesn't satisfy all certificate scopes scopeA, scopeB:*."
        "  The temporary credentials were not generated correctly."
    )
    assert check(V1, scopes=ScopeSet(["scopeA", "scope*"]))


def test_a_020_a_name_the_issuer_may_not_create_and_another_than_was_signed() -> None:
    """A-020"""
    named = made(client_id="svc/other")
    message = refusal(named, "svc/other", scopes=ScopeSet(["scope*", "auth:create-client:x/*"]))
    assert message == (
        "ext.certificate issuer `svc/issuer` doesn't have `auth:create-client:svc/other` "
        "for supplied clientId."
    )
    assert check(named, "svc/other", scopes=ScopeSet(["scope*", "auth:create-client:svc/*"]))
    assert refusal(named, "svc/third") == (
        "ext.certificate.signature is not valid, or wrong clientId provided"
    )


def test_a_018_another_key_than_the_issuers() -> None:
    """A-018"""
    foreign = json.loads(
        issue(ISSUER, "x" * 44, scopes=["scopeA"], start_ms=START, expiry_ms=EXPIRY).certificate
    )
    assert refusal(foreign) == "ext.certificate.signature is not valid"


def test_a_022_the_earlier_end_counts() -> None:
    """A-022"""
    assert check(V1, expires=EXPIRY / 1000 + 10).expires == EXPIRY / 1000
    ending = check(V1, expires=EXPIRY / 1000 - 10)
    assert (ending.expires, ending.accepted_until) == (EXPIRY / 1000 - 10, EXPIRY / 1000 - 10)


def test_an_issuer_cannot_name_credentials_after_itself() -> None:
    with pytest.raises(ValueError, match="name other than"):
        made(client_id=ISSUER)


def test_numbers_may_come_as_floats_and_print_as_javascript_prints_them() -> None:
    assert check(V1 | {"start": float(START), "version": 1.0}).scopes
    assert refusal(V1 | {"start": START + 0.5}) == "ext.certificate.signature is not valid"


def test_an_empty_scope_list_may_be_signed_in_either_form() -> None:
    import base64
    import hmac

    certificate = made(scopes=[])
    assert check(certificate).scopes == ()
    text = f"version:1\nseed:{SEED}\nstart:{START}\nexpiry:{EXPIRY}\nscopes:\n"
    signature = base64.b64encode(hmac.digest(TOKEN.encode(), text.encode(), "sha256")).decode()
    assert signature != certificate["signature"]
    assert check(certificate | {"signature": signature}).scopes == ()
    assert refusal(V1 | {"signature": signature}) == "ext.certificate.signature is not valid"


@given(
    st.lists(
        st.text(alphabet=st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=12), max_size=5
    ),
    st.none() | st.just("some/name"),
)
def test_what_is_issued_verifies_and_gives_the_same_key(scopes: list[str], name: str | None) -> None:
    credentials = issue(ISSUER, TOKEN, scopes=scopes, start_ms=NOW, expiry_ms=NOW + 1, client_id=name)
    certificate = json.loads(credentials.certificate)
    assert check(certificate, credentials.client_id).scopes == tuple(scopes)
    assert derive_access_token(TOKEN, certificate["seed"]) == credentials.access_token
