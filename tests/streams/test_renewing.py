"""Automatic renewal with fresh credentials, and renewal through another door (design 5)."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from server.transitions.claiming import Reclaim, Reclaimed
from server.transitions.resolving import Resolve
from tcqueue.v1.claim_pb2 import ReclaimTaskRequest, ReportCompletedRequest, RevocationReason
from tcqueue.v1.task_pb2 import CancelTaskRequest, TaskState
from tests.streams.harness import Client, Cluster, Failure, key_of


async def test_renewed_by_itself_with_credentials_that_work(cluster: Cluster) -> None:
    server = await cluster.start(claim_timeout_s=3.0, stream_reclaim_fraction=0.1)
    root = await cluster.client(server.address)
    stream = await root.work()
    task_id = await root.create()
    (claim,) = await stream.started()
    first, second = await stream.reclaimed(), await stream.reclaimed()
    assert (first.task_id, first.run_id) == (task_id, 0)
    ends = [end.ToMilliseconds() for end in (claim.taken_until, first.taken_until, second.taken_until)]
    assert ends[0] < ends[1] < ends[2]
    status = await root.status(task_id)
    assert status.runs[0].taken_until.ToMilliseconds() >= ends[2]
    assert not status.runs[0].HasField("resolved")
    fresh = second.credentials
    assert fresh.client_id != claim.credentials.client_id
    worker = root.having(fresh.client_id, fresh.access_token, fresh.certificate)
    response = await worker("ReportCompleted", ReportCompletedRequest(task_id=task_id, run_id=0))
    assert response.status.state == TaskState.TASK_STATE_COMPLETED
    assert (await stream.revoked()).reason == RevocationReason.REVOCATION_REASON_RESOLVED_ELSEWHERE


async def test_a_claim_outlives_its_timeout_many_times(cluster: Cluster) -> None:
    server = await cluster.start(claim_timeout_s=0.8, stream_reclaim_fraction=0.25)
    root = await cluster.client(server.address)
    stream = await root.work(slots=5)
    await root.create_many(5)
    claims = await stream.started(5)
    for _ in range(5 * 4):
        await stream.reclaimed()
        assert await server.expire_claims() == 0
    await stream.resolve(*claims)
    for _ in claims:
        assert (await stream.resolved()).task_state == TaskState.TASK_STATE_COMPLETED
    assert stream.waiting("revoked") == 0


async def test_a_claim_accepted_late_is_renewed_before_its_end(cluster: Cluster) -> None:
    server = await cluster.start(claim_timeout_s=4.0, stream_reclaim_fraction=0.8)
    root = await cluster.client(server.address)
    stream = await root.work()
    await root.create(retries=1)
    claim = await stream.claim()
    # Late is from 0.4 s on; the offer stands for 2 s. A renewal counted from the accept would come too late.
    await asyncio.sleep(0.8)
    await stream.accept(claim)
    await stream.reclaimed()
    assert server.services.clock.seconds() < claim.taken_until.ToMilliseconds() / 1000


async def test_an_offer_ends_before_its_claim_would(cluster: Cluster) -> None:
    """However long workers may take to accept otherwise: what is accepted too late costs a retry."""
    server = await cluster.start(claim_timeout_s=1.0)
    root = await cluster.client(server.address)
    stream = await root.work()
    await root.create(retries=1)
    claim = await stream.claim()
    assert (await stream.revoked()).reason == RevocationReason.REVOCATION_REASON_CLAIM_EXPIRED
    assert server.services.clock.seconds() < claim.taken_until.ToMilliseconds() / 1000


async def test_what_is_being_resolved_is_not_revoked_by_its_renewal(cluster: Cluster) -> None:
    """The resolution is done and its answer on the way when the renewal finds nothing left to renew."""
    server = await cluster.start(claim_timeout_s=1.0, stream_reclaim_fraction=0.2)
    root = await cluster.client(server.address)
    stream = await root.work()
    task_id = await root.create()
    await stream.started()
    await stream.reclaimed()
    dispatcher = server.services.dispatcher
    (session,) = dispatcher.sessions.values()
    session.held[task_id, 0].resolving = True
    await dispatcher.changes.submit(Resolve(task_id, 0, "completed", "completed", session.stream_id))
    renewals = dispatcher.holdings.reclaims
    asked = asyncio.Event()

    async def submit(item: Reclaim) -> Reclaimed:
        try:
            return await original(item)
        finally:
            asked.set()

    original, renewals.submit = renewals.submit, submit  # type: ignore[method-assign]
    await asyncio.wait_for(asked.wait(), 5)
    await stream.round_trip()
    assert stream.waiting("revoked") == 0


async def test_a_unary_renewal_takes_the_run_out_of_the_streams_lease(cluster: Cluster) -> None:
    server = await cluster.start(stream_grace_s=0.0, claim_timeout_s=600.0)
    root = await cluster.client(server.address)
    stream = await root.work(slots=2)
    task_id = await root.create(retries=3)
    (claim,) = await stream.started()
    while (await root.status(task_id)).state != TaskState.TASK_STATE_RUNNING:
        await asyncio.sleep(0)
    credentials = claim.credentials
    worker = root.having(credentials.client_id, credentials.access_token, credentials.certificate)
    renewed = await worker("ReclaimTask", ReclaimTaskRequest(task_id=task_id, run_id=0))
    assert renewed.taken_until.ToMilliseconds() > claim.taken_until.ToMilliseconds()
    # The stream breaks; a run of its own is lost at once, this one is not.
    other = await root.create()
    await stream.started()
    while (await root.status(other)).state != TaskState.TASK_STATE_RUNNING:
        await asyncio.sleep(0)
    stream.break_off()
    while await server.expire_claims() == 0:
        await asyncio.sleep(0.01)
    assert len((await root.status(other)).runs) == 2
    status = await root.status(task_id)
    assert status.state == TaskState.TASK_STATE_RUNNING
    assert status.runs[0].taken_until == renewed.taken_until
    fresh = renewed.credentials
    worker = root.having(fresh.client_id, fresh.access_token, fresh.certificate)
    response = await worker("ReportCompleted", ReportCompletedRequest(task_id=task_id, run_id=0))
    assert response.status.state == TaskState.TASK_STATE_COMPLETED


async def test_a_unary_renewal_that_the_streams_server_did_not_hear_of(cluster: Cluster) -> None:
    """The stream's own renewal comes to nothing then; the run is the worker's as before."""
    one = await cluster.start(claim_timeout_s=4.0, stream_reclaim_fraction=0.1)
    other = await cluster.start(claim_timeout_s=600.0)
    here, elsewhere = await cluster.client(one.address), await cluster.client(other.address)
    other.services.hub.publish = lambda channel, payload: None  # type: ignore[method-assign]
    stream = await here.work(slots=2)
    await here.create_many(2)
    first, second = await stream.started(2)
    await stream.reclaimed()
    task_id, run_id = key_of(first)
    await elsewhere("ReclaimTask", ReclaimTaskRequest(task_id=task_id, run_id=run_id))
    for _ in range(6):
        while (await stream.reclaimed()).task_id != key_of(second)[0]:
            pass
    assert stream.waiting("revoked") == 0
    # What is canceled unheard is told at the next renewal, with its reason.
    await elsewhere("CancelTask", CancelTaskRequest(task_id=key_of(second)[0]))
    revoked = await stream.revoked()
    assert (revoked.task_id, revoked.reason) == (
        key_of(second)[0],
        RevocationReason.REVOCATION_REASON_CANCELED,
    )
    await stream.resolve(first)
    assert (await stream.resolved()).task_state == TaskState.TASK_STATE_COMPLETED


async def test_a_run_taken_out_of_the_lease_is_still_told_of_its_end(root: Client) -> None:
    """Q-114: renewing it after its end is refused."""
    stream = await root.work()
    task_id = await root.create()
    (claim,) = await stream.started()
    while (await root.status(task_id)).state != TaskState.TASK_STATE_RUNNING:
        await asyncio.sleep(0)
    await root("ReclaimTask", ReclaimTaskRequest(task_id=task_id, run_id=0))
    await root("ReportCompleted", ReportCompletedRequest(task_id=task_id, run_id=0))
    assert (await stream.revoked()).reason == RevocationReason.REVOCATION_REASON_RESOLVED_ELSEWHERE
    with pytest.raises(Failure) as refused:
        await root("ReclaimTask", ReclaimTaskRequest(task_id=task_id, run_id=0))
    assert (refused.value.code, refused.value.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "REQUEST_CONFLICT",
    )
    assert key_of(claim) == (task_id, 0)


async def test_a_pending_run_on_offer_cannot_be_renewed(root: Client) -> None:
    stream = await root.work()
    task_id = await root.create()
    claim = await stream.claim()
    with pytest.raises(Failure) as refused:
        await root("ReclaimTask", ReclaimTaskRequest(task_id=task_id, run_id=0))
    assert refused.value.reason == "REQUEST_CONFLICT"
    await stream.accept(claim)
    await stream.resolve(claim)
    assert (await stream.resolved()).task_state == TaskState.TASK_STATE_COMPLETED


async def test_nothing_is_renewed_past_the_deadline(cluster: Cluster) -> None:
    server = await cluster.start(claim_timeout_s=1.0, stream_reclaim_fraction=0.3)
    root = await cluster.client(server.address)
    stream = await root.work()
    task_id = await root.create()
    await stream.started()
    await stream.reclaimed()
    await server.rows("update tasks set deadline = now() where task_id = $1", task_id)
    assert (await stream.revoked()).reason == RevocationReason.REVOCATION_REASON_DEADLINE_EXCEEDED
