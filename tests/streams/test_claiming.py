"""Claims pushed as slots free, accepts, resolutions (design 5; queue.md 2.5)."""

from __future__ import annotations

import asyncio
import json

import grpc
import pytest

from server.domain import slugid
from server.identity import tokens
from tcqueue.v1.claim_pb2 import (
    ClaimTasksRequest,
    ClaimWorkOpen,
    ClaimWorkRequest,
    ReportCompletedRequest,
    RevocationReason,
)
from tcqueue.v1.run_pb2 import ReasonCreated, ReasonResolved, RunState
from tcqueue.v1.task_pb2 import Priority, TaskState
from tests.streams.harness import (
    COMPLETED,
    EXCEPTION,
    FAILED,
    QUEUE,
    Client,
    Cluster,
    Instance,
    Stream,
    all_of,
    bearer,
    key_of,
)


async def test_open_must_be_first(root: Client) -> None:
    stream = Stream(root)
    await stream.slots(1)
    failure = await stream.end()
    assert failure.code == grpc.StatusCode.INVALID_ARGUMENT
    assert failure.reason == "INPUT_ERROR"
    assert "open" in failure.message


async def test_open_comes_once(root: Client) -> None:
    stream = await root.work()
    again = ClaimWorkOpen(task_queue_id=QUEUE, worker_group="g", worker_id="w1", slots=1)
    await stream.send(ClaimWorkRequest(open=again))
    failure = await stream.end()
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INPUT_ERROR")


async def test_nothing_said_at_all(root: Client) -> None:
    stream = Stream(root)
    await stream.finish()
    assert (await stream.end()).code == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_stream_that_is_not_opened_is_given_up(cluster: Cluster) -> None:
    server = await cluster.start(stream_pong_timeout_s=0.2)
    root = await cluster.client(server.address)
    failure = await Stream(root).end()
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE")
    assert "not opened" in failure.message


async def test_bad_credentials_come_before_a_bad_opening(cluster: Cluster, server: Instance) -> None:
    client = await cluster.client(server.address, bearer(tokens.mint("root", "k" * 44)))
    stream = Stream(client)
    await stream.slots(-1)
    failure = await stream.end()
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAUTHENTICATED, "AUTHENTICATION_FAILED")


@pytest.mark.parametrize(
    "scopes",
    [
        [],
        ["queue:claim-work:prov/streams"],
        ["queue:claim-work:prov/other", "queue:worker-id:g/w1"],
        ["queue:claim-work:prov/streams", "queue:worker-id:g/w2"],
    ],
)
async def test_scopes_are_needed(cluster: Cluster, server: Instance, scopes: list[str]) -> None:
    token = tokens.mint("root", cluster.root_token, authorized_scopes=scopes)
    client = await cluster.client(server.address, bearer(token))
    failure = await (await client.work()).end()
    assert (failure.code, failure.reason) == (grpc.StatusCode.PERMISSION_DENIED, "INSUFFICIENT_SCOPES")
    assert "queue:worker-id:g/w1" in failure.message
    assert not server.services.dispatcher.sessions


async def test_scopes_suffice(cluster: Cluster, server: Instance, root: Client) -> None:
    scopes = ["queue:claim-work:prov/streams", "queue:worker-id:g/w1"]
    token = tokens.mint("root", cluster.root_token, authorized_scopes=scopes)
    client = await cluster.client(server.address, bearer(token))
    stream = await client.work()
    task_id = await root.create()
    assert (await stream.claim()).status.task_id == task_id


async def test_a_claim_says_all_there_is_to_know(server: Instance, root: Client) -> None:
    """Q: the claim carries definition, status shown as running, taken until, credentials."""
    stream = await root.work()
    task_id = await root.create(scopes=["a:b"], payload='{"x": 3600}')
    claim = await stream.claim()
    assert claim.status.task_id == task_id
    assert claim.task.payload == '{"x": 3600}'
    assert (claim.worker_group, claim.worker_id, claim.run_id) == ("g", "w1", 0)
    run = claim.status.runs[0]
    assert run.state == RunState.RUN_STATE_RUNNING
    assert run.taken_until == claim.taken_until
    started = run.started.ToMilliseconds()
    assert claim.taken_until.ToMilliseconds() - started == server.services.settings.claim_timeout_s * 1000
    assert claim.credentials.client_id.startswith(f"task-client/{task_id}/0/on/g/w1/until/")


