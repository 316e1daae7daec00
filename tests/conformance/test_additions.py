"""The checklist's additions, and servers with unusual settings (queue.md 6.1, 10)."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from server import definitions
from server.errors import QueueError
from server.transitions.creating import create_tasks
from server.transitions.resolving import Resolve, resolve_runs
from tests.conformance.building import QUEUE, at, definition, new_id, new_ids, now
from tests.conformance.door import refused
from tests.conformance.shown import ids, runs, state
from tests.plugins.server import Queue


async def test_a_claim_that_has_run_out_is_listed(queue: Queue) -> None:
    """Q-231: until it is handled; it is not counted."""
    claim = await queue.running()
    await queue.pass_time(minutes=21)
    assert ids((await queue("ListClaimedTasks", task_queue_id=QUEUE)).tasks) == [claim.status.task_id]
    assert (await queue("GetTaskQueueCounts", task_queue_id=QUEUE)).claimed_tasks == 0
    await queue.expire_claims()
    assert not (await queue("ListClaimedTasks", task_queue_id=QUEUE)).tasks


async def test_a_claim_that_has_run_out_is_a_claim(queue: Queue) -> None:
    """Q-232: until it is handled everything can be done that can be done to a running run."""
    for method in ("ReportCompleted", "ReportFailed", "CancelTask", "ReclaimTask"):
        task_id = (await queue.running()).status.task_id
        await queue.pass_time(minutes=21)
        run = {} if method == "CancelTask" else {"run_id": 0}
        expected = {"ReclaimTask": "running", "ReportCompleted": "completed", "ReportFailed": "failed"}
        status = (await queue(method, task_id=task_id, **run)).status
        assert state(status) == expected.get(method, "exception")
    assert await queue.expire_claims() == 0


async def test_many_create_one_group(queue: Queue) -> None:
    """Q-237: at once, all succeed."""
    group = new_id()
    statuses = await asyncio.gather(*(queue.create(task_group_id=group) for _ in range(30)))
    assert {state(status) for status in statuses} == {"pending"}
    assert len((await queue("ListTaskGroup", task_group_id=group)).tasks) == 30
    await queue("SealTaskGroup", task_group_id=group)
    await queue("CancelTaskGroup", task_group_id=group)
    (await queue.published()).one("task-group-resolved")


async def test_one_of_two(queue: Queue) -> None:
    """Q-238 T-48: of a group and of dependents; the rest of the lists is with the workers."""
    first = (await queue.create()).task_id
    group = new_id()
    two = new_ids(2)
    for task_id in two:
        await queue.create(task_id, dependencies=[first], task_group_id=group)
    for method, fields in (
        ("ListTaskGroup", {"task_group_id": group}),
        ("ListDependentTasks", {"task_id": first}),
    ):
        page = await queue(method, **fields, limit=1)
        assert (ids(page.tasks), bool(page.continuation_token)) == (two[:1], True)
        for limit in ({"limit": 1}, {"limit": 9}, {}):
            last = await queue(method, **fields, **limit, continuation_token=page.continuation_token)
            assert (ids(last.tasks), last.continuation_token) == (two[1:], "")
        whole = await queue(method, **fields, limit=2)
        assert (ids(whole.tasks), whole.continuation_token) == (two, "")


async def test_created_side_by_side(queue: Queue) -> None:
    """Q-039: in one transaction with the very task it waits for, which is refused."""
    sealed = (await queue.create()).task_id
    await queue("SealTaskGroup", task_group_id=sealed)
    required, waiting, itself, fine = new_ids(4)
    tasks = {
        required: definition(task_group_id=sealed),
        waiting: definition(dependencies=[required]),
        itself: definition(dependencies=[itself]),
        fine: definition(),
    }
    items = []
    for task_id, task in tasks.items():
        definitions.resolve_queue(task)
        definitions.fill_defaults(task_id, task)
        definitions.check_dates(task, now(), 5)
        items.append(definitions.new_task(task_id, task))
    results = await create_tasks(queue.services.machine, items, definitions.same)
    codes = [result.code if isinstance(result, QueueError) else result.state for result in results]
    assert codes == ["RequestConflict", "InputError", "unscheduled", "pending"]
    found = (await queue("BatchGetTaskStatuses", task_ids=list(tasks))).statuses
    assert ids(found) == [itself, fine]


async def test_events_of_odd_texts(queue: Queue) -> None:
    """Creation's events are dated by their own statement; what looks like the place of a date is none."""
    tags = {"\x01": "a\x01b", "c": '"\x01"'}
    status = await queue.create(tags=tags)
    published = await queue.published()
    for event in (published.one("task-defined"), published.one("task-pending")):
        assert event.payload["task"]["tags"] == tags
    (run,) = published.one("task-pending").payload["status"]["runs"]
    assert datetime.fromisoformat(run["scheduled"]) == status.runs[0].scheduled.ToDatetime(UTC)


async def test_graphs_that_make_one_group(queue: Queue) -> None:
    """At once: whoever comes second finds it made, and both are counted."""
    group = new_id()
    calls = []
    for _ in range(8):
        first, second = new_ids(2)
        tasks = [
            {"task_id": first, "task": definition(task_group_id=group)},
            {"task_id": second, "task": definition(task_group_id=group, dependencies=[first])},
        ]
        calls.append(queue("CreateTasks", tasks=tasks))
    for response in await asyncio.gather(*calls):
        assert [state(status) for status in response.statuses] == ["pending", "unscheduled"]
    assert await queue.sql("select active from task_groups where task_group_id = $1", group) == [(16,)]


