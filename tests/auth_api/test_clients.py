"""Clients (auth.md 7: A-034 to A-045)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from server.client.credentials import Credentials
from tests.conformance.building import at, new_id
from tests.conformance.door import refused
from tests.plugins.server import Caller, Queue

WANTED: dict[str, Any] = {"description": "for *tests*", "scopes": ["b", "a:*"]}


async def make(queue: Queue, client_id: str = "ci/one", **fields: Any) -> Any:
    """A new client."""
    return (
        await queue("CreateClient", client_id=client_id, **{"expires": at(days=1), **WANTED, **fields})
    ).client


def signing(queue: Queue, client: Any) -> Caller:
    """A caller with a client's credentials."""
    return Caller(queue.door, Credentials(client.client_id, client.access_token))


async def test_create_and_get(queue: Queue) -> None:
    """A-034: the access token is shown once; scopes come back as given, and expanded."""
    await queue("CreateRole", role_id="r", description="", scopes={"scopes": ["from-r"]})
    made = await make(queue, scopes=["b", "assume:r", "a:*"])
    assert len(made.access_token) == 44
    assert list(made.scopes) == ["b", "assume:r", "a:*"]
    assert list(made.expanded_scopes) == ["a:*", "assume:r", "b", "from-r"]
    assert (made.disabled, made.delete_on_expiration) == (False, False)
    assert made.created == made.last_modified == made.last_rotated
    got = (await queue("GetClient", client_id="ci/one")).client
    assert (got.client_id, list(got.scopes), got.expires) == (made.client_id, list(made.scopes), made.expires)
    assert not hasattr(got, "access_token")
    with refused("ResourceNotFound", "Client not found"):
        await queue("GetClient", client_id="ci/none")


async def test_repeat(queue: Queue) -> None:
    """A-035: the same client and token, nothing changed. A-036: anything else is a conflict."""
    expires = at(days=1)
    made = await make(queue, expires=expires)
    assert await make(queue, expires=expires) == made
    changes: list[dict[str, Any]] = [
        {"description": "another"},
        {"scopes": ["a:*", "b"]},
        {"expires": at(days=2)},
    ]
    for change in changes:
        with refused("RequestConflict", "Client already exists"):
            await make(queue, **{"expires": expires, **change})
    await queue("DisableClient", client_id="ci/one")
    with refused("RequestConflict"):
        await make(queue, expires=expires)


async def test_the_repeat_ends(queue: Queue) -> None:
    """A-035: after 15 minutes it is a conflict."""
    expires = at(days=1)
    await make(queue, expires=expires)
    await queue.sql("update clients set created = created - interval '16 minutes'")
    with refused("RequestConflict"):
        await make(queue, expires=expires)


@pytest.mark.parametrize("method", ["CreateClient", "UpdateClient"])
async def test_two_stars(queue: Queue, method: str) -> None:
    """A-037: refused before anybody looks whether the client is there, or the caller may."""
    scopes: Any = ["a**"] if method == "CreateClient" else {"scopes": ["a**"]}
    fields = {"client_id": "ci/none", "description": "", "expires": at(days=1), "scopes": scopes}
    with refused("InputError", "scopes must not end with `**`"):
        await queue.having("nothing")(method, **fields)


async def test_update(queue: Queue) -> None:
    """A-038: without scopes they stay, with an empty list they go; what was left out is false."""
    made = await make(queue, delete_on_expiration=True)
    fields = {"client_id": "ci/one", "description": "new", "expires": at(days=-1)}
    changed = (await queue("UpdateClient", **fields)).client
    assert (changed.description, list(changed.scopes)) == ("new", ["b", "a:*"])
    assert not changed.delete_on_expiration
    assert changed.last_rotated == made.last_rotated
    assert (changed.last_modified.ToDatetime()) >= made.last_modified.ToDatetime()
    assert list((await queue("UpdateClient", **fields, scopes={"scopes": []})).client.scopes) == []
    with refused("ResourceNotFound", "Client not found"):
        await queue.having("nothing")("UpdateClient", **{**fields, "client_id": "ci/none"})


async def test_what_may_be_granted(queue: Queue) -> None:
    """A-039: only what the caller holds; removing is free; a role is not its scopes."""
    await queue("CreateRole", role_id="r", description="", scopes={"scopes": ["from-r"]})
    maker = queue.having("auth:create-client:ci/*", "auth:update-client:ci/*", "a:*")
    expires = at(days=1)
    fields: dict[str, Any] = {"client_id": "ci/two", "description": "", "expires": expires}
    with refused("InsufficientScopes", "from-r"):
        await maker("CreateClient", **fields, scopes=["a:b", "from-r"])
    await maker("CreateClient", **fields, scopes=["a:b"])
    with refused("InsufficientScopes"):
        await queue.having("auth:create-client:other", "a:*")("CreateClient", **fields, scopes=["a:b"])
    await queue("UpdateClient", **fields, scopes={"scopes": ["assume:r", "x", "y"]})
    assert list(
        (await maker("UpdateClient", **fields, scopes={"scopes": ["assume:r", "y"]})).client.scopes
    ) == [
        "assume:r",
        "y",
    ]
    with refused("InsufficientScopes", "from-r"):
        await maker("UpdateClient", **fields, scopes={"scopes": ["from-r"]})


