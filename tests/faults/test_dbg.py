"""kill -9 under load: no task lost, no run claimed twice, no event missing (issue: the main job)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from itertools import cycle
from pathlib import Path

import grpc.aio
import psycopg
import pytest

from server.config import Settings
from server.domain import slugid
from server.identity import tokens
from server.identity.secrets import new_key
from server.store import embedded, migrator
from server.store.embedded import EmbeddedPostgres
from tests.faults.load import Load as L0, reconcile
from tests.streams.harness import CHANNEL_OPTIONS, Client, bearer
from tests.streams.serving import ServerProcess

TASKS = 240


class Load(L0):
    streams: list = []

    async def _stream(self, name, stream, held):
        self.streams.append(stream)
        print("open", name, list(held)[:2], flush=True)
        try:
            await super()._stream(name, stream, held)
        finally:
            print("closed", name, len(held), flush=True)
            self.streams.remove(stream)


CREATORS = 4
WORKERS = 6


@pytest.fixture
async def durable_postgres(tmp_path: Path) -> AsyncIterator[EmbeddedPostgres]:
    """With fsync: what was committed must survive."""
    server = await asyncio.to_thread(embedded.start, tmp_path)
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
            import time

            t0 = time.time()

            async def prog():
                last = -1
                same = 0
                while True:
                    same = same + 1 if last == len(load.finished) else 0
                    last = len(load.finished)
                    print(
                        f"{time.time() - t0:.1f} finished {len(load.finished)} created {len(load.definitions)} creating {[c.done() for c in creating]} work {[c.done() for c in work]}",
                        flush=True,
                    )
                    if same == 16:
                        async with await psycopg.AsyncConnection.connect(durable_postgres.dsn) as c:
                            for q in (
                                "select state,run_id,count(*),min(offered_until),min(lease_until),min(stream_id),min(process_id),now() from runs group by 1,2",
                                "select * from processes",
                                "select count(*) from tasks where not resolved",
                                "select pid,state,query,wait_event,application_name,now()-query_start from pg_stat_activity where datname='tcqueue'",
                            ):
                                for r in await _rows(c, q):
                                    print("  ", r)
                        for t in asyncio.all_tasks():
                            t.print_stack(limit=3, file=__import__("sys").stdout)
                        for c in clients:
                            print("STATE", c.channel.get_state())
                        for w in load.streams:
                            print(w.kinds[-5:], w.call.done(), w._ended.is_set())
                    await asyncio.sleep(0.5)

            pt = asyncio.create_task(prog())
            for n, fault in enumerate(faults):
                await load.reached((n + 1) * TASKS // (len(faults) + 2))
                victim = servers[n % 2]
                print("FAULT", fault, time.time() - t0, flush=True)
                if fault in ("server", "both"):
                    await victim.kill()
                if fault in ("postgres", "both"):
                    await asyncio.to_thread(durable_postgres.kill)
                    await asyncio.to_thread(durable_postgres.restart)
                if fault in ("server", "both"):
                    await victim.start()
                print("FAULT END", fault, time.time() - t0, flush=True)
            await asyncio.gather(*creating)
            await _all_resolved(durable_postgres.dsn)
        finally:
            for task in (*work, *creating):
                task.cancel()
            outcomes = await asyncio.gather(*work, return_exceptions=True)
        assert [o for o in outcomes if not isinstance(o, asyncio.CancelledError)] == []
    async with await psycopg.AsyncConnection.connect(durable_postgres.dsn) as connection:
        tasks = await _rows(connection, "select task_id, retries_left, last_run, resolved from tasks")
        runs = await _rows(
            connection,
            "select task_id, run_id, state, reason_created, reason_resolved, started is not null"
            " from runs order by task_id, run_id",
        )
        outbox = await _rows(connection, "select id, events from outbox order by id")
    ended = reconcile(load, tasks, runs, outbox)
    assert ended["completed"] + ended["failed"] == TASKS


async def _rows(connection: psycopg.AsyncConnection, text: str) -> list[tuple[object, ...]]:
    return await (await connection.execute(text.encode())).fetchall()


async def _all_resolved(dsn: str) -> None:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        while True:
            ((left,),) = await _rows(connection, "select count(*) from tasks where not resolved")
            if not left:
                return
            await asyncio.sleep(0.05)
