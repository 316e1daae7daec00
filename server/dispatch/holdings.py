"""What streams hold, kept in step with the database: offers end, claims are renewed, leased and revoked."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import structlog

from server.dispatch.credentials import credentials_message
from server.dispatch.session import Held, Key, Session
from server.errors import QueueError, Unavailable
from server.identity.task_credentials import TaskCredentialIssuer
from server.store.batcher import Batcher
from server.transitions import claiming
from server.transitions.claiming import Reclaim, Reclaimed
from server.transitions.machine import CLAIMS, Machine, rounds
from server.views import stamp
from tcqueue.v1.claim_pb2 import ReclaimedRun

log = structlog.get_logger(__name__)

_RECHECKED_AT_ONCE = 1000
#: So many entries of waiting lists may outlive their runs before they are thrown out.
_STALE = 5000


class Holdings:
    """The runs on offer to, and held by, the streams of a process. `upkeep` must be called a few times a
    second; `freed` is called when a stream may have a free slot."""

    def __init__(
        self,
        machine: Machine,
        issuer: TaskCredentialIssuer,
        sessions: Mapping[str, Session],
        freed: Callable[[Session], None],
    ) -> None:
        linger = machine.settings.batch_linger_ms / 1000
        self.reclaims: Batcher[Reclaim, Reclaimed] = Batcher(
            "reclaim", lambda items: claiming.reclaim_runs(machine, items), lanes=1, max_linger=linger
        )
        self._machine = machine
        self._issuer = issuer
        self._sessions = sessions
        self._freed = freed
        self._leases: Batcher[tuple[str, int, str], None] = Batcher(
            "lease", self._lease, lanes=1, max_linger=linger
        )
        self._withdrawals: Batcher[tuple[str, int, str], None] = Batcher(
            "withdraw", self._withdraw, lanes=1, max_linger=linger
        )
        self._tasks: set[asyncio.Task[Any]] = set()
        self._rechecking: asyncio.Task[Any] | None = None
        self._stopping = False
        #: (when, session, run), in the order of when: all waits of a kind are equally long.
        self._offers_due: deque[tuple[float, Session, Key]] = deque()
        self._renewals_due: deque[tuple[float, Session, Key]] = deque()

    def offered(self, session: Session, key: Key) -> None:
        """A run was put on offer to a stream: it is taken back unless it is accepted in time."""
        self._offers_due.append((_now() + self._machine.settings.offer_s, session, key))

    def accepted(self, session: Session, key: Key, *, late: bool) -> None:
        """A stream holds a run now: its claim is renewed in good time, if it was accepted late at once."""
        if late and not session.closing:
            self.spawn(self._renew(session, key))
        else:
            self._renewals_due.append((self._due(), session, key))

    def refused(self, session: Session, key: Key) -> None:
        """Whether the accept was written is not known: what became of it, be it an offer or a run, ends."""
        self.withdraw(key, session.stream_id)
        self.lease(key, session.stream_id)

    def withdraw(self, key: Key, stream_id: str) -> None:
        """An offer goes back."""
        self.spawn(self._withdrawals.submit((*key, stream_id)))

    def lease(self, key: Key, stream_id: str) -> None:
        """The stream of a run is gone: it gets the grace lease."""
        self.spawn(self._lease_surely((*key, stream_id)))

    def released(self, session: Session) -> None:
        """A stream has ended: its offers go back, its runs get the grace lease."""
        for key, held in session.held.items():
            if held.accepting is not None:
                self._lease_after(held.accepting, (*key, session.stream_id))
            elif not held.accepted:
                self.withdraw(key, session.stream_id)
            elif not held.detached:
                self.lease(key, session.stream_id)
        session.held.clear()

    def upkeep(self) -> None:
        """Takes back offers and renews claims whose time has come. No query of its own: what it starts is
        batched."""
        now = _now()
        while self._offers_due and self._offers_due[0][0] <= now:
            _, session, key = self._offers_due.popleft()
            held = session.held.get(key)
            if held is not None and not held.accepted and held.accepting is None:
                session.revoke(key, "claim-expired")
                self.withdraw(key, session.stream_id)
                self._freed(session)
        while self._renewals_due and self._renewals_due[0][0] <= now:
            _, session, key = self._renewals_due.popleft()
            held = session.held.get(key)
            if held is not None and held.accepted and not held.detached and not session.closing:
                self.spawn(self._renew(session, key))
        self._forget_resolved()

    def unresolved(self, session: Session, key: Key) -> None:
        """A resolution came to nothing: the run is held as before."""
        held = session.held.get(key)
        if held is not None:
            held.resolving = False
            if held.unrenewed:
                held.unrenewed = False
                self._renewals_due.appendleft((_now(), session, key))

    async def resume(self, session: Session, held: Sequence[Key]) -> None:
        """Gives a worker's runs to its new stream; those that are not its own any more are revoked."""
        keys = sorted(set(held))
        rows = await self._machine.db.fetch(
            CLAIMS["resume_runs"],
            (
                [key[0] for key in keys],
                [key[1] for key in keys],
                session.stream_id,
                self._machine.process_id,
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
                    self._machine.hub.publish("revoked", f"{stream_id} {key[0]} {key[1]} taken-over")
            else:
                session.revoke(key, _why(state, reason))
        await asyncio.gather(*(self._renew(session, key) for key in list(session.held)))

    async def readopt(self) -> None:
        """This process had been taken for dead: says that its streams' runs are held after all."""
        runs = [
            (key[0], session.stream_id)
            for session in self._sessions.values()
            for key, held in session.held.items()
            if held.accepted and not held.detached
        ]
        if runs:
            await self._machine.db.fetch(
                CLAIMS["readopt_runs"], ([task for task, _ in runs], [stream for _, stream in runs])
            )
        await self._recheck()

    def recheck(self) -> None:
        """Word of what became of runs may have been lost: looks at all of them, once at a time."""
        if self._rechecking is None or self._rechecking.done():
            self._rechecking = self.spawn(self._recheck_surely())

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Does something by the way; `stop` waits for it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def stopping(self) -> None:
        """What waits for the database waits no longer."""
        self._stopping = True

    async def stop(self) -> None:
        """Returns when nothing is under way."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _due(self) -> float:
        settings = self._machine.settings
        return _now() + settings.claim_timeout_s * settings.stream_reclaim_fraction

    def _forget_resolved(self) -> None:
        """Keeps the waiting lists from growing with the runs of a whole claim timeout."""
        most = _STALE + 2 * sum(len(session.held) for session in self._sessions.values())
        if len(self._renewals_due) > most:
            self._renewals_due = deque(due for due in self._renewals_due if due[2] in due[1].held)
        if len(self._offers_due) > most:
            self._offers_due = deque(
                due for due in self._offers_due if (held := due[1].held.get(due[2])) and not held.accepted
            )

    async def _renew(self, session: Session, key: Key) -> None:
        try:
            renewed = await self.reclaims.submit(Reclaim(*key, session.stream_id))
        except Unavailable:
            # Try again soon; the claim has half its time left.
            self._renewals_due.appendleft((_now() + 1.0, session, key))
            return
        except QueueError as e:
            await self._not_renewed(session, key, e)
            return
        if session.held.get(key) is None or session.closing:
            return
        credentials = credentials_message(
            self._issuer,
            key[0],
            key[1],
            renewed.worker_group,
            renewed.worker_id,
            renewed.taken_until,
            renewed.definition,
            renewed.now,
        )
        session.send_reclaimed(
            ReclaimedRun(
                task_id=key[0],
                run_id=key[1],
                taken_until=stamp(renewed.taken_until),
                credentials=credentials,
            )
        )
        self._renewals_due.append((self._due(), session, key))

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
                self._renewals_due.appendleft((_now() + 1.0, session, key))
            else:
                held.detached = True

    def _lease_after(self, accepting: asyncio.Future[Any], item: tuple[str, int, str]) -> None:
        """Gives the run its lease once the accept that is under way has ended."""
        accepting.add_done_callback(lambda _: self.spawn(self._lease_surely(item)))

    async def _lease(self, items: Sequence[tuple[str, int, str]]) -> list[None]:
        for indexes in rounds(items, lambda item: item[0]):
            batch = [items[i] for i in indexes]
            await self._machine.db.fetch(
                CLAIMS["lease_runs"],
                ([b[0] for b in batch], [b[2] for b in batch], self._machine.settings.stream_grace_s),
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
        await claiming.withdraw_offers(self._machine, items)
        return [None] * len(items)

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
            for session in self._sessions.values()
            for key, held in session.held.items()
            if held.accepted
        ]
        for start in range(0, len(believed), _RECHECKED_AT_ONCE):
            await self._revoke_lost(believed[start : start + _RECHECKED_AT_ONCE])

    async def _revoke_lost(self, believed: Sequence[tuple[Session, Key, Held]]) -> None:
        rows = await self._machine.db.fetch(
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

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            log.warning("stream upkeep failed", error=str(failure))


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