async def test_reset(queue: Queue) -> None:
    """A-040: the old token is refused from the next call on."""
    made = await make(queue, scopes=["auth:current-scopes"])
    old = signing(queue, made)
    await old("CurrentScopes")
    reset = (await queue("ResetAccessToken", client_id="ci/one")).client
    assert reset.access_token != made.access_token
    assert reset.last_rotated == reset.last_modified
    with refused("AuthenticationFailed"):
        await old("CurrentScopes")
    await signing(queue, reset)("CurrentScopes")
    with refused("ResourceNotFound"):
        await queue("ResetAccessToken", client_id="ci/none")


async def test_disable_and_enable(queue: Queue) -> None:
    """A-041: at once, and harmless to repeat."""
    caller = signing(queue, await make(queue, scopes=["auth:current-scopes"]))
    await caller("CurrentScopes")
    for _ in range(2):
        assert (await queue("DisableClient", client_id="ci/one")).client.disabled
        with refused("AuthenticationFailed", "Client with clientId 'ci/one' is disabled"):
            await caller("CurrentScopes")
    for _ in range(2):
        assert not (await queue("EnableClient", client_id="ci/one")).client.disabled
        await caller("CurrentScopes")
    for method in ("DisableClient", "EnableClient"):
        with refused("ResourceNotFound"):
            await queue(method, client_id="ci/none")


async def test_delete(queue: Queue) -> None:
    """A-042: twice, and its signature is refused."""
    caller = signing(queue, await make(queue, scopes=["auth:current-scopes"]))
    await caller("CurrentScopes")
    for _ in range(2):
        await queue("DeleteClient", client_id="ci/one")
    with refused("AuthenticationFailed", "Client with clientId 'ci/one' not found"):
        await caller("CurrentScopes")


async def test_list(queue: Queue) -> None:
    """A-043: in order, by prefix taken literally, and page by page to the end."""
    for name in ("ci/b", "ci/a", "ci|a", "other"):
        await make(queue, name)
    listed = await queue("ListClients", prefix="ci/")
    assert [client.client_id for client in listed.clients] == ["ci/a", "ci/b"]
    assert not listed.continuation_token
    assert not (await queue("ListClients", prefix="ci_")).clients
    found, token = [], ""
    while True:
        page = await queue("ListClients", limit=1, **({"continuation_token": token} if token else {}))
        found += [client.client_id for client in page.clients]
        token = page.continuation_token
        if not token:
            break
    assert found == sorted(found) and {"ci/a", "ci/b", "ci|a", "other", "root"} <= set(found)
    with refused("InputError"):
        await queue("ListClients", continuation_token="%%")
    with refused("InputError"):
        await queue("ListClients", continuation_token="abc")
    with refused("InsufficientScopes"):
        await queue.having("auth:list-roles")("ListClients")


async def test_expired(queue: Queue) -> None:
    """A-044: its own text, and deleted only where that was asked for."""
    await make(queue, "ci/past", expires=at(seconds=-1), delete_on_expiration=True)
    kept = await make(queue, "ci/kept", expires=at(seconds=-1))
    with refused("AuthenticationFailed", "Client with clientId: 'ci/kept' has expired"):
        await signing(queue, kept)("CurrentScopes")
    await queue.expire()
    assert (await queue("GetClient", client_id="ci/kept")).client.client_id == "ci/kept"
    with refused("ResourceNotFound"):
        await queue("GetClient", client_id="ci/past")


CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("CreateClient", {"description": "", "expires": at(days=1)}),
    ("UpdateClient", {"description": "", "expires": at(days=1)}),
    ("ResetAccessToken", {}),
    ("EnableClient", {}),
    ("DisableClient", {}),
    ("DeleteClient", {}),
]


@pytest.mark.parametrize(("method", "fields"), CHANGES, ids=[method for method, _ in CHANGES])
async def test_static_clients(queue: Queue, method: str, fields: dict[str, Any]) -> None:
    """A-045: are changed in the settings only, whether they are there or not."""
    with refused("InputError"):
        await queue(method, client_id="static/some/service", **fields)
    await queue("GetClient", client_id="static/tcqueue/queue")


@pytest.mark.parametrize("method", ["CreateClient", "UpdateClient"])
async def test_what_is_wrong_comes_before_who_asks(queue: Queue, method: str) -> None:
    """auth.md 7: creations and updates are judged in an order that begins with the request."""
    wrong = Caller(queue.door, Credentials("root", "wrong" * 5))
    for caller in (wrong, queue.anonymous):
        with refused("InputError", "static/"):
            await caller(method, client_id="static/some/service", description="", expires=at(days=1))
        request = {"client_id": "ci/one", "description": "", "expires": at(days=1)}
        scopes = ["a**"] if method == "CreateClient" else {"scopes": ["a**"]}
        with refused("InputError", "scopes must not end with `**`"):
            await caller(method, **request, scopes=scopes)
        if method == "UpdateClient":
            with refused("ResourceNotFound", "Client not found"):
                await caller(method, **request)
    await make(queue)
    with refused("AuthenticationFailed"):
        await wrong(method, **request)


