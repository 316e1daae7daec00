"""Task groups (queue.md 2.4, 3.3)."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tests.conformance.building import at, definition, new_id, new_ids
from tests.conformance.door import refused
from tests.conformance.shown import ids, moment, runs, state, text
from tests.plugins.server import Queue


async def members(queue: Queue, *outcomes: str) -> tuple[str, list[str]]:
    """A group with a member for each outcome, or in one of the states before."""
    group, made = new_id(), []
    for outcome in outcomes:
        fields: dict[str, Any] = {"task_group_id": group, "task_queue_id": f"prov/{outcome[:8].strip('-')}"}
        if outcome == "unscheduled":
            task_id = new_id()
            await queue.create(task_id, dependencies=[task_id], **fields)
        elif outcome == "pending":
            task_id = (await queue.create(**fields)).task_id
        elif outcome == "running":
            task_id = (await queue.running(**fields)).status.task_id
        else:
            task_id = (await queue.resolved(outcome, **fields)).task_id
        made.append(task_id)
    return group, made


async def test_one_scheduler_per_group(queue: Queue) -> None:
    """Q-057 T-15: a second one is refused, whatever its scopes."""
    group = (await queue.create(scheduler_id="one")).task_group_id
    await queue.create(scheduler_id="one", task_group_id=group)
    with refused("RequestConflict"):
        await queue.create(scheduler_id="two", task_group_id=group)


async def test_a_groups_expiry(queue: Queue) -> None:
    """Q-058: an hour after its tasks', and later with a later task."""
    group, hour = new_id(), timedelta(hours=1)
    for days, longest in ((3, 3), (2, 3), (5, 5)):
        await queue.create(task_group_id=group, expires=(expires := at(days=days)))
        if days == longest:
            latest = expires
        shown = (await queue("GetTaskGroup", task_group_id=group)).task_group
        assert moment(shown.expires) == moment(latest) + hour


async def test_listing_a_group(queue: Queue) -> None:
    """Q-059: statuses and definitions in the order of ids, by pages."""
    group, made = new_id(), new_ids(5)
    for task_id in reversed(made):
        await queue.create(task_id, task_group_id=group, scheduler_id="s")
    listed = await queue("ListTaskGroup", task_group_id=group)
    assert (listed.task_group_id, listed.scheduler_id, ids(listed.tasks)) == (group, "s", made)
    assert not listed.HasField("sealed") and not listed.continuation_token
    assert listed.tasks[0].task == await queue.task(made[0])
    assert listed.tasks[0].status == await queue.status(made[0])
    seen, token = [], ""
    for size in (2, 2, 1):
        page = await queue("ListTaskGroup", task_group_id=group, limit=2, continuation_token=token)
        assert len(page.tasks) == size
        seen += ids(page.tasks)
        token = page.continuation_token
    assert (seen, token) == (made, "")
    sealed = (await queue("SealTaskGroup", task_group_id=group)).task_group.sealed
    assert (await queue("ListTaskGroup", task_group_id=group)).sealed == sealed


async def test_full_pages(queue: Queue) -> None:
    """Q-059 T-48: a thousand at most, whatever the limit; a full last page has no token."""
    group, made = new_id(), new_ids(1001)
    task = definition(task_group_id=group)
    await queue("CreateTasks", tasks=[{"task_id": task_id, "task": task} for task_id in made])
    for limit in ({}, {"limit": 5000}):
        page = await queue("ListTaskGroup", task_group_id=group, **limit)
        assert ids(page.tasks) == made[:1000]
        last = await queue("ListTaskGroup", task_group_id=group, continuation_token=page.continuation_token)
        assert (ids(last.tasks), last.continuation_token) == (made[1000:], "")
    await queue.sql("delete from tasks where task_id = $1", made.pop())
    whole = await queue("ListTaskGroup", task_group_id=group)
    assert (ids(whole.tasks), whole.continuation_token) == (made, "")


