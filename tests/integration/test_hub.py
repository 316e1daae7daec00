"""Messages within a process, between processes, and what happens when the connection breaks."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack

import psycopg
import pytest

from server.errors import Unavailable
from server.store.database import Database, PoolSettings
from server.store.embedded import EmbeddedPostgres
from server.store.hub import NotifyHub
from server.store.statements import load
from server.store.wire import Row, Statement, Wire

NOTIFY = load("hub")["notify"]
SMALL = PoolSettings(hot_pool_size=1, cold_pool_size=1)


class Ear:
    """Hears one channel of a hub, and its gaps."""

    def __init__(self, hub: NotifyHub, channel: str = "c") -> None:
        self.heard: list[str] = []
        self.gaps = 0
        self._news = asyncio.Event()
        self.unsubscribe = hub.subscribe(channel, self._hear)
        hub.subscribe_gap(self._gap)

    def _hear(self, payload: str) -> None:
        self.heard.append(payload)
        self._news.set()

    def _gap(self) -> None:
        self.gaps += 1
        self._news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._news.clear()
            await self._news.wait()


@pytest.fixture
async def hubs(db: Database) -> AsyncIterator[Callable[[str], NotifyHub]]:
    """Makes hubs, as if each were a process's; the test starts them, the fixture stops them."""
    async with AsyncExitStack() as stack:

        def make(name: str) -> NotifyHub:
            hub = NotifyHub(db, name)
            stack.push_async_callback(hub.stop)
            return hub

        yield make


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The messages of each NOTIFY statement sent."""
    found: list[list[str]] = []
    send = Wire.send

    def note(self: Wire, batch: Sequence[Statement], timeout: float) -> asyncio.Future[list[list[Row]]]:
        found.extend(parameters[0] for sql, parameters in batch if sql == NOTIFY)
        return send(self, batch, timeout)

    monkeypatch.setattr(Wire, "send", note)
    return found


async def pair(hubs: Callable[[str], NotifyHub]) -> tuple[NotifyHub, NotifyHub]:
    """Two started hubs that have heard of each other."""
    one, two = hubs("one"), hubs("two")
    first, second = Ear(one, "ready"), Ear(two, "ready")
    await one.start()
    await two.start()
    one.publish("ready", "1")
    two.publish("ready", "2")
    await first.until(lambda: "2" in first.heard)
    await second.until(lambda: "1" in second.heard)
    return one, two


async def test_local_subscribers_hear_before_publish_returns(hubs: Callable[[str], NotifyHub]) -> None:
    hub = hubs("one")
    ear, other = Ear(hub), Ear(hub, "other")
    hub.publish("c", "a")
    hub.publish("c", "a")
    assert ear.heard == ["a", "a"]
    ear.unsubscribe()
    ear.unsubscribe()
    hub.publish("c", "b")
    assert ear.heard == ["a", "a"]
    assert other.heard == []


async def test_a_failing_subscriber_harms_nobody(hubs: Callable[[str], NotifyHub]) -> None:
    hub = hubs("one")

    def fail(payload: str) -> None:
        raise RuntimeError(payload)

    hub.subscribe("c", fail)
    ear = Ear(hub)
    hub.publish("c", "x")
    assert ear.heard == ["x"]


async def test_other_processes_hear_in_order_and_the_speaker_only_once(
    hubs: Callable[[str], NotifyHub],
) -> None:
    one, two = await pair(hubs)
    here, there = Ear(one), Ear(two)
    for n in range(50):
        one.publish("c", str(n))
    await there.until(lambda: len(there.heard) == 50)
    two.publish("c", "answer")
    await here.until(lambda: "answer" in here.heard)
    assert there.heard == [*map(str, range(50)), "answer"]
    assert here.heard == [*map(str, range(50)), "answer"]


async def test_what_was_published_before_the_start_is_sent_after_it(
    hubs: Callable[[str], NotifyHub],
) -> None:
    one, two = hubs("one"), hubs("two")
    ear = Ear(two)
    await two.start()
    one.publish("c", "early")
    await one.start()
    await ear.until(lambda: ear.heard == ["early"])


async def test_one_moment_is_one_statement_and_repeats_are_dropped(
    hubs: Callable[[str], NotifyHub], statements: list[list[str]]
) -> None:
    one, two = await pair(hubs)
    ear = Ear(two)
    del statements[:]
    for n in range(100):
        one.publish("c", str(n % 5))
    one.publish("c", "end")
    await ear.until(lambda: "end" in ear.heard)
    assert len(statements) == 1
    assert ear.heard == ["0", "1", "2", "3", "4", "end"]


async def test_statements_keep_their_distance(
    hubs: Callable[[str], NotifyHub], statements: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = await pair(hubs)
    ear = Ear(two)
    monkeypatch.setattr("server.store.hub._INTERVAL_S", 0.05)
    loop = asyncio.get_running_loop()
    one.publish("c", "start")
    await ear.until(lambda: bool(ear.heard))
    del statements[:]
    started = loop.time()
    for n in range(60):
        one.publish("c", str(n))
        await asyncio.sleep(0.002)
    one.publish("c", "end")
    await ear.until(lambda: "end" in ear.heard)
    assert len(statements) <= (loop.time() - started) / 0.05 + 1
    assert len(ear.heard) == 62


async def test_messages_stay_under_the_servers_limit(
    hubs: Callable[[str], NotifyHub], statements: list[list[str]]
) -> None:
    one, two = await pair(hubs)
    ear = Ear(two)
    payloads = [f"{n} " + 'ä"' * 500 for n in range(40)]
    for payload in payloads:
        one.publish("c", payload)
    await ear.until(lambda: len(ear.heard) == 40)
    assert ear.heard == payloads
    sizes = [len(message.encode()) for messages in statements for message in messages]
    assert max(sizes) < 8000
    with pytest.raises(ValueError, match="too long"):
        one.publish("c", "x" * 8000)


async def test_silence_while_alone_and_a_gap_for_the_newcomer(
    hubs: Callable[[str], NotifyHub], statements: list[list[str]]
) -> None:
    one = hubs("one")
    await one.start()
    one.has_peers = False
    del statements[:]
    one.publish("c", "unheard")
    two = hubs("two")
    ear = Ear(two)
    await two.start()
    await ear.until(lambda: ear.gaps == 1)
    assert one.has_peers
    one.publish("c", "heard")
    await ear.until(lambda: ear.heard == ["heard"])
    # The registry that counts processes may lag behind; who was just heard, is there.
    one.has_peers = False
    assert one.has_peers


async def test_learning_of_peers_otherwise_tells_them_of_the_gap_too(
    hubs: Callable[[str], NotifyHub],
) -> None:
    two = hubs("two")
    ear = Ear(two)
    await two.start()
    while two._marks or two._sender is not None:  # its hello must not reach the other one
        await asyncio.sleep(0.01)
    one = hubs("one")
    one.has_peers = False
    await one.start()
    assert not one.has_peers
    one.has_peers = True
    await ear.until(lambda: ear.gaps == 1)


async def test_noise_on_the_channel_is_passed_over(hubs: Callable[[str], NotifyHub], db: Database) -> None:
    one, two = await pair(hubs)
    ear = Ear(two)
    for noise in ("", "not json", "[1]", '["x", "news", 5]', '["x", "news", [["c"]]]', '{"a": 1}'):
        await db.fetch("select pg_notify('tcqueue', $1::text)", (noise,))
    await db.fetch("select pg_notify('tcqueue', $1::text)", (json.dumps(["x", "later", []]),))
    one.publish("c", "signal")
    await ear.until(lambda: bool(ear.heard))
    assert ear.heard == ["signal"]


async def test_a_backlog_becomes_a_single_gap(
    hubs: Callable[[str], NotifyHub], statements: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = await pair(hubs)
    ear = Ear(two)
    monkeypatch.setattr("server.store.hub._BACKLOG", 10)
    for n in range(12):
        one.publish("c", str(n))
    await ear.until(lambda: ear.gaps == 1 and bool(ear.heard))
    assert ear.heard == ["11"]


@pytest.mark.parametrize("which", ["tcqueue hub", "tcqueue hub sender"])
async def test_a_lost_connection_is_replaced(which: str, dsn: str, hubs: Callable[[str], NotifyHub]) -> None:
    one, two = await pair(hubs)
    ear = Ear(two)
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as killer:
        # Other tests share the server: only what is connected to this test's database.
        sql = (
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
            " where application_name = %s and datname = current_database()"
        )
        assert [row[0] for row in await (await killer.execute(sql, [which])).fetchall()] == [True, True]
    if which == "tcqueue hub":
        await ear.until(lambda: ear.gaps >= 1)
    one.publish("c", "after")
    await ear.until(lambda: "after" in ear.heard)


async def test_a_server_killed_under_load_is_listened_to_again(private_postgres: EmbeddedPostgres) -> None:
    database = await Database.open(private_postgres.dsn, settings=SMALL)
    one, two = NotifyHub(database, "one"), NotifyHub(database, "two")
    ears = [Ear(one), Ear(two)]
    await one.start()
    await two.start()
    stop = asyncio.Event()

    async def speak(hub: NotifyHub, name: str) -> int:
        count = 0
        while not stop.is_set():
            hub.publish("c", f"{name}{count}")
            count += 1
            await asyncio.sleep(0.001)
        return count

    async with asyncio.TaskGroup() as tasks:
        speakers = [tasks.create_task(speak(one, "one")), tasks.create_task(speak(two, "two"))]
        for end in (private_postgres.kill, private_postgres.restart):
            gaps = [ear.gaps for ear in ears]
            await asyncio.to_thread(end)
            await asyncio.to_thread(private_postgres.restart)
            for ear, before in zip(ears, gaps, strict=True):
                await ear.until(lambda ear=ear, before=before: ear.gaps > before)  # type: ignore[misc]
            one.publish("c", f"one after {gaps}")
            two.publish("c", f"two after {gaps}")
            await ears[0].until(lambda gaps=gaps: f"two after {gaps}" in ears[0].heard)  # type: ignore[misc]
            await ears[1].until(lambda gaps=gaps: f"one after {gaps}" in ears[1].heard)  # type: ignore[misc]
        stop.set()
    assert all(speaker.result() > 0 for speaker in speakers)
    await one.stop()
    await two.stop()
    await database.close()


async def test_a_connection_that_fell_silent_is_found_out(
    private_postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.store.hub._PROBE_S", 0.05)
    monkeypatch.setattr("server.store.hub._ANSWER_S", 0.5)
    database = await Database.open(private_postgres.dsn, settings=SMALL)
    hub = NotifyHub(database, "one")
    ear = Ear(hub)
    await hub.start()
    sql = "select pid from pg_stat_activity where application_name = 'tcqueue hub'"
    ((pid,),) = await database.fetch(sql)
    os.kill(pid, signal.SIGSTOP)
    try:
        await ear.until(lambda: ear.gaps == 1)
    finally:
        os.kill(pid, signal.SIGCONT)
    await hub.stop()
    await database.close()


async def test_start_fails_when_there_is_no_database(private_postgres: EmbeddedPostgres) -> None:
    options = PoolSettings(hot_pool_size=1, cold_pool_size=1, db_wait_timeout_s=0.1)
    database = await Database.open(private_postgres.dsn, settings=options)
    await asyncio.to_thread(private_postgres.kill)
    hub = NotifyHub(database, "one")
    with pytest.raises(Unavailable, match="LISTEN"):
        await hub.start()
    hub.publish("c", "into the void")
    await hub.stop()
    await database.close()


async def test_stop_sends_what_is_left(hubs: Callable[[str], NotifyHub]) -> None:
    one, two = await pair(hubs)
    ear = Ear(two)
    one.publish("c", "last words")
    await one.stop()
    await ear.until(lambda: ear.heard == ["last words"])
    one.publish("c", "from beyond")
    assert not one.listening
