"""Streams closed by the queue, politely; quarantine; processes killed and frozen (design 5)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import grpc
import pytest

from server.dispatch import dispatcher
from tcqueue.v1.claim_pb2 import ClaimTasksRequest, RevocationReason
from tcqueue.v1.task_pb2 import TaskState
from tcqueue.v1.worker_pb2 import QuarantineWorkerRequest
from tests.streams.harness import PATIENCE_S, QUEUE, Client, Cluster, key_of
from tests.streams.serving import ServerProcess


async def running(client: Client, task_id: str) -> None:
    """Returns once a task is shown as running."""
    while (await client.status(task_id)).state != TaskState.TASK_STATE_RUNNING:
        await asyncio.sleep(0)


async def quarantine(client: Client, seconds: float, worker: str = "w1") -> None:
    """Puts worker `g/<worker>` in quarantine for so long; below zero lifts it."""
    provisioner, _, kind = QUEUE.partition("/")
    request = QuarantineWorkerRequest(
        provisioner_id=provisioner, worker_type=kind, worker_group="g", worker_id=worker
    )
    request.quarantine_until.FromDatetime(datetime.now(UTC) + timedelta(seconds=seconds))
    await client("QuarantineWorker", request)


async def test_an_old_stream_is_replaced(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher, "RETIRE_S", 0.5)
    server = await cluster.start(stream_max_age_s=0.5)
    root = await cluster.client(server.address)
    stream = await root.work(slots=2)
    task_id = await root.create()
    (claim,) = await stream.started()
    await running(root, task_id)
    assert (await stream.drain()).reason == "max-age"
    # No work comes on it any more; what it holds goes on.
    new = await root.work(slots=2, held=[key_of(claim)])
    assert (await new.reclaimed()).task_id == task_id
    assert (await stream.revoked()).reason == RevocationReason.REVOCATION_REASON_TAKEN_OVER
    another = await root.create()
    assert (await new.claim()).status.task_id == another
    assert stream.waiting("claims") == 0
    assert (await stream.end()).code == grpc.StatusCode.OK


async def test_resolutions_are_taken_while_a_stream_retires(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "RETIRE_S", 30.0)
    server = await cluster.start(stream_max_age_s=0.3)
    root = await cluster.client(server.address)
    stream = await root.work()
    await root.create()
    (claim,) = await stream.started()
    await stream.drain()
    await stream.resolve(claim)
    await stream.finish()
    assert (await stream.resolved()).task_state == TaskState.TASK_STATE_COMPLETED
    assert (await stream.end()).code == grpc.StatusCode.OK


async def test_a_server_that_drains(cluster: Cluster) -> None:
    """Workers are asked to go elsewhere, and resume there."""
    one, other = await cluster.start(shutdown_grace_s=10.0), await cluster.start()
    root = await cluster.client(one.address)
    stream = await root.work(slots=2)
    task_id = await root.create()
    (claim,) = await stream.started()
    await running(root, task_id)
    closing = one.drain()
    assert (await stream.drain()).reason == "shutdown"
    there = await cluster.client(other.address)
    new = await there.work(slots=2, held=[key_of(claim)])
    assert (await new.reclaimed()).task_id == task_id
    await stream.finish()
    assert (await stream.end()).code == grpc.StatusCode.OK
    await asyncio.wait_for(closing, PATIENCE_S)
    await new.resolve(claim)
    assert (await new.resolved()).task_state == TaskState.TASK_STATE_COMPLETED
    another = await there.create()
    assert (await new.claim()).status.task_id == another


async def test_a_server_that_drains_ends_streams_that_stay(cluster: Cluster) -> None:
    one, other = await cluster.start(shutdown_grace_s=0.6), await cluster.start()
    root = await cluster.client(one.address)
    there = await cluster.client(other.address)
    stream = await root.work()
    task_id = await root.create()
    (claim,) = await stream.started()
    await running(root, task_id)
    await asyncio.wait_for(one.drain(), PATIENCE_S)
    assert (await stream.end()).code != grpc.StatusCode.OK
    new = await there.work(held=[key_of(claim)])
    assert (await new.reclaimed()).task_id == task_id


async def test_a_quarantined_workers_poll_ends_with_the_server(cluster: Cluster) -> None:
    server = await cluster.start(shutdown_grace_s=10.0)
    root = await cluster.client(server.address)
    stream = await root.work()
    await stream.round_trip()
    await quarantine(root, 1000)
    request = ClaimTasksRequest(task_queue_id=QUEUE, worker_group="g", worker_id="w1")
    poll = root.stub.ClaimTasks(request, metadata=root.metadata)
    await stream.round_trip()
    await stream.close()
    await asyncio.wait_for(server.drain(), 5)
    assert not (await poll).tasks


async def test_quarantined_from_the_start(root: Client) -> None:
    """Q-107: no work while it lasts, work when it is lifted."""
    before = await root.work()
    await before.round_trip()
    await before.close()
    await quarantine(root, 1000)
    stream = await root.work()
    assert (await stream.quarantined()).quarantine_until.ToDatetime() > datetime.now()
    task_id = await root.create()
    await stream.round_trip()
    assert stream.waiting("claims") == 0
    await quarantine(root, -10)
    assert not (await stream.quarantined()).HasField("quarantine_until")
    assert (await stream.claim()).status.task_id == task_id


@pytest.mark.parametrize("where", ["same server", "other server"])
async def test_quarantined_on_the_way(cluster: Cluster, where: str) -> None:
    one = await cluster.start()
    other = await cluster.start() if where == "other server" else one
    root, elsewhere = await cluster.client(one.address), await cluster.client(other.address)
    stream = await root.work(slots=2)
    await root.create()
    (claim,) = await stream.started()
    await quarantine(elsewhere, 1000)
    assert (await stream.quarantined()).HasField("quarantine_until")
    task_id = await root.create()
    await stream.resolve(claim)
    assert (await stream.resolved()).task_state == TaskState.TASK_STATE_COMPLETED
    assert stream.waiting("claims") == 0
    free = await root.work("w2")
    assert (await free.claim()).status.task_id == task_id
    await quarantine(elsewhere, -10)
    assert not (await stream.quarantined()).HasField("quarantine_until")
    another = await root.create()
    assert (await stream.claim()).status.task_id == another


async def test_a_quarantine_ends_by_itself(root: Client) -> None:
    stream = await root.work()
    await stream.round_trip()
    await quarantine(root, 0.8)
    assert (await stream.quarantined()).HasField("quarantine_until")
    task_id = await root.create()
    assert not (await stream.quarantined()).HasField("quarantine_until")
    assert (await stream.claim()).status.task_id == task_id


async def test_a_poll_that_is_given_up_claims_nothing(root: Client) -> None:
    """Q-117: closing the connection during the long poll ends the wait."""
    request = ClaimTasksRequest(task_queue_id=QUEUE, worker_group="g", worker_id="poller")
    call = root.stub.ClaimTasks(request, metadata=root.metadata)
    stream = await root.work(slots=0)
    await stream.round_trip()
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    await stream.slots(1)
    await stream.round_trip()
    task_id = await root.create(retries=0)
    claim = await stream.claim()
    assert key_of(claim) == (task_id, 0)


@asynccontextmanager
async def process(cluster: Cluster) -> AsyncIterator[ServerProcess]:
    """A server in a process of its own that counts as dead after half a second."""
    made = ServerProcess(cluster.settings, process_lease_s=0.5, stream_grace_s=0.5, loops=False)
    async with made.running() as running_process:
        yield running_process


@pytest.mark.timeout(90)
async def test_a_killed_process_leaves_its_runs_to_others(cluster: Cluster) -> None:
    """kill -9: another process gives its runs a lease, and retries what nobody resumes."""
    other = await cluster.start(stream_grace_s=1000.0, process_lease_s=1000.0)
    there = await cluster.client(other.address)
    async with process(cluster) as victim:
        here = await cluster.client(victim.address)
        stream = await here.work(slots=3)
        ids = await there.create_many(3, retries=1)
        claims = {claim.status.task_id: claim for claim in await stream.claims(3)}
        await stream.accept(claims[ids[0]], claims[ids[1]])
        await running(there, ids[0])
        await running(there, ids[1])
        await victim.kill()
        assert (await stream.end()).code == grpc.StatusCode.UNAVAILABLE
    async with asyncio.timeout(PATIENCE_S):
        while (await other.run_row(ids[0], 0, "lease_until"))[0] is None:
            await other.expire_claims()
            await asyncio.sleep(0.02)
    # One comes back in time, one does not; what was on offer only is pending as if nothing had been.
    back = await there.work("w1", slots=0, held=[key_of(claims[ids[0]])])
    assert (await back.reclaimed()).task_id == ids[0]
    await other.rows("update runs set lease_until = now() where lease_until is not null")
    assert await other.expire_claims() == 1
    assert (await there.status(ids[0])).state == TaskState.TASK_STATE_RUNNING
    retried = await there.status(ids[1])
    assert (retried.state, retried.retries_left) == (TaskState.TASK_STATE_PENDING, 0)
    untouched = await there.status(ids[2])
    assert (untouched.state, untouched.retries_left) == (TaskState.TASK_STATE_PENDING, 1)
    assert len(untouched.runs) == 1


@pytest.mark.timeout(90)
async def test_a_frozen_process_takes_its_runs_back(cluster: Cluster) -> None:
    """SIGSTOP long enough to be taken for dead, then SIGCONT."""
    other = await cluster.start(stream_grace_s=1000.0, process_lease_s=1000.0)
    there = await cluster.client(other.address)
    async with process(cluster) as victim:
        stream = await (await cluster.client(victim.address)).work(slots=2)
        kept, gone = await there.create_many(2, retries=1)
        claims = {claim.status.task_id: claim for claim in await stream.started(2)}
        await running(there, kept)
        await running(there, gone)
        victim.freeze()
        async with asyncio.timeout(PATIENCE_S):
            while (await other.run_row(kept, 0, "lease_until"))[0] is None:
                await other.expire_claims()
                await asyncio.sleep(0.02)
        await other.rows("update runs set lease_until = now() where task_id = $1", gone)
        assert await other.expire_claims() == 1
        victim.thaw()
        revoked = await stream.revoked()
        assert (revoked.task_id, revoked.reason) == (
            gone,
            RevocationReason.REVOCATION_REASON_CLAIM_EXPIRED,
        )
        async with asyncio.timeout(PATIENCE_S):
            while (await other.run_row(kept, 0, "lease_until"))[0] is not None:
                await asyncio.sleep(0.02)
        await stream.resolve(claims[kept])
        assert (await stream.resolved()).task_state == TaskState.TASK_STATE_COMPLETED
        # The slot that the lost run took is free again.
        assert key_of(await stream.claim()) == (gone, 1)


@pytest.mark.timeout(90)
async def test_sigterm_asks_workers_to_go_and_ends_well(cluster: Cluster) -> None:
    async with process(cluster) as victim:
        stream = await (await cluster.client(victim.address)).work()
        await stream.round_trip()
        stopping = asyncio.create_task(victim.stop())
        assert (await stream.drain()).reason == "shutdown"
        await stream.finish()
        assert (await stream.end()).code == grpc.StatusCode.OK
        assert await stopping == 0
