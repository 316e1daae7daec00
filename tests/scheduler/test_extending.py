"""extendTaskGraph: tasks that come later."""

from __future__ import annotations

import pytest

from tests.conformance.building import at, new_id, new_ids
from tests.conformance.door import refused
from tests.conformance.shown import runs
from tests.conformance.shown import state as task_state
from tests.plugins.server import Queue
from tests.scheduler.building import (
    SCOPES,
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


@pytest.mark.elder("scheduler.extendTaskGraph", "scheduler.taskGraphExtended")
async def test_a_task_more(queue: Queue) -> None:
    """S-044 S-047 S-048 S-051: three where there were two; what waits for an open task waits; the leaf of
    before is none any more, so the graph finishes with the new one."""
    a, b, c = new_ids(3)
    graph_id = await submit(queue, graph({a: [], b: [a]}))
    await run(queue, a)
    assert await extend(queue, graph_id, nodes({c: [b]})) == "running"
    shown = await inspected(queue, graph_id)
    assert sorted(shown) == [a, b, c]
    assert (list(shown[b].dependents), list(shown[c].requires_left)) == ([c], [b])
    assert task_state(await queue.status(c)) == "unscheduled"
    assert (await queue.task(c)).task_group_id == graph_id
    await run(queue, b)
    assert await state(queue, graph_id) == "running"
    await run(queue, c)
    assert await state(queue, graph_id) == "finished"
    assert await exchanges(queue) == ["running", "extended", "finished"]


async def test_an_old_leaf_does_not_count(queue: Queue) -> None:
    """S-048: what was forced to start before the old leaf had completed finishes the graph without it."""
    a, b = new_ids(2)
    graph_id = await submit(queue, graph({a: []}))
    await extend(queue, graph_id, nodes({b: [a]}))
    await queue("ScheduleTask", task_id=b)
    await run(queue, b)
    assert await state(queue, graph_id) == "finished"
    await run(queue, a)
    assert await exchanges(queue) == ["running", "extended", "finished"]


async def test_after_a_completed_one(queue: Queue) -> None:
    """S-047: pending at once, as is what requires nothing."""
    a, b, c, d = new_ids(4)
    graph_id = await submit(queue, graph({a: [], b: [a]}))
    await run(queue, a)
    await extend(queue, graph_id, nodes({c: [a], d: []}))
    for task_id in (c, d):
        assert runs(await queue.status(task_id)) == ["scheduled pending"]
    assert await node_states(queue, graph_id) == dict.fromkeys((b, c, d), "scheduled") | {a: "completed"}
    assert (await inspected(queue, graph_id))[c].requires_left == []
    for task_id in (b, c, d):
        assert await state(queue, graph_id) == "running"
        await run(queue, task_id)
    assert await state(queue, graph_id) == "finished"


@pytest.mark.elder("scheduler.extendTaskGraph")
async def test_twice(queue: Queue) -> None:
    """S-045 S-051: harmless, also when its tasks have run meanwhile; an event each time."""
    a, b, c = new_ids(3)
    graph_id = await submit(queue, graph({a: []}))
    added = nodes({b: [a], c: [b]})
    await extend(queue, graph_id, added)
    before = await inspected(queue, graph_id)
    await extend(queue, graph_id, added)
    assert await inspected(queue, graph_id) == before
    await run(queue, a)
    await run(queue, b)
    before = await inspected(queue, graph_id)
    await extend(queue, graph_id, added)
    assert await inspected(queue, graph_id) == before
    await run(queue, c)
    await extend(queue, graph_id, added)
    assert await state(queue, graph_id) == "finished"
    assert await exchanges(queue) == ["running", "extended", "extended", "extended", "finished", "extended"]
    assert [len((await queue.status(t)).runs) for t in (a, b, c)] == [1, 1, 1]


async def test_otherwise_than_before(queue: Queue) -> None:
    """S-045: a node that is there with other requires, reruns or task is refused, with all the rest."""
    a, b, c = new_ids(3)
    graph_id = await submit(queue, graph({a: []}))
    added = nodes({b: [a]})
    await extend(queue, graph_id, added)
    for change in ("requires", "reruns", "task"):
        other = nodes({b: [a], c: []})
        other.nodes[0].CopyFrom(added.nodes[0])
        if change == "task":
            other.nodes[0].task.tags["new"] = "tag"
        elif change == "reruns":
            other.nodes[0].reruns = 4
        else:
            other.nodes[0].ClearField("requires")
        with refused("RequestConflict"):
            await extend(queue, graph_id, other)
        assert sorted(await inspected(queue, graph_id)) == [a, b]
    with refused("ResourceNotFound"):
        await queue("GetTaskStatus", task_id=c)


async def test_any_order(queue: Queue) -> None:
    """S-046: a node may stand before what it requires."""
    a, *chain = new_ids(6)
    graph_id = await submit(queue, graph({a: []}))
    edges = dict(zip(chain, [a, *chain], strict=False))
    await extend(queue, graph_id, nodes({task_id: [edges[task_id]] for task_id in reversed(chain)}))
    for task_id in (a, *chain):
        assert await state(queue, graph_id) == "running"
        await run(queue, task_id)
    assert await state(queue, graph_id) == "finished"


async def test_a_finished_graph(queue: Queue) -> None:
    """S-049: stays finished, and its new tasks run; nothing is told of it twice."""
    a, b, c = new_ids(3)
    graph_id = await submit(queue, graph({a: []}))
    await run(queue, a)
    assert await extend(queue, graph_id, nodes({b: [a], c: [b]})) == "finished"
    await run(queue, b)
    await run(queue, c)
    assert await state(queue, graph_id) == "finished"
    assert await exchanges(queue) == ["running", "finished", "extended"]


async def test_a_blocked_graph(queue: Queue) -> None:
    """S-049: stays blocked until all of it has completed."""
    a, b = new_ids(2)
    graph_id = await submit(queue, graph({a: []}))
    await run(queue, a, "failed")
    assert await extend(queue, graph_id, nodes({b: []})) == "blocked"
    await run(queue, b)
    assert await state(queue, graph_id) == "blocked"
    await queue("RerunTask", task_id=a)
    await run(queue, a, run_id=1)
    assert await state(queue, graph_id) == "finished"


@pytest.mark.elder("scheduler.extendTaskGraph")
async def test_who_may(queue: Queue) -> None:
    """S-050: whoever holds its scope, and nothing of what the graph has; an unknown graph is not found."""
    a, b = new_ids(2)
    graph_id = await submit(queue, graph({a: []}))
    for caller in (queue.having(f"scheduler:extend-task-graph:{new_id()}", *SCOPES), queue.anonymous):
        with refused("InsufficientScopes"):
            await extend(caller, graph_id, nodes({b: []}))
    await extend(queue.having(f"scheduler:extend-task-graph:{graph_id}"), graph_id, nodes({b: []}))
    with refused("ResourceNotFound", "task-graph not found!"):
        await extend(queue, new_id(), nodes({new_id(): []}))
    assert await exchanges(queue) == ["running", "extended"]


async def test_from_within(queue: Queue) -> None:
    """S-050: a task of the graph extends it with its own credentials, which its scopes give it."""
    graph_id, a, b = new_ids(3)
    scope = f"scheduler:extend-task-graph:{graph_id}"
    await submit(queue, graph({a: []}, graph_id, scopes=[*SCOPES, scope], task_scopes=[scope]))
    (claim,) = await queue.claim()
    await extend(queue.worker(claim.credentials), graph_id, nodes({b: [a]}))
    await queue.resolve(a, "completed")
    assert await state(queue, graph_id) == "running"
    await run(queue, b)
    assert await state(queue, graph_id) == "finished"


async def test_what_is_refused(queue: Queue) -> None:
    """S-010: as for a new graph; by the scopes that the graph was given then."""
    a, b, unknown = new_ids(3)
    graph_id = await submit(queue, graph({a: []}))
    with refused("InputError") as caught:
        await extend(queue, graph_id, nodes({b: [unknown, b, a, a]}))
    assert len(caught.value.faults) == 3
    for fields in ({"task_queue_id": "prov/other"}, {"task_scopes": ["more"]}):
        with refused("InputError", "scopes") as caught:
            await extend(queue, graph_id, nodes({b: []}, **fields))
        assert b in caught.value.faults[0]
    other = await submit(queue, graph({unknown: []}))
    with refused("InputError") as caught:
        await extend(queue, graph_id, nodes({b: [unknown]}))
    assert caught.value.faults == [f"Requires for {b} references undefined taskId: {unknown}"]
    with refused("RequestConflict|InputError"):
        await extend(queue, other, nodes({a: []}))
    assert sorted(await inspected(queue, graph_id)) == [a]


@pytest.mark.settings(task_max_dependencies=3)
async def test_too_much_is_required(queue: Queue) -> None:
    """The queue's limit on dependencies counts for what is required, too."""
    tasks = new_ids(5)
    graph_id = await submit(queue, graph({task_id: [] for task_id in tasks[:4]}))
    with refused("InputError") as caught:
        await extend(queue, graph_id, nodes({tasks[4]: tasks[:4]}))
    assert "at most 3" in caught.value.faults[0]
    await extend(queue, graph_id, nodes({tasks[4]: tasks[:3]}))


async def test_expiry_goes_along(queue: Queue) -> None:
    """A graph lives as long as what was added to it."""
    a, b = new_ids(2)
    graph_id = await submit(queue, graph({a: []}, expires=at(days=1)))
    await extend(queue, graph_id, nodes({b: []}, expires=at(days=5)))
    await queue.pass_time(days=3)
    await queue.expire()
    assert await state(queue, graph_id) == "running"