async def test_running_is_seen_once_accepted(root: Client) -> None:
    stream = await root.work()
    task_id = await root.create()
    claim = await stream.claim()
    status = await root.status(task_id)
    assert status.state == TaskState.TASK_STATE_PENDING
    assert [run.state for run in status.runs] == [RunState.RUN_STATE_PENDING]
    assert not status.runs[0].HasField("worker_id")
    await stream.accept(claim)
    await stream.round_trip()
    while (status := await root.status(task_id)).state != TaskState.TASK_STATE_RUNNING:
        await asyncio.sleep(0)
    assert status.runs[0] == claim.status.runs[0]


async def test_an_offer_not_accepted_leaves_no_trace(cluster: Cluster) -> None:
    server = await cluster.start(stream_accept_timeout_s=0.4)
    root = await cluster.client(server.address)
    first, second = await root.work("w1"), await root.work("w2", slots=0)
    task_id = await root.create(retries=1)
    late = await first.claim()
    await first.slots(0)
    revoked = await first.revoked()
    assert revoked.task_id == task_id
    assert revoked.reason == RevocationReason.REVOCATION_REASON_CLAIM_EXPIRED
    status = await root.status(task_id)
    assert status.state == TaskState.TASK_STATE_PENDING
    assert status.retries_left == 1
    assert len(status.runs) == 1
    await second.slots(1)
    (claim,) = await second.started()
    assert key_of(claim) == (task_id, 0)
    # The first worker wakes up and is told that it is too late.
    await first.accept(late)
    assert (await first.revoked()).reason == RevocationReason.REVOCATION_REASON_CLAIM_EXPIRED
    await second.resolve(claim)
    assert (await second.resolved()).task_state == TaskState.TASK_STATE_COMPLETED
    status = await root.status(task_id)
    assert [run.worker_id for run in status.runs] == ["w2"]


async def test_an_accept_of_what_was_never_offered_is_revoked(root: Client) -> None:
    stream = await root.work()
    await stream.accept_runs((slugid.nice(), 0))
    assert (await stream.revoked()).reason == RevocationReason.REVOCATION_REASON_CLAIM_EXPIRED


async def test_an_accept_may_be_repeated(root: Client) -> None:
    stream = await root.work()
    task_id = await root.create()
    (claim,) = await stream.started()
    await stream.round_trip()
    await stream.accept(claim)
    await stream.round_trip()
    assert stream.waiting("revoked") == 0
    stream.break_off()
    resumed = await root.work(held=[key_of(claim)])
    await resumed.reclaimed()
    await resumed.accept(claim)
    await resumed.resolve(claim)
    assert (await resumed.resolved()).task_id == task_id
    assert resumed.waiting("revoked") == 0


@pytest.mark.parametrize(
    ("outcome", "reason", "state"),
    [
        (COMPLETED, 0, TaskState.TASK_STATE_COMPLETED),
        (FAILED, 0, TaskState.TASK_STATE_FAILED),
        (EXCEPTION, ReasonResolved.REASON_RESOLVED_MALFORMED_PAYLOAD, TaskState.TASK_STATE_EXCEPTION),
        (EXCEPTION, ReasonResolved.REASON_RESOLVED_WORKER_SHUTDOWN, TaskState.TASK_STATE_PENDING),
        (EXCEPTION, ReasonResolved.REASON_RESOLVED_INTERMITTENT_TASK, TaskState.TASK_STATE_PENDING),
    ],
)
async def test_resolving_right_behind_the_accept(root: Client, outcome: int, reason: int, state: int) -> None:
    """Accept and resolution in the same instant: the second waits for the first."""
    stream = await root.work()
    task_id = await root.create(retries=1)
    claim = await stream.claim()
    await stream.slots(0)
    await stream.accept(claim)
    await stream.resolve(claim, outcome=outcome, reason=reason)
    result = await stream.resolved()
    assert (result.task_id, result.run_id, result.task_state) == (task_id, 0, state)
    assert not result.HasField("error")
    status = await root.status(task_id)
    assert status.state == state
    retried = state == TaskState.TASK_STATE_PENDING
    assert len(status.runs) == 1 + retried
    assert status.retries_left == 1 - retried
    if retried:
        created = status.runs[1].reason_created
        again = reason == ReasonResolved.REASON_RESOLVED_INTERMITTENT_TASK
        assert created == (
            ReasonCreated.REASON_CREATED_TASK_RETRY if again else ReasonCreated.REASON_CREATED_RETRY
        )


