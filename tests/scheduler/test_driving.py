"""Graphs go on as their tasks are resolved: dependents, reruns, blocked, finished."""

from __future__ import annotations

import pytest

from server.transitions.resolving import Resolve, resolve_runs
from tests.conformance.building import QUEUE, at, new_id, new_ids
from tests.conformance.door import refused
from tests.conformance.shown import runs
from tests.conformance.shown import state as task_state
from tests.plugins.server import Queue
from tests.scheduler.building import (
    SCHEDULER,
    exchanges,
    graph,
    inspected,
    node_states,
    run,
    state,
    submit,
)


@pytest.mark.elder("scheduler.inspect", "scheduler.taskGraphRunning", "scheduler.taskGraphFinished")
async def test_one_after_another(queue: Queue) -> None:
    """S-023 S-024 S-027 S-030: B is pending only after A has completed, and the graph has finished only after
    B has; what inspect shows goes along."""
    a, b = new_ids(2)
    graph_id = await submit(queue, graph({a: [], b: [a]}))
    assert await node_states(queue, graph_id) == {a: "scheduled", b: "unscheduled"}
    assert list((await inspected(queue, graph_id))[b].requires_left) == [a]
    await queue("ClaimTask", task_id=a, run_id=0, worker_group="group", worker_id="worker")
    assert await node_states(queue, graph_id) == {a: "scheduled", b: "unscheduled"}
    assert task_state(await queue.status(b)) == "unscheduled"
    await queue.published()
    await queue.resolve(a, "completed")
    assert (await queue.published()).exchanges == ["task-completed", "task-pending"]
    assert await node_states(queue, graph_id) == {a: "completed", b: "scheduled"}
    shown = await inspected(queue, graph_id)
    assert [(shown[t].satisfied, list(shown[t].requires_left)) for t in (a, b)] == [(True, []), (False, [])]
    assert list(shown[b].requires) == [a] and list(shown[a].dependents) == [b]
    assert await state(queue, graph_id) == "running"
    await run(queue, b)
    published = (await queue.published()).exchanges
    assert published == ["task-running", "task-completed", "task-group-resolved", "task-graph-finished"]
    assert await state(queue, graph_id) == "finished"
    assert await node_states(queue, graph_id) == {a: "completed", b: "completed"}


async def test_a_chain(queue: Queue) -> None:
    """S-025: of three."""
    a, b, c = new_ids(3)
    graph_id = await submit(queue, graph({a: [], b: [a], c: [b]}))
    for task_id, left in ((a, [b, c]), (b, [c]), (c, [])):
        await run(queue, task_id)
        waiting = [t for t, how in (await node_states(queue, graph_id)).items() if how != "completed"]
        assert waiting == left
        assert await state(queue, graph_id) == ("running" if left else "finished")
    assert await exchanges(queue) == ["running", "finished"]


async def test_a_diamond(queue: Queue) -> None:
    """S-025 S-030: the last one waits for both in the middle."""
    a, b, c, d = new_ids(4)
    graph_id = await submit(queue, graph({d: [b, c], b: [a], c: [a], a: []}))
    assert sorted((await inspected(queue, graph_id))[a].dependents) == [b, c]
    await run(queue, a)
    await run(queue, c)
    shown = (await inspected(queue, graph_id))[d]
    assert (list(shown.requires), list(shown.requires_left)) == ([b, c], [b])
    assert task_state(await queue.status(d)) == "unscheduled"
    await run(queue, b)
    assert runs(await queue.status(d)) == ["scheduled pending"]
    await run(queue, d)
    assert await state(queue, graph_id) == "finished"


async def test_all_leaves(queue: Queue) -> None:
    """S-026: finished waits for each of them, told once."""
    a, b, c, d = new_ids(4)
    graph_id = await submit(queue, graph({a: [], b: [a], c: [a], d: []}))
    for task_id in (a, b, d):
        await run(queue, task_id)
        assert await state(queue, graph_id) == "running"
    await run(queue, c)
    assert await state(queue, graph_id) == "finished"
    await queue("RerunTask", task_id=c)
    await run(queue, c, run_id=1)
    await queue("RerunTask", task_id=b)
    await run(queue, b, "failed", run_id=1)
    assert await exchanges(queue) == ["running", "finished"]
    assert await state(queue, graph_id) == "finished"


