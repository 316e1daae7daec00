"""One claimer for each task queue and process: it wakes, claims for all free slots in one statement and
hands out fairly (design 4)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import structlog

from server import metrics
from server.dispatch.session import Session
from server.errors import Unavailable
from server.transitions.claiming import Offered

log = structlog.get_logger(__name__)

#: Most runs one statement claims.
MAX_BATCH = 256

#: A queue that handed out work so recently (seconds) is busy: a stream then gets up to CHUNK runs in one
#: message instead of one in each of several. An idle queue deals them out one by one, so that a graph
#: arriving at idle workers is spread over all of them. A message costs as much as the life it carries.
BUSY_S = 0.02
CHUNK = 16


@dataclass(slots=True, eq=False)
class Waiter:
    """A unary caller that waits for up to `wanted` runs."""

    worker_group: str
    worker_id: str
    wanted: int
    result: asyncio.Future[list[Offered]]
    #: The queue is to be looked at for it, or is being: what that finds would be lost if it left.
    looking: bool = True
    #: It goes as soon as that is over, with whatever was found.
    leaving: bool = False

    def leave(self) -> None:
        """Ends the wait, at once or after the look under way."""
        self.leaving = True
        if not self.looking and not self.result.done():
            self.result.set_result([])


Offer = Callable[[str, Sequence[tuple[str, str, str]]], Awaitable[list[Offered]]]
ClaimFor = Callable[[str, Sequence[tuple[str, str]]], Awaitable[list[Offered]]]
Deliver = Callable[[Session, Offered], None]
GiveBack = Callable[[Sequence[Offered]], None]


class Claimer:
    """Serves the sessions and waiters of one queue. Runs a task only while somebody has a free slot."""

    def __init__(
        self,
        queue_id: str,
        *,
        offer: Offer,
        claim: ClaimFor,
        deliver: Deliver,
        give_back: GiveBack,
        poll_s: float,
        linger_s: float,
    ) -> None:
        self.queue_id = queue_id
        self.sessions: dict[str, Session] = {}
        #: Streams that may have a free slot, in the order of their turn.
        self._ready: dict[str, Session] = {}
        self._waiters: deque[Waiter] = deque()
        self._offer = offer
        self._claim = claim
        self._deliver = deliver
        self._give_back = give_back
        self._poll_s = poll_s
        self._linger_s = linger_s
        #: Set while the task waits for word; its result tells whether any came in time.
        self._waking: asyncio.Future[bool] | None = None
        self._woken = False
        #: Has found nothing and waits to hear of something.
        self._resting = False
        self._task: asyncio.Task[None] | None = None
        #: There may be pending runs that nobody has looked at since.
        self._maybe_more = True
        #: How many the last successful round handed out; a busy queue lingers for as many again.
        self._last = 0
        self._served_at = 0.0
        self._claimed = metrics.CLAIMED.labels(queue_id)

    @property
    def idle(self) -> bool:
        """Nobody here needs it any more."""
        return not self.sessions and not self._waiters

    def add(self, session: Session) -> None:
        """Serves a stream from now on."""
        self.sessions[session.stream_id] = session
        self._ready[session.stream_id] = session
        self.pending()

    def remove(self, session: Session) -> None:
        """Serves a stream no more."""
        self.sessions.pop(session.stream_id, None)
        self._ready.pop(session.stream_id, None)
        self._stop_if_idle()

    def wait(self, waiter: Waiter) -> None:
        """Serves a unary caller, first come first served."""
        self._waiters.append(waiter)
        self.pending()

    def leave(self, waiter: Waiter) -> None:
        """The unary caller waits no more."""
        if waiter in self._waiters:
            self._waiters.remove(waiter)
        self._stop_if_idle()

    def pending(self) -> None:
        """Word that the queue may have pending runs."""
        self._maybe_more = True
        self._look()

    def freed(self, session: Session) -> None:
        """Word that a stream may have a free slot; looks for work only if there may be some."""
        if session.free and session.stream_id in self.sessions:
            self._ready[session.stream_id] = session
            if self._maybe_more:
                self._look()

    def idle_slots(self, wanted: int) -> list[tuple[str, str, str]]:
        """Slots for somebody else to fill; none while there is work on its way, or a unary caller waits."""
        if not self._resting or self._last > 1 or self._waiters:
            return []
        return [(s.stream_id, s.worker_group, s.worker_id) for s in self._slots(wanted)]

    def hand_out(self, offers: Sequence[Offered]) -> None:
        """Delivers what somebody else put on offer in `idle_slots`."""
        self._hand_out(offers)
        self._claimed.inc(len(offers))

    def _look(self) -> None:
        if self._task is None or self._task.done():
            if not self.idle:
                self._task = asyncio.get_running_loop().create_task(
                    self._run(), name=f"claimer {self.queue_id}"
                )
        else:
            self._wake()

    def _wake(self) -> None:
        self._woken = True
        if self._waking is not None and not self._waking.done():
            self._waking.set_result(True)

    async def _word(self, within_s: float) -> bool:
        """Waits for word; False when none came in time. By hand, as wait_for costs three rounds of the loop
        between the word and the statement."""
        loop = asyncio.get_running_loop()
        self._waking = loop.create_future()
        timer = loop.call_later(within_s, _give_up, self._waking)
        try:
            return await self._waking
        finally:
            timer.cancel()
            self._waking = None

    async def stop(self) -> None:
        """Ends the claimer; unary callers get nothing."""
        for waiter in self._waiters:
            if not waiter.result.done():
                waiter.result.set_result([])
        self._waiters.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _stop_if_idle(self) -> None:
        if self.idle and self._task is not None:
            self._wake()

    def _free(self, enough: int) -> int:
        """Free slots and waiting places, counted no further than `enough`."""
        free = len(self._waiters)
        for session in self._ready.values():
            if free >= enough:
                break
            free += session.free
        return free

    async def _run(self) -> None:
        while not self.idle:
            self._woken = False
            try:
                await self._round()
            except Unavailable as e:
                log.warning("claimer waits for the database", queue=self.queue_id, error=e.message)
                self._maybe_more = True
                await asyncio.sleep(min(1.0, self._poll_s))
            except Exception:
                log.exception("claimer failed", queue=self.queue_id)
                await asyncio.sleep(min(1.0, self._poll_s))
            if self._maybe_more and self._free(1):
                continue
            self._resting = True
            if not self._woken and not await self._word(self._poll_s):
                self._maybe_more = True
            self._resting = False

    async def _round(self) -> None:
        """Claims once for everybody who can take something now."""
        await self._linger()
        self._maybe_more = False
        served = 0
        places = self._places()
        if places:
            waiting = list(self._waiters)
            claims: list[Offered] = []
            try:
                claims = await self._claim(self.queue_id, [(w.worker_group, w.worker_id) for w in places])
                self._hand_over(places, claims)
            finally:
                # With fewer found than wanted there is nothing for the others either.
                _looked(places if len(claims) == len(places) else waiting)
            served += len(claims)
            self._maybe_more = self._maybe_more or len(claims) == len(places)
        slots = self._slots(min(MAX_BATCH, max(16, 2 * self._last)))
        if slots:
            offers = await self._offer(
                self.queue_id, [(s.stream_id, s.worker_group, s.worker_id) for s in slots]
            )
            served += len(offers)
            self._hand_out(offers)
            self._maybe_more = self._maybe_more or len(offers) == len(slots)
        elif not places:
            # Nobody could take anything: there may still be work when a slot becomes free.
            self._maybe_more = True
        self._last = served or self._last // 2
        if served:
            self._served_at = asyncio.get_running_loop().time()
            self._claimed.inc(served)

    async def _linger(self) -> None:
        """A busy queue waits a moment for as many free slots as last time: fewer, larger statements.
        An idle one (last round served one or none) never waits."""
        if self._last <= 1:
            return
        deadline = asyncio.get_running_loop().time() + self._linger_s
        while self._free(self._last) < self._last:
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                return
            if not await self._word(left):
                return

    def _places(self) -> list[Waiter]:
        """The waiters, each as often as it wants runs."""
        places: list[Waiter] = []
        for waiter in self._waiters:
            if not waiter.result.done():
                waiter.looking = True
                places.extend([waiter] * waiter.wanted)
            if len(places) >= MAX_BATCH:
                break
        return places[:MAX_BATCH]

    def _hand_over(self, places: Sequence[Waiter], claims: Sequence[Offered]) -> None:
        shares: dict[Waiter, list[Offered]] = {}
        for claim in claims:
            shares.setdefault(places[claim.position], []).append(claim)
        for waiter, share in shares.items():
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            if waiter.result.done():
                self._give_back(share)
            else:
                waiter.result.set_result(share)

    def _slots(self, limit: int) -> list[Session]:
        """One session for each slot to fill, dealt out in turns so that the best work is spread.

        `limit` keeps a thousand idle streams from making a long statement out of one new run.
        """
        left: dict[str, int] = {}
        for stream_id, session in list(islice(self._ready.items(), limit)):
            if session.free:
                left[stream_id] = session.free
            else:
                del self._ready[stream_id]
        slots: list[Session] = []
        busy = asyncio.get_running_loop().time() - self._served_at < BUSY_S
        while left and len(slots) < limit:
            for stream_id in list(left):
                share = min(CHUNK if busy else 1, left[stream_id], limit - len(slots))
                # To the end of the line; whoever is not reached keeps their place.
                session = self._ready[stream_id] = self._ready.pop(stream_id)
                slots += [session] * share
                left[stream_id] -= share
                if not left[stream_id]:
                    del left[stream_id]
                if len(slots) == limit:
                    break
        return slots

    def _hand_out(self, offers: Sequence[Offered]) -> None:
        gone: list[Offered] = []
        for offer in offers:
            session = self.sessions.get(offer.stream_id)
            if session is None or session.closing or session.draining or session.slots <= len(session.held):
                gone.append(offer)
            else:
                self._deliver(session, offer)
        if gone:
            self._give_back(gone)


def _looked(waiters: Iterable[Waiter]) -> None:
    for waiter in waiters:
        waiter.looking = False
        if waiter.leaving:
            waiter.leave()


def _give_up(waking: asyncio.Future[bool]) -> None:
    if not waking.done():
        waking.set_result(False)