async def test_many_accepts_and_resolutions_in_one_message(root: Client) -> None:
    stream = await root.work(slots=40)
    ids = await root.create_many(40)
    claims = await stream.claims(40)
    await stream.accept(*claims)
    await stream.resolve(*claims)
    results = [await stream.resolved() for _ in claims]
    assert {result.task_id for result in results} == set(ids)
    assert {result.task_state for result in results} == {TaskState.TASK_STATE_COMPLETED}


async def test_a_resolution_of_what_is_not_held_is_an_error(root: Client) -> None:
    mine, other = await root.work("w1"), await root.work("w2", slots=0)
    await root.create()
    (claim,) = await mine.started()
    await other.resolve(claim)
    result = await other.resolved()
    assert result.error.code == "RequestConflict"
    assert result.task_state == TaskState.TASK_STATE_UNSPECIFIED
    await other.resolve_runs((slugid.nice(), 3))
    assert (await other.resolved()).error.code == "ResourceNotFound"
    await mine.resolve(claim)
    assert (await mine.resolved()).task_state == TaskState.TASK_STATE_COMPLETED


async def test_an_offer_resolved_before_it_was_accepted_still_stands(root: Client) -> None:
    stream = await root.work()
    task_id = await root.create()
    claim = await stream.claim()
    await stream.resolve(claim)
    assert (await stream.resolved()).error.code == "RequestConflict"
    await stream.accept(claim)
    await stream.resolve(claim)
    result = await stream.resolved()
    assert not result.HasField("error"), result
    assert (await root.status(task_id)).state == TaskState.TASK_STATE_COMPLETED


async def test_a_slot_is_free_again_after_each_resolution(root: Client) -> None:
    stream = await root.work(slots=1)
    ids = await root.create_many(5)
    done = []
    for _ in ids:
        (claim,) = await stream.started()
        assert stream.waiting("claims") == 0
        await stream.resolve(claim)
        await stream.resolved()
        done.append(claim.status.task_id)
    assert sorted(done) == sorted(ids)


async def test_more_slots_bring_more_work_and_none_drain(root: Client) -> None:
    stream = await root.work(slots=1)
    await root.create_many(4)
    first = await stream.claim()
    await stream.round_trip()
    assert stream.waiting("claims") == 0
    await stream.slots(3)
    others = await stream.claims(2)
    await stream.accept(first, *others)
    await stream.slots(0)
    await stream.resolve(first, *others)
    for _ in range(3):
        assert (await stream.resolved()).task_state == TaskState.TASK_STATE_COMPLETED
    # The last one goes to somebody else, so the claimer was at work and gave the first nothing.
    second = await root.work("w2")
    await second.claim()
    assert stream.waiting("claims") == 0


async def test_a_stream_may_open_without_slots(root: Client) -> None:
    idle, busy = await root.work("w1", slots=0), await root.work("w2", slots=2)
    await root.create_many(2)
    await busy.claims(2)
    assert idle.waiting("claims") == 0
    await idle.slots(1)
    await root.create()
    await idle.claim()


async def test_by_priority_then_age(root: Client) -> None:
    """Q-179: highest priority first, oldest first among equals."""
    order = [
        await root.create(priority=Priority.PRIORITY_LOW),
        await root.create(priority=Priority.PRIORITY_LOW),
        await root.create(priority=Priority.PRIORITY_HIGHEST),
        await root.create(priority=Priority.PRIORITY_VERY_LOW),
        await root.create(priority=Priority.PRIORITY_HIGHEST),
    ]
    expected = [order[i] for i in (2, 4, 0, 1, 3)]
    stream = await root.work(slots=1)
    for task_id in expected[:2]:
        (claim,) = await stream.started()
        assert claim.status.task_id == task_id
        await stream.resolve(claim)
    await stream.slots(3)
    assert [claim.status.task_id for claim in await stream.claims(3)] == expected[2:]


async def test_several_streams_are_served_fairly(root: Client) -> None:
    streams = [await root.work(f"w{n}", slots=8) for n in range(4)]
    for stream in streams:
        await stream.round_trip()
    await root.create_many(16)
    found = await all_of(streams, "claims", 16)
    shares = [sum(1 for index, _ in found if index == n) for n in range(4)]
    assert max(shares) - min(shares) <= 2, shares


async def test_a_busy_queue_fills_every_stream(root: Client) -> None:
    """Many free slots, a batch that cannot serve them all at once: nobody is left out."""
    streams = [await root.work(f"w{n}", slots=4) for n in range(10)]
    for stream in streams:
        await stream.round_trip()
    for _ in range(8):
        await root.create()
    await root.create_many(32)
    found = await all_of(streams, "claims", 40)
    assert [sum(1 for index, _ in found if index == n) for n in range(10)] == [4] * 10


