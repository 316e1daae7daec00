"""CreateTasks: graphs of tasks, all or none (queue_service.proto)."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest

from server.domain import slugid
from tcqueue.v1.task_pb2 import TaskDefinition
from tests.conformance.building import at, definition, new_id, new_ids, scopes_to_create
from tests.conformance.door import Refused, refused
from tests.conformance.shown import ids, runs, state
from tests.plugins.server import Queue

# These calls have no route.
pytestmark = pytest.mark.doors("grpc")


def graph(edges: dict[str, list[str]], **fields: Any) -> list[dict[str, Any]]:
    """Tasks with these dependencies."""
    dates = {"created": at(), "deadline": at(hours=1)}
    return [
        {"task_id": task_id, "task": definition(dependencies=needed, **dates, **fields)}
        for task_id, needed in edges.items()
    ]


async def test_any_order(queue: Queue) -> None:
    """Tasks may stand before what they depend on; the reply is in the order of the call."""
    a, b, c, d = new_ids(4)
    edges = {d: [b, c], b: [a], a: [], c: [a]}
    statuses = (await queue("CreateTasks", tasks=graph(edges))).statuses
    assert [status.task_id for status in statuses] == list(edges)
    assert [state(status) for status in statuses] == ["unscheduled", "unscheduled", "pending", "unscheduled"]
    for expected in ([a], [b, c], [d]):
        claims = await queue.claim(4)
        assert sorted(ids(claims)) == sorted(expected)
        for claim in claims:
            await queue.resolve(claim.status.task_id, "completed")
    events = (await queue.published()).of("task-group-resolved")
    assert len(events) == 4


async def test_it_may_depend_on_what_exists(queue: Queue) -> None:
    """Resolved or not."""
    done, running = (await queue.resolved()).task_id, (await queue.running()).status.task_id
    a, b, c = new_ids(3)
    reply = await queue("CreateTasks", tasks=graph({a: [done], b: [running], c: [done, a]}))
    assert [state(status) for status in reply.statuses] == ["pending", "unscheduled", "unscheduled"]


async def test_cycles(queue: Queue) -> None:
    """Refused, with the path; a task that waits for itself is none (T-32)."""
    a, b, c, d = new_ids(4)
    try:
        await queue("CreateTasks", tasks=graph({d: [a], a: [b], b: [c], c: [a]}))
    except Refused as e:
        assert e.code == "InputError"
        path = e.details["cycle"].split(" ")
    assert (path[0], len(path), set(path)) == (path[-1], 4, {a, b, c})
    assert " -> ".join(path)
    for task_id in (a, b, c, d):
        with refused("ResourceNotFound"):
            await queue("GetTaskStatus", task_id=task_id)
    assert state((await queue("CreateTasks", tasks=graph({a: [a]}))).statuses[0]) == "unscheduled"


async def test_all_or_none(queue: Queue) -> None:
    """One task that is refused refuses all, is named, and nothing is left behind (T-10)."""
    good = new_ids(3)
    missing = new_id()
    taken = await queue.create()
    other_group = (await queue.create(scheduler_id="another")).task_id
    sealed = (await queue.create()).task_id
    await queue("SealTaskGroup", task_group_id=sealed)
    await queue.published()
    bad: dict[str, tuple[str, TaskDefinition]] = {
        "missing dependency": ("InputError", definition(dependencies=[missing])),
        "late deadline": ("InputError", definition(deadline=at(days=9))),
        "two stars": ("InputError", definition(scopes=["a**"])),
        "other scheduler": ("RequestConflict", definition(task_group_id=other_group)),
        "sealed": ("RequestConflict", definition(task_group_id=sealed)),
        "taken id": ("RequestConflict", definition(payload='{"other":1}')),
    }
    for why, (code, task) in bad.items():
        task_id = taken.task_id if why == "taken id" else new_id()
        tasks = [
            *graph({good[0]: [], good[1]: [good[0]]}),
            {"task_id": task_id, "task": task},
            *graph({good[2]: []}),
        ]
        try:
            await queue("CreateTasks", tasks=tasks)
        except Refused as e:
            assert (e.code, e.details["taskId"], e.details["index"]) == (code, task_id, "2"), why
        else:
            raise AssertionError(why)
        assert await queue.published() == []
        assert not (await queue("BatchGetTaskStatuses", task_ids=good)).statuses
    assert (await queue("CreateTasks", tasks=graph({task_id: [] for task_id in good}))).statuses


async def test_repeats(queue: Queue) -> None:
    """The whole call, a part of it, and a part with more: all harmless."""
    a, b, c = new_ids(3)
    tasks = graph({a: [], b: [a], c: [b]})
    first = (await queue("CreateTasks", tasks=tasks[:2])).statuses
    assert list((await queue("CreateTasks", tasks=tasks[:2])).statuses) == list(first)
    assert list((await queue("CreateTasks", tasks=tasks[1:2])).statuses) == [first[1]]
    await queue.claim()
    await queue.resolve(a, "completed")
    await queue.published()
    statuses = (await queue("CreateTasks", tasks=tasks)).statuses
    assert [runs(status) for status in statuses] == [
        ["scheduled completed completed"],
        ["scheduled pending"],
        [],
    ]
    events = await queue.published()
    assert events.about(a).exchanges == ["task-defined"]
    assert events.about(b).exchanges == ["task-defined", "task-pending"]
    assert events.about(c).exchanges == ["task-defined"]
    assert await queue.pending_count() == 1


async def test_what_a_call_must_be(queue: Queue) -> None:
    """Not empty, each id once, every task allowed."""
    with refused("InputValidationError"):
        await queue("CreateTasks")
    a = new_id()
    twice = graph({a: []}) * 2
    with refused("InputError", a):
        await queue("CreateTasks", tasks=twice)
    with refused("InputValidationError"):
        await queue("CreateTasks", tasks=[{"task_id": "malformed", "task": definition()}])
    caller = queue.having(*scopes_to_create())
    await caller("CreateTasks", tasks=graph({new_id(): []}))
    mixed = [*graph({new_id(): []}), *graph({new_id(): []}, priority="high")]
    with refused("InsufficientScopes"):
        await caller("CreateTasks", tasks=mixed)


async def test_thousands_of_tasks(queue: Queue) -> None:
    """In one call, in a random order, layer by layer below each other."""
    layers = [[slugid.nice() for _ in range(500)] for _ in range(6)]
    chosen = random.Random(1)
    edges: dict[str, list[str]] = {task_id: [] for task_id in layers[0]}
    for above, layer in pairwise(layers):
        edges.update({task_id: chosen.sample(above, 3) for task_id in layer})
    shuffled = list(edges.items())
    chosen.shuffle(shuffled)
    group = new_id()
    tasks = graph(dict(shuffled), task_group_id=group)
    statuses = (await queue("CreateTasks", tasks=tasks)).statuses
    assert [status.task_id for status in statuses] == [task_id for task_id, _ in shuffled]
    assert {status.task_id for status in statuses if state(status) == "pending"} == set(layers[0])
    assert await queue.pending_count() == 500
    await queue("SealTaskGroup", task_group_id=group)
    assert (await queue("CancelTaskGroup", task_group_id=group)).cancelled_count == 3000
    (await queue.published()).one("task-group-resolved")