async def test_a_rerun(queue: Queue) -> None:
    """S-036 S-038: what failed is pending again at once, told after its failure; success ends it well."""
    (a,) = new_ids(1)
    graph_id = await submit(queue, graph({a: []}, reruns=1))
    shown = (await inspected(queue, graph_id))[a]
    assert (shown.reruns, shown.reruns_left) == (1, 1)
    await queue.published()
    await run(queue, a, "failed")
    events = await queue.published()
    assert events.exchanges == ["task-running", "task-failed", "task-group-resolved", "task-pending"]
    pending = events.one("task-pending")
    assert (pending.payload["runId"], pending.status["state"]) == (1, "pending")
    assert events.one("task-failed").status["state"] == "failed"
    assert runs(await queue.status(a)) == ["scheduled failed failed", "rerun pending"]
    shown = (await inspected(queue, graph_id))[a]
    assert (shown.reruns, shown.reruns_left, shown.satisfied) == (1, 0, False)
    assert await node_states(queue, graph_id) == {a: "scheduled"}
    (claim,) = await queue.claim()
    assert (claim.status.task_id, claim.run_id) == (a, 1)
    await queue.resolve(a, "completed", 1)
    assert await state(queue, graph_id) == "finished"
    assert await exchanges(queue) == ["finished"]


@pytest.mark.elder("scheduler.taskGraphBlocked")
async def test_no_rerun_left(queue: Queue) -> None:
    """S-037 S-038 S-040: blocked, told with the task; the others go on."""
    a, b, c, d = new_ids(4)
    graph_id = await submit(queue, graph({a: [], b: [a], c: [], d: [c]}, reruns=1))
    for run_id in (0, 1):
        assert await state(queue, graph_id) == "running"
        await run(queue, a, "failed", run_id)
    events = await queue.published()
    assert events.exchanges[-2:] == ["task-failed", "task-graph-blocked"]
    blocked = events.one("task-graph-blocked")
    assert blocked.payload == {
        "version": 1,
        "status": {"taskGraphId": graph_id, "schedulerId": SCHEDULER, "state": "blocked"},
        "taskId": a,
    }
    assert await state(queue, graph_id) == "blocked"
    await run(queue, c)
    assert await node_states(queue, graph_id) == {
        a: "failed",
        b: "unscheduled",
        c: "completed",
        d: "scheduled",
    }
    await run(queue, d, "malformed-payload")
    assert await exchanges(queue) == []
    assert [left.reruns_left for left in (await inspected(queue, graph_id)).values()] == [0, 1, 1, 1]


@pytest.mark.parametrize("reason", ["malformed-payload", "internal-error", "canceled", "deadline-exceeded"])
async def test_exceptions(queue: Queue, reason: str) -> None:
    """S-039: they block a graph although reruns are left, and use none."""
    a, b = new_ids(2)
    graph_id = await submit(queue, graph({a: [], b: [a]}, reruns=3))
    if reason == "canceled":
        await queue("CancelTask", task_id=a)
        await queue("CancelTask", task_id=a)
    elif reason == "deadline-exceeded":
        await queue.pass_time(hours=2)
        await queue.enforce_deadlines()
    else:
        await run(queue, a, reason)
    assert await state(queue, graph_id) == "blocked"
    events = await queue.published()
    assert events.one("task-graph-blocked").payload["taskId"] == a
    shown = (await inspected(queue, graph_id))[a]
    assert (shown.reruns_left, shown.satisfied) == (3, False)
    assert (await node_states(queue, graph_id))[a] == "exception"
    order = events.exchanges
    assert order.index("task-exception") < order.index("task-graph-blocked")


