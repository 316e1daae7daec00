"""Runs that end elsewhere are revoked at once, with the reason, from any server (design 5)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from tcqueue.v1.claim_pb2 import Claim, ReportCompletedRequest, ReportExceptionRequest, RevocationReason
from tcqueue.v1.run_pb2 import ReasonResolved
from tcqueue.v1.task_group_pb2 import CancelTaskGroupRequest, SealTaskGroupRequest
from tcqueue.v1.task_pb2 import CancelTaskRequest, TaskState
from tests.streams.harness import Client, Cluster, Instance, Stream, key_of


@dataclass
class Scene:
    """A run that a stream holds on one server, and the server from which it will be taken."""

    stream: Stream
    claim: Claim
    task_id: str
    here: Client
    elsewhere: Client
    other: Instance

    async def lost(self, reason: Any) -> None:
        """The stream is told so, and its slot is free again."""
        revoked = await self.stream.revoked()
        assert (revoked.task_id, revoked.run_id) == (self.task_id, 0)
        assert revoked.reason == reason
        another = await self.here.create()
        while (claim := await self.stream.claim()).status.task_id != another:
            # A retry of the lost run comes first.
            assert claim.status.task_id == self.task_id
            await self.stream.slots(2)
        # What it says about the lost run changes nothing.
        await self.stream.resolve(self.claim)
        assert (await self.stream.resolved()).error.code == "RequestConflict"


@pytest.fixture(params=["same server", "other server"])
async def scene(request: pytest.FixtureRequest, cluster: Cluster) -> Scene:
    settings = {"claim_timeout_s": 1000.0, "deadline_delay_s": 0.0}
    one = await cluster.start(**settings)
    other = await cluster.start(**settings) if request.param == "other server" else one
    assert one.machine.process_id != other.machine.process_id or one is other
    here, elsewhere = await cluster.client(one.address), await cluster.client(other.address)
    stream = await here.work()
    task_id = await here.create(retries=1)
    (claim,) = await stream.started()
    while (await elsewhere.status(task_id)).state != TaskState.TASK_STATE_RUNNING:
        await asyncio.sleep(0)
    return Scene(stream, claim, task_id, here, elsewhere, other)


async def test_canceled(scene: Scene) -> None:
    await scene.elsewhere("CancelTask", CancelTaskRequest(task_id=scene.task_id))
    await scene.lost(RevocationReason.REVOCATION_REASON_CANCELED)


async def test_canceled_with_its_group(scene: Scene) -> None:
    # A task that names no group is one of its own.
    await scene.elsewhere("SealTaskGroup", SealTaskGroupRequest(task_group_id=scene.task_id))
    await scene.elsewhere("CancelTaskGroup", CancelTaskGroupRequest(task_group_id=scene.task_id))
    await scene.lost(RevocationReason.REVOCATION_REASON_CANCELED)


async def test_deadline_exceeded(scene: Scene) -> None:
    for table in ("tasks", "runs"):
        await scene.other.rows(
            f"update {table} set deadline = now() - interval '1 s' where task_id = $1", scene.task_id
        )
    assert await scene.other.exceed_deadlines() == 1
    await scene.lost(RevocationReason.REVOCATION_REASON_DEADLINE_EXCEEDED)


async def test_claim_expired(scene: Scene) -> None:
    await scene.other.rows(
        "update runs set taken_until = now() - interval '1 s' where task_id = $1", scene.task_id
    )
    assert await scene.other.expire_claims() == 1
    await scene.lost(RevocationReason.REVOCATION_REASON_CLAIM_EXPIRED)
    assert (await scene.here.status(scene.task_id)).retries_left == 0


async def test_resolved_elsewhere_with_the_runs_own_credentials(scene: Scene) -> None:
    """Q-106: the credentials of the claim suffice to report."""
    credentials = scene.claim.credentials
    worker = scene.elsewhere.having(credentials.client_id, credentials.access_token, credentials.certificate)
    response = await worker("ReportCompleted", ReportCompletedRequest(task_id=scene.task_id, run_id=0))
    assert response.status.state == TaskState.TASK_STATE_COMPLETED
    revoked = await scene.stream.revoked()
    assert revoked.reason == RevocationReason.REVOCATION_REASON_RESOLVED_ELSEWHERE
    another = await scene.here.create()
    assert (await scene.stream.claim()).status.task_id == another


async def test_retried_elsewhere(scene: Scene) -> None:
    reason = ReasonResolved.REASON_RESOLVED_WORKER_SHUTDOWN
    await scene.elsewhere(
        "ReportException", ReportExceptionRequest(task_id=scene.task_id, run_id=0, reason=reason)
    )
    await scene.lost(RevocationReason.REVOCATION_REASON_RESOLVED_ELSEWHERE)


async def test_an_offer_canceled_before_it_was_accepted(root: Client) -> None:
    stream = await root.work()
    task_id = await root.create()
    claim = await stream.claim()
    await root("CancelTask", CancelTaskRequest(task_id=task_id))
    assert (await stream.revoked()).reason == RevocationReason.REVOCATION_REASON_CANCELED
    another = await root.create()
    assert (await stream.claim()).status.task_id == another
    await stream.accept(claim)
    assert (await stream.revoked()).task_id == task_id
    status = await root.status(task_id)
    assert status.state == TaskState.TASK_STATE_EXCEPTION
    assert not status.runs[0].HasField("started")


async def test_a_word_that_was_lost_is_made_up_for(cluster: Cluster) -> None:
    """Whoever may have missed notifications looks for itself."""
    one, other = await cluster.start(), await cluster.start()
    here, elsewhere = await cluster.client(one.address), await cluster.client(other.address)
    stream = await here.work(slots=2)
    await here.create_many(2)
    gone, kept = await stream.started(2)
    await stream.round_trip()
    other.services.hub.publish = lambda channel, payload: None  # type: ignore[method-assign]
    while (await here.status(key_of(gone)[0])).state != TaskState.TASK_STATE_RUNNING:
        await asyncio.sleep(0)
    await elsewhere("CancelTask", CancelTaskRequest(task_id=key_of(gone)[0]))
    await one.rows(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where application_name = 'tcqueue hub' and datname = current_database()"
    )
    revoked = await stream.revoked()
    assert (revoked.task_id, revoked.reason) == (
        key_of(gone)[0],
        RevocationReason.REVOCATION_REASON_CANCELED,
    )
    await stream.resolve(kept)
    assert (await stream.resolved()).task_state == TaskState.TASK_STATE_COMPLETED
    assert stream.waiting("revoked") == 0
