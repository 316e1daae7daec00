"""Tasks that wait for tasks (queue.md 2.3)."""

from __future__ import annotations

import pytest

from tcqueue.v1.task_pb2 import Requires
from tests.conformance.building import at, definition, new_id, new_ids
from tests.conformance.door import refused
from tests.conformance.shown import ids, runs, state
from tests.plugins.server import Queue

ALL_RESOLVED = Requires.REQUIRES_ALL_RESOLVED


async def test_an_open_dependency(queue: Queue) -> None:
    """Q-036 Q-041 T-33: unscheduled and unannounced, until the dependency completes."""
    first = await queue.running()
    await queue.published()
    waiting = await queue.create(dependencies=[first.status.task_id])
    assert (state(waiting), runs(waiting)) == ("unscheduled", [])
    assert (await queue.published()).exchanges == ["task-defined"]
    await queue.resolve(first.status.task_id, "completed")
    status = await queue.status(waiting.task_id)
    assert (state(status), runs(status)) == ("pending", ["scheduled pending"])
    event = (await queue.published()).about(waiting.task_id).one("task-pending")
    assert (event.status["state"], event.payload["runId"]) == ("pending", 0)


async def test_a_completed_dependency(queue: Queue) -> None:
    """Q-037: pending at once."""
    done = await queue.resolved()
    await queue.published()
    status = await queue.create(dependencies=[done.task_id])
    assert runs(status) == ["scheduled pending"]
    assert (await queue.published()).exchanges == ["task-defined", "task-pending"]


async def test_a_failed_dependency(queue: Queue) -> None:
    """Q-038: enough for all-resolved, not for all-completed."""
    for outcome in ("failed", "malformed-payload", "canceled"):
        done = await queue.resolved(outcome)
        resolved = await queue.create(dependencies=[done.task_id], requires=ALL_RESOLVED)
        completed = await queue.create(dependencies=[done.task_id])
        assert (state(resolved), state(completed)) == ("pending", "unscheduled")
        await queue("CancelTask", task_id=resolved.task_id)


async def test_a_missing_dependency(queue: Queue) -> None:
    """Q-039 T-10: refused, and nothing is left behind."""
    known, missing, task_id = (await queue.create()).task_id, new_id(), new_id()
    await queue.published()
    with refused("InputError", missing):
        await queue.create(task_id, dependencies=[known, missing])
    with refused("ResourceNotFound"):
        await queue("GetTask", task_id=task_id)
    assert await queue.published() == []
    listed = await queue("ListDependentTasks", task_id=known)
    assert not listed.tasks
    await queue.create(task_id)


async def test_a_dependency_that_expires_too_early(queue: Queue) -> None:
    """Q-040: it must be there until the deadline."""
    early = await queue.create(deadline=at(minutes=5), expires=at(minutes=10))
    with refused("InputError", early.task_id):
        await queue.create(dependencies=[early.task_id], deadline=at(minutes=11))
    await queue.create(dependencies=[early.task_id], deadline=at(minutes=9))


async def test_a_repeat_whose_dependency_has_gone(queue: Queue) -> None:
    """T-10: refused, and the existing task stays."""
    first = await queue.create(deadline=at(minutes=5), expires=at(minutes=5))
    task_id = new_id()
    task = definition(dependencies=[first.task_id], deadline=at(minutes=4))
    status = (await queue("CreateTask", task_id=task_id, task=task)).status
    await queue.sql("delete from tasks where task_id = $1", first.task_id)
    with refused("InputError"):
        await queue("CreateTask", task_id=task_id, task=task)
    assert await queue.status(task_id) == status


async def test_two_dependencies(queue: Queue) -> None:
    """Q-042: the last one releases."""
    a, b = [(await queue.running()).status.task_id for _ in range(2)]
    waiting = await queue.create(dependencies=[a, b])
    await queue.resolve(b, "completed")
    assert state(await queue.status(waiting.task_id)) == "unscheduled"
    await queue.resolve(a, "completed")
    assert runs(await queue.status(waiting.task_id)) == ["scheduled pending"]