async def test_unknown_groups(queue: Queue) -> None:
    """Q-060 Q-064: 404 from each method; even before a missing scope where that needs the group."""
    for method in ("ListTaskGroup", "GetTaskGroup", "SealTaskGroup", "CancelTaskGroup"):
        with refused("ResourceNotFound"):
            await queue(method, task_group_id=new_id())
    for method in ("SealTaskGroup", "CancelTaskGroup"):
        with refused("ResourceNotFound"):
            await queue.having("nothing")(method, task_group_id=new_id())


async def test_getting_a_group(queue: Queue) -> None:
    """Q-061 Q-062: `sealed` once it is; its own scope."""
    group = (await queue.create()).task_group_id
    caller = queue.having(f"queue:list-task-group:{group}")
    shown = (await caller("GetTaskGroup", task_group_id=group)).task_group
    assert (shown.task_group_id, shown.scheduler_id, shown.HasField("sealed")) == (group, "-", False)
    await caller("ListTaskGroup", task_group_id=group)
    for method in ("GetTaskGroup", "ListTaskGroup"):
        with refused("InsufficientScopes"):
            await caller(method, task_group_id=new_id())


async def test_sealing(queue: Queue) -> None:
    """Q-063 Q-153 T-62: the first time stays, and is published each time."""
    group = (await queue.create()).task_group_id
    await queue.published()
    first = (await queue("SealTaskGroup", task_group_id=group)).task_group
    again = (await queue("SealTaskGroup", task_group_id=group)).task_group
    assert first == again and first.HasField("sealed")
    assert (await queue("GetTaskGroup", task_group_id=group)).task_group == first
    events = await queue.published()
    assert events.exchanges == ["task-group-sealed"] * 2
    for event in events:
        assert (event.key, event.cc) == (f"primary.{group}.-._", [])
        assert event.payload == {
            "version": 1,
            "taskGroupId": group,
            "schedulerId": "-",
            "expires": text(first.expires),
            "sealed": text(first.sealed),
        }


async def test_scopes_of_group_changes(queue: Queue) -> None:
    """Q-064 Q-066 T-7: sealing asks for its scope first, cancelling for the seal."""
    group = (await queue.create(scheduler_id="s")).task_group_id
    seal = queue.having(f"queue:seal-task-group:s/{group}")
    cancel = queue.having(f"queue:cancel-task-group:s/{group}")
    with refused("InsufficientScopes"):
        await cancel("SealTaskGroup", task_group_id=group)
    for caller in (seal, cancel):
        with refused("RequestConflict"):
            await caller("CancelTaskGroup", task_group_id=group)
    await seal("SealTaskGroup", task_group_id=group)
    with refused("InsufficientScopes"):
        await seal("CancelTaskGroup", task_group_id=group)
    await cancel("CancelTaskGroup", task_group_id=group)


async def test_a_sealed_group_takes_no_tasks(queue: Queue) -> None:
    """Q-065 T-14: neither new ones nor a repeat; what is there goes on."""
    task_id, task = new_id(), definition()
    await queue("CreateTask", task_id=task_id, task=task)
    await queue("SealTaskGroup", task_group_id=task_id)
    with refused("RequestConflict"):
        await queue.create(task_group_id=task_id)
    with refused("RequestConflict"):
        await queue("CreateTask", task_id=task_id, task=task)
    await queue("CancelTask", task_id=task_id)
    assert state((await queue("RerunTask", task_id=task_id)).status) == "pending"


async def test_cancelling_a_group(queue: Queue) -> None:
    """Q-067 Q-068 Q-069 Q-155: the unresolved members, each with its event; the others stay."""
    group, made = await members(
        queue, "unscheduled", "pending", "running", "completed", "failed", "internal-error", "canceled"
    )
    await queue("SealTaskGroup", task_group_id=group)
    resolved = [await queue.status(task_id) for task_id in made[3:]]
    await queue.published()
    reply = await queue("CancelTaskGroup", task_group_id=group)
    assert (reply.task_group_id, reply.task_group_size, reply.cancelled_count) == (group, 7, 3)
    assert sorted(reply.task_ids) == sorted(made[:3])
    assert [runs(await queue.status(task_id)) for task_id in made[:3]] == [
        ["exception exception canceled"],
        ["scheduled exception canceled"],
        ["scheduled exception canceled"],
    ]
    assert [await queue.status(task_id) for task_id in made[3:]] == resolved
    events = await queue.published()
    exceptions = events.of("task-exception")
    assert sorted(e.status["taskId"] for e in exceptions) == sorted(made[:3])
    assert events.exchanges[3:] == ["task-group-resolved"]


