"""All streams and claimers of a process: what they do to the database, and what reaches them from it."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Sequence
from typing import Any

import structlog

from server import metrics
from server.clock import Clock
from server.dispatch.claimer import Claimer, Waiter
from server.dispatch.credentials import serialized_claim
from server.dispatch.holdings import Holdings
from server.dispatch.seen import SeenWorkers
from server.dispatch.session import Held, Key, Send, Session
from server.errors import QueueError, Unavailable
from server.identity.task_credentials import TaskCredentialIssuer
from server.store.batcher import Batcher
from server.transitions import claiming
from server.transitions.changing import Change
from server.transitions.claiming import Offered
from server.transitions.facts import TaskFacts
from server.transitions.machine import Machine
from server.transitions.resolving import Resolve, resolve_runs
from server.views import TASK_STATES

log = structlog.get_logger(__name__)


#: Seconds a worker gets to resume elsewhere after its stream was told to retire.
RETIRE_S = 10.0


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
        self.sessions: dict[str, Session] = {}
        self.holdings = Holdings(machine, issuer, self.sessions, self._freed)
        self._claimers: dict[str, Claimer] = {}
        self._polls: set[Waiter] = set()
        #: Why everybody is asked to go; empty as long as nobody is.
        self._draining = ""
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
                await self.holdings.resume(session, held)
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
        self.holdings.released(session)

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
        self.holdings.upkeep()
        wall = self.clock.seconds()
        for session in list(self.sessions.values()):
            if session.quarantine_until is not None and session.quarantine_until <= wall:
                session.quarantine_until = None
                session.send_quarantined(None)
                self._freed(session)
            if session.seen_again_at <= now:
                session.seen_again_at = now + settings.worker_info_update_s
                self.holdings.spawn(self.seen.saw(session.queue_id, session.worker_group, session.worker_id))
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
        self.holdings.stopping()
        for unsubscribe in self._subscriptions:
            unsubscribe()
        for session in list(self.sessions.values()):
            self.close(session)
        for claimer in list(self._claimers.values()):
            await claimer.stop()
        self._claimers.clear()
        await self.holdings.stop()

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
        self.holdings.offered(session, key)
        session.send_claim(key, serialized_claim(offer, self.issuer))

    def _give_back(self, offers: Sequence[Offered]) -> None:
        """Returns what could not be delivered: offers without a trace, unary claims as lost runs."""
        lost = [o for o in offers if not o.stream_id]
        for offer in offers:
            if offer.stream_id:
                self.holdings.withdraw((offer.facts.task_id, offer.run_id), offer.stream_id)
        if lost:
            items = [Resolve(o.facts.task_id, o.run_id, "exception", "claim-expired") for o in lost]
            self.holdings.spawn(resolve_runs(self.machine, items))

    def _accepted(
        self,
        session: Session,
        taken: Sequence[tuple[Key, Held]],
        done: asyncio.Future[list[bool | Exception]],
    ) -> None:
        outcomes = [False] * len(taken) if done.cancelled() else done.result()
        settings = self.machine.settings
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
                self.holdings.accepted(session, key, late=late)
                continue
            # Refused, or unknown because the database went away: either way the worker must not go on.
            if isinstance(outcome, Exception):
                log.warning("accept failed", task_id=key[0], run_id=key[1], error=str(outcome))
                self.holdings.refused(session, key)
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
                self.holdings.unresolved(session, key)
                session.send_result(key, None, outcome)
            elif isinstance(outcome, QueueError):
                held = session.held.get(key)
                if held is not None and held.accepted:
                    del session.held[key]
                self.holdings.unresolved(session, key)
                session.send_result(key, None, outcome)
            else:
                log.error("resolution failed", task_id=key[0], run_id=key[1], exc_info=outcome)
                self.holdings.unresolved(session, key)
                session.send_result(key, None, Unavailable("internal error; try again"))
        self._freed(session)

    def _freed(self, session: Session) -> None:
        claimer = self._claimers.get(session.queue_id)
        if claimer is not None:
            claimer.freed(session)

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
        self.holdings.recheck()

    def _say_quarantined(self, session: Session) -> None:
        until = session.quarantine_until
        session.send_quarantined(None if until is None else self.clock.moment(until))

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
