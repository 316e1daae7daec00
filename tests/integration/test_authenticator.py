"""Authentication against a real database, within one process and across several."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest

from server.domain.roles import ANONYMOUS_SCOPES
from server.errors import AuthenticationFailed, Unavailable
from server.identity import bootstrap, certificates, hawk, tokens
from server.identity.authenticator import Authenticator
from server.identity.clients import Clients
from server.identity.model import NOBODY, Credential, HawkRequest, epoch_ms
from server.identity.task_credentials import TaskCredentialIssuer
from server.store.database import Database
from tests.plugins.identity import EXPIRES, SETTINGS, WHO, Process, client_arguments, running


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


@pytest.mark.parametrize("scheme", ["bearer", "hawk"])
async def test_how_often_the_use_of_a_client_is_noted_is_a_setting(
    db: Database, process: Process, scheme: str
) -> None:
    """auth.md 8: whatever is remembered of a caller."""
    now = [time.time()]
    settings = replace(SETTINGS, last_used_interval_s=60.0)
    authenticator = Authenticator(db, process.hub, settings, clock=lambda: now[0])
    _, token = await process.clients.create("c", **client_arguments())
    await authenticator.start()
    credential: Credential = tokens.mint("c", token, now=now[0])
    if scheme == "hawk":
        header = hawk.header("GET", "http://localhost/", "c", token, now=now[0])
        credential = HawkRequest("GET", "/", "localhost", 80, header)
    await authenticator.authenticate(credential)
    (row,) = await db.fetch(
        "update clients set last_date_used = now() - interval '2 minutes' where client_id = 'c' "
        "returning last_date_used"
    )
    now[0] += 61
    await authenticator.authenticate(credential)
    await authenticator.stop()
    assert (await process.clients.get("c")).last_date_used > row[0]


@pytest.mark.parametrize("scheme", ["bearer", "hawk"])
async def test_what_anybody_may_send_is_no_use_of_a_client(
    db: Database, process: Process, scheme: str
) -> None:
    """auth.md 7: lastDateUsed moves with requests that are signed rightly."""
    await process.clients.create("c", **client_arguments())
    await db.fetch("update clients set last_date_used = now() - interval '7 hours' where client_id = 'c'")
    authenticator = Authenticator(db, process.hub, SETTINGS)
    await authenticator.start()
    credential: Credential = tokens.mint("c", "wrong" * 5)
    if scheme == "hawk":
        header = hawk.header("GET", "http://localhost/", "c", "wrong" * 5, now=time.time())
        credential = HawkRequest("GET", "/", "localhost", 80, header)
    with pytest.raises(AuthenticationFailed):
        await authenticator.authenticate(credential)
    await authenticator.stop()
    client = await process.clients.get("c")
    assert client.last_date_used < client.created


# --- several processes


class Heard:
    """Lets a test wait for what a message brings about. One may come twice, and late."""

    def __init__(self, process: Process) -> None:
        self._event = asyncio.Event()
        process.hub.subscribe("identity", lambda _: self._event.set())
        process.hub.subscribe_gap(self._event.set)

    async def until(self, answer: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(10):
            while not await answer():
                await self._event.wait()
                self._event.clear()


async def test_a_change_reaches_the_other_process(db: Database, process: Process) -> None:
    """A-041"""
    async with running(db) as other:
        heard = Heard(other)
        _, token = await process.clients.create("c", **client_arguments(scopes=["assume:r"]))
        bearer = tokens.mint("c", token)
        await other.authenticator.authenticate_bearer(bearer)
        await process.roles.create("r", description="", scopes=["x"], **WHO)
        await heard.until(lambda: holds(other, bearer, "x"))
        await process.clients.disable("c", **WHO)
        await heard.until(lambda: refused(other, bearer, "is disabled"))


async def test_a_command_without_a_hub_is_heard_even_by_a_process_that_believes_itself_alone(
    process: Process, clients: Clients
) -> None:
    heard = Heard(process)
    process.hub.has_peers = False
    _, token = await process.clients.create("c", **client_arguments())
    bearer = tokens.mint("c", token)
    await process.authenticator.authenticate_bearer(bearer)
    await clients.disable("c", **WHO)
    await heard.until(lambda: refused(process, bearer, "is disabled"))


async def holds(process: Process, bearer: str, scope: str) -> bool:
    return (await process.authenticator.authenticate_bearer(bearer)).scopes.satisfies(scope)


async def refused(process: Process, bearer: str, why: str) -> bool:
    try:
        await process.authenticator.authenticate_bearer(bearer)
    except AuthenticationFailed as e:
        return why in e.message
    return False


async def test_what_was_said_during_a_lost_connection_is_read_up(db: Database, process: Process) -> None:
    echoed, gap = asyncio.Event(), asyncio.Event()
    heard: list[str] = []

    def hear(text: str) -> None:
        heard.append(text)
        if heard.count("client c") == 2:  # once from ourselves, once from the transaction
            echoed.set()

    process.hub.subscribe("identity", hear)
    process.hub.subscribe_gap(gap.set)
    _, token = await process.clients.create("c", **client_arguments())
    await asyncio.wait_for(echoed.wait(), 10)
    bearer = tokens.mint("c", token)
    await process.authenticator.authenticate_bearer(bearer)
    await db.fetch("update clients set disabled = true where client_id = 'c'")
    assert process.authenticator.authenticate_cached(bearer) is not None
    await db.fetch(
        "select pg_terminate_backend(pid) from pg_stat_activity "
        "where application_name = 'tcqueue hub' and datname = current_database()"
    )
    await asyncio.wait_for(gap.wait(), 10)
    with pytest.raises(AuthenticationFailed, match="is disabled"):
        await process.authenticator.authenticate_bearer(bearer)


class Shaky(Database):
    """A database that can be switched off, and whose statements can be held up."""

    def __init__(self, real: Database) -> None:
        self.real = real
        self.away = False
        self.statements = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def fetch(self, *arguments: Any, **options: Any) -> Any:
        self.statements += 1
        await self.gate.wait()
        if self.away:
            raise Unavailable("away")
        return await self.real.fetch(*arguments, **options)


async def test_with_the_database_away_what_changed_is_refused_and_what_is_known_goes_on(
    db: Database, process: Process
) -> None:
    token = process.prepared.queue_access_token
    shaky = Shaky(db)
    authenticator = Authenticator(shaky, process.hub, SETTINGS)
    await authenticator.start()
    shaky.away = True
    bearer = tokens.mint(bootstrap.QUEUE_CLIENT, token)
    known = await authenticator.authenticate_bearer(bearer)
    assert authenticator.authenticate_cached(bearer) is known
    process.hub.publish("identity", "roles")
    for _ in range(2):
        with pytest.raises(Unavailable):
            await authenticator.authenticate_bearer(bearer)
    shaky.away = False
    assert (await authenticator.authenticate_bearer(bearer)).client_id == bootstrap.QUEUE_CLIENT
    await authenticator.stop()


async def test_a_change_told_while_reading_is_read_as_well_and_all_who_wait_share_it(
    db: Database, process: Process
) -> None:
    shaky = Shaky(db)
    authenticator = Authenticator(shaky, process.hub, SETTINGS)
    await authenticator.start()
    _, token = await process.clients.create("c", **client_arguments())
    bearer = tokens.mint("c", token)
    await authenticator.authenticate_bearer(bearer)
    before = shaky.statements
    shaky.gate.clear()
    process.hub.publish("identity", "client c")
    waiting = [asyncio.create_task(authenticator.authenticate_bearer(bearer)) for _ in range(50)]
    while shaky.statements == before:
        await asyncio.sleep(0)
    await process.clients.disable("c", **WHO)
    waiting[0].cancel()
    shaky.gate.set()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert {str(result) for result in results[1:]} == {"Client with clientId 'c' is disabled"}
    assert shaky.statements - before < 10
    await authenticator.stop()
