"""Claiming: the ClaimWork stream, and the unary claims and reclaims (queue.md 2.5, 3.6; design 5)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

from server.call import Call
from server.dispatch.credentials import claim_message, credentials_message
from server.dispatch.session import Send, Session
from server.domain.times import cut
from server.errors import InputError, RequestConflict, ResourceNotFound, Unavailable
from server.handlers.standing import read_standing
from server.store.statements import load
from server.transitions import claiming
from server.transitions.claiming import Offered, Reclaim
from server.transitions.resolving import Resolve
from server.validation import refuse_unknown_fields
from server.views import REASON_WORDS, stamp, status_message
from tcqueue.v1.claim_pb2 import (
    ClaimTaskRequest,
    ClaimTaskResponse,
    ClaimTasksRequest,
    ClaimTasksResponse,
    ClaimWorkOpen,
    ClaimWorkRequest,
    Outcome,
    ReclaimTaskRequest,
    ReclaimTaskResponse,
    Resolution,
)

_SQL = load("transitions")

_OUTCOMES = {
    Outcome.OUTCOME_COMPLETED: "completed",
    Outcome.OUTCOME_FAILED: "failed",
    Outcome.OUTCOME_EXCEPTION: "exception",
}
_RESULTS = (Outcome.OUTCOME_COMPLETED, Outcome.OUTCOME_FAILED)


async def claim_work(call: Call, requests: AsyncIterator[ClaimWorkRequest], send: Send) -> None:
    """Serves a worker's stream until either side ends it."""
    opening = await _opening(call, requests)
    call.authorize(
        {
            "taskQueueId": opening.task_queue_id,
            "workerGroup": opening.worker_group,
            "workerId": opening.worker_id,
        }
    )
    dispatcher = call.services.dispatcher
    session = await dispatcher.open(
        opening.task_queue_id,
        opening.worker_group,
        opening.worker_id,
        min(opening.slots, call.services.settings.stream_max_slots),
        [(run.task_id, run.run_id) for run in opening.held],
        send,
    )
    task = asyncio.current_task()
    session.stop = task.cancel if task is not None else None
    try:
        if session.closing:  # it was ended while it opened
            raise asyncio.CancelledError
        await _read(call, session, requests)
        await session.settled()
    except asyncio.CancelledError:
        if not session.closing:
            raise
        if session.failure is not None:
            raise session.failure from None
    finally:
        session.stop = None
        dispatcher.close(session)


async def _opening(call: Call, requests: AsyncIterator[ClaimWorkRequest]) -> ClaimWorkOpen:
    """The first message, which does not let us wait longer than a pong may."""
    try:
        async with asyncio.timeout(call.services.settings.stream_pong_timeout_s):
            first = await anext(aiter(requests), None)
    except TimeoutError:
        raise Unavailable("the stream was not opened in time: it is given up") from None
    # Whoever is not known is told that, whatever was sent.
    call.authenticate()
    if first is not None:
        call.check(first)
    if first is None or first.WhichOneof("message") != "open":
        raise InputError("the first message of a ClaimWork stream must be `open`")
    return first.open


async def _read(call: Call, session: Session, requests: AsyncIterator[ClaimWorkRequest]) -> None:
    dispatcher = call.services.dispatcher
    loop = asyncio.get_running_loop()
    limit = call.services.settings.stream_send_buffer
    async for request in requests:
        session.heard(loop.time())
        kind = request.WhichOneof("message")
        if kind == "accept":
            keys = [(run.task_id, run.run_id) for run in request.accept.runs]
            if keys and session.held.keys() >= set(keys):
                refuse_unknown_fields(request)
            else:
                call.check(request)
            dispatcher.accept(session, keys)
        elif kind == "resolve":
            resolutions = request.resolve.resolutions
            if resolutions and all(_plausible(session, resolution) for resolution in resolutions):
                refuse_unknown_fields(request)
            else:
                call.check(request)
            dispatcher.resolve(session, [_resolve(session, resolution) for resolution in resolutions])
        elif kind == "open":
            raise InputError("a ClaimWork stream is opened once")
        else:
            call.check(request)
            if kind == "slots":
                slots = min(request.slots.slots, call.services.settings.stream_max_slots)
                dispatcher.set_slots(session, slots)
        if session.backlog > limit:
            # A worker that does not read its answers is not read either.
            await session.settled()


