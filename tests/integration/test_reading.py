"""Reading tasks and groups (queue.md 3.2, 3.3)."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from server.domain import slugid
from server.errors import (
    InputError,
    InsufficientScopes,
    InvalidRequestArguments,
    RequestConflict,
    ResourceNotFound,
    Unavailable,
)
from server.handlers import pages
from server.services import Services
from server.views import stamp
from tcqueue.v1.task_pb2 import Priority, Requires, TaskState
from tests.plugins.services import Api, definition


async def pages_of(api: Api, method: str, field: str, limit: int, **fields: Any) -> list[list[Any]]:
    """All pages of a list."""
    found: list[list[Any]] = []
    token = ""
    while True:
        response = await api(method, continuation_token=token, limit=limit, **fields)
        found.append(list(getattr(response, field)))
        token = response.continuation_token
        if not token:
            return found


async def test_definition(api: Api) -> None:
    """Q-031: the normalised definition, all defaults filled in; an unknown task is 404."""
    task_id = await api.create("prov/work", payload='{"n": 3600}', tags={"kind": "test"})
    task = (await api("GetTask", task_id=task_id)).task
    assert (task.provisioner_id, task.worker_type, task.task_queue_id) == ("prov", "work", "prov/work")
    assert (task.scheduler_id, task.project_id, task.task_group_id) == ("-", "none", task_id)
    assert (task.priority, task.requires) == (Priority.PRIORITY_LOWEST, Requires.REQUIRES_ALL_COMPLETED)
    assert (task.retries, task.extra, task.payload) == (5, "{}", '{"n": 3600}')
    assert task.expires.seconds > task.deadline.seconds + 364 * 86400
    assert all(at.nanos % 1_000_000 == 0 for at in (task.created, task.deadline, task.expires))
    with pytest.raises(ResourceNotFound):
        await api("GetTask", task_id=slugid.nice())


async def test_definition_shows_the_current_priority(api: Api) -> None:
    """Q-202: definition and status follow a change of priority."""
    task_id = await api.create()
    await api("ChangeTaskPriority", task_id=task_id, new_priority=Priority.PRIORITY_HIGH)
    assert (await api("GetTask", task_id=task_id)).task.priority == Priority.PRIORITY_HIGH
    assert (await api("GetTaskStatus", task_id=task_id)).status.priority == Priority.PRIORITY_HIGH


async def test_status(api: Api) -> None:
    """Q-032: the status is that of the createTask reply; an unknown task is 404."""
    task_id = slugid.nice()
    created = await api("CreateTask", task_id=task_id, task=definition(_now(api), task_queue_id="p/w"))
    assert (await api("GetTaskStatus", task_id=task_id)).status == created.status
    with pytest.raises(ResourceNotFound):
        await api("GetTaskStatus", task_id=slugid.nice())


async def test_status_without_runs_and_with_many(api: Api) -> None:
    """An unscheduled task has no runs; run i stands at index i."""
    first = await api.create()
    waiting = await api.create(dependencies=[first])
    status = (await api("GetTaskStatus", task_id=waiting)).status
    assert status.state == TaskState.TASK_STATE_UNSCHEDULED and not status.runs
    for _ in range(3):
        await api("CancelTask", task_id=first)
        await api("RerunTask", task_id=first)
    status = (await api("GetTaskStatus", task_id=first)).status
    assert [run.run_id for run in status.runs] == [0, 1, 2, 3]
    assert status.state == TaskState.TASK_STATE_PENDING


async def test_scopes(api: Api) -> None:
    """Each reading method asks for its own scope, and a foreign one does not do (Q-062 among them)."""
    task_id = await api.create()
    group = {"task_group_id": task_id}
    for method, fields, scope in (
        ("GetTask", {"task_id": task_id}, f"queue:get-task:{task_id}"),
        ("GetTaskStatus", {"task_id": task_id}, f"queue:status:{task_id}"),
        ("ListDependentTasks", {"task_id": task_id}, f"queue:list-dependent-tasks:{task_id}"),
        ("GetTaskGroup", group, f"queue:list-task-group:{task_id}"),
        ("ListTaskGroup", group, f"queue:list-task-group:{task_id}"),
        ("BatchGetTasks", {"task_ids": [task_id]}, f"queue:get-task:{task_id}"),
        ("BatchGetTaskStatuses", {"task_ids": [task_id]}, f"queue:status:{task_id}"),
    ):
        await api.having(scope)(method, **fields)
        with pytest.raises(InsufficientScopes):
            await api.having(scope[:-1], "queue:list-task-queues")(method, **fields)


async def test_missing_scope_comes_before_a_malformed_id(api: Api) -> None:
    """T-1: class U."""
    with pytest.raises(InsufficientScopes):
        await api.having()("GetTask", task_id="nonsense")
    with pytest.raises(InvalidRequestArguments):
        await api("GetTask", task_id="nonsense")


@pytest.mark.parametrize(
    ("method", "field"), [("BatchGetTasks", "tasks"), ("BatchGetTaskStatuses", "statuses")]
)
class TestBatches:
    async def test_known_ones_only(self, api: Api, method: str, field: str) -> None:
        """Q-033: unknown ids are left out, whatever they look like, and repeats collapse."""
        ids = [await api.create() for _ in range(3)]
        strange = ["", "nonsense", "\0", "é", slugid.nice(), "x" * 5000]
        response = await api(method, task_ids=[*ids, *strange, *ids])
        assert sorted(item.task_id for item in getattr(response, field)) == sorted(ids)
        assert not response.continuation_token

    async def test_scopes(self, api: Api, method: str, field: str) -> None:
        """Q-034: a scope for each id, known or not; none for none."""
        task_id, unknown = await api.create(), slugid.nice()
        noun = "get-task" if method == "BatchGetTasks" else "status"
        caller = api.having(f"queue:{noun}:{task_id}")
        assert len(getattr(await caller(method, task_ids=[task_id]), field)) == 1
        with pytest.raises(InsufficientScopes):
            await caller(method, task_ids=[task_id, unknown])
        assert not getattr(await api.having()(method), field)

    async def test_pages(self, api: Api, method: str, field: str) -> None:
        """Q-035, Q-238: pages of the same list of ids; no token on an exactly full last page."""
        ids = sorted([await api.create() for _ in range(5)])
        asked = [*reversed(ids), slugid.nice()]
        pages = await pages_of(api, method, field, 2, task_ids=asked)
        assert [[item.task_id for item in page] for page in pages] == [ids[:2], ids[2:4], ids[4:]]
        assert [len(page) for page in await pages_of(api, method, field, 5, task_ids=asked)] == [5]
        first = await api(method, task_ids=asked, limit=1)
        rest = await api(method, task_ids=asked, continuation_token=first.continuation_token)
        assert [item.task_id for item in getattr(rest, field)] == ids[1:]
        assert not rest.continuation_token

    async def test_contents(self, api: Api, method: str, field: str) -> None:
        """An item is what the method for a single task returns."""
        ids = [await api.create(dependencies=[]) for _ in range(2)]
        await api("CancelTask", task_id=ids[0])
        await api("RerunTask", task_id=ids[0])
        single, part = ("GetTask", "task") if method == "BatchGetTasks" else ("GetTaskStatus", "status")
        for item in getattr(await api(method, task_ids=ids), field):
            assert getattr(item, part) == getattr(await api(single, task_id=item.task_id), part)


async def test_dependents(api: Api) -> None:
    """Q-054: satisfied and unsatisfied dependents in the order of their ids; an unknown task is 404."""
    required = await api.create()
    other = await api.create()
    dependents = sorted([await api.create(dependencies=[required]) for _ in range(3)])
    await api.create(dependencies=[other])
    both = await api.create(dependencies=[required, other])
    await api.claim()
    await api("ReportCompleted", task_id=required, run_id=0)
    late = await api.create(dependencies=[required])
    response = await api("ListDependentTasks", task_id=required)
    assert response.task_id == required
    assert [item.status.task_id for item in response.tasks] == sorted([*dependents, both, late])
    states = {item.status.task_id: item.status.state for item in response.tasks}
    assert states.pop(both) == TaskState.TASK_STATE_UNSCHEDULED
    assert set(states.values()) == {TaskState.TASK_STATE_PENDING}
    for item in response.tasks:
        assert item.task == (await api("GetTask", task_id=item.status.task_id)).task
        assert item.status == (await api("GetTaskStatus", task_id=item.status.task_id)).status
    pages = await pages_of(api, "ListDependentTasks", "tasks", 2, task_id=required)
    assert [len(page) for page in pages] == [2, 2, 1]
    assert [t.status.task_id for page in pages for t in page] == [t.status.task_id for t in response.tasks]
    assert not (await api("ListDependentTasks", task_id=late)).tasks
    with pytest.raises(ResourceNotFound):
        await api("ListDependentTasks", task_id=slugid.nice())


async def test_dependents_that_are_gone(api: Api, services: Services) -> None:
    """Q-055 and the quirk of queue.md 3.2: expired edges and vanished dependents are left out, and an
    edge of a task that is gone does not make it known."""
    required = await api.create()
    kept, expired, gone = sorted([await api.create(dependencies=[required]) for _ in range(3)])
    await services.db.fetch(
        "UPDATE task_dependencies SET expires = now() WHERE dependent_task_id = $1::text", (expired,)
    )
    await services.db.fetch("DELETE FROM tasks WHERE task_id = $1::text", (gone,))
    pages = await pages_of(api, "ListDependentTasks", "tasks", 1, task_id=required)
    assert [[item.status.task_id for item in page] for page in pages] == [[kept]]
    await services.db.fetch("DELETE FROM tasks WHERE task_id = $1::text", (required,))
    with pytest.raises(ResourceNotFound):
        await api("ListDependentTasks", task_id=required)


async def test_self_dependency_is_listed(api: Api) -> None:
    """A task that depends on itself is its own dependent (T-32)."""
    task_id = slugid.nice()
    await api.create(task_id=task_id, dependencies=[task_id])
    response = await api("ListDependentTasks", task_id=task_id)
    assert [item.status.task_id for item in response.tasks] == [task_id]


async def test_one_scheduler_for_a_group(api: Api) -> None:
    """Q-057: a second schedulerId is 409."""
    group = slugid.nice()
    await api.create(task_group_id=group, scheduler_id="one")
    with pytest.raises(RequestConflict):
        await api.create(task_group_id=group, scheduler_id="two")
    await api.create(task_group_id=group, scheduler_id="one")
    assert (await api("GetTaskGroup", task_group_id=group)).task_group.scheduler_id == "one"


async def test_group_outlives_its_tasks(api: Api) -> None:
    """Q-058: an hour longer than its tasks; a task that expires later moves it, an earlier one does not."""
    group, now = slugid.nice(), _now(api)

    async def expires_with(days: int) -> timedelta:
        at = stamp(now + timedelta(days=days))
        await api.create(task_group_id=group, expires=at, now=now)
        found = (await api("GetTaskGroup", task_group_id=group)).task_group.expires
        return timedelta(seconds=found.seconds - stamp(now).seconds)

    assert await expires_with(10) == timedelta(days=10, hours=1)
    assert await expires_with(5) == timedelta(days=10, hours=1)
    assert await expires_with(20) == timedelta(days=20, hours=1)


async def test_group_members(api: Api) -> None:
    """Q-059: all members with status and definition, by id, in pages."""
    group = slugid.nice()
    ids = sorted([await api.create(task_group_id=group, tags={"n": str(n)}) for n in range(5)])
    await api.create()
    await api("CancelTask", task_id=ids[2])
    await api("RerunTask", task_id=ids[2])
    response = await api("ListTaskGroup", task_group_id=group)
    assert (response.task_group_id, response.scheduler_id) == (group, "-")
    assert not response.HasField("sealed") and not response.continuation_token
    assert [item.status.task_id for item in response.tasks] == ids
    for item in response.tasks:
        assert item.task == (await api("GetTask", task_id=item.status.task_id)).task
        assert item.status == (await api("GetTaskStatus", task_id=item.status.task_id)).status
    pages = await pages_of(api, "ListTaskGroup", "tasks", 2, task_group_id=group)
    assert [[item.status.task_id for item in page] for page in pages] == [ids[:2], ids[2:4], ids[4:]]


async def test_unknown_group(api: Api, services: Services) -> None:
    """Q-060: no row, no group, even while tasks still carry its id."""
    group = slugid.nice()
    await api.create(task_group_id=group)
    await services.db.fetch("DELETE FROM task_groups WHERE task_group_id = $1::text", (group,))
    for unknown in (group, slugid.nice()):
        for method in ("GetTaskGroup", "ListTaskGroup"):
            with pytest.raises(ResourceNotFound):
                await api(method, task_group_id=unknown)


async def test_sealed(api: Api) -> None:
    """Q-061: absent until the group is sealed."""
    group = slugid.nice()
    await api.create(task_group_id=group)
    assert not (await api("GetTaskGroup", task_group_id=group)).task_group.HasField("sealed")
    sealed = (await api("SealTaskGroup", task_group_id=group)).task_group.sealed
    assert (await api("GetTaskGroup", task_group_id=group)).task_group.sealed == sealed
    assert (await api("ListTaskGroup", task_group_id=group)).sealed == sealed


async def test_limit_is_capped_and_the_last_page_has_no_token(api: Api, services: Services) -> None:
    """Q-214: 1000 rows are one page without a token, 1001 are two."""
    group = slugid.nice()
    ids = [slugid.nice() for _ in range(1001)]
    tasks = [
        {"task_id": i, "task": definition(_now(api), task_queue_id="p/w", task_group_id=group)} for i in ids
    ]
    await api("CreateTasks", tasks=tasks[:1000])
    full = await api("ListTaskGroup", task_group_id=group, limit=5000)
    assert len(full.tasks) == 1000 and not full.continuation_token
    await api("CreateTasks", tasks=tasks[1000:])
    for fields in ({}, {"limit": 5000}):
        page = await api("ListTaskGroup", task_group_id=group, **fields)
        assert len(page.tasks) == 1000
        (last,) = (
            await api("ListTaskGroup", task_group_id=group, continuation_token=page.continuation_token)
        ).tasks
        assert last.status.task_id == max(ids)


async def test_large_definitions_make_short_pages(api: Api) -> None:
    """A page ends early, with a token, before it is too large for a gRPC client's default limit; a single
    definition larger than that still has a page of its own."""
    group = slugid.nice()
    sizes = [pages.BUDGET + 10, 10, 10, pages.BUDGET * 2 // 3, pages.BUDGET * 2 // 3, 10]
    ids = sorted(slugid.nice() for _ in sizes)
    for task_id, size in zip(ids, sizes, strict=True):
        await api.create(task_id=task_id, task_group_id=group, payload=f'{{"x": "{"y" * size}"}}')
    found = await pages_of(api, "ListTaskGroup", "tasks", 1000, task_group_id=group)
    assert [[ids.index(item.status.task_id) for item in page] for page in found] == [[0], [1, 2, 3, 4], [5]]
    batches = await pages_of(api, "BatchGetTasks", "tasks", 1000, task_ids=ids)
    assert [len(page) for page in batches] == [1, 4, 1]
    pending = await pages_of(api, "ListPendingTasks", "tasks", 1000, task_queue_id="prov/work")
    assert [len(page) for page in pending] == [1, 4, 1]


@pytest.mark.parametrize("token", ["!!!", "abc-def", "a b", "bm9=", "ü"])
async def test_illegal_tokens(api: Api, token: str) -> None:
    """Q-215: methods with offsets upstream refuse a token with illegal characters."""
    task_id = await api.create()
    for method, fields in (
        ("BatchGetTasks", {"task_ids": [task_id]}),
        ("BatchGetTaskStatuses", {"task_ids": [task_id]}),
        ("ListTaskGroup", {"task_group_id": task_id}),
        ("ListDependentTasks", {"task_id": task_id}),
    ):
        with pytest.raises(InputError):
            await api(method, continuation_token=token, **fields)


@pytest.mark.parametrize("token", ["abcdef", "0000", "WyJhIiwiYiJd"])
async def test_meaningless_tokens(api: Api, token: str) -> None:
    """Q-215: a well-formed token that means nothing starts at the beginning."""
    group = slugid.nice()
    task_id = await api.create(task_group_id=group)
    response = await api("ListTaskGroup", task_group_id=group, continuation_token=token)
    assert [item.status.task_id for item in response.tasks] == [task_id]


@pytest.mark.parametrize("limit", [0, -1])
async def test_limit_below_one(api: Api, limit: int) -> None:
    """queue.md 8.8: a limit of 0 is 400."""
    with pytest.raises(InvalidRequestArguments):
        await api("ListTaskGroup", task_group_id=slugid.nice(), limit=limit)


async def test_monitoring(api: Api, services: Services) -> None:
    """Q-213, as far as it does not need a door: public, and heartbeat is as well as its database."""
    anyone = api.having()
    pong = await anyone("Ping")
    assert pong.alive and pong.uptime >= 0
    await anyone("LbHeartbeat")
    await anyone("Heartbeat")
    assert (await anyone("Version")).version
    await services.db.close()
    with pytest.raises(Unavailable):
        await anyone("Heartbeat")
    await anyone("LbHeartbeat")


def _now(api: Api) -> Any:
    return api.services.clock.now()
