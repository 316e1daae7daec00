"""First and later starts against a real database."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.config import Settings, SettingsError
from server.domain.roles import ANONYMOUS_SCOPES
from server.identity import bootstrap
from server.identity.clients import Clients
from server.identity.roles import Roles
from server.identity.secrets import SecretBox, SecretError, new_key
from server.store.database import Database
from tests.plugins.identity import BOX, KEY, SETTINGS, WHO, Process, running


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


def test_without_a_key_one_is_kept_beside_the_embedded_database(tmp_path: Path) -> None:
    settings = Settings(data_dir=str(tmp_path / "new"))
    sealed = SecretBox.from_settings(settings).seal("secret")
    assert SecretBox.from_settings(settings).open(sealed) == "secret"
    file = tmp_path / "new" / "encryption.key"
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_database_elsewhere_needs_a_key_and_a_bad_one_is_not_repeated() -> None:
    with pytest.raises(SettingsError, match="TCQUEUE_ENCRYPTION_KEY must be set"):
        SecretBox.from_settings(Settings(database_url="postgresql://x"))
    with pytest.raises(SettingsError, match="32 bytes") as caught:
        SecretBox("hunter2")
    assert "hunter2" not in str(caught.value)
