"""Steps that happen at the same moment: none is lost, none is made twice."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import psycopg
import pytest

from server.transitions.resolving import Resolve, resolve_runs
from tests.conformance.building import new_ids
from tests.conformance.shown import runs
from tests.plugins.server import Queue
from tests.scheduler.building import (
    exchanges,
    extend,
    graph,
    inspected,
    node_states,
    nodes,
    run,
    state,
    submit,
)

pytestmark = pytest.mark.doors("grpc")

Holds = Callable[[str, str], Awaitable[psycopg.AsyncConnection[Any]]]


@pytest.fixture
async def hold(dsn: str) -> AsyncIterator[Holds]:
    """Somebody who holds a row until told to let go."""
    async with AsyncExitStack() as stack:

        async def take(statement: str, key: str) -> psycopg.AsyncConnection[Any]:
            connection = await stack.enter_async_context(await psycopg.AsyncConnection.connect(dsn))
            await connection.execute(statement.encode(), (key,))
            return connection

        yield take


GRAPH_ROW = "select 1 from task_graphs where task_graph_id = %s for update"
TASK_ROW = "select 1 from tasks where task_id = %s for update"


async def waiting(queue: Queue, count: int) -> None:
    """Returns once so many transactions wait for a lock."""
    async with asyncio.timeout(20):
        while True:
            ((now,),) = await queue.sql(
                "select count(*) from pg_stat_activity"
                " where datname = current_database() and wait_event_type = 'Lock'"
            )
            if now >= count:
                return
            await asyncio.sleep(0.005)


async def complete(queue: Queue, task_id: str) -> None:
    """Resolves a running run in a transaction of its own, past the batcher that would put two into one."""
    await resolve_runs(queue.services.machine, [Resolve(task_id, 0, "completed", "completed")])


async def claim(queue: Queue, *task_ids: str) -> None:
    """Claims runs 0."""
    for task_id in task_ids:
        await queue("ClaimTask", task_id=task_id, run_id=0, worker_group="group", worker_id="worker")


@pytest.mark.parametrize("meeting", ["at the group", "at the graph"])
async def test_two_last_leaves(queue: Queue, hold: Holds, meeting: str) -> None:
    """S-026: resolved at once, in two transactions that meet at the task group, or at the graph where the
    group has expired: one of them finishes it."""
    a, b = new_ids(2)
    graph_id = await submit(queue, graph({a: [], b: []}))
    if meeting == "at the graph":
        await queue.sql("delete from task_groups where task_group_id = $1", graph_id)
    await claim(queue, a, b)
    holder = await hold(GRAPH_ROW, graph_id)
    both = [asyncio.create_task(complete(queue, task_id)) for task_id in (a, b)]
    await waiting(queue, 2)
    await holder.rollback()
    await asyncio.gather(*both)
    assert await state(queue, graph_id) == "finished"
    assert await exchanges(queue) == ["running", "finished"]


async def test_an_old_leaf_completes_first(queue: Queue, hold: Holds) -> None:
    """S-048: a leaf resolves as it is extended, and gets there first: what is added is pending at once."""
    a, b, c = new_ids(3)
    graph_id = await submit(queue, graph({a: [], c: []}))
    await claim(queue, a)
    holder = await hold(GRAPH_ROW, graph_id)
    completion = asyncio.create_task(complete(queue, a))
    await waiting(queue, 1)
    extension = asyncio.create_task(extend(queue, graph_id, nodes({b: [a]})))
    await waiting(queue, 2)
    await holder.rollback()
    await asyncio.gather(completion, extension)
    assert runs(await queue.status(b)) == ["scheduled pending"]
    await run(queue, c)
    assert await state(queue, graph_id) == "running"
    await run(queue, b)
    assert await state(queue, graph_id) == "finished"


async def test_the_extension_comes_first(queue: Queue, hold: Holds) -> None:
    """S-048: the leaf's end waits for the extension, and starts what it added; the graph does not finish
    without it."""
    a, b = new_ids(2)
    graph_id = await submit(queue, graph({a: []}))
    await claim(queue, a)
    holder = await hold(GRAPH_ROW, graph_id)
    extension = asyncio.create_task(extend(queue, graph_id, nodes({b: [a]})))
    await waiting(queue, 1)
    completion = asyncio.create_task(complete(queue, a))
    await waiting(queue, 2)
    await holder.rollback()
    await asyncio.gather(completion, extension)
    assert await state(queue, graph_id) == "running"
    assert await node_states(queue, graph_id) == {a: "completed", b: "scheduled"}
    await run(queue, b)
    assert await state(queue, graph_id) == "finished"
    assert await exchanges(queue) == ["running", "extended", "finished"]


async def test_the_last_leaf_and_a_new_one(queue: Queue, hold: Holds) -> None:
    """S-048 S-049: an extension that does not touch the last leaf comes before or after its end; either way
    what it added is waited for as the order says."""
    for first in ("completion", "extension"):
        a, b = new_ids(2)
        graph_id = await submit(queue, graph({a: []}))
        await claim(queue, a)
        holder = await hold(GRAPH_ROW, graph_id)
        work: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
            "completion": partial(complete, queue, a),
            "extension": partial(extend, queue, graph_id, nodes({b: []})),
        }
        tasks = [asyncio.create_task(work.pop(first)())]
        await waiting(queue, 1)
        tasks += [asyncio.create_task(each()) for each in work.values()]
        await waiting(queue, 2)
        await holder.rollback()
        await asyncio.gather(*tasks)
        assert await state(queue, graph_id) == ("finished" if first == "completion" else "running")
        await run(queue, b)
        assert await state(queue, graph_id) == "finished"
        assert (await exchanges(queue)).count("finished") == 1


async def test_a_task_becomes_a_node_as_it_resolves(queue: Queue, hold: Holds) -> None:
    """S-042: of a graph that takes over a task that exists, the task's end is seen whichever comes first."""
    a, b, graph_id = new_ids(3)
    request = graph({a: [], b: []}, graph_id)
    task = request.tasks.nodes[0].task
    task.scheduler_id, task.task_group_id = "task-graph-scheduler", graph_id
    await queue("CreateTask", task_id=a, task=task)
    task.CopyFrom(await queue.task(a))
    await claim(queue, a)
    holder = await hold(TASK_ROW, a)
    submission = asyncio.create_task(submit(queue, request))
    await waiting(queue, 1)
    completion = asyncio.create_task(complete(queue, a))
    await waiting(queue, 2)
    await holder.rollback()
    await asyncio.gather(submission, completion)
    assert (await inspected(queue, graph_id))[a].satisfied
    await run(queue, b)
    assert await state(queue, graph_id) == "finished"