@pytest.mark.parametrize(
    "fields",
    [
        {"scopes": ["tab\t"]},
        {"scopes": ["new\nline"]},
        {"scopes": ["end\n"]},
        {"scopes": ["\r"]},
        {"scopes": ["é"]},
        {"scopes": ["a", "a"]},
        {"description": "d" * 10_241},
    ],
    ids=str,
)
async def test_bodies_that_are_refused(queue: Queue, fields: dict[str, Any]) -> None:
    """A-050 A-058."""
    with refused("InputValidationError"):
        await make(queue, **fields)


async def test_odd_ids(queue: Queue) -> None:
    """auth.md 7: what may be in a clientId."""
    made = await make(queue, "a!@/:.+|_-9")
    assert (await queue("GetClient", client_id=made.client_id)).client.client_id == "a!@/:.+|_-9"
    for odd in ("a b", "ä", "a*", "a%"):
        with refused("InvalidRequestArguments"):
            await make(queue, odd)


async def test_what_no_id_holds(queue: Queue) -> None:
    """auth.md 7: nothing begins so, and nothing was ever done to it."""
    for odd in ("\0", "ci/\0", "ä"):
        assert not (await queue("ListClients", prefix=odd)).clients
        for kind in ("client", "role"):
            history = await queue("GetEntityHistory", entity_type=kind, entity_id=odd)
            assert not history.audit_history


async def test_the_trail(queue: Queue) -> None:
    """auth.md 7: every change with who made it, oldest first, in pages."""
    await make(queue)
    await queue("DisableClient", client_id="ci/one")
    await queue("EnableClient", client_id="ci/one")
    await queue("ResetAccessToken", client_id="ci/one")
    await queue("DeleteClient", client_id="ci/one")
    request = {"entity_type": "client", "entity_id": "ci/one"}
    history = (await queue("GetEntityHistory", **request)).audit_history
    assert [entry.action_type for entry in history] == [
        "created",
        "client disabled",
        "client enabled",
        "access token reset",
        "deleted",
    ]
    assert {(entry.client_id, entry.entity_type) for entry in history} == {("root", "client")}
    first = await queue("GetEntityHistory", **request, limit=4)
    rest = await queue("GetEntityHistory", **request, continuation_token=first.continuation_token)
    assert [*first.audit_history, *rest.audit_history] == list(history)
    assert not rest.continuation_token
    done = (await queue("ListAuditHistory", client_id="root")).audit_history
    assert next(e.action_type for e in done if e.entity_id == "ci/one") == "created"
    with refused("InsufficientScopes"):
        await queue.having("auth:audit-history:role")("GetEntityHistory", **request)


async def test_messages(queue: Queue) -> None:
    """A-060: on every change, on repeats that change nothing too, with an empty routing key."""
    await queue.published()
    expires = at(days=1)
    await make(queue, expires=expires)
    await make(queue, expires=expires)
    await queue("UpdateClient", client_id="ci/one", description="", expires=expires)
    await queue("DisableClient", client_id="ci/one")
    await queue("EnableClient", client_id="ci/one")
    await queue("ResetAccessToken", client_id="ci/one")
    await queue("DeleteClient", client_id="ci/one")
    await queue("DeleteClient", client_id="ci/one")
    events = await queue.published()
    assert events.exchanges == ["client-created"] * 2 + ["client-updated"] * 4 + ["client-deleted"] * 2
    assert {event.key for event in events} == {""}
    assert all(event.payload == {"version": 1, "clientId": "ci/one"} for event in events)


async def test_equal_creations_at_once(queue: Queue) -> None:
    """A-035: all get one client."""
    expires = at(days=1)
    made = await asyncio.gather(*(make(queue, expires=expires) for _ in range(8)))
    assert len({one.access_token for one in made}) == 1


async def test_the_calls_of_2014(queue: Queue) -> None:
    """auth.md 7.1: what a client may do; its credentials are not given out unless that is set."""
    await make(queue, scopes=["b", "a:*"])
    for scope in ("auth:inspect", "auth:credentials"):
        shown = await queue.having(scope)("InspectClient", client_id="ci/one")
        assert (shown.client_id, list(shown.scopes)) == ("ci/one", ["a:*", "b"])
    with refused("InsufficientScopes"):
        await queue.having("auth:inspect")("GetClientCredentials", client_id="ci/one")
    with refused("ResourceNotFound"):
        await queue("GetClientCredentials", client_id="ci/one")
    with refused("ResourceNotFound", "Client not found"):
        await queue("InspectClient", client_id=new_id())


@pytest.mark.settings(auth_serve_credentials=True)
async def test_credentials_given_out(queue: Queue) -> None:
    """auth.md 7.1: where the settings allow it."""
    made = await make(queue)
    got = await queue.having("auth:credentials")("GetClientCredentials", client_id="ci/one")
    assert (got.access_token, list(got.scopes), got.expires) == (
        made.access_token,
        ["a:*", "b"],
        made.expires,
    )
