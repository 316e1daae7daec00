"""Hawk by itself: the vectors of auth.md 10, limits, decoding, and that no byte can be changed."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.domain.scopes import ScopeSet
from server.errors import AuthenticationFailed
from server.identity import certificates, hawk
from server.identity.certificates import Issuer
from server.identity.model import HawkRequest

NOW = 1735787100
ISSUER = "svc/issuer"
KEY = "iJ7cTQvERSuQhyT0mKs_NwAAbbCCddEEffGGhhIIjjKK"
SEED = "KpJvYUNXSYeWqc0vnsAq9wJgvWv5pTh6IYhd120YZTQA"
TASK = "fN1SbArXTPSVFNUvaOlinQ"
EMPTY_HASH = "B0weSUXsMcb5UhL41FZbrUJCAotzSI3HawE1NPLRUz8="
V1_TEXT = (
    '{"version":1,"scopes":["scopeA","scopeB:*"],"start":1735787045000,"expiry":1735788245000,'
    f'"seed":"{SEED}","signature":"EPPK9MO4r/fAHJZAX40DoaqUCzapzYrk4MLvF1skPtQ="}}'
)
V2_NAME = f"task-client/{TASK}/0/on/wg/wid/until/1735788245"
V2_SCOPES = [f"queue:{what}:{TASK}/0" for what in ("reclaim-task", "resolve-task", "create-artifact")]
TEMPORARY_KEY = "Ew2mEZdfwQeOyocMuO_knqlsor-N4izR24AbaSUg2wA"
V3 = HawkRequest(
    "GET",
    f"/api/queue/v1/task/{TASK}",
    "tc.example.com",
    443,
    'Hawk mac="O2uiEXEwhFbjMc9YlPpKjiP9xoVBKNgb+IiTAgS12pw=", '
    f'hash="{EMPTY_HASH}", id="svc/issuer", ts="1735787100", nonce="Ygvqdz", ext="e30="',
    (None, b""),
)
V6 = HawkRequest(
    "GET",
    f"/api/queue/v1/task/{TASK}/artifacts/private%2Fa%20b.txt?bewit=c3ZjL2lzc3VlclwxNzM1Nzg4MDAwXGRMUFR2cDZBYmorT1hq"
    "eVEwT0Y1cCt5Ni9RVVRWLytVMkgwbk1rSVBnaHc9XGUzMD0",
    "tc.example.com",
    443,
    None,
)


def issued(**named: Any) -> certificates.TemporaryCredentials:
    """Credentials of the vectors."""
    return certificates.issue(
        ISSUER, KEY, start_ms=1735787045000, expiry_ms=1735788245000, seed=SEED, **named
    )


def check(request: HawkRequest, key: str = KEY, now: float = NOW) -> hawk.Signed:
    """A request read and verified; AuthenticationFailed."""
    signed = hawk.read(request, now)
    assert signed is not None
    hawk.verify(signed, key, request, now)
    return signed


def why(request: HawkRequest, key: str = KEY, now: float = NOW) -> str:
    """Why a request is refused."""
    with pytest.raises(AuthenticationFailed) as caught:
        check(request, key, now)
    return caught.value.message


def test_v1_and_v2_certificates() -> None:
    """A-059: unnamed and named."""
    made = issued(scopes=["scopeA", "scopeB:*"])
    assert (made.access_token, made.certificate) == (TEMPORARY_KEY, V1_TEXT)
    named = issued(scopes=V2_SCOPES, client_id=V2_NAME)
    fields = json.loads(named.certificate)
    assert list(fields) == ["version", "scopes", "start", "expiry", "seed", "issuer", "signature"]
    assert (named.access_token, fields["signature"]) == (
        TEMPORARY_KEY,
        "mT2H0Q+Tr3bpY1BHtSw8U14x9jPup5rjOl56y0brmxo=",
    )


def test_v3_a_header_with_a_hash() -> None:
    """A-059."""
    assert check(V3).client_id == ISSUER
    assert why(dataclasses.replace(V3, port=80)) == "Unauthorized: Bad mac"


def test_v4_a_body_and_a_certificate() -> None:
    """A-059: temporary credentials that narrow themselves."""
    body = b'{"tasks":1,"workerGroup":"wg","workerId":"wid"}'
    ext = base64.b64encode(f'{{"certificate":{V1_TEXT},"authorizedScopes":["scopeB:x"]}}'.encode()).decode()
    request = HawkRequest(
        "POST",
        "/api/queue/v1/claim-work/proj-x%2Fci",
        "localhost",
        8080,
        f'Hawk id="{ISSUER}", ts="1735787100", nonce="Ygvqdz", '
        'hash="DgSyMHlRav6tM3BNGP991ZurC4KndmSThkYomuRLQlI=", '
        f'mac="uPrhe08CFXUZ9++CI/62kD0lvVOCYf18Ot+FhVsntGU=", ext="{ext}"',
        ("application/json", body),
    )
    signed = check(request, TEMPORARY_KEY)
    assert (signed.certificate, signed.authorized_scopes) == (json.loads(V1_TEXT), ["scopeB:x"])
    changed = dataclasses.replace(request, payload=("application/json", body + b" "))
    assert why(changed, TEMPORARY_KEY).startswith("Invalid payload hash:")


def test_v5_a_named_certificate_without_a_body() -> None:
    """A-059."""
    named = issued(scopes=V2_SCOPES, client_id=V2_NAME)
    ext = base64.b64encode(b'{"certificate":' + named.certificate.encode() + b"}").decode()
    request = HawkRequest(
        "POST",
        f"/api/queue/v1/task/{TASK}/runs/0/reclaim",
        "tc.example.com",
        443,
        f'Hawk id="{V2_NAME}", ts="1735787100", nonce="Ygvqdz", hash="{EMPTY_HASH}", '
        f'mac="uU8XA2HGsTaeLtLT6Zq3g4UB1FmcjzaPAw/wjyOqzlc=", ext="{ext}"',
        (None, b""),
    )
    assert check(request, TEMPORARY_KEY).client_id == V2_NAME


def test_v6_and_v7_bewits() -> None:
    """A-059: permanent and temporary."""
    signed = check(V6)
    assert (signed.client_id, signed.bewit, signed.hash) == (ISSUER, True, None)
    named = issued(scopes=V2_SCOPES, client_id=V2_NAME)
    ext = base64.b64encode(b'{"certificate":' + named.certificate.encode() + b"}").decode()
    inner = f"{V2_NAME}\\1735788000\\KqbZIhcNMj1LDcS/QEOW0Xq9rCBENyZwlELBMhC60Ko=\\{ext}"
    bewit = base64.urlsafe_b64encode(inner.encode()).decode().rstrip("=")
    path = V6.resource.partition("?")[0]
    assert (
        check(dataclasses.replace(V6, resource=f"{path}?bewit={bewit}"), TEMPORARY_KEY).client_id == V2_NAME
    )


@pytest.mark.parametrize(
    ("now_ms", "message"),
    [
        (1735788245000 + 240_000, None),
        (1735787045000 - 300_000, None),
        (1735788245000 + 301_000, "ext.certificate.expiry < now"),
        (1735787045000 - 300_001, "ext.certificate.start > now"),
    ],
)
def test_v8_limits_of_certificates(now_ms: float, message: str | None) -> None:
    """A-059."""
    issuer = Issuer(ISSUER, KEY, ScopeSet(["*"]), math.inf)
    if message is None:
        certificates.verify(json.loads(V1_TEXT), client_id=ISSUER, issuer=issuer, now_ms=now_ms)
        return
    with pytest.raises(AuthenticationFailed, match=message):
        certificates.verify(json.loads(V1_TEXT), client_id=ISSUER, issuer=issuer, now_ms=now_ms)


def test_v8_limits_of_timestamps() -> None:
    """A-059 A-007: 15 minutes pass, both ways."""
    for off in (900, -900):
        check(V3, now=NOW + off)
    for off in (960, -960, 901):
        assert why(V3, now=NOW + off) == "Unauthorized: Stale timestamp"


@pytest.mark.parametrize(
    "change",
    [{"scopes": ["scopeA"]}, {"start": 1735787045001}, {"expiry": 1735788245001}, {"seed": SEED[::-1]}],
    ids=str,
)
def test_v9_changed_certificates(change: dict[str, Any]) -> None:
    """A-059; an empty issuer counts as none."""
    issuer = Issuer(ISSUER, KEY, ScopeSet(["*"]), math.inf)
    fields = json.loads(V1_TEXT)
    certificates.verify({**fields, "issuer": ""}, client_id=ISSUER, issuer=issuer, now_ms=NOW * 1000)
    with pytest.raises(AuthenticationFailed, match=r"^ext.certificate.signature is not valid$"):
        certificates.verify({**fields, **change}, client_id=ISSUER, issuer=issuer, now_ms=NOW * 1000)


def test_payload_hashes() -> None:
    """auth.md 1.2: the constants; the type without its parameters, in lower case."""
    assert hawk.payload_hash(None, b"") == EMPTY_HASH
    expected = "vNZvU+y3rJKqH4hu1yxrNuaijNPgIJ2Rgj/sHzsQhXY="
    assert hawk.payload_hash("application/json", b"{}") == expected
    assert hawk.payload_hash(" Application/JSON ; charset=utf-8", b"{}") == expected


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("padded", [True, False])
def test_ext_in_every_alphabet(encode: Any, padded: bool) -> None:
    """auth.md 3, A-003."""
    text = encode('{"certificate": {"ü?>": "~~~"}, "x": 1}'.encode()).decode()
    assert hawk.read_ext(text if padded else text.rstrip("=")) == ({"ü?>": "~~~"}, None)


@pytest.mark.parametrize(
    ("value", "present"),
    [
        ("null", False),
        ("false", False),
        ("0", False),
        ('""', False),
        ("[]", True),
        ("{}", True),
        ('["a"]', True),
    ],
)
def test_what_counts_as_present(value: str, present: bool) -> None:
    """auth.md 3, A-024: empty lists and objects are there."""
    ext = base64.b64encode(f'{{"authorizedScopes": {value}}}'.encode()).decode()
    assert (hawk.read_ext(ext)[1] is not None) is present


@pytest.mark.parametrize("text", ["%", "bnVsbA==", "MQ==", "e30", "W10="])
def test_ext_that_is_none(text: str) -> None:
    """A-006: null, numbers and lists; `{}` without its padding is one."""
    if text == "e30":
        assert hawk.read_ext(text) == (None, None)
        return
    with pytest.raises(AuthenticationFailed, match=r"^Failed to parse ext$"):
        hawk.read_ext(text)


def test_bewits_in_every_place() -> None:
    """auth.md 2: first, in the middle, last; what is signed is the resource without it."""
    bewit = V6.resource.partition("bewit=")[2]

    def resource(url: str) -> str:
        signed = hawk.read(dataclasses.replace(V6, resource=url), NOW)
        assert signed is not None
        return signed.text.split("\n")[4]

    assert resource(f"/p?bewit={bewit}") == "/p"
    assert resource(f"/p?bewit={bewit}&a=1&b=2") == "/p?a=1&b=2"
    assert resource(f"/p?a=1&bewit={bewit}&b=2") == "/p?a=1&b=2"
    assert resource(f"/p?a=1&bewit={bewit}") == "/p?a=1"


def test_unsigned() -> None:
    """A-008: neither header nor bewit."""
    assert hawk.read(HawkRequest("GET", "/a?xbewit=1", "h", 80, None), NOW) is None


def test_two_schemes() -> None:
    """A-010."""
    assert why(dataclasses.replace(V6, authorization=V3.authorization)).startswith("Cannot use two")


def test_bewits_end_at_once() -> None:
    """auth.md 2: without any allowance for clocks; and only GET and HEAD have one."""
    assert why(V6, now=1735788000) == "Unauthorized: Access expired"
    check(V6, now=1735787999.9)
    check(dataclasses.replace(V6, method="HEAD"))
    assert why(dataclasses.replace(V6, method="POST")) == "Unauthorized: Invalid method"


def other(text: str, at: int, by: int) -> str:
    """A text with one character replaced by another printable one."""
    at %= len(text)
    return text[:at] + chr(33 + (ord(text[at]) - 33 + 1 + by % 92) % 94) + text[at + 1 :]


@settings(max_examples=300, deadline=None)
@given(
    part=st.sampled_from(["method", "resource", "host", "port", "authorization", "payload"]),
    at=st.integers(0, 500),
    by=st.integers(0, 91),
)
def test_no_byte_of_a_header_request_can_be_changed(part: str, at: int, by: int) -> None:
    """Whatever is changed of what was signed, or of the signature, it holds no longer."""
    changes: dict[str, Any] = {
        "method": {"method": other(V3.method, at, by)},
        "resource": {"resource": "/" + other(V3.resource[1:], at, by)},
        "host": {"host": other(V3.host, at, by).lower()},
        "port": {"port": (V3.port + 1 + at) % 65536},
        "payload": {"payload": (None, bytes([by]))},
    }
    assert V3.authorization is not None
    header = "Hawk " + other(V3.authorization[5:], at, by)
    change = changes.get(part, {"authorization": header})
    changed = dataclasses.replace(V3, **change)
    if changed.host == V3.host and changed == V3:
        return
    try:
        signed = check(changed)
    except AuthenticationFailed:
        return
    if signed.client_id != ISSUER:
        return  # another client, whose key would not have fitted
    # A change that survives changed no meaning: nothing that the signature covers, nor the signature.
    original = check(V3)
    assert (signed.text, signed.mac, signed.client_id) == (original.text, original.mac, original.client_id)


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, 500), by=st.integers(0, 91))
def test_no_byte_of_a_bewit_url_can_be_changed(at: int, by: int) -> None:
    """The same for URLs."""
    changed = dataclasses.replace(V6, resource="/" + other(V6.resource[1:], at, by))
    signed = hawk.read(V6, NOW)
    assert signed is not None
    try:
        again = hawk.read(changed, NOW)
        if again is None:
            return  # no bewit any more: nobody signed
        hawk.verify(again, KEY, changed, NOW)
    except AuthenticationFailed:
        return
    # The last character of unpadded base64 has bits that mean nothing.
    assert (again.text, again.mac) == (signed.text, signed.mac)