async def test_the_same_graph_twice_at_once(queue: Queue) -> None:
    """S-042: both are told that it runs, and there is one."""
    tasks = new_ids(6)
    edges = {task_id: tasks[:n][-2:] for n, task_id in enumerate(tasks)}
    request = graph(edges)
    await asyncio.gather(*(submit(queue, request) for _ in range(6)))
    assert sorted(await inspected(queue, request.task_graph_id)) == tasks
    assert runs(await queue.status(tasks[0])) == ["scheduled pending"]
    assert await exchanges(queue) == ["running"] * 6


async def test_workers_and_extenders_at_large(queue: Queue) -> None:
    """S-026 S-036 S-048: workers that sometimes fail, and extensions by the tasks themselves, all at once:
    each graph finishes once, with all its nodes completed."""
    chance = random.Random(7)
    graphs: list[str] = []
    for _ in range(4):
        tasks = new_ids(8)
        edges = {t: chance.sample(tasks[:n], min(n, chance.randrange(3))) for n, t in enumerate(tasks)}
        graphs.append(await submit(queue, graph(edges, reruns=20)))
    added = 0

    async def work() -> None:
        nonlocal added
        while any([await state(queue, graph_id) == "running" for graph_id in graphs]):
            for each in await queue.claim(2):
                task_id, graph_id = each.status.task_id, each.status.task_group_id
                if chance.random() < 0.3:
                    await queue.resolve(task_id, "failed", each.run_id)
                    continue
                if added < 24 and chance.random() < 0.5:
                    added += 1
                    (new,) = new_ids(1)
                    more = nodes({new: [task_id] if chance.random() < 0.7 else []}, reruns=20)
                    await asyncio.gather(
                        extend(queue, graph_id, more), queue.resolve(task_id, "completed", each.run_id)
                    )
                else:
                    await queue.resolve(task_id, "completed", each.run_id)

    await asyncio.gather(*(work() for _ in range(6)))
    told = await exchanges(queue)
    assert (told.count("finished"), told.count("blocked")) == (4, 0)
    assert told.count("extended") == added
    while left := await queue.claim(8):
        for each in left:
            await queue.resolve(each.status.task_id, "completed", each.run_id)
    for graph_id in graphs:
        assert set((await node_states(queue, graph_id)).values()) == {"completed"}
        ((count, stored),) = await queue.sql(
            "select leaves_left, (select count(*) from task_graph_nodes"
            " where task_graph_id = $1 and leaf and not done) from task_graphs where task_graph_id = $1",
            graph_id,
        )
        assert count == stored == 0