async def test_cancelling_a_group_again(queue: Queue) -> None:
    """Q-070: nothing to do; after a rerun only the new run."""
    group, (one, _) = await members(queue, "pending", "running")
    await queue("SealTaskGroup", task_group_id=group)
    await queue("CancelTaskGroup", task_group_id=group)
    await queue.published()
    reply = await queue("CancelTaskGroup", task_group_id=group)
    assert (reply.task_group_size, reply.cancelled_count, list(reply.task_ids)) == (2, 0, [])
    assert await queue.published() == []
    await queue("RerunTask", task_id=one)
    reply = await queue("CancelTaskGroup", task_group_id=group)
    assert (reply.cancelled_count, list(reply.task_ids)) == (1, [one])
    assert runs(await queue.status(one)) == ["scheduled exception canceled", "rerun exception canceled"]


async def test_members_past_their_deadline(queue: Queue) -> None:
    """Q-067: are left to the deadline."""
    group = (await queue.create(deadline=at(minutes=5))).task_group_id
    await queue("SealTaskGroup", task_group_id=group)
    await queue.pass_time(minutes=6)
    assert (await queue("CancelTaskGroup", task_group_id=group)).cancelled_count == 0


async def test_the_last_member_resolves(queue: Queue) -> None:
    """Q-071 Q-072 T-35: told then, not before; with `sealed` if it is."""
    group, (one, two) = await members(queue, "running", "pending")
    await queue.published()
    await queue.resolve(one, "failed")
    assert (await queue.published()).exchanges == ["task-failed"]
    sealed = (await queue("SealTaskGroup", task_group_id=group)).task_group
    await queue("CancelTask", task_id=two)
    event = (await queue.published()).one("task-group-resolved")
    assert (event.key, event.cc) == (f"primary.{group}.-._", [])
    assert event.payload == {
        "version": 1,
        "taskGroupId": group,
        "schedulerId": "-",
        "expires": text(sealed.expires),
        "sealed": text(sealed.sealed),
    }


async def test_a_retry_keeps_a_group_open(queue: Queue) -> None:
    """Q-072: an exception that is retried resolves nothing."""
    claim = await queue.running()
    await queue.resolve(claim.status.task_id, "worker-shutdown")
    assert not (await queue.published()).of("task-group-resolved")


async def test_an_unsealed_group_resolves(queue: Queue) -> None:
    """Q-071: without `sealed`."""
    await queue.resolved()
    assert "sealed" not in (await queue.published()).one("task-group-resolved").payload


async def test_a_resolved_group_grows(queue: Queue) -> None:
    """Q-073 T-35: its new task's end is told again; a rerun's end too, its beginning changes nothing."""
    group, (one,) = await members(queue, "completed")
    await queue.published()
    two = (await queue.create(task_group_id=group)).task_id
    assert not (await queue.published()).of("task-group-resolved")
    await queue("CancelTask", task_id=two)
    (await queue.published()).one("task-group-resolved")
    await queue("RerunTask", task_id=one)
    await queue("CancelTask", task_id=one)
    (await queue.published()).one("task-group-resolved")


@pytest.mark.settings(task_expiration_delay_s=-1800.0)
async def test_group_expiry(queue: Queue) -> None:
    """Q-074 Q-075 Q-060: the id is free for another scheduler once the group has gone, not before."""
    group = (await queue.create(scheduler_id="one", expires=at(hours=2))).task_group_id
    await queue.pass_time(hours=3, minutes=20)
    await queue.expire()
    with refused("RequestConflict"):
        await queue.create(scheduler_id="two", task_group_id=group)
    await queue.pass_time(minutes=20)
    await queue.expire()
    with refused("ResourceNotFound"):
        await queue("ListTaskGroup", task_group_id=group)
    await queue.create(scheduler_id="two", task_group_id=group)
