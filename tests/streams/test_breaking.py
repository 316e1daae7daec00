"""Streams that break: the grace lease, resuming, taking over, frozen peers, slow readers (design 5)."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from server.domain import slugid
from server.loops.heartbeat import Heartbeat
from tcqueue.v1.claim_pb2 import (
    ClaimWorkOpen,
    ClaimWorkRequest,
    ClaimWorkResolve,
    Resolution,
    RevocationReason,
)
from tcqueue.v1.run_pb2 import ReasonCreated, ReasonResolved, RunReference
from tcqueue.v1.task_pb2 import CancelTaskRequest, TaskState
from tests.streams.harness import (
    COMPLETED,
    EXCEPTION,
    PATIENCE_S,
    QUEUE,
    Client,
    Cluster,
    Instance,
    Stream,
    key_of,
)
from tests.streams.proxy import Proxy


async def running(client: Client, task_id: str) -> None:
    """Returns once a task is shown as running."""
    while (await client.status(task_id)).state != TaskState.TASK_STATE_RUNNING:
        await asyncio.sleep(0)


async def leased(server: Instance, task_id: str, run_id: int = 0) -> float:
    """Returns once a run has a lease: how many seconds of it are left."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            (left,) = await server.run_row(task_id, run_id, "extract(epoch from lease_until - now())::float8")
            if left is not None:
                return float(left)
            await asyncio.sleep(0.01)


async def run_out(server: Instance) -> None:
    """Lets all leases run out at once."""
    await server.rows("update runs set lease_until = now() where lease_until is not null")


@pytest.mark.parametrize("how", ["worker vanishes", "connection is cut", "worker closes"])
async def test_the_grace_runs_out(cluster: Cluster, server: Instance, proxy: Proxy, how: str) -> None:
    root = await cluster.client(server.address)
    worker = await cluster.client(proxy.address)
    stream = await worker.work()
    task_id = await root.create(retries=2)
    (claim,) = await stream.started()
    await running(root, task_id)
    if how == "worker vanishes":
        stream.break_off()
    elif how == "connection is cut":
        proxy.cut()
    else:
        await stream.finish()
        assert (await stream.end()).code == grpc.StatusCode.OK
    left = await leased(server, task_id)
    # The clock of this reading may lie a moment before the one that wrote the lease.
    assert 40 < left < 46
    assert await server.expire_claims() == 0
    assert (await root.status(task_id)).state == TaskState.TASK_STATE_RUNNING
    # The lease has a column of its own: what was told about takenUntil stands.
    (until,) = await server.run_row(task_id, 0, "extract(epoch from taken_until) * 1000")
    assert int(until) == claim.taken_until.ToMilliseconds()
    await run_out(server)
    assert await server.expire_claims() == 1
    status = await root.status(task_id)
    assert status.state == TaskState.TASK_STATE_PENDING
    assert status.retries_left == 1
    assert status.runs[0].reason_resolved == ReasonResolved.REASON_RESOLVED_CLAIM_EXPIRED
    assert status.runs[1].reason_created == ReasonCreated.REASON_CREATED_RETRY
    # The worker that comes back now is told so, and the retry is anybody's.
    back = await root.work(held=[key_of(claim)])
    revoked = await back.revoked()
    assert revoked.reason == RevocationReason.REVOCATION_REASON_CLAIM_EXPIRED
    assert key_of(await back.claim()) == (task_id, 1)


async def test_an_offer_goes_back_when_its_stream_breaks(root: Client) -> None:
    first = await root.work("w1")
    task_id = await root.create(retries=0)
    await first.claim()
    second = await root.work("w2")
    first.break_off()
    assert key_of(await second.claim()) == (task_id, 0)
    status = await root.status(task_id)
    assert (status.retries_left, len(status.runs)) == (0, 1)


async def test_broken_off_right_behind_the_accept(cluster: Cluster) -> None:
    """Whatever became of the accept, the run is not stuck until its claim runs out."""
    server = await cluster.start(stream_grace_s=0.0)
    root = await cluster.client(server.address)
    for _ in range(10):
        stream = await root.work()
        await root.create(retries=0)
        claim = await stream.claim()
        await stream.accept(claim)
        await stream.close()
    async with asyncio.timeout(PATIENCE_S):
        while True:
            await server.expire_claims()
            ((busy,),) = await server.rows("select count(*) from runs where state = 'running'")
            ((offered,),) = await server.rows(
                "select count(*) from runs where state = 'pending' and offered_until > now()"
            )
            if not busy and not offered:
                break
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("where", ["same server", "other server"])
async def test_a_worker_that_returns_resumes(cluster: Cluster, where: str) -> None:
    one = await cluster.start()
    other = await cluster.start() if where == "other server" else one
    root = await cluster.client(one.address)
    stream = await root.work(slots=2)
    task_id = await root.create(retries=1)
    (claim,) = await stream.started()
    await running(root, task_id)
    stream.break_off()
    await leased(one, task_id)
    back = await (await cluster.client(other.address)).work(slots=1, held=[key_of(claim)])
    renewed = await back.reclaimed()
    assert (renewed.task_id, renewed.run_id) == (task_id, 0)
    assert renewed.taken_until.ToMilliseconds() >= claim.taken_until.ToMilliseconds()
    await run_out(one)
    assert await one.expire_claims() == 0
    # It takes its slot: nothing new before it is resolved.
    waiting = await root.create()
    await back.round_trip()
    assert back.waiting("claims") == 0
    await back.resolve(claim)
    assert (await back.resolved()).task_state == TaskState.TASK_STATE_COMPLETED
    assert key_of(await back.claim()) == (waiting, 0)
    assert (await root.status(task_id)).retries_left == 1