async def test_the_queues_own_retries(queue: Queue) -> None:
    """S-039: a run that is retried has not ended the task, and costs no rerun; the last one has."""
    (a,) = new_ids(1)
    graph_id = await submit(queue, graph({a: []}, retries=2, reruns=1))
    await queue("ClaimTask", task_id=a, run_id=0, worker_group="group", worker_id="worker")
    await queue.pass_time(minutes=21)
    await queue.expire_claims()
    await run(queue, a, "intermittent-task", 1)
    assert await state(queue, graph_id) == "running"
    assert (await inspected(queue, graph_id))[a].reruns_left == 1
    await run(queue, a, "worker-shutdown", 2)
    assert await state(queue, graph_id) == "blocked"
    assert await exchanges(queue) == ["running", "blocked"]


async def test_a_rerun_by_hand(queue: Queue) -> None:
    """S-041: a blocked graph finishes when it leads to success, and only then."""
    a, b = new_ids(2)
    graph_id = await submit(queue, graph({a: [], b: [a]}))
    await run(queue, a, "failed")
    assert await state(queue, graph_id) == "blocked"
    await queue("RerunTask", task_id=a)
    assert await node_states(queue, graph_id) == {a: "scheduled", b: "unscheduled"}
    await run(queue, a, "failed", 1)
    await queue("RerunTask", task_id=a)
    await run(queue, a, run_id=2)
    assert await state(queue, graph_id) == "blocked"
    await run(queue, b)
    assert await state(queue, graph_id) == "finished"
    assert await exchanges(queue) == ["running", "blocked", "finished"]


async def test_repeated_reports(queue: Queue) -> None:
    """S-038: a report that comes twice is answered alike and uses no second rerun."""
    (a,) = new_ids(1)
    graph_id = await submit(queue, graph({a: []}, reruns=2))
    await run(queue, a, "failed")
    await queue.published()
    for _ in range(2):
        status = await queue.resolve(a, "failed")
        assert runs(status) == ["scheduled failed failed", "rerun pending"]
    assert set((await queue.published()).exchanges) == {"task-failed", "task-pending"}
    assert (await inspected(queue, graph_id))[a].reruns_left == 1
    await queue("ClaimTask", task_id=a, run_id=1, worker_group="group", worker_id="worker")
    await queue.resolve(a, "failed")
    assert (await inspected(queue, graph_id))[a].reruns_left == 1
    await queue.resolve(a, "completed", 1)
    with refused("RequestConflict"):
        await queue.resolve(a, "completed")


async def test_reports_of_other_tasks_are_judged_as_ever(queue: Queue) -> None:
    """A failed run with a rerun behind it takes no second report outside of graphs."""
    claim = await queue.running()
    task_id = claim.status.task_id
    await queue.resolve(task_id, "failed")
    await queue("RerunTask", task_id=task_id)
    with refused("RequestConflict"):
        await queue.resolve(task_id, "failed")


async def test_a_rerun_that_cannot_be(queue: Queue) -> None:
    """Past its deadline a failed task is not run again: the graph is blocked, and no rerun is used."""
    (a,) = new_ids(1)
    graph_id = await submit(queue, graph({a: []}, reruns=5, deadline=at(minutes=5)))
    await queue("ClaimTask", task_id=a, run_id=0, worker_group="group", worker_id="worker")
    await queue.pass_time(minutes=5.5)
    await queue.resolve(a, "failed")
    assert await state(queue, graph_id) == "blocked"
    assert await node_states(queue, graph_id) == {a: "failed"}
    assert (await inspected(queue, graph_id))[a].reruns_left == 5


async def test_tasks_no_graph_knows(queue: Queue) -> None:
    """Of our scheduler, created directly, also in a graph's group: nothing happens to any graph."""
    graph_id = await submit(queue, graph({new_id(): []}, reruns=1))
    for fields in ({}, {"task_group_id": graph_id}):
        for outcome in ("completed", "failed", "malformed-payload"):
            status = await queue.create(scheduler_id=SCHEDULER, task_queue_id="prov/other", **fields)
            await run(queue, status.task_id, outcome)
            assert len((await queue.status(status.task_id)).runs) == 1
    assert await state(queue, graph_id) == "running"
    assert await exchanges(queue) == ["running"]


