"""A worker on ClaimWork streams: keeps its runs over broken streams, restarts and renewals.

Give it a coroutine that does a run's work; it is started for each claim, cancelled when the queue
takes the run away, and what it returns resolves the run.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import grpc
import grpc.aio

from server.client.claim_stream import ClaimWorkStream
from server.client.credentials import Credentials
from server.client.errors import CallError, Failure, failure_of
from server.client.held_runs import INTERNAL_ERROR, WORKER_SHUTDOWN, HeldRun, Result, RunKey
from tcqueue.v1.claim_pb2 import (
    ClaimWorkOpen,
    ClaimWorkResponse,
    ResolutionResult,
    RevocationReason,
)
from tcqueue.v1.task_pb2 import TaskState

Execute = Callable[[HeldRun], Awaitable[Result]]

#: What no waiting mends, as long as no run depends on trying.
_HOPELESS = frozenset(
    {
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
#: How long the queue may take to answer what is under way after a polite close.
_CLOSE_S = 15.0
#: A stream that lived this long was a good one, even if nothing came on it.
_LONG_S = 5.0


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses between attempts: random up to a bound that doubles from `first_s` to `longest_s`.

    The longest is well below the grace that a broken stream's runs get (45 s by default).
    """

    first_s: float = 0.2
    longest_s: float = 10.0

    def pause(self, attempt: int) -> float:
        """Before the attempt of this number, from 0."""
        bound: float = min(self.longest_s, self.first_s * 2 ** min(attempt, 30))
        return random.uniform(0.1, 1.0) * bound