async def test_a_dependency_fails(queue: Queue) -> None:
    """Q-043 Q-044 T-34: failed, exception and canceled release all-resolved dependents only."""
    for outcome in ("failed", "internal-error", "canceled"):
        first = await queue.running()
        task_id = first.status.task_id
        strict = await queue.create(dependencies=[task_id])
        lenient = await queue.create(dependencies=[task_id], requires=ALL_RESOLVED)
        if outcome == "canceled":
            await queue("CancelTask", task_id=task_id)
        else:
            await queue.resolve(task_id, outcome)
        assert state(await queue.status(strict.task_id)) == "unscheduled"
        assert runs(await queue.status(lenient.task_id)) == ["scheduled pending"]
        await queue("CancelTask", task_id=lenient.task_id)


async def test_mixed_dependents(queue: Queue) -> None:
    """Q-045: those that a failure does not release do not stand in the way of others behind them."""
    first = (await queue.running()).status.task_id
    dependents = new_ids(4)
    for n, task_id in enumerate(dependents):
        await queue.create(
            task_id, dependencies=[first], requires=ALL_RESOLVED if n % 2 else Requires.REQUIRES_ALL_COMPLETED
        )
    await queue.resolve(first, "failed")
    states = [state(await queue.status(task_id)) for task_id in dependents]
    assert states == ["unscheduled", "pending"] * 2


async def test_a_task_that_waits_for_itself(queue: Queue) -> None:
    """Q-046 T-32: accepted, and started by scheduleTask."""
    task_id = new_id()
    assert state(await queue.create(task_id, dependencies=[task_id])) == "unscheduled"
    status = (await queue("ScheduleTask", task_id=task_id)).status
    assert runs(status) == ["scheduled pending"]
    await queue.claim()
    assert runs(await queue.resolve(task_id, "completed")) == ["scheduled completed completed"]
    assert runs(await queue.status(task_id)) == ["scheduled completed completed"]


async def test_a_task_that_waits_for_itself_and_another(queue: Queue) -> None:
    """Q-047: the other one does not release it."""
    other, task_id = (await queue.running()).status.task_id, new_id()
    await queue.create(task_id, dependencies=[task_id, other])
    await queue.resolve(other, "completed")
    assert state(await queue.status(task_id)) == "unscheduled"


@pytest.mark.settings(dependency_page_size=64)
async def test_many_dependents(queue: Queue) -> None:
    """Q-048: all 200 become pending, page by page where they are too many for one transaction."""
    first = (await queue.running()).status.task_id
    dependents = new_ids(200)
    tasks = [{"task_id": task_id, "task": definition(dependencies=[first])} for task_id in dependents]
    await queue("CreateTasks", tasks=tasks)
    await queue.resolve(first, "completed")
    await queue.round("dependencies")
    assert await queue.pending_count() == 200
    pending = (await queue.published()).of("task-pending")
    assert sorted(e.status["taskId"] for e in pending[1:]) == dependents


async def test_repeated_dependencies(queue: Queue) -> None:
    """Q-049: each may be named once."""
    known = (await queue.create()).task_id
    with refused("InputValidationError"):
        await queue.create(dependencies=[known, known])


@pytest.mark.settings(task_max_dependencies=100)
async def test_too_many_dependencies(queue: Queue) -> None:
    """Q-050 T-9: more than the deployment allows, more than anybody allows."""
    known = new_ids(101)
    await queue("CreateTasks", tasks=[{"task_id": task_id, "task": definition()} for task_id in known])
    with refused("InputError", "100"):
        await queue.create(dependencies=known)
    assert state(await queue.create(dependencies=known[1:])) == "unscheduled"
    with refused("InputValidationError"):
        await queue.create(dependencies=new_ids(10_001))


