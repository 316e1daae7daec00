"""kill -9 under load: no task lost, no run claimed twice, no event missing (issue: the main job)."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack
from itertools import cycle
from typing import Any

import grpc.aio
import psycopg
import pytest

from server.config import Settings
from server.domain import slugid
from server.identity import tokens
from server.identity.secrets import new_key
from server.store import embedded, migrator
from server.store.embedded import EmbeddedPostgres
from tests.faults.load import Load, reconcile
from tests.streams.harness import CHANNEL_OPTIONS, Client, bearer
from tests.streams.serving import ServerProcess

TASKS = 240
CREATORS = 4
WORKERS = 6


@pytest.fixture
async def durable_postgres() -> AsyncIterator[EmbeddedPostgres]:
    """With fsync: what was committed must survive."""
    # Not tmp_path: every session of pytest bars others from its parent again, PostgreSQL's user too.
    with tempfile.TemporaryDirectory(prefix="tcqueue-faults-") as folder:
        server = await asyncio.to_thread(embedded.start, folder)
        await migrator.migrate(server.dsn)
        yield server
        await asyncio.to_thread(server.stop)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "faults",
    [["server", "server"], ["postgres", "postgres"], ["server", "postgres", "both"]],
    ids=lambda faults: "-".join(faults),
)
async def test_kill_under_load(durable_postgres: EmbeddedPostgres, faults: list[str]) -> None:
    root_token = slugid.v4() + slugid.v4()
    settings = Settings(
        database_url=durable_postgres.dsn,
        encryption_key=new_key(),
        root_access_token=root_token,
        grpc_listen="127.0.0.1:0",
    )
    metadata = bearer(tokens.mint("root", root_token, lifetime_s=3000))
    load = Load(TASKS)
    async with AsyncExitStack() as stack:
        servers = []
        for _ in range(2):
            server = ServerProcess(
                settings,
                stream_grace_s=1.0,
                process_lease_s=1.0,
                stream_accept_timeout_s=1.0,
                claim_poll_delay_s=0.2,
                db_wait_timeout_s=2.0,
            )
            servers.append(await stack.enter_async_context(server.running()))
        clients = []
        for server in servers:
            channel = grpc.aio.insecure_channel(server.address, options=CHANNEL_OPTIONS)
            stack.push_async_callback(channel.close, None)
            clients.append(Client(channel, metadata))
        turns = cycle(clients)
        work = [
            asyncio.create_task(load.work(f"w{n}", lambda: next(turns), 1 + n % 4)) for n in range(WORKERS)
        ]
        creating = [
            asyncio.create_task(load.create(lambda: next(turns), TASKS // CREATORS)) for _ in range(CREATORS)
        ]
        try:
            for n, fault in enumerate(faults):
                await _unless_failed(load.reached((n + 1) * TASKS // (len(faults) + 2)), creating, work)
                victim = servers[n % 2]
                if fault in ("server", "both"):
                    await victim.kill()
                if fault in ("postgres", "both"):
                    await asyncio.to_thread(durable_postgres.kill)
                    await asyncio.to_thread(durable_postgres.restart)
                if fault in ("server", "both"):
                    await victim.start()
            await asyncio.gather(*creating)
            await _unless_failed(_all_resolved(durable_postgres.dsn), work)
        finally:
            for task in (*work, *creating):
                task.cancel()
            outcomes = await asyncio.gather(*work, return_exceptions=True)
        assert [o for o in outcomes if not isinstance(o, asyncio.CancelledError)] == []
    async with await psycopg.AsyncConnection.connect(durable_postgres.dsn) as connection:
        tasks = await _rows(
            connection, f"select task_id, retries_left, last_run, not {_IS_OPEN} from tasks t"
        )
        runs = await _rows(
            connection,
            "select task_id, run_id, state, reason_created, reason_resolved, started is not null"
            " from runs order by task_id, run_id",
        )
        outbox = await _rows(connection, "select id, events from outbox order by id")
    ended = reconcile(load, tasks, runs, outbox)
    assert ended["completed"] + ended["failed"] == TASKS


#: A task whose last run, if it has one, still waits or runs.
_IS_OPEN = (
    "(last_run < 0 or exists (select from runs r where r.task_id = t.task_id and r.run_id = t.last_run"
    " and state in ('pending', 'running')))"
)


async def _unless_failed(awaited: Coroutine[Any, Any, None], *workers: list[asyncio.Task[None]]) -> None:
    """Awaits progress, and raises at once what those who should make it failed with."""
    goal = asyncio.create_task(awaited)
    waiting = {goal, *(task for tasks in workers for task in tasks)}
    while not goal.done():
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()


async def _rows(connection: psycopg.AsyncConnection, text: str) -> list[tuple[object, ...]]:
    return await (await connection.execute(text.encode())).fetchall()


async def _all_resolved(dsn: str) -> None:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        while True:
            ((left,),) = await _rows(connection, f"select count(*) from tasks t where {_IS_OPEN}")
            if not left:
                return
            await asyncio.sleep(0.05)
