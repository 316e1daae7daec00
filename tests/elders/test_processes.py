"""The processes that the queue's deployment notes name: many at once, once or for ever."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter

import pytest

from tcqueue.v1.task_pb2 import NewTask
from tests.conformance.building import definition, new_ids
from tests.plugins.deployment import PLAIN
from tests.plugins.server import Queue

pytestmark = pytest.mark.doors("grpc")

TASKS = 150
AT_ONCE = 3


async def _start(queue: Queue, *arguments: str) -> Process:
    """A command in a process of its own, on the queue's database."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "server.cli",
        *arguments,
        stdout=PIPE,
        stderr=PIPE,
        env={
            **PLAIN,
            "DATABASE_URL": queue.settings.database_url,
            "TCQUEUE_ENCRYPTION_KEY": queue.settings.encryption_key,
            "TCQUEUE_LOOP_BATCH_SIZE": "20",
            "TCQUEUE_CLAIM_POLL_DELAY_S": "0.05",
        },
    )


async def _at_once(queue: Queue, command: str) -> Counter[str]:
    """What several of a command handled together, by loop."""
    processes = [await _start(queue, command, "--once", "--json") for _ in range(AT_ONCE)]
    handled: Counter[str] = Counter()
    for process in processes:
        out, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()
        handled.update(json.loads(out))
    return handled


async def _created(queue: Queue) -> list[str]:
    ids = new_ids(TASKS)
    await queue("CreateTasks", tasks=[NewTask(task_id=task_id, task=definition()) for task_id in ids])
    return ids


async def test_several_claim_reapers(queue: Queue) -> None:
    """Each lost run is retried once, whoever finds it."""
    ids = await _created(queue)
    claimed = 0
    while claimed < TASKS:
        claimed += len(await queue.claim(32))
    await queue.pass_time(hours=0.5)
    await queue.published()
    await _at_once(queue, "claim-reaper")
    events = await queue.published()
    for exchange in ("task-exception", "task-pending"):
        found = Counter(event.status["taskId"] for event in events.of(exchange))
        assert found == Counter(ids)
    assert await queue.pending_count() == TASKS


async def test_several_deadline_reapers_and_retirers(queue: Queue) -> None:
    """Each task ends once, and is gone once it has expired."""
    ids = await _created(queue)
    await queue.pass_time(hours=2)
    await queue.published()
    await _at_once(queue, "deadline-reaper")
    found = Counter(e.status["taskId"] for e in (await queue.published()).of("task-exception"))
    assert found == Counter(ids)
    await queue.pass_time(days=400)
    handled = await _at_once(queue, "retire-tasks")
    assert (handled["expire-tasks"], handled["expire-task-groups"]) == (TASKS, TASKS)
    assert (await queue.sql("select count(*) from tasks"))[0][0] == 0


async def test_for_ever(queue: Queue) -> None:
    """Without `--once` they go on until they are told to stop, and then end well."""
    claim = await queue.running()
    process = await _start(queue, "claim-reaper")
    await queue.pass_time(hours=0.5)
    async with asyncio.timeout(20):
        while len((await queue.status(claim.status.task_id)).runs) < 2:
            await asyncio.sleep(0.02)
    process.terminate()
    assert await process.wait() == 0