async def test_a_failed_dependency_is_run_again(queue: Queue) -> None:
    """Q-051 T-34: its success then counts."""
    first = (await queue.running()).status.task_id
    waiting = await queue.create(dependencies=[first])
    await queue.resolve(first, "failed")
    await queue("RerunTask", task_id=first)
    await queue.claim()
    await queue.resolve(first, "completed", 1)
    assert runs(await queue.status(waiting.task_id)) == ["scheduled pending"]


async def test_a_completed_dependency_is_run_again(queue: Queue) -> None:
    """Q-052: what it released stays released."""
    first = (await queue.running()).status.task_id
    dependents = [(await queue.create(dependencies=[first])).task_id for _ in range(2)]
    await queue.resolve(first, "completed")
    await queue("CancelTask", task_id=dependents[0])
    before = [await queue.status(task_id) for task_id in dependents]
    await queue("RerunTask", task_id=first)
    await queue("CancelTask", task_id=first)
    assert [await queue.status(task_id) for task_id in dependents] == before


async def test_a_dependent_past_its_deadline(queue: Queue) -> None:
    """Q-053: is not started any more."""
    first = (await queue.running()).status.task_id
    waiting = await queue.create(dependencies=[first], deadline=at(minutes=5))
    await queue.pass_time(minutes=6)
    await queue.published()
    await queue.resolve(first, "completed")
    assert state(await queue.status(waiting.task_id)) == "unscheduled"
    assert not (await queue.published()).about(waiting.task_id)


async def test_listing_dependents(queue: Queue) -> None:
    """Q-054: satisfied or not, in the order of ids, by pages."""
    first, other = [(await queue.running()).status.task_id for _ in range(2)]
    dependents = new_ids(5)
    for task_id in reversed(dependents):
        await queue.create(task_id, dependencies=[first, other])
    await queue.resolve(first, "completed")
    for required in (first, other):
        listed = await queue("ListDependentTasks", task_id=required)
        assert (listed.task_id, ids(listed.tasks), listed.continuation_token) == (required, dependents, "")
    seen, token = [], ""
    for size in (2, 2, 1):
        page = await queue("ListDependentTasks", task_id=first, limit=2, continuation_token=token)
        assert len(page.tasks) == size
        seen += page.tasks
        token = page.continuation_token
    assert (ids(seen), token) == (dependents, "")
    assert seen[0].task == await queue.task(dependents[0])
    assert seen[0].status == await queue.status(dependents[0])
    with refused("ResourceNotFound"):
        await queue("ListDependentTasks", task_id=new_id())
    scope = f"queue:list-dependent-tasks:{first}"
    await queue.having(scope)("ListDependentTasks", task_id=first)
    with refused("InsufficientScopes"):
        await queue.having(scope)("ListDependentTasks", task_id=other)


@pytest.mark.settings(task_expiration_delay_s=0.0)
async def test_expired_edges(queue: Queue) -> None:
    """Q-055: listed no more once the dependent has expired, and then deleted."""
    first = (await queue.create(expires=at(days=9))).task_id
    await queue.create(dependencies=[first], expires=at(hours=2))
    await queue.pass_time(hours=3)
    assert not (await queue("ListDependentTasks", task_id=first)).tasks
    await queue.expire()
    assert await queue.sql("select 1 from task_dependencies") == []


async def test_a_dependency_that_is_retried(queue: Queue) -> None:
    """Q-056: an exception with a retry resolves nothing."""
    first = (await queue.running()).status.task_id
    waiting = await queue.create(dependencies=[first], requires=ALL_RESOLVED)
    await queue.resolve(first, "worker-shutdown")
    assert state(await queue.status(waiting.task_id)) == "unscheduled"


async def test_dependents_elsewhere(queue: Queue) -> None:
    """Q-041: in another group, of another scheduler and project."""
    first = (await queue.running()).status.task_id
    waiting = await queue.create(
        dependencies=[first], task_group_id=new_id(), scheduler_id="s", project_id="p", task_queue_id="a/b"
    )
    await queue.resolve(first, "completed")
    assert state(await queue.status(waiting.task_id)) == "pending"
