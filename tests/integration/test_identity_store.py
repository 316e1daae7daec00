"""Clients and roles against a real database."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from server.errors import (
    AlreadyExists,
    InputError,
    InputValidationError,
    InsufficientScopes,
    InvalidRequestArguments,
    ResourceNotFound,
)
from server.identity.clients import Clients
from server.identity.roles import Roles
from server.store.database import Database
from tests.plugins.identity import BOX, EXPIRES, WHO, client_arguments


class Forbid:
    """An actor that notes what it is asked and, if told so, refuses it."""

    def __init__(self, *, refuse: bool = False) -> None:
        self.asked: list[list[str]] = []
        self.refuse = refuse

    def __call__(self, scopes: Sequence[str]) -> str:
        self.asked.append(list(scopes))
        if self.refuse:
            raise InsufficientScopes("no")
        return "tester"


# --- clients


async def test_a_034_create_and_get(db: Database, clients: Clients) -> None:
    """A-034"""
    client, token = await clients.create("a/b", **client_arguments(delete_on_expiration=True))
    assert await clients.get("a/b") == client
    assert (client.scopes, client.expires, client.delete_on_expiration) == (("a", "b"), EXPIRES, True)
    assert client.created == client.last_modified == client.last_rotated == client.last_date_used
    assert client.created.microsecond % 1000 == 0
    assert len(token) == 44
    assert not client.disabled


async def test_access_tokens_are_encrypted_at_rest(db: Database, clients: Clients) -> None:
    _, token = await clients.create("a", **client_arguments())
    ((row,),) = await db.fetch("select row_to_json(clients)::text || sealed_token::text from clients")
    assert token not in row
    assert token.encode().hex() not in row
    ((sealed,),) = await db.fetch("select sealed_token from clients")
    assert BOX.open(sealed) == token


async def test_a_035_the_same_again_gives_the_stored_client_and_token(clients: Clients) -> None:
    """A-035"""
    first = await clients.create("a", **client_arguments())
    assert await clients.create("a", **client_arguments()) == first
    finer = EXPIRES + timedelta(microseconds=999)
    assert await clients.create("a", **client_arguments(expires=finer)) == first


async def test_a_035_equal_creates_at_the_same_moment_make_one(clients: Clients) -> None:
    """A-035"""
    made = await asyncio.gather(*(clients.create("a", **client_arguments()) for _ in range(5)))
    assert all(one == made[0] for one in made)


@pytest.mark.parametrize(
    "change",
    [
        {"description": "other"},
        {"expires": EXPIRES + timedelta(seconds=1)},
        {"scopes": ["b", "a"]},
        {"scopes": []},
    ],
)
async def test_a_036_another_client_under_the_same_id(clients: Clients, change: dict[str, Any]) -> None:
    """A-036"""
    await clients.create("a", **client_arguments())
    with pytest.raises(AlreadyExists, match="Client already exists"):
        await clients.create("a", **client_arguments(**change))


async def test_a_035_a_repeat_after_a_quarter_of_an_hour_or_of_a_disabled_client(
    db: Database, clients: Clients
) -> None:
    """A-035"""
    await clients.create("a", **client_arguments())
    await clients.create("b", **client_arguments())
    await clients.disable("a", **WHO)
    await db.fetch(
        "update clients set created = now() - interval '15 minutes 1 second' where client_id = 'b'"
    )
    for client_id in ("a", "b"):
        with pytest.raises(AlreadyExists):
            await clients.create(client_id, **client_arguments())


async def test_a_037_and_others_unusable_contents_are_refused_before_authorization(clients: Clients) -> None:
    """A-037, A-050"""
    forbid = Forbid(refuse=True)
    cases: list[tuple[dict[str, Any], type[Exception]]] = [
        ({"scopes": ["a**"]}, InputError),
        ({"scopes": ["a\n"]}, InputValidationError),
        ({"scopes": ["a\tb"]}, InputValidationError),
        ({"scopes": ["ä"]}, InputValidationError),
        ({"scopes": ["a", "a"]}, InputValidationError),
        ({"description": "x" * 10_241}, InputValidationError),
        ({"description": "x\0"}, InputValidationError),
    ]
    for change, error in cases:
        with pytest.raises(error):
            await clients.create("a", **client_arguments(**change, actor=forbid))
        with pytest.raises(error):
            await clients.update("a", **client_arguments(**change, actor=forbid))
    assert forbid.asked == []
    for bad in ("", "a b", "a\n", "ä"):
        with pytest.raises(InvalidRequestArguments):
            await clients.create(bad, **client_arguments())


async def test_a_038_update_without_scopes_keeps_them(clients: Clients) -> None:
    """A-038"""
    made, _ = await clients.create("a", **client_arguments(delete_on_expiration=True))
    kept = await clients.update("a", **client_arguments(description="new", scopes=None))
    assert (kept.description, kept.scopes, kept.delete_on_expiration) == ("new", ("a", "b"), False)
    assert (kept.created, kept.last_rotated) == (made.created, made.last_rotated)
    assert kept.last_modified >= made.last_modified
    assert (await clients.update("a", **client_arguments(scopes=[]))).scopes == ()
    with pytest.raises(ResourceNotFound, match="Client not found"):
        await clients.update("b", **client_arguments())


async def test_a_039_only_scopes_not_there_before_need_authorization(clients: Clients) -> None:
    """A-039"""
    await clients.create("a", **client_arguments(scopes=["a*", "b"]))
    ask = Forbid()
    await clients.update("a", **client_arguments(scopes=["a*"], actor=ask))
    await clients.update("a", **client_arguments(scopes=["a1"], actor=ask))
    assert ask.asked == [[], ["a1"]]
    with pytest.raises(InsufficientScopes):
        await clients.update("a", **client_arguments(scopes=["c"], actor=Forbid(refuse=True)))
    assert (await clients.get("a")).scopes == ("a1",)
    with pytest.raises(InsufficientScopes):
        await clients.create("new", **client_arguments(actor=Forbid(refuse=True)))
    with pytest.raises(ResourceNotFound):
        await clients.get("new")


async def test_a_042_delete_twice(clients: Clients) -> None:
    """A-042"""
    await clients.create("a", **client_arguments())
    await clients.delete("a", **WHO)
    await clients.delete("a", **WHO)
    with pytest.raises(ResourceNotFound):
        await clients.get("a")
    for change in (clients.enable, clients.disable, clients.reset_access_token):
        with pytest.raises(ResourceNotFound):
            await change("a", actor="tester")


async def test_a_043_pages_in_order_with_a_literal_prefix(clients: Clients) -> None:
    """A-043"""
    for client_id in ("b/_x", "B", "b/ax", "a", "b/_y", "c"):
        await clients.create(client_id.replace(" ", ""), **client_arguments())
    everything: list[str] = []
    after = ""
    while page := await clients.page(after=after, limit=1):
        everything += [client.client_id for client in page]
        after = everything[-1]
    assert everything == ["B", "a", "b/_x", "b/_y", "b/ax", "c"]
    assert [client.client_id for client in await clients.page(prefix="b/_")] == ["b/_x", "b/_y"]
    assert [client.client_id for client in await clients.page(prefix="%")] == []


async def test_a_045_static_clients_are_not_to_be_touched(clients: Clients) -> None:
    """A-045"""
    for change in (
        clients.create("static/x", **client_arguments()),
        clients.update("static/x", **client_arguments()),
        clients.reset_access_token("static/x", **WHO),
        clients.enable("static/x", **WHO),
        clients.disable("static/x", **WHO),
        clients.delete("static/x", **WHO),
    ):
        with pytest.raises(InputError, match="static/"):
            await change


async def test_expired_clients_go_only_when_they_asked_for_it(clients: Clients) -> None:
    past = datetime(2020, 1, 1, tzinfo=UTC)
    await clients.create("goes", **client_arguments(expires=past, delete_on_expiration=True))
    await clients.create("stays", **client_arguments(expires=past))
    await clients.create("lives", **client_arguments(delete_on_expiration=True))
    assert await clients.delete_expired(**WHO) == ["goes"]
    assert [client.client_id for client in await clients.page()] == ["lives", "stays"]


async def test_every_change_is_in_the_audit_trail(db: Database, clients: Clients, roles: Roles) -> None:
    past = datetime(2020, 1, 1, tzinfo=UTC)
    await clients.create("a", **client_arguments(expires=past, delete_on_expiration=True))
    await clients.create("a", **client_arguments(expires=past, delete_on_expiration=True))
    await clients.disable("a", actor="other")
    await clients.enable("a", **WHO)
    await clients.reset_access_token("a", **WHO)
    await clients.update("a", **client_arguments(expires=past, delete_on_expiration=True))
    await clients.delete_expired(actor="loop")
    await clients.create("a", **client_arguments())
    await clients.delete("a", **WHO)
    await clients.delete("a", **WHO)
    await roles.create("a", description="", scopes=[], **WHO)
    await roles.update("a", description="x", scopes=[], **WHO)
    await roles.delete("a", **WHO)
    rows = await db.fetch("select entity_type, action, client_id from identity_audit order by seq")
    assert rows == [
        ("client", "created", "tester"),
        ("client", "client disabled", "other"),
        ("client", "client enabled", "tester"),
        ("client", "access token reset", "tester"),
        ("client", "updated", "tester"),
        ("client", "expired", "loop"),
        ("client", "created", "tester"),
        ("client", "deleted", "tester"),
        ("role", "created", "tester"),
        ("role", "updated", "tester"),
        ("role", "deleted", "tester"),
    ]


# --- roles


async def test_a_046_create_repeat_and_conflict(roles: Roles) -> None:
    """A-046"""
    role = await roles.create("r", description="d", scopes=["d", "c", "c*"], **WHO)
    assert role.scopes == ("c*", "c", "d")
    assert await roles.create("r", description="d", scopes=["c*", "d", "c"], **WHO) == role
    assert await roles.get("r") == role
    for change in ({"description": "e"}, {"scopes": ["c"]}):
        with pytest.raises(AlreadyExists, match="Role already exists"):
            await roles.create("r", **{"description": "d", "scopes": ["c", "c*", "d"], **WHO} | change)


async def test_a_046_two_equal_creates_at_the_same_moment_leave_one(roles: Roles) -> None:
    """A-046"""
    made = await asyncio.gather(*(roles.create("r", description="", scopes=["x"], **WHO) for _ in range(4)))
    assert all(role == made[0] for role in made)


async def test_a_048_odd_role_ids(roles: Roles) -> None:
    """A-048"""
    for role_id in ("a b", "what?", "x/y/*", "*"):
        await roles.create(role_id, description="", scopes=["x"], **WHO)
    assert [role.role_id for role in await roles.page()] == ["*", "a b", "what?", "x/y/*"]
    assert [role.role_id for role in await roles.page(after="a b", limit=1)] == ["what?"]
    with pytest.raises(InvalidRequestArguments):
        await roles.create("a\n", description="", scopes=[], **WHO)


async def test_a_049_cycles_on_create_and_on_update(roles: Roles) -> None:
    """A-049"""
    await roles.create("a", description="", scopes=["assume:b"], **WHO)
    message = "found: 'assume:a' -> 'assume:b' -> 'assume:a'"
    with pytest.raises(InputError, match=message):
        await roles.create("b", description="", scopes=["assume:a"], **WHO)
    await roles.create("b", description="", scopes=["x"], **WHO)
    with pytest.raises(InputError, match=message):
        await roles.update("b", description="", scopes=["assume:a"], **WHO)
    with pytest.raises(InputError, match="cycles"):
        await roles.create("t-*", description="", scopes=["assume:<..>"], **WHO)
    assert (await roles.get("b")).scopes == ("x",)


async def test_a_049_two_halves_of_a_cycle_at_the_same_moment(roles: Roles) -> None:
    """A-049"""
    results = await asyncio.gather(
        roles.create("a", description="", scopes=["assume:b"], **WHO),
        roles.create("b", description="", scopes=["assume:a"], **WHO),
        return_exceptions=True,
    )
    assert sorted(type(result).__name__ for result in results) == ["InputError", "Role"]


async def test_a_052_update_asks_only_for_what_the_old_expansion_lacks(roles: Roles) -> None:
    """A-052, A-039"""
    await roles.create("inner", description="", scopes=["x:*"], **WHO)
    await roles.create("outer", description="", scopes=["assume:inner"], **WHO)
    ask = Forbid()
    await roles.update("outer", description="", scopes=["x:1", "y"], actor=ask)
    await roles.update("outer", description="", scopes=["x:1"], actor=ask)
    await roles.update("outer", description="", scopes=["x:2"], actor=ask)
    assert ask.asked == [["y"], [], ["x:2"]]
    with pytest.raises(ResourceNotFound, match="Role not found"):
        await roles.update("none", description="", scopes=["x"], actor=Forbid(refuse=True))
    with pytest.raises(InputError, match=r"\*\*"):
        await roles.update("outer", description="", scopes=["x**"], actor=Forbid(refuse=True))
    with pytest.raises(InsufficientScopes):
        await roles.create("t-*", description="", scopes=["assume:<..>"], actor=Forbid(refuse=True))


async def test_a_053_delete_twice(roles: Roles) -> None:
    """A-053"""
    await roles.create("r", description="", scopes=[], **WHO)
    await roles.delete("r", **WHO)
    await roles.delete("r", **WHO)
    with pytest.raises(ResourceNotFound):
        await roles.get("r")