@pytest.mark.parametrize("where", ["same server", "other server"])
async def test_a_resumed_run_is_revoked_on_the_old_stream(cluster: Cluster, where: str) -> None:
    one = await cluster.start()
    other = await cluster.start() if where == "other server" else one
    root = await cluster.client(one.address)
    old = await root.work(slots=2)
    task_id = await root.create()
    (claim,) = await old.started()
    await running(root, task_id)
    new = await (await cluster.client(other.address)).work(slots=1, held=[key_of(claim)])
    await new.reclaimed()
    revoked = await old.revoked()
    assert (revoked.task_id, revoked.reason) == (
        task_id,
        RevocationReason.REVOCATION_REASON_TAKEN_OVER,
    )
    await old.resolve(claim)
    assert (await old.resolved()).error.code == "RequestConflict"
    await old.close()
    await new.resolve(claim)
    assert (await new.resolved()).task_state == TaskState.TASK_STATE_COMPLETED


async def test_what_a_worker_says_it_holds(cluster: Cluster, server: Instance, root: Client) -> None:
    """Its own go on; unknown, foreign and finished ones are revoked, each with its reason."""
    first, foreign = await root.work("w1", slots=4), await root.work("w2", slots=0)
    own, done, canceled, shut = await root.create_many(4, retries=1)
    claims = {claim.status.task_id: claim for claim in await first.started(4)}
    await first.slots(0)
    await first.resolve(claims[done])
    await first.resolved()
    await first.resolve(
        claims[shut], outcome=EXCEPTION, reason=ReasonResolved.REASON_RESOLVED_WORKER_SHUTDOWN
    )
    await first.resolved()
    await running(root, canceled)
    await root("CancelTask", CancelTaskRequest(task_id=canceled))
    await first.revoked()
    await foreign.slots(1)
    theirs = await foreign.claim()
    await foreign.accept(theirs)
    await running(root, theirs.status.task_id)
    await first.close()
    pending = await root.create()
    unknown = slugid.nice()
    held = [(own, 0), (done, 0), (canceled, 0), (shut, 0), key_of(theirs), (pending, 0), (unknown, 0)]
    held += [(own, 7), (own, 0)]
    back = await root.work("w1", slots=0, held=held)
    assert (await back.reclaimed()).task_id == own
    reasons = {}
    for _ in range(7):
        revoked = await back.revoked()
        reasons[revoked.task_id, revoked.run_id] = revoked.reason
    assert reasons == {
        (done, 0): RevocationReason.REVOCATION_REASON_RESOLVED_ELSEWHERE,
        (canceled, 0): RevocationReason.REVOCATION_REASON_CANCELED,
        (shut, 0): RevocationReason.REVOCATION_REASON_RESOLVED_ELSEWHERE,
        key_of(theirs): RevocationReason.REVOCATION_REASON_TAKEN_OVER,
        (pending, 0): RevocationReason.REVOCATION_REASON_CLAIM_EXPIRED,
        (unknown, 0): RevocationReason.REVOCATION_REASON_UNKNOWN,
        (own, 7): RevocationReason.REVOCATION_REASON_UNKNOWN,
    }
    await back.resolve(claims[own])
    assert (await back.resolved()).task_state == TaskState.TASK_STATE_COMPLETED


async def test_a_run_of_another_queue_is_not_resumed(root: Client) -> None:
    stream = await root.work()
    task_id = await root.create()
    (claim,) = await stream.started()
    await running(root, task_id)
    other = await root.work(held=[key_of(claim)], queue="prov/other")
    assert (await other.revoked()).reason == RevocationReason.REVOCATION_REASON_TAKEN_OVER
    await stream.resolve(claim)
    assert (await stream.resolved()).task_state == TaskState.TASK_STATE_COMPLETED