def _plausible(session: Session, resolution: Resolution) -> bool:
    """Whether a resolution is of a run held, with an outcome that needs no reason: then there is nothing
    for the validator to find, and most of a stream's messages are spared it."""
    return (
        (resolution.task_id, resolution.run_id) in session.held
        and resolution.outcome in _RESULTS
        and not resolution.reason
    )


def _resolve(session: Session, resolution: Resolution) -> Resolve:
    state = _OUTCOMES[resolution.outcome]
    reason = REASON_WORDS[resolution.reason] if state == "exception" else state
    return Resolve(resolution.task_id, resolution.run_id, state, reason, session.stream_id)


async def claim_tasks(call: Call, request: ClaimTasksRequest) -> ClaimTasksResponse:
    """Claims up to `tasks` runs, waiting for the first as long as the long poll lasts."""
    call.authorize(
        {
            "taskQueueId": request.task_queue_id,
            "workerGroup": request.worker_group,
            "workerId": request.worker_id,
        }
    )
    services = call.services
    wait_s = services.settings.claim_poll_s
    quarantined = await services.seen.saw(request.task_queue_id, request.worker_group, request.worker_id)
    if quarantined is not None:
        await services.dispatcher.rest(wait_s)
        return ClaimTasksResponse()
    claims = await services.dispatcher.poll(
        request.task_queue_id,
        request.worker_group,
        request.worker_id,
        request.tasks if request.HasField("tasks") else 1,
        wait_s,
    )
    return ClaimTasksResponse(tasks=[claim_message(claim, services.issuer) for claim in claims])


async def claim_task(call: Call, request: ClaimTaskRequest) -> ClaimTaskResponse:
    """Claims one given run."""
    task = await read_standing(call, request.task_id)
    provisioner_id, _, worker_type = task.task_queue_id.partition("/")
    call.authorize(
        {
            "provisionerId": provisioner_id,
            "workerType": worker_type,
            "workerGroup": request.worker_group,
            "workerId": request.worker_id,
        }
    )
    if task.deadline_reached:
        raise RequestConflict(f"the deadline of task {request.task_id} has passed", taskId=request.task_id)
    services = call.services
    await services.seen.saw_queue(task.task_queue_id)
    if await services.seen.quarantined(task.task_queue_id, request.worker_group, request.worker_id):
        raise RequestConflict(f"worker {request.worker_group}/{request.worker_id} is quarantined")
    if request.run_id > task.last_run:
        raise ResourceNotFound(f"task {request.task_id} has no run {request.run_id}", taskId=request.task_id)
    facts = await claiming.claim_run_by_name(
        services.machine, request.task_id, request.run_id, request.worker_group, request.worker_id
    )
    if facts is None:
        raise RequestConflict(
            f"run {request.run_id} of task {request.task_id} cannot be claimed: it is not pending, or not "
            "the last run",
            taskId=request.task_id,
        )
    rows = await services.db.fetch(_SQL["read_task_definitions"], ([request.task_id],))
    now = services.clock.now()
    run = facts.runs[request.run_id]
    # Fresh credentials last a whole timeout from now, the claim only until its first end (queue.md 2.5).
    until = now + timedelta(seconds=services.settings.claim_timeout_s)
    claim = claim_message(Offered(0, facts, request.run_id, rows[0][1], now, cut(until)), services.issuer)
    if run.taken_until is not None:
        claim.taken_until.CopyFrom(stamp(run.taken_until))
    return ClaimTaskResponse(claim=claim)


async def reclaim_task(call: Call, request: ReclaimTaskRequest) -> ReclaimTaskResponse:
    """Renews a claim for a unary caller."""
    services = call.services
    renewed = await services.dispatcher.holdings.reclaims.submit(Reclaim(request.task_id, request.run_id))
    await services.seen.saw(renewed.task_queue_id, renewed.worker_group, renewed.worker_id)
    facts = await services.machine.read(request.task_id)
    return ReclaimTaskResponse(
        status=status_message(facts),
        run_id=request.run_id,
        worker_group=renewed.worker_group,
        worker_id=renewed.worker_id,
        taken_until=stamp(renewed.taken_until),
        credentials=credentials_message(
            services.issuer,
            request.task_id,
            request.run_id,
            renewed.worker_group,
            renewed.worker_id,
            renewed.taken_until,
            renewed.definition,
            renewed.now,
        ),
    )
