"""All streams and claimers of a process: what they do to the database, and what reaches them from it."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import Any

import structlog

from server import metrics
from server.clock import Clock
from server.dispatch.claimer import Claimer, Waiter
from server.dispatch.credentials import credentials_message, serialized_claim
from server.dispatch.seen import SeenWorkers
from server.dispatch.session import Held, Key, Send, Session
from server.errors import QueueError, Unavailable
from server.identity.task_credentials import TaskCredentialIssuer
from server.store.batcher import Batcher
from server.transitions import claiming
from server.transitions.changing import Change
from server.transitions.claiming import Offered, Reclaim, Reclaimed
from server.transitions.facts import TaskFacts
from server.transitions.machine import CLAIMS, Machine, rounds
from server.transitions.resolving import Resolve, resolve_runs
from server.views import TASK_STATES, stamp
from tcqueue.v1.claim_pb2 import ReclaimedRun

log = structlog.get_logger(__name__)


#: Seconds a worker gets to resume elsewhere after its stream was told to retire.
RETIRE_S = 10.0

_RECHECKED_AT_ONCE = 1000
#: So many entries of waiting lists may outlive their runs before they are thrown out.
_STALE = 5000


class Dispatcher:
    """Serves claim streams and long polls. `upkeep` must be called a few times a second."""

    def __init__(
        self,
        machine: Machine,
        seen: SeenWorkers,
        issuer: TaskCredentialIssuer,
        clock: Clock,
        changes: Batcher[Change, Any],
    ) -> None:
        self.machine = machine
        self.seen = seen
        self.issuer = issuer
        self.clock = clock
        self.changes = changes
        linger = machine.settings.batch_linger_ms / 1000
        self.sessions: dict[str, Session] = {}
        self.reclaims: Batcher[Reclaim, Reclaimed] = Batcher(
            "reclaim", lambda items: claiming.reclaim_runs(machine, items), lanes=1, max_linger=linger
        )
        self._leases: Batcher[tuple[str, int, str], None] = Batcher(
            "lease", self._lease, lanes=1, max_linger=linger
        )
        self._withdrawals: Batcher[tuple[str, int, str], None] = Batcher(
            "withdraw", self._withdraw, lanes=1, max_linger=linger
        )
        self._claimers: dict[str, Claimer] = {}
        self._polls: set[Waiter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._rechecking: asyncio.Task[Any] | None = None
        self._stopping = False
        #: Why everybody is asked to go; empty as long as nobody is.
        self._draining = ""
        #: (when, session, run), in the order of when: all waits of a kind are equally long.
        self._offers_due: deque[tuple[float, Session, Key]] = deque()
        self._renewals_due: deque[tuple[float, Session, Key]] = deque()
        machine.desk = self
        self._subscriptions = [
            machine.hub.subscribe("pending", self._on_pending),
            machine.hub.subscribe("revoked", self._on_revoked),
            machine.hub.subscribe_gap(self._on_gap),
            seen.subscribe(self._on_quarantine),
        ]

    # -- streams -------------------------------------------------------------------------------

    async def open(
        self, queue_id: str, worker_group: str, worker_id: str, slots: int, held: Sequence[Key], send: Send
    ) -> Session:
        """Begins a stream: the worker is noted as seen, its runs are resumed, and work comes."""
        until = await self.seen.saw(queue_id, worker_group, worker_id)
        now = self._now()
        session = Session(str(uuid.uuid4()), queue_id, worker_group, worker_id, slots, send, now)
        session.quarantine_until = until
        session.seen_again_at = now + self.machine.settings.worker_info_update_s
        session.retire_at = now + self.machine.settings.stream_max_age_s * random.uniform(0.9, 1.1)
        self.sessions[session.stream_id] = session
        metrics.STREAMS.inc()
        try:
            if held:
                await self._resume(session, held)
        except BaseException:
            self.close(session)
            raise
        if until is not None:
            self._say_quarantined(session)
        if self._draining:
            session.send_drain(self._draining)
        self._claimer(queue_id).add(session)
        return session

    def accept(self, session: Session, keys: Sequence[Key]) -> None:
        """Takes offers on; one that no longer stands is revoked, and one taken on already stays so."""
        taken: list[tuple[Key, Held]] = []
        offers: list[Offered] = []
        for key in dict.fromkeys(keys):
            held = session.held.get(key)
            if held is None:
                session.revoke(key, "claim-expired")
            elif held.offer is not None and held.accepting is None:
                taken.append((key, held))
                offers.append(held.offer)
        if offers:
            future = self.changes.enqueue_many(offers)
            for _, held in taken:
                held.accepting = future
            future.add_done_callback(lambda done: self._accepted(session, taken, done))

    def resolve(self, session: Session, resolutions: Sequence[Resolve]) -> None:
        """Resolves runs that the stream holds; the answers are sent on the stream."""
        if not resolutions:
            return
        session.begin(len(resolutions))
        keys = [(resolution.task_id, resolution.run_id) for resolution in resolutions]
        for key in keys:
            held = session.held.get(key)
            if held is not None:
                held.resolving = True
        # An accept still under way comes first all the same: changes are made in the order of asking.
        future = self.changes.enqueue_many(resolutions)
        future.add_done_callback(lambda done: self._resolved(session, keys, done))

    def set_slots(self, session: Session, slots: int) -> None:
        """Changes how many runs the worker can hold."""
        session.slots = slots
        self._claimer(session.queue_id).freed(session)

    def close(self, session: Session) -> None:
        """Ends a stream from the server's side: offers go back, runs get the grace lease."""
        if self.sessions.pop(session.stream_id, None) is None:
            return
        metrics.STREAMS.dec()
        session.end()
        claimer = self._claimers.get(session.queue_id)
        if claimer is not None:
            claimer.remove(session)
            if claimer.idle:
                del self._claimers[session.queue_id]
        for key, held in session.held.items():
            item = (*key, session.stream_id)
            if held.accepting is not None:
                self._lease_after(held.accepting, item)
            elif not held.accepted:
                self._spawn(self._withdrawals.submit(item))
            elif not held.detached:
                self._spawn(self._lease_surely(item))
        session.held.clear()

    def idle_slots(self, queue_id: str, wanted: int) -> Sequence[tuple[str, str, str]]:
        """See machine.Desk."""
        claimer = self._claimers.get(queue_id)
        return [] if claimer is None else claimer.idle_slots(wanted)

    def hand_out(self, queue_id: str, offers: Sequence[Offered]) -> None:
        """See machine.Desk."""
        claimer = self._claimers.get(queue_id)
        if claimer is None:
            self._give_back(offers)
        else:
            claimer.hand_out(offers)

    # -- unary callers -------------------------------------------------------------------------

    async def poll(
        self, queue_id: str, worker_group: str, worker_id: str, wanted: int, wait_s: float
    ) -> list[Offered]:
        """Claims up to `wanted` runs, waiting up to `wait_s` seconds for the first. Looks once at least, and
        never leaves while a claim is under way: it would find nobody, and that costs a retry."""
        waiter = Waiter(worker_group, worker_id, wanted, asyncio.get_running_loop().create_future())
        claimer = self._claimer(queue_id)
        claimer.wait(waiter)
        self._polls.add(waiter)
        try:
            await asyncio.wait([waiter.result], timeout=0 if self._draining else wait_s)
            waiter.leave()
            await asyncio.wait([waiter.result])
            return waiter.result.result()
        except asyncio.CancelledError:
            if waiter.result.done() and not waiter.result.cancelled():
                self._give_back(waiter.result.result())
            raise
        finally:
            self._polls.discard(waiter)
            claimer.leave(waiter)
            if not waiter.result.done():
                waiter.result.cancel()
            if claimer.idle and self._claimers.get(queue_id) is claimer:
                del self._claimers[queue_id]

    async def rest(self, wait_s: float) -> None:
        """Waits as a poll that finds nothing does, and as it ends early when the server drains."""
        waiter = Waiter("", "", 0, asyncio.get_running_loop().create_future(), looking=False)
        self._polls.add(waiter)
        try:
            await asyncio.wait([waiter.result], timeout=0 if self._draining else wait_s)
        finally:
            self._polls.discard(waiter)

    # -- upkeep and end ------------------------------------------------------------------------

    def upkeep(self) -> None:
        """Renews claims, takes back offers, pings, ends quarantines and old streams. No query of its own:
        what it starts is batched."""
        now = self._now()
        settings = self.machine.settings
        while self._offers_due and self._offers_due[0][0] <= now:
            _, session, key = self._offers_due.popleft()
            held = session.held.get(key)
            if held is not None and not held.accepted and held.accepting is None:
                session.revoke(key, "claim-expired")
                self._spawn(self._withdrawals.submit((*key, session.stream_id)))
                self._freed(session)
        while self._renewals_due and self._renewals_due[0][0] <= now:
            _, session, key = self._renewals_due.popleft()
            held = session.held.get(key)
            if held is not None and held.accepted and not held.detached and not session.closing:
                self._spawn(self._renew(session, key))
        self._forget_resolved()
        wall = self.clock.seconds()
        for session in list(self.sessions.values()):
            if session.quarantine_until is not None and session.quarantine_until <= wall:
                session.quarantine_until = None
                session.send_quarantined(None)
                self._freed(session)
            if session.seen_again_at <= now:
                session.seen_again_at = now + settings.worker_info_update_s
                self._spawn(self.seen.saw(session.queue_id, session.worker_group, session.worker_id))
            if session.retire_at <= now:
                if session.draining:
                    session.end()
                    continue
                session.send_drain("max-age")
                session.retire_at = now + RETIRE_S
            if session.pinged is not None and now - session.pinged > settings.stream_pong_timeout_s:
                session.end(Unavailable("no answer to a ping: the stream is given up"))
            elif session.pinged is None and now - session.last_heard > settings.stream_ping_interval_s:
                session.pinged = now
                session.send_ping(int(now * 1000))

    def _forget_resolved(self) -> None:
        """Keeps the waiting lists from growing with the runs of a whole claim timeout."""
        most = _STALE + 2 * sum(len(session.held) for session in self.sessions.values())
        if len(self._renewals_due) > most:
            self._renewals_due = deque(due for due in self._renewals_due if due[2] in due[1].held)
        if len(self._offers_due) > most:
            self._offers_due = deque(
                due for due in self._offers_due if (held := due[1].held.get(due[2])) and not held.accepted
            )

    async def drain(self, reason: str, grace_s: float) -> None:
        """Asks every worker to go elsewhere, lets the polls end empty, then closes the streams."""
        self._draining = reason
        for waiter in self._polls:
            waiter.leave()
        for session in self.sessions.values():
            if not session.draining:
                session.send_drain(reason)
        deadline = self._now() + grace_s
        while self.sessions and self._now() < deadline:
            await asyncio.sleep(0.05)
        for session in list(self.sessions.values()):
            session.end(Unavailable("the server is shutting down"))

    async def stop(self) -> None:
        """Ends everything; returns when nothing is under way."""
        self._stopping = True
        for unsubscribe in self._subscriptions:
            unsubscribe()
        for session in list(self.sessions.values()):
            self.close(session)
        for claimer in list(self._claimers.values()):
            await claimer.stop()
        self._claimers.clear()
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def readopt(self) -> None:
        """This process had been taken for dead: says that its streams' runs are held after all."""
        runs = [
            (key[0], session.stream_id)
            for session in self.sessions.values()
            for key, held in session.held.items()
            if held.accepted and not held.detached
        ]
        if runs:
            await self.machine.db.fetch(
                CLAIMS["readopt_runs"], ([task for task, _ in runs], [stream for _, stream in runs])
            )
        await self._recheck()

    # -- inside --------------------------------------------------------------------------------

    def _claimer(self, queue_id: str) -> Claimer:
        claimer = self._claimers.get(queue_id)
        if claimer is None:
            settings = self.machine.settings
            claimer = self._claimers[queue_id] = Claimer(
                queue_id,
                offer=lambda queue, slots: claiming.offer_runs(self.machine, queue, slots),
                claim=lambda queue, workers: claiming.claim_runs(self.machine, queue, workers),
                deliver=self._deliver,
                give_back=self._give_back,
                poll_s=settings.claimer_poll_s,
                linger_s=settings.batch_linger_ms / 1000,
            )
        return claimer

    def _deliver(self, session: Session, offer: Offered) -> None:
        key = (offer.facts.task_id, offer.run_id)
        session.held[key] = Held(offer)
        self._offers_due.append((self._now() + self.machine.settings.offer_s, session, key))
        session.send_claim(key, serialized_claim(offer, self.issuer))

    def _give_back(self, offers: Sequence[Offered]) -> None:
        """Returns what could not be delivered: offers without a trace, unary claims as lost runs."""
        lost = [o for o in offers if not o.stream_id]
        for offer in offers:
            if offer.stream_id:
                self._spawn(self._withdrawals.submit((offer.facts.task_id, offer.run_id, offer.stream_id)))
        if lost:
            items = [Resolve(o.facts.task_id, o.run_id, "exception", "claim-expired") for o in lost]
            self._spawn(resolve_runs(self.machine, items))

    def _accepted(
        self,
        session: Session,
        taken: Sequence[tuple[Key, Held]],
        done: asyncio.Future[list[bool | Exception]],
    ) -> None:
        outcomes = [False] * len(taken) if done.cancelled() else done.result()
        settings = self.machine.settings
        due = self._now() + settings.claim_timeout_s * settings.stream_reclaim_fraction
        # Claims offered before then have lost so much of their time that they are renewed at once.
        old = self.clock.seconds() - settings.claim_timeout_s * (1 - settings.stream_reclaim_fraction) / 2
        for (key, held), outcome in zip(taken, outcomes, strict=True):
            held.accepting = None
            won = outcome is True
            late = held.offer is not None and held.offer.started.timestamp() < old
            if won:
                # Also when the stream is about to close: it must find a run to lease, not an offer.
                held.accepted = True
                held.offer = None
            if session.held.get(key) is not held:
                continue
            if won:
                if late and not session.closing:
                    self._spawn(self._renew(session, key))
                else:
                    self._renewals_due.append((due, session, key))
                continue
            # Refused, or unknown because the database went away: either way the worker must not go on.
            if isinstance(outcome, Exception):
                log.warning("accept failed", task_id=key[0], run_id=key[1], error=str(outcome))
                self._spawn(self._withdrawals.submit((*key, session.stream_id)))
                self._spawn(self._lease_surely((*key, session.stream_id)))
            session.revoke(key, "claim-expired")
            self._freed(session)

    def _resolved(
        self, session: Session, keys: Sequence[Key], done: asyncio.Future[list[TaskFacts | Exception]]
    ) -> None:
        if session.closing or done.cancelled():
            return
        for key, outcome in zip(keys, done.result(), strict=True):
            if not isinstance(outcome, Exception):
                session.held.pop(key, None)
                session.send_result(key, TASK_STATES[outcome.state])
            elif isinstance(outcome, Unavailable):
                self._unresolved(session, key)
                session.send_result(key, None, outcome)
            elif isinstance(outcome, QueueError):
                held = session.held.get(key)
                if held is not None and held.accepted:
                    del session.held[key]
                self._unresolved(session, key)
                session.send_result(key, None, outcome)
            else:
                log.error("resolution failed", task_id=key[0], run_id=key[1], exc_info=outcome)
                self._unresolved(session, key)
                session.send_result(key, None, Unavailable("internal error; try again"))
        self._freed(session)

    def _unresolved(self, session: Session, key: Key) -> None:
        held = session.held.get(key)
        if held is not None:
            held.resolving = False
            if held.unrenewed:
                held.unrenewed = False
                self._renewals_due.appendleft((self._now(), session, key))

    def _lease_after(self, accepting: asyncio.Future[Any], item: tuple[str, int, str]) -> None:
        """Gives the run its lease once the accept that is under way has ended."""
        accepting.add_done_callback(lambda _: self._spawn(self._lease_surely(item)))

    def _freed(self, session: Session) -> None:
        claimer = self._claimers.get(session.queue_id)
        if claimer is not None:
            claimer.freed(session)

    async def _resume(self, session: Session, held: Sequence[Key]) -> None:
        keys = sorted(set(held))
        rows = await self.machine.db.fetch(
            CLAIMS["resume_runs"],
            (
                [key[0] for key in keys],
                [key[1] for key in keys],
                session.stream_id,
                self.machine.process_id,
                session.worker_group,
                session.worker_id,
                session.queue_id,
            ),
        )
        for ordinal, resumed, state, reason, process_id, stream_id in rows:
            key = keys[ordinal - 1]
            if resumed:
                session.held[key] = Held(accepted=True)
                if stream_id is not None and stream_id != session.stream_id and process_id is not None:
                    self.machine.hub.publish("revoked", f"{stream_id} {key[0]} {key[1]} taken-over")
            else:
                session.revoke(key, _why(state, reason))
        await asyncio.gather(*(self._renew(session, key) for key in list(session.held)))

    async def _renew(self, session: Session, key: Key) -> None:
        settings = self.machine.settings
        try:
            renewed = await self.reclaims.submit(Reclaim(*key, session.stream_id))
        except Unavailable:
            # Try again soon; the claim has half its time left.
            self._renewals_due.appendleft((self._now() + 1.0, session, key))
            return
        except QueueError as e:
            await self._not_renewed(session, key, e)
            return
        if session.held.get(key) is None or session.closing:
            return
        session.send_reclaimed(
            ReclaimedRun(
                task_id=key[0],
                run_id=key[1],
                taken_until=stamp(renewed.taken_until),
                credentials=credentials_message(
                    self.issuer, key[0], key[1], renewed.worker_group, renewed.worker_id, renewed.taken_until,
                    renewed.definition, renewed.now,
                ),
            )
        )  # fmt: skip
        due = self._now() + settings.claim_timeout_s * settings.stream_reclaim_fraction
        self._renewals_due.append((due, session, key))

    async def _not_renewed(self, session: Session, key: Key, error: QueueError) -> None:
        """Tells the worker what became of a run that could not be renewed, if anything did. The word of it
        is on its way, or lost; and one that is renewed through another door is its own as before."""
        held = session.held.get(key)
        if held is None or session.closing:
            return
        if held.resolving:
            # That has an answer of its own; unless it fails, there is nothing left to renew.
            held.unrenewed = True
        elif error.details.get("reason") == "deadline-exceeded":
            session.revoke(key, "deadline-exceeded")
            self._freed(session)
        else:
            try:
                await self._revoke_lost([(session, key, held)])
            except Unavailable:
                self._renewals_due.appendleft((self._now() + 1.0, session, key))
            else:
                held.detached = True

    async def _lease(self, items: Sequence[tuple[str, int, str]]) -> list[None]:
        for indexes in rounds(items, lambda item: item[0]):
            batch = [items[i] for i in indexes]
            await self.machine.db.fetch(
                CLAIMS["lease_runs"],
                ([b[0] for b in batch], [b[2] for b in batch], self.machine.settings.stream_grace_s),
                hot=True,
            )
        return [None] * len(items)

    async def _lease_surely(self, item: tuple[str, int, str]) -> None:
        """Without its lease a run would wait for the whole claim timeout, so the database is waited for."""
        while True:
            try:
                return await self._leases.submit(item)
            except Unavailable:
                if self._stopping:
                    raise
                await asyncio.sleep(random.uniform(0.2, 0.5))

    async def _withdraw(self, items: Sequence[tuple[str, int, str]]) -> list[None]:
        await claiming.withdraw_offers(self.machine, items)
        return [None] * len(items)

    def _on_pending(self, queue_id: str) -> None:
        claimer = self._claimers.get(queue_id)
        if claimer is not None:
            claimer.pending()

    def _on_revoked(self, text: str) -> None:
        stream_id, task_id, run_id, reason = text.split(" ", 3)
        session = self.sessions.get(stream_id)
        if session is None:
            return
        key = (task_id, int(run_id))
        held = session.held.get(key)
        if held is None:
            return
        if reason == "detached":
            held.detached = True
            return
        session.revoke(key, reason)
        self._freed(session)

    def _on_quarantine(self, queue_id: str, worker_group: str, worker_id: str, until: float) -> None:
        for session in self.sessions.values():
            if (session.queue_id, session.worker_group, session.worker_id) == (
                queue_id,
                worker_group,
                worker_id,
            ):
                was = session.quarantine_until
                session.quarantine_until = until if until > self.clock.seconds() else None
                if session.quarantine_until != was:
                    self._say_quarantined(session)
                    self._freed(session)

    def _on_gap(self) -> None:
        """Notifications were lost: look everywhere."""
        for claimer in self._claimers.values():
            claimer.pending()
        if self._rechecking is None or self._rechecking.done():
            self._rechecking = self._spawn(self._recheck_surely())

    async def _recheck_surely(self) -> None:
        """What was missed is not told again, so the database is waited for."""
        while not self._stopping:
            try:
                return await self._recheck()
            except Unavailable:
                await asyncio.sleep(random.uniform(0.2, 0.5))

    async def _recheck(self) -> None:
        """Revokes what its stream no longer holds; the word of that may have been lost."""
        believed = [
            (session, key, held)
            for session in self.sessions.values()
            for key, held in session.held.items()
            if held.accepted
        ]
        for start in range(0, len(believed), _RECHECKED_AT_ONCE):
            await self._revoke_lost(believed[start : start + _RECHECKED_AT_ONCE])

    async def _revoke_lost(self, believed: Sequence[tuple[Session, Key, Held]]) -> None:
        rows = await self.machine.db.fetch(
            CLAIMS["lost_runs"],
            (
                [key[0] for _, key, _ in believed],
                [key[1] for _, key, _ in believed],
                [session.stream_id for session, _, _ in believed],
            ),
        )
        for ordinal, state, reason in rows:
            session, key, held = believed[ordinal - 1]
            # A resolution under way has an answer of its own.
            if session.held.get(key) is held and not held.resolving:
                session.revoke(key, _why(state, reason))
                self._freed(session)

    def _say_quarantined(self, session: Session) -> None:
        until = session.quarantine_until
        session.send_quarantined(None if until is None else self.clock.moment(until))

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            log.warning("stream upkeep failed", error=str(failure))

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _why(state: str | None, reason: str | None) -> str:
    """Why a run in this state is not a stream's; None when there is no such run."""
    if state is None:
        return "unknown"
    if state == "running":
        return "taken-over"
    if reason in ("canceled", "deadline-exceeded", "claim-expired"):
        return reason
    return "claim-expired" if state == "pending" else "resolved-elsewhere"