async def test_pings_are_answered(cluster: Cluster) -> None:
    server = await cluster.start(stream_ping_interval_s=0.1, stream_pong_timeout_s=0.5)
    root = await cluster.client(server.address)
    stream = await root.work()
    for _ in range(3):
        await stream.next("ping")
    await root.create()
    await stream.claim()


async def test_a_ping_that_nobody_answers_ends_the_stream(cluster: Cluster) -> None:
    server = await cluster.start(stream_ping_interval_s=0.1, stream_pong_timeout_s=0.3)
    root = await cluster.client(server.address)
    stream = await root.work(pongs=False)
    await stream.next("ping")
    failure = await stream.end()
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE")


async def test_a_frozen_peer_is_found(cluster: Cluster) -> None:
    """Neither side closes anything, nothing arrives any more: the lease starts all the same."""
    server = await cluster.start(stream_ping_interval_s=0.1, stream_pong_timeout_s=0.3)
    root = await cluster.client(server.address)
    async with Proxy(server.address).open() as proxy:
        stream = await (await cluster.client(proxy.address)).work()
        task_id = await root.create()
        (claim,) = await stream.started()
        await running(root, task_id)
        proxy.freeze()
        assert await leased(server, task_id) > 40
        assert not server.services.dispatcher.sessions
        proxy.thaw()
        assert (await stream.end()).code != grpc.StatusCode.OK
        back = await (await cluster.client(proxy.address)).work(held=[key_of(claim)])
        assert (await back.reclaimed()).task_id == task_id


async def test_a_slow_reader_is_bounded(cluster: Cluster) -> None:
    """A worker that asks and never reads is not read any more, and then given up."""
    server = await cluster.start(stream_send_buffer=16, stream_ping_interval_s=0.2, stream_pong_timeout_s=0.4)
    root = await cluster.client(server.address)
    stream = Stream(root, reading=False)
    opening = ClaimWorkOpen(task_queue_id=QUEUE, worker_group="g", worker_id="w1", slots=1)
    await stream.send(ClaimWorkRequest(open=opening))
    questions = ClaimWorkRequest(
        resolve=ClaimWorkResolve(
            resolutions=[Resolution(task_id=slugid.nice(), outcome=COMPLETED) for _ in range(200)]
        )
    )
    most = 0

    async def ask() -> None:
        while True:
            await stream.call.write(questions)

    asking = asyncio.create_task(ask())
    while not server.services.dispatcher.sessions:
        await asyncio.sleep(0.01)
    (session,) = server.services.dispatcher.sessions.values()
    async with asyncio.timeout(30):
        while server.services.dispatcher.sessions:
            most = max(most, session.backlog)
            await asyncio.sleep(0.005)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert most < 1000, most
    # Others are served all the while and after.
    other = await root.work("w2")
    task_id = await root.create()
    assert (await other.claim()).status.task_id == task_id


async def test_a_process_taken_for_dead_takes_its_runs_back(cluster: Cluster) -> None:
    """Frozen for a while and buried by another: what was not retried goes on, the rest is revoked."""
    frozen, other = await cluster.start(), await cluster.start()
    heartbeat = frozen.process.heartbeat
    assert isinstance(heartbeat, Heartbeat)
    root = await cluster.client(frozen.address)
    stream = await root.work(slots=2)
    gone, kept = await root.create_many(2, retries=1)
    claims = {claim.status.task_id: claim for claim in await stream.started(2)}
    await running(root, gone)
    await running(root, kept)
    process_id = frozen.machine.process_id
    await frozen.rows("update processes set alive_until = now() where process_id = $1", process_id)
    await other.expire_claims()
    assert await leased(other, gone) > 40
    await leased(other, kept)
    await other.rows("update runs set lease_until = now() where task_id = $1", gone)
    # What the other process says meanwhile does not reach this one.
    other.services.hub.publish = lambda channel, payload: None  # type: ignore[method-assign]
    assert await other.expire_claims() == 1
    await heartbeat.beat()
    revoked = await stream.revoked()
    assert (revoked.task_id, revoked.reason) == (
        gone,
        RevocationReason.REVOCATION_REASON_CLAIM_EXPIRED,
    )
    assert (await frozen.run_row(kept, 0, "lease_until")) == (None,)
    assert await other.expire_claims() == 0
    await stream.resolve(claims[kept])
    assert (await stream.resolved()).task_state == TaskState.TASK_STATE_COMPLETED
    assert key_of(await stream.claim()) == (gone, 1)


async def test_too_many_runs_held_are_refused(root: Client) -> None:
    stream = Stream(root)
    opening = ClaimWorkOpen(task_queue_id=QUEUE, worker_group="g", worker_id="w1", slots=1)
    opening.held.extend(RunReference(task_id=slugid.nice()) for _ in range(1025))
    await stream.send(ClaimWorkRequest(open=opening))
    failure = await stream.end()
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INPUT_VALIDATION_ERROR",
    )
