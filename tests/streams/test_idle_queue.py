"""On an idle queue a creation puts its run on offer itself, in its own transaction (design 5)."""

from __future__ import annotations

import asyncio

import pytest

from server.transitions import claiming
from server.transitions.resolving import Resolve, resolve_runs
from tests.streams.harness import QUEUE, Client, Instance, all_of, key_of


@pytest.fixture
def claimer_statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The queues for which the claimer itself put runs on offer, one entry a statement."""
    seen: list[str] = []
    right = claiming.offer_runs

    async def offer_runs(machine: object, queue_id: str, slots: object) -> object:
        seen.append(queue_id)
        return await right(machine, queue_id, slots)  # type: ignore[arg-type]

    monkeypatch.setattr(claiming, "offer_runs", offer_runs)
    return seen


async def rested(server: Instance, wanted: int = 1) -> None:
    """Returns when the claimer has found nothing and waits."""
    desk = server.services.machine.desk
    assert desk is not None
    async with asyncio.timeout(10):
        while len(desk.idle_slots(QUEUE, wanted)) < wanted:
            await asyncio.sleep(0)


async def test_a_waiting_stream_gets_the_run_with_its_creation(
    server: Instance, root: Client, claimer_statements: list[str]
) -> None:
    stream = await root.work()
    await rested(server)
    claimer_statements.clear()
    task_id = await root.create()
    claim = await stream.claim()
    assert claim.status.task_id == task_id
    assert claimer_statements == []
    await stream.accept(claim)
    await stream.resolve(claim)
    assert (await stream.resolved()).task_id == task_id


async def test_streams_take_turns(server: Instance, root: Client) -> None:
    streams = [await root.work(f"w{i}", slots=2) for i in range(3)]
    await rested(server, 6)
    for _ in range(3):
        await root.create()
        await rested(server, 1)
    got = await all_of(streams, "claims", 3)
    assert sorted(index for index, _ in got) == [0, 1, 2]


async def test_more_tasks_than_slots_leave_the_rest_pending(server: Instance, root: Client) -> None:
    stream = await root.work()
    await rested(server)
    first, second = await root.create(), await root.create()
    claim = await stream.claim()
    assert claim.status.task_id == first
    assert (await root.status(second)).runs[0].worker_id == ""
    await stream.accept(claim)
    await stream.resolve(claim)
    assert (await stream.claim()).status.task_id == second


async def test_the_best_run_goes_first_whoever_was_created(server: Instance, root: Client) -> None:
    """A run that came back meanwhile, with all that it went through."""
    stream = await root.work(slots=0)
    older = await root.create()
    (offer,) = await claiming.offer_runs(server.services.machine, QUEUE, [("s", "g", "w9")])
    await server.services.changes.submit(offer)
    await resolve_runs(server.services.machine, [Resolve(older, 0, "exception", "worker-shutdown", "s")])
    await stream.slots(1)
    claim = await stream.claim()
    assert key_of(claim) == (older, 1)
    assert [run.worker_id for run in claim.status.runs] == ["w9", "w1"]


async def test_a_stream_that_left_meanwhile_leaves_no_trace(server: Instance, root: Client) -> None:
    await root.work(slots=0)
    task_id = await root.create()
    desk = server.services.machine.desk
    assert desk is not None
    offers = await claiming.offer_runs(server.services.machine, QUEUE, [("gone", "g", "w9")])
    desk.hand_out(QUEUE, offers)
    claim = await (await root.work("w2")).claim()
    assert claim.status.task_id == task_id
    assert len(claim.status.runs) == 1


async def test_a_queue_that_nobody_serves_is_offered_nothing(server: Instance, root: Client) -> None:
    desk = server.services.machine.desk
    assert desk is not None
    assert list(desk.idle_slots(QUEUE, 1)) == []
    task_id = await root.create()
    assert await server.run_row(task_id, 0, "state, stream_id, offered_until") == ("pending", None, None)
    # An offer made for streams that are all gone goes back, too.
    desk.hand_out(QUEUE, await claiming.offer_runs(server.services.machine, QUEUE, [("gone", "g", "w9")]))
    assert (await (await root.work()).claim()).status.task_id == task_id
