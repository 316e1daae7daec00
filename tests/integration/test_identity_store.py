"""Clients, roles, first start, and authentication against a real database."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from server.config import Settings, SettingsError
from server.domain import slugid
from server.domain.roles import ANONYMOUS_SCOPES
from server.errors import (
    AlreadyExists,
    AuthenticationFailed,
    InputError,
    InputValidationError,
    InsufficientScopes,
    InvalidRequestArguments,
    ResourceNotFound,
)
from server.identity import bootstrap, certificates, tokens
from server.identity.authenticator import Authenticator
from server.identity.changes import Changes
from server.identity.clients import Clients
from server.identity.model import NOBODY, Identity, epoch_ms
from server.identity.roles import Roles
from server.identity.secrets import SecretBox, SecretError, new_key
from server.identity.task_credentials import TaskCredentialIssuer
from server.store.database import Database
from server.store.hub import NotifyHub

KEY = new_key()
BOX = SecretBox(KEY)
SETTINGS = Settings(database_url="set", encryption_key=KEY, hot_pool_size=1, cold_pool_size=3)
EXPIRES = datetime(2100, 1, 1, tzinfo=UTC)
WHO: dict[str, Any] = {"actor": "tester"}


def client_arguments(**changes: Any) -> dict[str, Any]:
    return {"description": "d", "expires": EXPIRES, "scopes": ["a", "b"], **WHO} | changes


@dataclass(frozen=True)
class Process:
    """The identity parts of one server process."""

    hub: NotifyHub
    authenticator: Authenticator
    clients: Clients
    roles: Roles
    prepared: bootstrap.Prepared

    async def who(self, client_id: str, access_token: str, **how: Any) -> Identity:
        """Authenticate with a token minted for these credentials."""
        return await self.authenticator.authenticate_bearer(tokens.mint(client_id, access_token, **how))

    async def refusal(self, client_id: str, access_token: str, **how: Any) -> str:
        with pytest.raises(AuthenticationFailed) as caught:
            await self.who(client_id, access_token, **how)
        return caught.value.message


@asynccontextmanager
async def running(db: Database, settings: Settings = SETTINGS) -> AsyncIterator[Process]:
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(running_hub(db))
        prepared = await bootstrap.prepare(db, hub, settings, BOX)
        authenticator = Authenticator(db, hub, settings)
        await authenticator.start()
        stack.push_async_callback(authenticator.stop)
        changes = Changes(db, hub)
        yield Process(hub, authenticator, Clients(db, BOX, changes), Roles(db, changes), prepared)


@asynccontextmanager
async def running_hub(db: Database) -> AsyncIterator[NotifyHub]:
    hub = NotifyHub(db, slugid.v4())
    await hub.start()
    yield hub
    await hub.stop()


@pytest.fixture
async def process(db: Database) -> AsyncIterator[Process]:
    async with running(db) as one:
        yield one


@pytest.fixture
def clients(db: Database) -> Clients:
    return Clients(db, BOX, Changes(db, None))


@pytest.fixture
def roles(db: Database) -> Roles:
    return Roles(db, Changes(db, None))


class Forbid:
    """An authorize callback that notes what it is asked and, if told so, refuses it."""

    def __init__(self, *, refuse: bool = False) -> None:
        self.asked: list[list[str]] = []
        self.refuse = refuse

    def __call__(self, scopes: Sequence[str]) -> None:
        self.asked.append(list(scopes))
        if self.refuse:
            raise InsufficientScopes("no")


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
            await clients.create("a", **client_arguments(**change), authorize=forbid)
        with pytest.raises(error):
            await clients.update("a", **client_arguments(**change), authorize=forbid)
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
    await clients.update("a", **client_arguments(scopes=["a*"]), authorize=ask)
    await clients.update("a", **client_arguments(scopes=["a1"]), authorize=ask)
    assert ask.asked == [[], ["a1"]]
    with pytest.raises(InsufficientScopes):
        await clients.update("a", **client_arguments(scopes=["c"]), authorize=Forbid(refuse=True))
    assert (await clients.get("a")).scopes == ("a1",)
    with pytest.raises(InsufficientScopes):
        await clients.create("new", **client_arguments(), authorize=Forbid(refuse=True))
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
    await roles.update("outer", description="", scopes=["x:1", "y"], authorize=ask, **WHO)
    await roles.update("outer", description="", scopes=["x:1"], authorize=ask, **WHO)
    await roles.update("outer", description="", scopes=["x:2"], authorize=ask, **WHO)
    assert ask.asked == [["y"], [], ["x:2"]]
    with pytest.raises(ResourceNotFound, match="Role not found"):
        await roles.update("none", description="", scopes=["x"], authorize=Forbid(refuse=True), **WHO)
    with pytest.raises(InputError, match=r"\*\*"):
        await roles.update("outer", description="", scopes=["x**"], authorize=Forbid(refuse=True), **WHO)
    with pytest.raises(InsufficientScopes):
        await roles.create(
            "t-*", description="", scopes=["assume:<..>"], authorize=Forbid(refuse=True), **WHO
        )


async def test_a_053_delete_twice(roles: Roles) -> None:
    """A-053"""
    await roles.create("r", description="", scopes=[], **WHO)
    await roles.delete("r", **WHO)
    await roles.delete("r", **WHO)
    with pytest.raises(ResourceNotFound):
        await roles.get("r")


# --- first start


async def test_the_first_start_makes_root_queue_and_anonymous_role(process: Process) -> None:
    token = process.prepared.root_access_token
    assert process.prepared.first_start
    assert token is not None
    root = await process.who("root", token)
    assert (root.client_id, root.scopes.scopes, root.scheme) == ("root", ("*",), "bearer")
    queue = await process.who("static/tcqueue/queue", process.prepared.queue_access_token)
    assert queue.scopes.satisfies("anything")
    assert (await process.roles.get("anonymous")).scopes == ANONYMOUS_SCOPES


async def test_later_starts_find_everything_and_show_nothing(db: Database, process: Process) -> None:
    again = await bootstrap.prepare(db, None, SETTINGS, BOX)
    assert again == bootstrap.Prepared(False, None, process.prepared.queue_access_token)


async def test_what_an_operator_deleted_stays_deleted(db: Database, process: Process) -> None:
    await process.clients.delete("root", **WHO)
    await process.roles.delete("anonymous", **WHO)
    await bootstrap.prepare(db, None, SETTINGS, BOX)
    assert [client.client_id for client in await process.clients.page()] == ["static/tcqueue/queue"]
    assert await process.roles.page() == []


async def test_several_processes_starting_at_once_make_one_of_each(db: Database) -> None:
    prepared = await asyncio.gather(*(bootstrap.prepare(db, None, SETTINGS, BOX) for _ in range(3)))
    assert len({one.queue_access_token for one in prepared}) == 1
    assert sum(one.first_start for one in prepared) == 1
    assert sum(one.root_access_token is not None for one in prepared) == 1


async def test_an_anonymous_role_switched_off_at_first_can_be_had_later_once(
    db: Database, roles: Roles
) -> None:
    off = replace(SETTINGS, default_anonymous_role=False)
    await bootstrap.prepare(db, None, off, BOX)
    assert await roles.page() == []
    await bootstrap.prepare(db, None, SETTINGS, BOX)
    await roles.delete("anonymous", **WHO)
    await bootstrap.prepare(db, None, SETTINGS, BOX)
    assert await roles.page() == []


async def test_an_anonymous_role_that_is_there_is_left_alone(db: Database, roles: Roles) -> None:
    await roles.create("anonymous", description="mine", scopes=["x"], **WHO)
    await bootstrap.prepare(db, None, SETTINGS, BOX)
    assert (await roles.get("anonymous")).scopes == ("x",)


async def test_a_given_root_token_is_followed_and_never_shown(db: Database) -> None:
    for token in ("r" * 22, "s" * 44):
        settings = replace(SETTINGS, root_access_token=token)
        async with running(db, settings) as process:
            assert process.prepared.root_access_token is None
            assert (await process.who("root", token)).scopes.scopes == ("*",)
    with pytest.raises(SettingsError, match="ROOT_ACCESS_TOKEN") as caught:
        await bootstrap.prepare(db, None, replace(SETTINGS, root_access_token="short"), BOX)
    assert "short" not in str(caught.value)


async def test_a_disabled_root_stays_disabled_whatever_its_token(db: Database, clients: Clients) -> None:
    await bootstrap.prepare(db, None, SETTINGS, BOX)
    await clients.disable("root", **WHO)
    await bootstrap.prepare(db, None, replace(SETTINGS, root_access_token="r" * 22), BOX)
    assert (await clients.get("root")).disabled


def static(name: str, token: str = "t" * 22, **changes: Any) -> dict[str, Any]:
    return {"clientId": f"static/{name}", "accessToken": token, "description": "", "scopes": ["x"]} | changes


async def test_static_clients_follow_the_settings(db: Database, clients: Clients) -> None:
    async def ids(*entries: dict[str, Any]) -> list[str]:
        await bootstrap.prepare(db, None, replace(SETTINGS, static_clients=list(entries)), BOX)
        return [client.client_id for client in await clients.page(prefix="static/")]

    assert await ids(static("a"), static("b")) == ["static/a", "static/b", "static/tcqueue/queue"]
    before = await clients.get("static/a")
    assert (before.scopes, before.expires.year) == (("x",), 3000)
    assert await ids(static("a"), static("c")) == ["static/a", "static/c", "static/tcqueue/queue"]
    assert await clients.get("static/a") == before
    await ids(static("a", "u" * 30, scopes=["y", "z"]))
    after = await clients.get("static/a")
    assert after.scopes == ("y", "z")
    assert after.last_rotated >= before.last_rotated
    async with running(
        db, replace(SETTINGS, static_clients=[static("a", "u" * 30, scopes=["y"])])
    ) as process:
        assert (await process.who("static/a", "u" * 30)).scopes.satisfies("y")
        assert "not signed" in await process.refusal("static/a", "t" * 22)


async def test_upstreams_static_ids_bring_their_scopes_along(db: Database, clients: Clients) -> None:
    entry = static("taskcluster/root")
    del entry["scopes"]
    await bootstrap.prepare(db, None, replace(SETTINGS, static_clients=[entry]), BOX)
    assert (await clients.get("static/taskcluster/root")).scopes == ("*",)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("text", "entry 1 .* must be an object"),
        ({}, "needs a clientId that begins with static/"),
        (static("a") | {"clientId": "a"}, "needs a clientId that begins with static/"),
        (static("tcqueue/queue"), "the queue's own"),
        (static("a", "short"), "needs an accessToken"),
        (static("a", scopes="x"), "needs a list of scopes"),
        (static("a", scopes=["x**"]), "must not end"),
        (static("a", description=3), "needs a text"),
        (static("a", colour="red"), "unknown key colour"),
        (static("taskcluster/root"), "may not list any"),
        (static("taskcluster/hooks"), "no client this service knows"),
    ],
)
async def test_unusable_static_clients_stop_the_start(db: Database, entry: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        await bootstrap.prepare(db, None, replace(SETTINGS, static_clients=[entry]), BOX)
    assert await db.fetch("select 1 from clients") == []


async def test_another_encryption_key_is_found_out_at_start_and_can_be_rotated(db: Database) -> None:
    await bootstrap.prepare(db, None, SETTINGS, BOX)
    other = new_key()
    with pytest.raises(SecretError, match="another key"):
        await bootstrap.prepare(db, None, SETTINGS, SecretBox(other))
    await bootstrap.prepare(db, None, SETTINGS, SecretBox(f"{other}, {KEY}"))


# --- authentication


async def test_a_caller_without_credentials_holds_the_anonymous_role(process: Process) -> None:
    authenticator = process.authenticator
    assert authenticator.authenticate_cached(None) is None
    nobody = await authenticator.authenticate_bearer(None)
    assert (nobody.client_id, nobody.scheme, nobody.expires) == (NOBODY, "none", float("inf"))
    assert nobody.scopes.scopes == ("assume:anonymous", *ANONYMOUS_SCOPES)
    assert authenticator.authenticate_cached(None) is nobody


async def test_a_verified_token_is_remembered_until_its_end(db: Database, process: Process) -> None:
    now = time.time()
    hub_time = [now]
    authenticator = Authenticator(db, process.hub, SETTINGS, clock=lambda: hub_time[0])
    await authenticator.start()
    _, token = await process.clients.create("c", **client_arguments())
    bearer = tokens.mint("c", token, lifetime_s=60, now=now)
    assert authenticator.authenticate_cached(bearer) is None
    identity = await authenticator.authenticate_bearer(bearer)
    assert authenticator.authenticate_cached(bearer) is identity
    assert identity.expires == EXPIRES.timestamp()
    hub_time[0] = now + 61
    assert authenticator.authenticate_cached(bearer) is None
    with pytest.raises(AuthenticationFailed, match="expired"):
        await authenticator.authenticate_bearer(bearer)
    await authenticator.stop()


async def test_memory_for_tokens_is_bounded(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.identity.authenticator._MAX_REMEMBERED", 8)
    _, token = await process.clients.create("c", **client_arguments())
    bearers = [tokens.mint("c", token, lifetime_s=60 + n) for n in range(20)]
    for bearer in bearers:
        await process.authenticator.authenticate_bearer(bearer)
    kept = [b for b in bearers if process.authenticator.authenticate_cached(b) is not None]
    assert len(kept) <= 8
    assert kept[-1] == bearers[-1]


async def test_a_004_and_a_005_a_wrong_token_and_an_unknown_client(process: Process) -> None:
    """A-004, A-005"""
    assert (
        await process.refusal("root", "x" * 44)
        == "bearer token is not signed with the access token of 'root'"
    )
    assert await process.refusal("nobody", "x" * 44) == "Client with clientId 'nobody' not found"


async def test_a_040_a_reset_token_works_and_the_old_one_does_not_from_the_next_request_on(
    process: Process,
) -> None:
    """A-040"""
    _, old = await process.clients.create("c", **client_arguments())
    bearer = tokens.mint("c", old)
    await process.authenticator.authenticate_bearer(bearer)
    client, new = await process.clients.reset_access_token("c", **WHO)
    assert client.last_rotated == client.last_modified
    assert process.authenticator.authenticate_cached(bearer) is None
    assert "not signed" in await process.refusal("c", old)
    assert (await process.who("c", new)).client_id == "c"


async def test_a_041_disable_refuses_at_once_and_enable_lets_in(process: Process) -> None:
    """A-041"""
    _, token = await process.clients.create("c", **client_arguments())
    bearer = tokens.mint("c", token)
    await process.authenticator.authenticate_bearer(bearer)
    assert (await process.clients.disable("c", **WHO)).disabled
    assert (await process.clients.disable("c", **WHO)).disabled
    assert process.authenticator.authenticate_cached(bearer) is None
    with pytest.raises(AuthenticationFailed, match="Client with clientId 'c' is disabled"):
        await process.authenticator.authenticate_bearer(bearer)
    assert not (await process.clients.enable("c", **WHO)).disabled
    assert (await process.authenticator.authenticate_bearer(bearer)).client_id == "c"


async def test_a_deleted_client_is_refused_at_once(process: Process) -> None:
    _, token = await process.clients.create("c", **client_arguments())
    await process.who("c", token)
    await process.clients.delete("c", **WHO)
    assert await process.refusal("c", token) == "Client with clientId 'c' not found"


async def test_a_044_an_expired_client(process: Process) -> None:
    """A-044"""
    past = datetime.now(UTC) - timedelta(seconds=1)
    _, token = await process.clients.create("c", **client_arguments(expires=past))
    assert await process.refusal("c", token) == "Client with clientId: 'c' has expired"


async def test_a_027_a_role_changed_or_deleted_counts_at_once(process: Process) -> None:
    _, token = await process.clients.create("c", **client_arguments(scopes=["assume:r"]))
    bearer = tokens.mint("c", token)
    authenticate = process.authenticator.authenticate_bearer
    assert not (await authenticate(bearer)).scopes.satisfies("x")
    await process.roles.create("r", description="", scopes=["x"], **WHO)
    assert (await authenticate(bearer)).scopes.satisfies("x")
    await process.roles.update("r", description="", scopes=["y"], **WHO)
    scopes = (await authenticate(bearer)).scopes
    assert (scopes.satisfies("x"), scopes.satisfies("y")) == (False, True)
    await process.roles.delete("anonymous", **WHO)
    assert (await authenticate(None)).scopes.scopes == ("assume:anonymous",)


async def test_a_023_to_a_028_authorized_scopes_narrow_a_token(process: Process) -> None:
    """A-023, A-024, A-025, A-026, A-027"""
    await process.roles.update("anonymous", description="", scopes=["anonscope"], **WHO)
    await process.roles.create("r", description="", scopes=["x:*"], **WHO)
    _, token = await process.clients.create("c", **client_arguments(scopes=["assume:r", "b"]))

    async def scopes(authorized: list[str]) -> Sequence[str]:
        return (await process.who("c", token, authorized_scopes=authorized)).scopes.scopes

    assert await scopes(["b"]) == ("anonscope", "assume:anonymous", "b")
    assert await scopes([]) == ("anonscope", "assume:anonymous")
    assert await scopes(["x:1", "anonscope"]) == ("anonscope", "assume:anonymous", "x:1")
    assert await process.refusal("c", token, authorized_scopes=["c", "b"]) == (
        "Supplied credentials do not satisfy authorizedScopes; credentials have scopes:\n\n"
        "```\nanonscope\nassume:anonymous\nassume:r\nb\nx:*\n```\n"
        "authorizedScopes are:\n```\nc\nb\n```"
    )
    assert "must be an array of valid scopes" in await process.refusal("c", token, authorized_scopes=["a\n"])
    import jwt

    odd = jwt.encode({"iss": "c", "exp": time.time() + 9, "authorizedScopes": "b"}, token, algorithm="HS256")
    with pytest.raises(AuthenticationFailed, match=r"ext\.authorizedScopes must be an array$"):
        await process.authenticator.authenticate_bearer(odd)


async def test_a_028_temporary_credentials_with_their_own_narrower_scopes(process: Process) -> None:
    """A-014, A-022, A-028 (V4's scopes)"""
    await process.roles.update("anonymous", description="", scopes=["anonscope"], **WHO)
    ends = datetime.now(UTC).replace(microsecond=0) + timedelta(minutes=20)
    _, token = await process.clients.create("svc/issuer", **client_arguments(scopes=["scopeA", "scopeB:*"]))
    now_ms = epoch_ms(datetime.now(UTC))
    temporary = certificates.issue(
        "svc/issuer", token, scopes=["scopeA", "scopeB:*"], start_ms=now_ms, expiry_ms=epoch_ms(ends)
    )
    identity = await process.who(
        "svc/issuer",
        temporary.access_token,
        certificate=temporary.certificate,
        authorized_scopes=["scopeB:x"],
    )
    assert identity.scopes.scopes == ("anonscope", "assume:anonymous", "scopeB:x")
    assert identity.expires == ends.timestamp()
    # The temporary key without its certificate opens nothing, nor does another key with it.
    assert "not signed" in await process.refusal("svc/issuer", temporary.access_token)
    assert "not signed" in await process.refusal("svc/issuer", token, certificate=temporary.certificate)


async def test_task_credentials_are_good_for_their_run_and_tasks_scopes_expand(process: Process) -> None:
    await process.roles.create("project:x", description="", scopes=["secret:x"], **WHO)
    issuer = TaskCredentialIssuer(bootstrap.QUEUE_CLIENT, process.prepared.queue_access_token)
    now = datetime.now(UTC)
    credentials = issuer.issue("T", 0, "wg", "w", now + timedelta(seconds=1200), ["assume:project:x"], now)
    identity = await process.who(
        credentials.client_id, credentials.access_token, certificate=credentials.certificate
    )
    assert identity.client_id == credentials.client_id
    assert identity.scopes.satisfies("queue:resolve-task:T/0")
    assert identity.scopes.satisfies("secret:x")
    assert not identity.scopes.satisfies("queue:resolve-task:T/1")
    # They cannot issue further ones.
    chained = certificates.issue(
        credentials.client_id, credentials.access_token, scopes=[], start_ms=0, expiry_ms=1, client_id="x"
    )
    message = await process.refusal("x", chained.access_token, certificate=chained.certificate)
    assert message == f"Client with clientId '{credentials.client_id}' not found"


async def test_a_017_an_expired_certificate_and_a_broken_one(process: Process) -> None:
    """A-016, A-017"""
    token = process.prepared.queue_access_token
    now_ms = epoch_ms(datetime.now(UTC))
    old = certificates.issue(
        bootstrap.QUEUE_CLIENT, token, scopes=[], start_ms=now_ms - 900_000, expiry_ms=now_ms - 301_000
    )
    message = await process.refusal(bootstrap.QUEUE_CLIENT, old.access_token, certificate=old.certificate)
    assert message == "ext.certificate.expiry < now"
    broken = json.loads(old.certificate) | {"seed": 3}
    message = await process.refusal(bootstrap.QUEUE_CLIENT, old.access_token, certificate=broken)
    assert message == "ext.certificate.seed must be a string"


async def test_garbage_does_no_harm(process: Process) -> None:
    for garbage in ("", "x", "a.b.c", "\0", "ü" * 99, "x" * 99_999):
        with pytest.raises(AuthenticationFailed):
            await process.authenticator.authenticate_bearer(garbage)


async def test_a_client_made_elsewhere_a_moment_ago_is_looked_up(process: Process, clients: Clients) -> None:
    _, token = await clients.create("fresh", **client_arguments())  # nobody is told
    assert (await process.who("fresh", token)).client_id == "fresh"
    refusals = await asyncio.gather(*(process.refusal(f"none/{n}", token) for n in range(20)))
    assert refusals == [f"Client with clientId 'none/{n}' not found" for n in range(20)]


async def test_the_use_of_a_client_is_noted_every_six_hours(db: Database, process: Process) -> None:
    _, token = await process.clients.create("c", **client_arguments())
    made = (await process.clients.get("c")).last_date_used
    await process.who("c", token)
    await process.authenticator.stop()
    assert (await process.clients.get("c")).last_date_used == made
    await db.fetch("update clients set last_date_used = now() - interval '7 hours' where client_id = 'c'")
    again = Authenticator(db, process.hub, SETTINGS)
    await again.start()
    await again.authenticate_bearer(tokens.mint("c", token))
    await again.stop()
    assert (await process.clients.get("c")).last_date_used >= made