class Listener(Protocol):
    """Told what happens; every method returns at once."""

    def claimed(self, run: HeldRun) -> None:
        """A run was accepted and is started now."""

    def renewed(self, run: HeldRun) -> None:
        """The run has a new end and new credentials."""

    def revoked(self, run: HeldRun) -> None:
        """The queue took the run away, for `run.revocation`."""

    def resolved(self, run: HeldRun, state: TaskState.ValueType, error: str) -> None:
        """The queue took the resolution, and the task is in this state now; or refused it with an error."""

    def quarantined(self, until: datetime | None) -> None:
        """No work before then; None: work again."""

    def disconnected(self, failure: Failure, pause_s: float) -> None:
        """The stream broke, or could not be opened; the next attempt is after the pause."""

    def crashed(self, run: HeldRun, error: Exception) -> None:
        """The code that does the work raised; the run is resolved as internal-error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerId:
    """Who the worker is."""

    task_queue_id: str
    worker_group: str
    worker_id: str


class StreamWorker:
    """Runs until told to stop. One object, one `run`."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        credentials: Credentials,
        identity: WorkerId,
        execute: Execute,
        listener: Listener,
        *,
        slots: int = 1,
        backoff: Backoff | None = None,
    ) -> None:
        self.identity = identity
        self.runs: dict[RunKey, HeldRun] = {}
        self._channel = channel
        self._credentials = credentials
        self._execute = execute
        self._listener = listener
        self._slots = slots
        self._backoff = backoff or Backoff()
        self._jobs: dict[HeldRun, asyncio.Task[None]] = {}
        self._stream: ClaimWorkStream | None = None
        self._draining = False
        self._abandoned = False
        self._heard = False
        #: Set whenever a stream's end, or the end of waiting for one, may be due.
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Works until drained, or shut down. CallError when the queue will not have this worker."""
        attempt = 0
        try:
            while not self._done:
                failure = await self._converse()
                self._stream = None
                if failure is not None and failure.status in _HOPELESS and not self.runs:
                    raise CallError(failure)
                self._forget_overdue()
                attempt = 0 if self._heard else attempt + 1
                if not self._done:
                    pause = self._backoff.pause(attempt)
                    if failure is not None:
                        self._listener.disconnected(failure, pause)
                    await self._pause(pause)
        finally:
            await self._cancel_jobs()

    def set_slots(self, slots: int) -> None:
        """Changes how many runs are held at once; 0 takes no new ones."""
        self._slots = slots
        if self._stream is not None and not self._draining:
            self._stream.set_slots(slots)

    def drain(self) -> None:
        """Takes no new runs; `run` returns when those held are resolved."""
        if not self._draining:
            self._draining = True
            if self._stream is not None:
                self._stream.set_slots(0)
            self._settle()

    async def shut_down(self, grace_s: float = 0.0, report_s: float = 10.0) -> None:
        """Drains; what still runs after the grace is stopped and handed back as worker-shutdown.

        `run` then returns as soon as the queue has answered, and after `report_s` without an answer.
        """
        self.drain()
        jobs = set(self._jobs.values())
        if jobs and grace_s > 0:
            await asyncio.wait(jobs, timeout=grace_s)
        for run in self.runs.values():
            run.shutting_down = run.resolution is None
        await self._cancel_jobs()
        asyncio.get_running_loop().call_later(report_s, self._abandon)

    def _abandon(self) -> None:
        self._abandoned = True
        if self._stream is not None:
            self._stream.end()
        self._changed.set()

    # -- streams -------------------------------------------------------------------------------

    @property
    def _done(self) -> bool:
        return self._abandoned or (self._draining and not self.runs)

    async def _converse(self) -> Failure | None:
        """Holds one stream until it ends: politely (None), or with a failure."""
        resumed = list(self.runs.values())
        opening = ClaimWorkOpen(
            task_queue_id=self.identity.task_queue_id,
            worker_group=self.identity.worker_group,
            worker_id=self.identity.worker_id,
            slots=0 if self._draining else self._slots,
            held=[run.reference for run in resumed],
        )
        stream = self._stream = ClaimWorkStream(self._channel, self._credentials.metadata(), opening)
        # Answers that the last stream did not bring: the queue answers a repeat as it did, or would have.
        stream.resolve(run.resolution for run in resumed if run.resolution is not None)
        self._settle()
        began = asyncio.get_running_loop().time()
        self._heard = False
        try:
            async for message in stream:
                self._heard = True
                self._receive(stream, message)
        except grpc.aio.AioRpcError as e:
            return failure_of(e)
        finally:
            await stream.leave()
            self._heard |= asyncio.get_running_loop().time() - began > _LONG_S
        return None

    def _receive(self, stream: ClaimWorkStream, message: ClaimWorkResponse) -> None:
        kind = message.WhichOneof("message")
        if kind == "claims":
            runs = [HeldRun(claim) for claim in message.claims.claims]
            # A stream that is being left can accept nothing; its offers go back by themselves.
            if stream is self._stream and not self._draining:
                stream.accept(run.reference for run in runs)
                for run in runs:
                    self._start(run)
        elif kind == "reclaimed":
            for renewal in message.reclaimed.runs:
                held = self.runs.get((renewal.task_id, renewal.run_id))
                if held is not None:
                    held.renew(renewal)
                    self._listener.renewed(held)
        elif kind == "revoked":
            for revocation in message.revoked.runs:
                self._revoke((revocation.task_id, revocation.run_id), revocation.reason)
        elif kind == "resolved":
            for answer in message.resolved.results:
                self._answered(answer)
        elif kind == "quarantined":
            until = message.quarantined
            self._listener.quarantined(
                until.quarantine_until.ToDatetime(UTC) if until.HasField("quarantine_until") else None
            )
        elif kind == "drain":
            self._leave(stream)

    def _leave(self, stream: ClaimWorkStream) -> None:
        """Ends a stream politely: what is under way on it is still answered, and then it is over."""
        if self._stream is stream:
            self._stream = None
            stream.finish(_CLOSE_S)

    def _settle(self) -> None:
        """Leaves the stream once there is nothing to stay for."""
        self._changed.set()
        if self._done and self._stream is not None:
            self._leave(self._stream)

    async def _pause(self, seconds: float) -> None:
        deadline = asyncio.get_running_loop().time() + seconds
        while not self._done:
            self._changed.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._changed.wait()
            except TimeoutError:
                return

    # -- runs ----------------------------------------------------------------------------------

    def _start(self, run: HeldRun) -> None:
        self.runs[run.key] = run
        self._listener.claimed(run)
        job = asyncio.create_task(self._work(run))
        self._jobs[run] = job
        job.add_done_callback(lambda _: self._jobs.pop(run))

    async def _work(self, run: HeldRun) -> None:
        try:
            result = await self._execute(run)
        except asyncio.CancelledError:
            if not run.shutting_down:
                raise
            result = WORKER_SHUTDOWN
        except Exception as e:
            self._listener.crashed(run, e)
            result = INTERNAL_ERROR
        if self.runs.get(run.key) is run:
            resolution = run.resolve(result)
            if self._stream is not None:
                self._stream.resolve([resolution])

    def _revoke(self, key: RunKey, reason: RevocationReason.ValueType) -> None:
        run = self.runs.get(key)
        # Once resolved, the answer to the resolution says what became of it: a stream that broke in
        # between makes the queue say that the run was resolved elsewhere, and elsewhere was here.
        if run is None or run.resolution is not None:
            return
        del self.runs[key]
        run.revocation = reason
        self._listener.revoked(run)
        job = self._jobs.get(run)
        if job is not None:
            job.cancel()
        self._settle()

    def _answered(self, answer: ResolutionResult) -> None:
        run = self.runs.get((answer.task_id, answer.run_id))
        if run is None:
            return
        if run.resolution is None:
            # An accept that came too late.
            self._revoke(run.key, RevocationReason.REVOCATION_REASON_CLAIM_EXPIRED)
            return
        if answer.HasField("error") and answer.error.code == "Unavailable":
            asyncio.get_running_loop().call_later(self._backoff.pause(2), self._resolve_again, run)
            return
        del self.runs[run.key]
        self._listener.resolved(run, answer.task_state, answer.error.message)
        self._settle()

    def _resolve_again(self, run: HeldRun) -> None:
        if self._stream is not None and run.resolution is not None and self.runs.get(run.key) is run:
            self._stream.resolve([run.resolution])

    def _forget_overdue(self) -> None:
        """Without a stream, a run whose claim has ended is another worker's."""
        now = datetime.now(UTC)
        for key, run in list(self.runs.items()):
            if run.taken_until < now:
                self._revoke(key, RevocationReason.REVOCATION_REASON_CLAIM_EXPIRED)

    async def _cancel_jobs(self) -> None:
        jobs = list(self._jobs.values())
        for job in jobs:
            job.cancel()
        if jobs:
            await asyncio.wait(jobs)