async def test_many_at_once(queue: Queue) -> None:
    """Steps of several graphs in one transaction, each of another kind."""
    done, failing, lost, other = new_ids(4)
    graphs = [await submit(queue, graph({t: []}, reruns=1)) for t in (done, failing, lost)]
    await queue.create(other)
    for task_id in (done, failing, lost, other):
        await queue("ClaimTask", task_id=task_id, run_id=0, worker_group="group", worker_id="worker")
    await queue.published()
    await resolve_runs(
        queue.services.machine,
        [
            Resolve(done, 0, "completed", "completed"),
            Resolve(failing, 0, "failed", "failed"),
            Resolve(lost, 0, "exception", "internal-error"),
            Resolve(other, 0, "failed", "failed"),
        ],
    )
    assert [await state(queue, graph_id) for graph_id in graphs] == ["finished", "running", "blocked"]
    assert runs(await queue.status(failing))[-1] == "rerun pending"
    assert runs(await queue.status(other)) == ["scheduled failed failed"]
    assert sorted(await exchanges(queue)) == ["blocked", "finished"]


async def test_a_group_is_canceled(queue: Queue) -> None:
    """S-039: a graph's task group can be sealed and canceled as any other; the graph is blocked once."""
    tasks = new_ids(3)
    graph_id = await submit(queue, graph({task_id: [] for task_id in tasks}))
    await queue("SealTaskGroup", task_group_id=graph_id)
    await queue("CancelTaskGroup", task_group_id=graph_id)
    event = (await queue.published()).one("task-graph-blocked")
    assert event.payload["taskId"] == tasks[0]
    assert set((await node_states(queue, graph_id)).values()) == {"exception"}


async def test_expiry(queue: Queue) -> None:
    """A graph lives as long as the last of its tasks, then it is gone with all it had."""
    a, b = new_ids(2)
    request = graph({a: [], b: []}, expires=at(days=1))
    request.tasks.nodes[1].task.expires.CopyFrom(at(days=3))
    graph_id = await submit(queue, request)
    await run(queue, a)
    await queue("CancelTask", task_id=b)
    await queue.pass_time(days=2)
    await queue.expire()
    with refused("ResourceNotFound"):
        await queue("GetTaskStatus", task_id=a)
    assert await node_states(queue, graph_id) == {a: "completed", b: "exception"}
    await queue.pass_time(days=2)
    await queue.expire()
    with refused("ResourceNotFound"):
        await state(queue, graph_id)
    assert await queue.sql("select 1 from task_graph_nodes") == []


@pytest.mark.settings(scheduler_id="dummy-test-scheduler")
async def test_another_name(queue: Queue) -> None:
    """S-001: the scheduler's id is a setting."""
    a = new_id()
    status = (await queue.send("CreateTaskGraph", graph({a: []}, reruns=1))).status
    assert status.scheduler_id == "dummy-test-scheduler"
    assert (await queue.task(a)).scheduler_id == "dummy-test-scheduler"
    await run(queue, a, "failed")
    assert runs(await queue.status(a))[-1] == "rerun pending"
    with refused("InputError"):
        await queue.send("CreateTaskGraph", graph({new_id(): []}, scheduler_id=SCHEDULER))


async def test_dispatch_is_woken(queue: Queue) -> None:
    """S-036: a worker that waits gets the rerun and the dependent at once, without a poll of the database."""
    a, b = new_ids(2)
    await submit(queue, graph({a: [], b: [a]}, reruns=1))
    for expected in ((a, 0), (a, 1), (b, 0)):
        (claim,) = await queue.claim(queue_id=QUEUE)
        assert (claim.status.task_id, claim.run_id) == expected
        await queue.resolve(
            claim.status.task_id, "failed" if expected == (a, 0) else "completed", claim.run_id
        )