async def test_large_tasks_come_in_several_messages(server: Instance, root: Client) -> None:
    """A client that says nothing of sizes takes 4 MiB."""
    payload = json.dumps({"blob": "x" * 600_000})
    for _ in range(12):
        await root.create(payload=payload)
    async with grpc.aio.insecure_channel(server.address) as channel:
        stream = await Client(channel, root.metadata).work(slots=12)
        claims = await stream.started(12)
        await stream.resolve(*claims)
        for _ in claims:
            assert (await stream.resolved()).task_state == TaskState.TASK_STATE_COMPLETED
        assert stream.kinds.count("claims") > 1
        await stream.close()


async def test_unary_claims_and_streams_share_a_queue(root: Client) -> None:
    stream = await root.work(slots=3)
    request = ClaimTasksRequest(task_queue_id=QUEUE, worker_group="g", worker_id="poller", tasks=3)
    poll = asyncio.create_task(root("ClaimTasks", request))
    ids = await root.create_many(6)
    claims = await stream.claims(3)
    polled = list((await poll).tasks)
    while len(polled) < 3:
        polled += (await root("ClaimTasks", request)).tasks
    assert len(polled) == 3
    assert {key_of(claim)[0] for claim in [*claims, *polled]} == set(ids)
    await stream.accept(*claims)
    await stream.resolve(*claims)
    for _ in claims:
        assert (await stream.resolved()).task_state == TaskState.TASK_STATE_COMPLETED
    for claim in polled:
        task_id, run_id = key_of(claim)
        await root("ReportCompleted", ReportCompletedRequest(task_id=task_id, run_id=run_id))
    for task_id in ids:
        assert (await root.status(task_id)).state == TaskState.TASK_STATE_COMPLETED


@pytest.mark.parametrize("poll_s", [0.0, 0.001])
async def test_a_poll_that_hardly_waits_finds_what_there_is(cluster: Cluster, poll_s: float) -> None:
    """It ends while the claim is under way, and that must not be lost."""
    server = await cluster.start(claim_poll_s=poll_s)
    root = await cluster.client(server.address)
    ids = await root.create_many(3, retries=1)
    request = ClaimTasksRequest(task_queue_id=QUEUE, worker_group="g", worker_id="w1", tasks=2)
    found = [len((await root("ClaimTasks", request)).tasks) for _ in range(3)]
    assert found == [2, 1, 0]
    for task_id in ids:
        status = await root.status(task_id)
        assert (status.state, len(status.runs)) == (TaskState.TASK_STATE_RUNNING, 1)


async def test_a_message_that_breaks_the_rules_ends_the_stream(root: Client) -> None:
    stream = await root.work()
    await stream.slots(-1)
    failure = await stream.end()
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INPUT_VALIDATION_ERROR",
    )


async def test_no_task_is_handed_out_twice(cluster: Cluster) -> None:
    """Twenty streams on three servers, with polls between: each run is claimed exactly once."""
    servers = [await cluster.start(), await cluster.start(), await cluster.start()]
    clients = [await cluster.client(server.address) for server in servers]
    streams = [await clients[n % 3].work(f"w{n}", slots=1 + n % 4) for n in range(20)]
    lives = 400
    seen: list[str] = []
    done = asyncio.Event()

    async def work(stream: Stream) -> None:
        while True:
            claim = await stream.claims(1)
            await stream.accept(*claim)
            await stream.resolve(*claim)
            result = await stream.resolved()
            assert result.task_state == TaskState.TASK_STATE_COMPLETED, result
            seen.append(result.task_id)
            if len(seen) >= lives:
                done.set()

    workers = [asyncio.create_task(work(stream)) for stream in streams]
    ids = [task_id for client in clients for task_id in await client.create_many(lives // 4)]
    ids += await asyncio.gather(*(clients[n % 3].create() for n in range(lives // 4)))
    await asyncio.wait_for(done.wait(), 30)
    for worker in workers:
        worker.cancel()
    outcomes = await asyncio.gather(*workers, return_exceptions=True)
    assert [o for o in outcomes if not isinstance(o, asyncio.CancelledError)] == []
    assert sorted(seen) == sorted(ids)
    rows = await servers[0].rows("select run_id, state, count(*) from runs group by 1, 2")
    assert rows == [(0, "completed", lives)]