async def test_two_last_resolutions_at_once(queue: Queue) -> None:
    """Q-242: in transactions side by side; the group ends and the dependent starts, once."""
    for _ in range(10):
        group = new_id()
        pair = [(await queue.create(task_group_id=group)).task_id for _ in range(2)]
        waiting = (await queue.create(dependencies=pair)).task_id
        await queue.claim(2)
        await queue.published()
        await asyncio.gather(
            *(
                resolve_runs(queue.services.machine, [Resolve(task_id, 0, "completed", "completed")])
                for task_id in pair
            )
        )
        assert runs(await queue.status(waiting)) == ["scheduled pending"]
        events = await queue.published()
        assert [e.payload["taskGroupId"] for e in events.of("task-group-resolved")] == [group]
        assert len(events.of("task-pending")) == 1
        await queue("CancelTask", task_id=waiting)


async def test_resolving_while_dependents_are_created(queue: Queue) -> None:
    """Q-242: whichever comes first, no dependent is forgotten."""
    for _ in range(10):
        first = (await queue.running()).status.task_id
        waiting = new_ids(4)
        await asyncio.gather(
            *(queue.create(task_id, dependencies=[first]) for task_id in waiting[:2]),
            queue.resolve(first, "completed"),
            *(queue.create(task_id, dependencies=[first]) for task_id in waiting[2:]),
        )
        assert [state(await queue.status(task_id)) for task_id in waiting] == ["pending"] * 4
        for task_id in waiting:
            await queue("CancelTask", task_id=task_id)


async def test_everything_at_once_to_one_task(queue: Queue) -> None:
    """Q-236: reports, cancels, reclaims and reruns side by side; one wins, the state is sound."""
    for _ in range(5):
        task_id = (await queue.running()).status.task_id
        run = {"task_id": task_id, "run_id": 0}
        await asyncio.gather(
            queue("ReportCompleted", **run),
            queue("ReportFailed", **run),
            queue("CancelTask", task_id=task_id),
            queue("ReclaimTask", **run),
            queue("ScheduleTask", task_id=task_id),
            return_exceptions=True,
        )
        status = await queue.status(task_id)
        assert runs(status)[0].split(" ", 2)[1] in ("completed", "failed", "exception")
        assert len(status.runs) == 1
        resolutions = [
            e for e in (await queue.published()).about(task_id) if e.exchange in (
                "task-completed", "task-failed", "task-exception")
        ]  # fmt: skip
        assert len(resolutions) == 1


PROFILE = pytest.mark.settings(
    claim_timeout_s=1.0,
    deadline_delay_s=1.0,
    claim_poll_delay_s=0.25,
    deadline_poll_delay_s=0.25,
    dependency_poll_delay_s=0.25,
    task_expiration_delay_s=4 * 86400.0,
    artifact_expiration_delay_s=4 * 86400.0,
    task_max_dependencies=100,
)


@PROFILE
async def test_short_claims(queue: Queue) -> None:
    """queue.md 6.1: a claim of one second, with credentials as short."""
    claim = await queue.running()
    task_id = claim.status.task_id
    renewed = await queue.worker(claim.credentials)("ReclaimTask", task_id=task_id, run_id=0)
    assert renewed.taken_until.ToMilliseconds() >= claim.taken_until.ToMilliseconds()
    await queue.pass_time(seconds=1.1)
    assert await queue.expire_claims() == 1
    assert runs(await queue.status(task_id)) == ["scheduled exception claim-expired", "retry pending"]


@PROFILE
async def test_short_deadlines(queue: Queue) -> None:
    """queue.md 6.1: enforced a second after they pass."""
    task_id = (await queue.create(deadline=at(minutes=5))).task_id
    await queue.pass_time(minutes=5)
    assert await queue.enforce_deadlines() == 0
    await queue.pass_time(seconds=2)
    assert await queue.enforce_deadlines() == 1
    assert runs(await queue.status(task_id)) == ["scheduled exception deadline-exceeded"]


@PROFILE
async def test_expiry_ahead_of_time(queue: Queue) -> None:
    """queue.md 6.1: a cut-off four days ahead deletes what expires within them, queues not."""
    soon = (await queue.resolved(expires=at(days=3.9))).task_id
    later = (await queue.resolved(expires=at(days=4.1))).task_id
    await queue.expire()
    with refused("ResourceNotFound"):
        await queue.status(soon)
    with refused("ResourceNotFound"):
        await queue("GetTaskGroup", task_group_id=soon)
    await queue.status(later)
    await queue("GetTaskGroup", task_group_id=later)
    await queue("GetTaskQueue", task_queue_id=QUEUE)


@PROFILE
async def test_few_dependencies(queue: Queue) -> None:
    """queue.md 6.1: at most a hundred, in either call (T-9)."""
    known = new_ids(101)
    await queue("CreateTasks", tasks=[{"task_id": task_id, "task": definition()} for task_id in known])
    await queue.create(dependencies=known[:100])
    with refused("InputError"):
        await queue.create(dependencies=known)
    with refused("InputError"):
        await queue("CreateTasks", tasks=[{"task_id": new_id(), "task": definition(dependencies=known)}])
    with refused("InputError"):
        await queue.create(dependencies=new_ids(101))
