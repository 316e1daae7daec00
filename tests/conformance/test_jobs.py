"""What is deleted when, and work that is left undone (queue.md 6)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.building import QUEUE, at, new_id
from tests.conformance.door import refused
from tests.conformance.shown import runs, state
from tests.plugins.server import Queue


async def test_expired_tasks(queue: Queue) -> None:
    """Q-225: half an hour after they expire, with their runs; others stay."""
    gone = (await queue.resolved(expires=at(hours=2))).task_id
    kept = (await queue.resolved(expires=at(hours=9))).task_id
    await queue.pass_time(hours=2, minutes=20)
    await queue.expire()
    await queue.status(gone)
    await queue.pass_time(minutes=20)
    await queue.expire()
    for method in ("GetTask", "GetTaskStatus"):
        with refused("ResourceNotFound"):
            await queue(method, task_id=gone)
    assert await queue.sql("select distinct task_id from runs") == [(kept,)]
    await queue.status(kept)


async def test_an_expired_unresolved_task(queue: Queue) -> None:
    """Q-225: its group goes on without it."""
    group = new_id()
    await queue.create(task_group_id=group, deadline=at(hours=1), expires=at(hours=1))
    other = (await queue.create(task_group_id=group, deadline=at(hours=9))).task_id
    await queue.pass_time(hours=2)
    await queue.expire()
    assert len((await queue("ListTaskGroup", task_group_id=group)).tasks) == 1
    await queue.published()
    await queue("CancelTask", task_id=other)
    (await queue.published()).one("task-group-resolved")


async def test_dependents_of_an_expired_task(queue: Queue) -> None:
    """Q-054: an edge whose tasks have gone is skipped."""
    first = (await queue.create(expires=at(days=9))).task_id
    waiting = (await queue.create(dependencies=[first], expires=at(hours=2))).task_id
    await queue.sql("delete from tasks where task_id = $1", waiting)
    assert not (await queue("ListDependentTasks", task_id=first)).tasks
    await queue("CancelTask", task_id=first)


async def test_expired_pending_runs(queue: Queue) -> None:
    """Q-226: no longer counted, listed or handed out after the deadline; the others are."""
    await queue.create(deadline=at(minutes=5))
    kept = (await queue.create()).task_id
    await queue.pass_time(minutes=6)
    await queue.expire()
    assert await queue.pending_count() == 1
    assert [t.task_id for t in (await queue("ListPendingTasks", task_queue_id=QUEUE)).tasks] == [kept]
    assert [claim.status.task_id for claim in await queue.claim(9)] == [kept]


@pytest.mark.parametrize("what", ["expire_claims", "enforce_deadlines"])
async def test_work_that_failed_is_done_later(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Q-227: a round that fails leaves everything to the next one."""
    tasks = [(await queue.running()).status.task_id for _ in range(2)]
    await queue.pass_time(minutes=21 if what == "expire_claims" else 70)
    before = [await queue.status(task_id) for task_id in tasks]

    async def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("for this test")

    with monkeypatch.context() as broken:
        broken.setattr(type(queue.services.db), "in_transaction", fail)
        with pytest.raises(RuntimeError):
            await getattr(queue, what)()
    assert [await queue.status(task_id) for task_id in tasks] == before
    assert await getattr(queue, what)() == 2
    for status in before:
        assert runs(await queue.status(status.task_id)) != runs(status)


@pytest.mark.parametrize("what", ["expire_claims", "enforce_deadlines"])
async def test_one_failure_does_not_block_the_others(queue: Queue, what: str) -> None:
    """Q-228: a task that cannot be handled is left, and the rest of the round is done."""
    tasks = [(await queue.create()).task_id for _ in range(3)]
    await queue.claim(3)
    # A damaged row: nothing can be published of this task.
    await queue.sql("update tasks set frame = 'damaged' where task_id = $1", tasks[1])
    await queue.pass_time(minutes=21 if what == "expire_claims" else 70)
    for handled in (2, 0):
        assert await getattr(queue, what)() == handled
    for task_id in (tasks[0], tasks[2]):
        assert state(await queue.status(task_id)) in ("pending", "exception")


async def test_the_largest_expiry(queue: Queue) -> None:
    """Q-225: nothing that lives is deleted."""
    task_id = (await queue.create()).task_id
    await queue.claim()
    await queue.expire()
    await queue.status(task_id)
    await queue("GetTaskGroup", task_group_id=task_id)
    await queue("GetTaskQueue", task_queue_id=QUEUE)
