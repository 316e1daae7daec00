"""Signatures over HTTP, and the endpoints that test them (auth.md 1 to 4, 7: A-001 to A-033, A-057)."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import httpx
import mohawk.bewit
import mohawk.util
import pytest

from server.client.credentials import Credentials
from server.domain import slugid
from server.identity import certificates
from tests.conformance.building import at
from tests.conformance.door import refused
from tests.conformance.json_door import HttpDoor, signature
from tests.plugins.server import Caller, Queue

pytestmark = pytest.mark.doors("http")

AUTH = "/api/auth/v1"
JSON = {"Content-Type": "application/json"}
TESTER = Credentials("tester", "no-secret")


def door_of(queue: Queue) -> HttpDoor:
    """The door, as what it is."""
    assert isinstance(queue.door, HttpDoor)
    return queue.door


async def send(
    queue: Queue,
    verb: str,
    path: str,
    body: Any = None,
    credentials: Credentials | None = None,
    **headers: str,
) -> httpx.Response:
    """Sends a request, signed if there are credentials."""
    door = door_of(queue)
    content = b"" if body is None else json.dumps(body).encode()
    sent = {} if body is None else dict(JSON)
    if credentials is not None:
        sent["Authorization"] = signature(
            credentials, verb, door.base + path, content, sent.get("Content-Type", "")
        )
    request = door.client.build_request(verb, door.base, content=content, headers={**sent, **headers})
    request.url = httpx.URL(door.base, raw_path=path.encode())
    return await door.client.send(request)


def bewit(door: HttpDoor, path: str, credentials: Credentials, lifetime_s: float = 900) -> str:
    """A path signed by the other implementation."""
    ext: dict[str, Any] = {}
    if credentials.certificate:
        ext["certificate"] = json.loads(credentials.certificate)
    if credentials.authorized_scopes is not None:
        ext["authorizedScopes"] = list(credentials.authorized_scopes)
    resource = mohawk.base.Resource(
        url=door.base + path,
        method="GET",
        credentials={"id": credentials.client_id, "key": credentials.access_token, "algorithm": "sha256"},
        timestamp=int(time.time() + lifetime_s),
        nonce="",
        ext=base64.urlsafe_b64encode(json.dumps(ext).encode()).decode() if ext else "",
    )
    text = mohawk.bewit.get_bewit(resource).rstrip("=")
    return f"{path}{'&' if '?' in path else '?'}bewit={text}"


def temporary(
    maker: Credentials,
    *scopes: str,
    name: str | None = None,
    start_s: float = -10,
    lasts_s: float = 900,
    **changes: Any,
) -> Credentials:
    """Credentials that a client makes of its own; `changes` are made to the certificate afterwards."""
    start = int((time.time() + start_s) * 1000)
    made = certificates.issue(
        maker.client_id,
        maker.access_token,
        scopes=scopes,
        start_ms=start,
        expiry_ms=start + int(lasts_s * 1000),
        client_id=name,
    )
    certificate = json.dumps({**json.loads(made.certificate), **changes})
    return Credentials(made.client_id, made.access_token, certificate)


def tried(scopes: list[str], required: list[str]) -> dict[str, Any]:
    """The body of testAuthenticate."""
    return {"clientScopes": scopes, "requiredScopes": required}


async def test_the_tester(queue: Queue) -> None:
    """A-029 A-030: exactly clientId and scopes; anonymous before what sorts after it."""
    for held, shown in (
        (["test:a"], ["assume:anonymous", "test:a"]),
        (["s:b", "s:a"], ["assume:anonymous", "s:b", "s:a"]),
        (["a", "z"], ["a", "assume:anonymous", "z"]),
        (["assume:*", "z"], ["assume:*", "z"]),
        (["*"], ["*"]),
        ([], ["assume:anonymous"]),
    ):
        answer = await send(queue, "POST", f"{AUTH}/test-authenticate", tried(held, held), TESTER)
        assert (answer.status_code, answer.json()) == (200, {"clientId": "tester", "scopes": shown})


async def test_who_is_not_the_tester(queue: Queue) -> None:
    """A-031: 401 for wrong credentials, 403 for too few scopes, 200 when nothing is asked."""
    path = f"{AUTH}/test-authenticate"
    for wrong in (Credentials("tester", "wrong"), queue.credentials, Credentials("nobody", "no-secret")):
        assert (await send(queue, "POST", path, tried(["*"], []), wrong)).status_code == 401
    assert (await send(queue, "POST", path, tried(["a"], ["b"]), TESTER)).status_code == 403
    answer = await send(queue, "POST", path, tried(["a"], ["a"]))
    assert answer.status_code == 403
    answer = await send(queue, "POST", path, tried(["a"], []))
    assert answer.json() == {"clientId": "auth-failed:no-auth", "scopes": ["assume:anonymous"]}
    bodies: list[dict[str, Any]] = [
        {"clientScopes": []},
        {"requiredScopes": []},
        {**tried([], []), "x": 1},
        {},
    ]
    for body in bodies:
        assert (await send(queue, "POST", path, body, TESTER)).json()["code"] == "InputValidationError"


async def test_the_tester_by_get(queue: Queue) -> None:
    """A-032: by header and by bewit, with a slash at the end and without."""
    for path in (f"{AUTH}/test-authenticate-get", f"{AUTH}/test-authenticate-get/"):
        expected = {
            "clientId": "tester",
            "scopes": ["assume:anonymous", "test:*", "auth:create-client:test:*"],
        }
        assert (await send(queue, "GET", path, credentials=TESTER)).json() == expected
        assert (await send(queue, "GET", bewit(door_of(queue), path, TESTER))).json() == expected
        assert (await send(queue, "GET", path)).status_code == 403


async def test_certificates_of_the_tester(queue: Queue) -> None:
    """A-014 A-015 A-020: unnamed, named, and named as the issuer may not."""
    path = f"{AUTH}/test-authenticate"
    held = ["auth:create-client:test/*", "a:*"]
    unnamed = temporary(TESTER, "a:b")
    assert (await send(queue, "POST", path, tried(held, ["a:b"]), unnamed)).json() == {
        "clientId": "tester",
        "scopes": ["a:b", "assume:anonymous"],
    }
    named = temporary(TESTER, "a:b", name="test/me")
    assert (await send(queue, "POST", path, tried(held, ["a:b"]), named)).json()["clientId"] == "test/me"
    other = temporary(TESTER, "a:b", name="other")
    answer = await send(queue, "POST", path, tried(held, []), other)
    assert "doesn't have `auth:create-client:other`" in answer.json()["message"]


async def client(queue: Queue, *scopes: str) -> Credentials:
    """A permanent client with these scopes, and with the right to see its scopes."""
    fields = {"description": "", "expires": at(days=1), "scopes": [*scopes, "auth:current-scopes"]}
    made = (await queue("CreateClient", client_id=f"c/{slugid.nice()}", **fields)).client
    return Credentials(made.client_id, made.access_token)


def as_caller(queue: Queue, credentials: Credentials) -> Caller:
    """Calls with credentials."""
    return Caller(queue.door, credentials)


async def test_permanent_credentials(queue: Queue) -> None:
    """A-001 A-002 A-003: without a hash and with one; ext may be empty, or hold what nobody knows."""
    door, who = door_of(queue), await client(queue)
    path = f"{AUTH}/scopes/current"
    for ext in (None, base64.b64encode(b"{}").decode(), base64.b64encode(b'{"x": [1]}').decode(), "e30"):
        for always_hash in (True, False):
            sender = mohawk.Sender(
                {"id": who.client_id, "key": who.access_token, "algorithm": "sha256"},
                door.base + path,
                "GET",
                content="" if always_hash else mohawk.base.EmptyValue,
                content_type="" if always_hash else mohawk.base.EmptyValue,
                always_hash_content=always_hash,
                ext=ext,
            )
            answer = await door.client.get(path, headers={"Authorization": sender.request_header})
            assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key": "wrong" * 5}, "Unauthorized: Bad mac"),
        ({"id": "c/none"}, "Client with clientId 'c/none' not found"),
        ({"ext": "%%%"}, "Failed to parse ext"),
        ({"ext": base64.b64encode(b"null").decode()}, "Failed to parse ext"),
        ({"ext": base64.b64encode(b'{"certificate": 1}').decode()}, "ext.certificate must be a JSON object"),
        ({"timestamp": -1000}, "Unauthorized: Stale timestamp"),
        ({"timestamp": 1000}, "Unauthorized: Stale timestamp"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_signatures_that_fail(queue: Queue, changes: dict[str, Any], message: str) -> None:
    """A-004 A-005 A-006 A-007."""
    door, who = door_of(queue), await client(queue)
    path = f"{AUTH}/scopes/current"
    sender = mohawk.Sender(
        {
            "id": changes.get("id", who.client_id),
            "key": changes.get("key", who.access_token),
            "algorithm": "sha256",
        },
        door.base + path,
        "GET",
        content="",
        content_type="",
        ext=changes.get("ext"),
        _timestamp=int(time.time()) + changes.get("timestamp", 0),
    )
    answer = await door.client.get(path, headers={"Authorization": sender.request_header})
    assert (answer.status_code, answer.json()["code"]) == (401, "AuthenticationFailed")
    assert answer.json()["message"].partition("\n")[0] == message
    assert answer.headers["www-authenticate"] == "hawk"


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("Basic abc", "Unauthorized: Unauthorized"),
        ("Bearer abc", "Unauthorized: Unauthorized"),
        ("Hawk", "Bad Request: Invalid header syntax"),
        ("Hawk nonsense", "Bad Request: Bad header format"),
        ('Hawk id="a", zz="b"', "Bad Request: Unknown attribute: zz"),
        ('Hawk id="a", id="b"', "Bad Request: Duplicate attribute: id"),
        ('Hawk id="\u00e9"', "Bad Request: Bad attribute value: id"),
        ('Hawk id="a", ts="1"', "Bad Request: Missing attributes"),
        (f'Hawk id="{"a" * 17000}"', "Bad Request: Header length too long"),
    ],
    ids=lambda value: value[:30],
)
async def test_headers_that_are_none(queue: Queue, header: str, message: str) -> None:
    """auth.md 1.5: each with the text it has always had."""
    answer = await door_of(queue).client.get(
        f"{AUTH}/scopes/current", headers=[(b"Authorization", header.encode("latin-1"))]
    )
    assert (answer.status_code, answer.json()["message"].partition("\n")[0]) == (401, message)


async def test_bewits(queue: Queue) -> None:
    """A-011: in any place of the query, for HEAD too; not with another key, not for ever, not for POST."""
    door, who = door_of(queue), await client(queue, "auth:list-clients")
    path = f"{AUTH}/clients?limit=1"
    signed = bewit(door, path, who)
    before, _, text = signed.partition("&bewit=")
    for url in (signed, f"{before.replace('?', f'?bewit={text}&')}"):
        assert (await send(queue, "GET", url)).status_code == 200
        assert (await send(queue, "HEAD", url)).status_code == 200
    for bad, message in (
        (bewit(door, path, Credentials(who.client_id, "wrong" * 5)), "Unauthorized: Bad mac"),
        (bewit(door, path, who, lifetime_s=-1), "Unauthorized: Access expired"),
        (bewit(door, path, who).replace("limit=1", "limit=2"), "Unauthorized: Bad mac"),
    ):
        answer = await send(queue, "GET", bad)
        assert (answer.status_code, answer.json()["message"].partition("\n")[0]) == (401, message)
    answer = await send(queue, "POST", bewit(door, f"{AUTH}/clients/c/reset", who))
    assert answer.json()["message"].partition("\n")[0] in ("Unauthorized: Invalid method",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Unauthorized: Empty bewit"),
        ("abc", "Bad Request: Invalid bewit structure"),
        ("=", "Bad Request: Invalid bewit encoding"),
        ("_____w", "Bad Request: Invalid bewit structure"),
        (base64.urlsafe_b64encode(b"a\\1\\\\").decode().rstrip("="), "Bad Request: Missing bewit attributes"),
        (
            base64.urlsafe_b64encode(b"a\0\\9999999999\\x\\").decode().rstrip("="),
            "Client with clientId 'a\0' not found",
        ),
        ("a" * 17000, "Bad Request: Resource path exceeds max length"),
    ],
    ids=lambda value: value[:30],
)
async def test_bewits_that_are_none(queue: Queue, text: str, message: str) -> None:
    """A-012, auth.md 2."""
    answer = await send(queue, "GET", f"{AUTH}/scopes/current?bewit={text}")
    assert (answer.status_code, answer.json()["message"].partition("\n")[0]) == (401, message)


async def test_bewits_of_temporary_credentials(queue: Queue) -> None:
    """A-013: temporary, named and narrowed."""
    who = await client(queue, "auth:create-client:c/*", "auth:list-clients")
    path = f"{AUTH}/clients?limit=1"
    for credentials in (
        temporary(who, "auth:list-clients"),
        temporary(who, "auth:list-clients", name="c/named"),
        Credentials(who.client_id, who.access_token, authorized_scopes=["auth:list-clients"]),
    ):
        assert (await send(queue, "GET", bewit(door_of(queue), path, credentials))).status_code == 200
    narrowed = Credentials(who.client_id, who.access_token, authorized_scopes=[])
    assert (await send(queue, "GET", bewit(door_of(queue), path, narrowed))).status_code == 403


CERTIFICATES: list[tuple[dict[str, Any], str]] = [
    ({"version": 2}, "ext.certificate.version must be 1"),
    ({"version": True}, "ext.certificate.version must be 1"),
    ({"seed": 1}, "ext.certificate.seed must be a string"),
    ({"seed": "short"}, "ext.certificate.seed must be 44 characters"),
    ({"start": "now"}, "ext.certificate.start must be a number"),
    ({"expiry": None}, "ext.certificate.expiry must be a number"),
    ({"scopes": "a"}, "ext.certificate.scopes must be an array"),
    ({"scopes": ["\n"]}, "ext.certificate.scopes must be an array of valid scopes"),
    ({"issuer": 1}, "ext.certificate.issuer must be a string"),
    ({"issuer": "\0"}, "Client with clientId '\0' not found"),
    ({"clientId": "x"}, "ext.certificate.clientId must only be used with ext.certificate.issuer"),
    ({"signature": "short"}, "ext.certificate.signature is not valid"),
    ({"scopes": ["auth:list-roles"]}, "ext.certificate.signature is not valid"),
]


@pytest.mark.parametrize(("changes", "message"), CERTIFICATES, ids=lambda value: str(value)[:50])
async def test_certificates_that_fail(queue: Queue, changes: dict[str, Any], message: str) -> None:
    """A-016 A-018."""
    who = await client(queue, "auth:list-*")
    answer = await send(
        queue, "GET", f"{AUTH}/scopes/current", credentials=temporary(who, "auth:list-clients", **changes)
    )
    assert (answer.status_code, answer.json()["message"].partition("\n")[0]) == (401, message)


async def test_certificates_and_time(queue: Queue) -> None:
    """A-017: over, to come, too long; five minutes are forgiven."""
    who = await client(queue)
    scope = "auth:current-scopes"
    late = temporary(who, scope, start_s=-1000, lasts_s=600)
    early = temporary(who, scope, start_s=400)
    held = json.loads(temporary(who, scope).certificate)
    held["expiry"] = held["start"] + 32 * 86_400_000
    long = Credentials(who.client_id, late.access_token, json.dumps(held))
    for credentials, message in (
        (late, "ext.certificate.expiry < now"),
        (early, "ext.certificate.start > now"),
        (long, "ext.certificate cannot last longer than 31 days!"),
    ):
        with refused("AuthenticationFailed", message):
            await as_caller(queue, credentials)("CurrentScopes")
    await as_caller(queue, temporary(who, scope, start_s=-800, lasts_s=600))("CurrentScopes")
    await as_caller(queue, temporary(who, scope, start_s=250))("CurrentScopes")


async def test_what_certificates_may_not_grant(queue: Queue) -> None:
    """A-019 A-020 A-021: scopes and names that the issuer lacks, and its own name."""
    who = await client(queue, "auth:create-client:c/*")
    with refused("AuthenticationFailed", "doesn't satisfy all certificate scopes a, b.  The temporary"):
        await as_caller(queue, temporary(who, "a", "b"))("CurrentScopes")
    with refused("AuthenticationFailed", "doesn't have `auth:create-client:other` for supplied clientId."):
        await as_caller(queue, temporary(who, name="other"))("CurrentScopes")
    with refused("AuthenticationFailed", "must differ from the supplied clientId"):
        await as_caller(queue, temporary(who, issuer=who.client_id))("CurrentScopes")
    named = temporary(who, name="c/one")
    with refused("AuthenticationFailed", "or wrong clientId provided"):
        await as_caller(queue, Credentials("c/two", named.access_token, named.certificate))("CurrentScopes")


async def test_authorized_scopes(queue: Queue) -> None:
    """A-023 A-025 A-026 A-027 A-028: narrower, too wide, malformed, through roles, in certificates."""
    await queue("CreateRole", role_id="r", description="", scopes={"scopes": ["from:*"]})
    await queue("CreateRole", role_id="anonymous", description="", scopes={"scopes": ["for-all"]})
    who = await client(queue, "assume:r", "a:*")

    def narrowed(credentials: Credentials, scopes: Any) -> Caller:
        return as_caller(
            queue,
            Credentials(credentials.client_id, credentials.access_token, credentials.certificate, scopes),
        )

    scopes = ["a:b", "auth:current-scopes", "for-all", "from:1"]
    shown = await narrowed(who, scopes)("CurrentScopes")
    assert list(shown.scopes) == sorted([*scopes, "assume:anonymous"])
    with refused(
        "AuthenticationFailed", "Supplied credentials do not satisfy authorizedScopes", "from:*", "other"
    ):
        await narrowed(who, ["other"])("CurrentScopes")
    with refused("AuthenticationFailed", "ext.authorizedScopes must be an array of valid scopes"):
        await narrowed(who, ["\n"])("CurrentScopes")
    limited = temporary(who, "a:*", "auth:current-scopes")
    await narrowed(limited, ["a:x", "auth:current-scopes"])("CurrentScopes")
    with refused("AuthenticationFailed", "do not satisfy"):
        await narrowed(limited, ["from:1"])("CurrentScopes")


async def test_authenticating_for_others(queue: Queue) -> None:
    """auth.md 7, A-022: success with the earlier end, failure with its text, and neither."""
    who = await client(queue, "a:*", "auth:create-client:c/*")
    soon = temporary(who, "a:b", name="c/named", lasts_s=600)
    header = signature(soon, "PUT", "https://queue.example.com/v1/x?y=1", b"body", "text/plain")
    asked = {"method": "put", "resource": "/v1/x?y=1", "host": "queue.example.com", "port": 443}
    path = f"{AUTH}/authenticate-hawk"
    answer = (await send(queue, "POST", path, {**asked, "authorization": header, "sourceIp": "::1"})).json()
    assert set(answer) == {"status", "scheme", "clientId", "scopes", "expires", "hash"}
    assert (answer["status"], answer["scheme"], answer["clientId"]) == ("auth-success", "hawk", "c/named")
    assert answer["scopes"] == ["a:b", "assume:anonymous"]
    assert f'hash="{answer["hash"]}"' in header
    expiry = json.loads(soon.certificate)["expiry"] / 1000
    assert answer["expires"].startswith(time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(expiry)))
    failed = (await send(queue, "POST", path, {**asked, "port": 80, "authorization": header})).json()
    assert failed == {"status": "auth-failed", "message": "Unauthorized: Bad mac"}
    unsigned = (await send(queue, "POST", path, asked)).json()
    assert set(unsigned) == {"status", "scheme", "scopes", "expires"}
    assert (unsigned["status"], unsigned["scheme"]) == ("no-auth", "none")
    signed = bewit(door_of(queue), "/v1/x", who)
    host, _, port = door_of(queue).base.removeprefix("http://").partition(":")
    by_url = {"method": "get", "resource": signed, "host": host, "port": int(port)}
    assert (await send(queue, "POST", path, by_url)).json()["clientId"] == who.client_id
    for wrong in (
        {"method": "GET"},
        {"method": "fetch"},
        {"port": 65536},
        {"host": "a b"},
        {"x": 1},
        {"port": None},
    ):
        assert (await send(queue, "POST", path, {**asked, **wrong})).json()["code"] == "InputValidationError"


async def test_expires_to_the_millisecond(queue: Queue) -> None:
    """auth.md 7: as it was given, whatever it is in binary fractions."""
    expires = "2038-02-09T10:49:51.075Z"
    request = {"expires": expires, "description": "", "scopes": []}
    made = await send(queue, "PUT", f"{AUTH}/clients/c", request, queue.credentials)
    who = Credentials("c", made.json()["accessToken"])
    asked = {"method": "get", "resource": "/", "host": "queue.example.com", "port": 443}
    header = signature(who, "GET", "https://queue.example.com/", b"", "")
    answer = await send(queue, "POST", f"{AUTH}/authenticate-hawk", {**asked, "authorization": header})
    assert answer.json()["expires"] == expires


async def test_no_credentials(queue: Queue) -> None:
    """A-008 A-057: 403 with the expression and no more; with credentials also what is missing."""
    path = f"/api/queue/v1/task/{slugid.nice()}/schedule"
    status = await queue.create()
    path = f"/api/queue/v1/task/{status.task_id}/schedule"
    answer = await send(queue, "POST", path)
    assert (answer.status_code, answer.json()["code"]) == (403, "InsufficientScopes")
    assert answer.json()["message"].startswith(
        "This request requires Taskcluster credentials that satisfy the following scope expression:\n\n```\n{"
    )
    who = await client(queue)
    answer = await send(queue, "POST", path, credentials=who)
    assert answer.json()["message"].startswith(
        f"Client ID {who.client_id} does not have sufficient scopes and is missing the following scopes:"
        "\n\n```\n"
    )
