"""Accept and resolution of one breath are one change of the run, and nobody can tell (design 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from server.errors import RequestConflict
from server.transitions import claiming
from server.transitions.changing import Change, change_runs
from server.transitions.claiming import Offered
from server.transitions.resolving import Resolve
from tcqueue.v1.task_pb2 import ChangeTaskPriorityRequest, Priority
from tests.streams.harness import QUEUE, Client, Instance

STREAM = "stream-1"
_COLUMNS = """run_id, state, reason_created, reason_resolved, worker_group, worker_id, by_name, stream_id,
    offered_until, lease_until, first_resolution, started = claimed, taken_until - started,
    resolved is null"""


async def offers(server: Instance, count: int) -> list[Offered]:
    """Runs on offer to a stream."""
    slots = [(STREAM, "g", "w1")] * count
    found = await claiming.offer_runs(server.services.machine, QUEUE, slots)
    assert len(found) == count
    return found


def resolution(offer: Offered, state: str = "completed", reason: str = "", guard: str = STREAM) -> Resolve:
    """The end of an offered run, as the stream says it."""
    return Resolve(offer.facts.task_id, offer.run_id, state, reason or state, guard)


async def change(server: Instance, *items: Change) -> Sequence[Any]:
    """The outcomes of changes made in one batch."""
    return await change_runs(server.services.machine, items)


async def written(server: Instance, task_id: str) -> tuple[Any, Any, list[tuple[str, Any]]]:
    """What a task's runs, its row and its events say, but for when."""
    runs = await server.rows(f"select {_COLUMNS} from runs where task_id = $1 order by run_id", task_id)
    task = await server.rows("select last_run, retries_left from tasks where task_id = $1", task_id)
    events = []
    for (text,) in await server.rows("select events from outbox order by id"):
        for event in orjson.loads(text):
            if task_id in event["key"]:
                states = [
                    (run["state"], run.get("reasonResolved"), sorted(run))
                    for run in event["payload"].get("status", {}).get("runs", [])
                ]
                events.append((event["exchange"], states))
    return runs, task, events


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("completed", "completed"),
        ("failed", "failed"),
        ("exception", "malformed-payload"),
        ("exception", "worker-shutdown"),
        ("exception", "intermittent-task"),
    ],
)
async def test_one_change_or_two(server: Instance, root: Client, state: str, reason: str) -> None:
    at_once, apart = await root.create(), await root.create()
    first, second = await offers(server, 2)
    assert [first.facts.task_id, second.facts.task_id] == [at_once, apart]
    taken, facts = await change(server, first, resolution(first, state, reason))
    assert taken is True
    assert facts.runs[0].state == state
    assert await change(server, second) == [True]
    await change(server, resolution(second, state, reason))
    assert await written(server, at_once) == await written(server, apart)
    names = [name for name, _ in (await written(server, at_once))[2]]
    retried = ["task-pending"] if reason in ("worker-shutdown", "intermittent-task") else []
    ended = ["task-group-resolved"] if not retried else []
    assert sorted(names) == sorted(
        ["task-defined", "task-pending", "task-running", f"task-{state}", *retried, *ended]
    )
    assert names.index("task-running") < names.index(f"task-{state}")


async def test_a_later_run(server: Instance, root: Client) -> None:
    task_id = await root.create()
    (offer,) = await offers(server, 1)
    await change(server, offer, resolution(offer, "exception", "worker-shutdown"))
    (again,) = await offers(server, 1)
    assert again.run_id == 1
    taken, facts = await change(server, again, resolution(again))
    assert taken is True
    assert [run.state for run in facts.runs] == ["exception", "completed"]
    status = await root.status(task_id)
    assert [(run.run_id, run.worker_id) for run in status.runs] == [(0, "w1"), (1, "w1")]


async def test_an_offer_taken_back_is_neither_accepted_nor_resolved(server: Instance, root: Client) -> None:
    gone, stands = await root.create(), await root.create()
    first, second = await offers(server, 2)
    await claiming.withdraw_offers(server.services.machine, [(gone, 0, STREAM)])
    before = await written(server, gone)
    outcomes = await change(server, first, second, resolution(first), resolution(second))
    assert outcomes[:2] == [False, True]
    assert isinstance(outcomes[2], RequestConflict)
    assert outcomes[3].state == "completed"
    assert await written(server, gone) == before
    assert [offer.facts.task_id for offer in await offers(server, 1)] == [gone]
    assert (await root.status(stands)).runs[0].worker_id == "w1"


async def test_an_offer_given_to_another_stream_is_its_own(server: Instance, root: Client) -> None:
    task_id = await root.create()
    (first,) = await offers(server, 1)
    await claiming.withdraw_offers(server.services.machine, [(task_id, 0, STREAM)])
    (second,) = await claiming.offer_runs(server.services.machine, QUEUE, [("stream-2", "g", "w2")])
    taken, outcome = await change(server, first, resolution(first))
    assert taken is False
    assert isinstance(outcome, RequestConflict)
    assert (await change(server, second, resolution(second, guard="stream-2")))[0] is True
    assert (await root.status(task_id)).runs[0].worker_id == "w2"


async def test_a_report_beside_the_accept(server: Instance, root: Client) -> None:
    """Whoever resolves is not the stream: two changes, in their order."""
    task_id = await root.create()
    (offer,) = await offers(server, 1)
    taken, facts = await change(server, offer, resolution(offer, guard=""))
    assert taken is True
    assert facts.state == "completed"
    assert [name for name, _ in (await written(server, task_id))[2]][:4] == [
        "task-defined",
        "task-pending",
        "task-running",
        "task-completed",
    ]


async def test_a_claim_carries_the_priority_of_now(root: Client) -> None:
    """Though the definition goes out as it was stored."""
    task_id = await root.create(priority=Priority.PRIORITY_LOW)
    request = ChangeTaskPriorityRequest(task_id=task_id, new_priority=Priority.PRIORITY_HIGH)
    await root("ChangeTaskPriority", request)
    claim = await (await root.work()).claim()
    assert claim.status.task_id == task_id
    assert claim.task.priority == claim.status.priority == Priority.PRIORITY_HIGH
    assert claim.task.metadata.name == "a task"
