"""The relay: events go from the log to a message broker, in the order of the log, none left out.

One process leads at a time; it publishes what is final, and moves a mark in the database behind what the
broker has confirmed. Whatever goes wrong (a broker that is away, closes, refuses or falls silent; a database
that is away; the lead lost), it begins again at the mark. So events may come twice, as is to be expected of
any broker, and say so: each has the same id and sequence number whenever it is sent. None is lost, and the
order of a task's events holds.

The lead is an advisory lock held by an open transaction with a limit on its idleness: a process that dies
loses it at once, a frozen one within seconds, and one that thaws cannot move the mark any more.

An event that the broker refuses again and again is found by sending them one at a time, and set aside.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Protocol

import structlog

from server import metrics
from server.errors import Unavailable
from server.events.amqp import BrokerLost, Channel
from server.events.feed import Hub
from server.events.legacy import exchange_names as legacy_exchange_names
from server.events.legacy import with_legacy
from server.events.publishing import NotPublishable, Publisher, exchange_names
from server.events.reader import LogReader
from server.events.rows import Event, LogRow
from server.store.database import Database
from server.store.statements import load
from server.store.wire import Wire

_SQL = load("relay")
log = structlog.get_logger(__name__)

NAME = "amqp"

_WINDOW = 4096
"""Most events under way."""

_PAGE_ROWS = 512
_PAGE_BYTES = 1 << 20
_MARK_EVERY_S = 0.1
_GAP_PAUSE_S = 0.002
_LEAD_POLL_S = 0.3
_LEAD_CHECK_S = 2.0
_LEAD_IDLE_S = 8.0
"""Silence after which the database takes a leader for frozen."""

_STRIKES = 3
"""So often is an event tried by itself before it is set aside."""


class RelaySettings(Protocol):
    """The part of Settings that the relay reads."""

    @property
    def amqp_url(self) -> str: ...
    @property
    def amqp_exchange_prefix(self) -> str: ...
    @property
    def amqp_legacy_exchange_prefix(self) -> str: ...
    @property
    def amqp_scheduler_prefix(self) -> str: ...
    @property
    def amqp_confirm_timeout_s(self) -> float: ...


class LeadLost(Exception):
    """Another process leads now, or could."""


class Relay:
    """Runs until told to stop; leads when it can."""

    def __init__(self, db: Database, hub: Hub, settings: RelaySettings) -> None:
        self._db = db
        self._hub = hub
        self._url = settings.amqp_url
        elders = legacy_exchange_names(settings.amqp_legacy_exchange_prefix)
        self._exchanges: Mapping[str, str] = {
            **exchange_names(settings.amqp_exchange_prefix, settings.amqp_scheduler_prefix),
            **elders,
        }
        self._elders = bool(elders)
        self._confirm_s = settings.amqp_confirm_timeout_s
        self._wake = asyncio.Event()
        #: Refusals of the event that is tried by itself.
        self._strikes: dict[str, int] = {}
        self._last_error = ""
        #: Up to this row events are sent one at a time, because one of them was refused.
        self._careful_to = 0
        self.leading = False

    async def enter(self) -> None:
        """Makes the mark if this deployment has none: from now on no event is left out."""
        await self._db.fetch(_SQL["enter_relay"], (NAME,))

    async def run(self, stop: asyncio.Event) -> None:
        """Relays until `stop`."""
        unsubscribe = [
            self._hub.subscribe("events", lambda _: self._wake.set()),
            self._hub.subscribe_gap(self._wake.set),
        ]
        work = asyncio.create_task(self._for_ever())
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            for task in (work, stopping):
                task.cancel()
            await asyncio.gather(work, stopping, return_exceptions=True)
            for each in unsubscribe:
                each()

    async def _for_ever(self) -> None:
        failures = 0
        while True:
            try:
                async with _Lead(self._db) as lead:
                    self.leading = True
                    metrics.RELAY_LEADS.set(1)
                    log.info("this process relays events to the broker")
                    while True:
                        advanced = await self._relay(lead)
                        failures = 0 if advanced else failures + 1
                        await lead.check()
                        await asyncio.sleep(_pause(failures))
            except (LeadLost, Unavailable) as e:
                log.info("this process does not lead the relay", reason=str(e))
            except Exception:
                log.exception("the relay failed; it begins again")
            finally:
                self.leading = False
                metrics.RELAY_LEADS.set(0)
            await asyncio.sleep(_LEAD_POLL_S)

    async def _relay(self, lead: _Lead) -> bool:
        """Connects and relays until the connection ends; whether that brought the mark forward. Raises
        LeadLost and Unavailable."""
        try:
            channel = await Channel.opened(self._url)
        except BrokerLost as e:
            log.warning("the broker cannot be reached", error=e.text)
            return False
        stretch: _Stretch | None = None
        try:
            publisher = await Publisher.on(channel, self._exchanges)
            epoch, next_id = await lead.begin()
            stretch = _Stretch(self, lead, publisher, epoch, next_id)
            await stretch.run()
        except BrokerLost as e:
            log.warning("the broker is lost; the relay begins again at its mark", error=e.text)
            if stretch is not None:
                self._note_refusal(stretch, e)
                # What was confirmed need not come again.
                await stretch.move_mark(at_once=True)
        except asyncio.CancelledError:
            if stretch is not None:
                with suppress(LeadLost, Unavailable):
                    await stretch.move_mark(at_once=True)
            raise
        finally:
            await channel.close()
        return stretch is not None and stretch.advanced

    def _note_refusal(self, stretch: _Stretch, lost: BrokerLost) -> None:
        """After a refusal events are sent one at a time, until past the last one that was under way."""
        if not lost.refused:
            return
        if self._careful_to and stretch.alone is not None:
            strikes = self._strikes.get(stretch.alone.id, 0) + 1
            self._strikes = {stretch.alone.id: strikes}
        self._careful_to = max(self._careful_to, stretch.sent_to)
        self._last_error = lost.text

    # -- for a stretch

    def messages(self, row: LogRow) -> Iterable[Event]:
        """What is sent of a row: its events, and with them those for the exchanges of 2014."""
        return with_legacy(row.events) if self._elders else row.events

    def is_careful(self, row: int) -> bool:
        """Whether events of this row are sent one at a time."""
        if self._careful_to and row > self._careful_to:
            self._careful_to = 0
            self._strikes = {}
        return row <= self._careful_to

    def is_poison(self, event: Event) -> bool:
        """Whether an event was refused too often."""
        return self._strikes.get(event.id, 0) >= _STRIKES

    async def set_aside(self, event: Event, error: str) -> None:
        """Keeps an event where people find it, so that the others go on."""
        await self._db.fetch(
            _SQL["set_aside"], (event.id, event.exchange, event.key, event.payload, error or self._last_error)
        )
        metrics.RELAY_ASIDE.inc()
        log.error("an event is set aside: the broker will not have it", event_id=event.id, error=error)

    @property
    def last_error(self) -> str:
        """What the broker said at the last refusal."""
        return self._last_error

    async def woken(self, timeout_s: float) -> None:
        """Returns when there may be news, and after a while anyway."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    def reader(self) -> LogReader:
        """A reader of the log."""
        return LogReader(self._db, page_rows=_PAGE_ROWS, page_bytes=_PAGE_BYTES)

    @property
    def confirm_s(self) -> float:
        """How long the broker may be silent while something is under way."""
        return self._confirm_s


class _Stretch:
    """One connection's worth of relaying: from the mark on, until something breaks."""

    def __init__(self, relay: Relay, lead: _Lead, publisher: Publisher, epoch: int, next_id: int) -> None:
        self._relay = relay
        self._lead = lead
        self._publisher = publisher
        self._epoch = epoch
        self._reader = relay.reader()
        self._reader.start(next_id)
        #: Rows under way: the tag of the row's last event, and the row behind it.
        self._rows: deque[tuple[int, int]] = deque()
        #: Behind what the broker has confirmed, and behind what the database knows to be confirmed.
        self._confirmed = self._marked = self._first = next_id
        self._marked_at = 0.0
        #: The last row of which anything was sent.
        self.sent_to = 0
        #: The event that is under way by itself.
        self.alone: Event | None = None

    @property
    def advanced(self) -> bool:
        """Whether the broker has confirmed anything."""
        return self._confirmed > self._first

    async def run(self) -> None:
        """Relays. Raises BrokerLost, LeadLost, Unavailable."""
        while True:
            page = await self._reader.read()
            tag = 0
            for row in page.rows:
                self.sent_to = row.id
                careful = self._relay.is_careful(row.id)
                for event in self._relay.messages(row):
                    tag = await self._send(event, careful) or tag
                self._rows.append((tag, row.id + 1))
                while self._publisher.unconfirmed >= _WINDOW:
                    await self._publisher.progress(self._relay.confirm_s)
                    await self.move_mark()
            await self.move_mark()
            if not page.rows or not page.more:
                await self._rest()

    async def _send(self, event: Event, careful: bool) -> int:
        """Publishes an event; its tag, 0 for one that was set aside."""
        try:
            if careful and self._relay.is_poison(event):
                raise NotPublishable(self._relay.last_error)
            tag = self._publisher.publish(event)
        except NotPublishable as e:
            await self._relay.set_aside(event, str(e))
            return 0
        metrics.RELAY_PUBLISHED.inc()
        if careful:
            self.alone = event
            while self._publisher.unconfirmed:
                await self._publisher.progress(self._relay.confirm_s)
            self.alone = None
        return tag

    async def _rest(self) -> None:
        """Waits for confirms, or for news, whichever there is to wait for."""
        looks = self._reader.blocked_looks
        if looks:
            await asyncio.sleep(min(_GAP_PAUSE_S * looks, 0.05))
        elif self._publisher.unconfirmed:
            await self._publisher.progress(self._relay.confirm_s)
            await self.move_mark()
        else:
            await self.move_mark(at_once=True)
            await self._lead.check()
            await self._relay.woken(1.0)

    async def move_mark(self, *, at_once: bool = False) -> None:
        """Moves the mark behind all rows that are confirmed; now and then, or at once."""
        first = self._publisher.first_unconfirmed
        mark = self._confirmed
        while self._rows and self._rows[0][0] < first:
            mark = self._rows.popleft()[1]
        self._confirmed = max(self._confirmed, mark)
        now = asyncio.get_running_loop().time()
        if self._confirmed > self._marked and (at_once or now - self._marked_at >= _MARK_EVERY_S):
            await self._lead.move_mark(self._epoch, self._confirmed)
            self._marked, self._marked_at = self._confirmed, now


class _Lead:
    """The lead, held on a connection of its own from entry to exit. Entering waits until it is free."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._wire: Wire | None = None
        self._checked = 0.0

    async def __aenter__(self) -> _Lead:
        wire = await self._db.connect(
            {"idle_in_transaction_session_timeout": str(int(_LEAD_IDLE_S * 1000))}, name="tcqueue relay"
        )
        try:
            while True:
                rows = await wire.send((("BEGIN", ()), (_SQL["try_lead"], (NAME,))), 10.0)
                if rows[1][0][0]:
                    break
                await wire.send((("ROLLBACK", ()),), 10.0)
                await asyncio.sleep(_LEAD_POLL_S)
        except BaseException:
            wire.close()
            raise
        self._wire = wire
        self._checked = asyncio.get_running_loop().time()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    async def check(self) -> None:
        """Shows the database that this process lives, if it is time to. Raises LeadLost."""
        now = asyncio.get_running_loop().time()
        if now - self._checked < _LEAD_CHECK_S:
            return
        assert self._wire is not None
        try:
            await self._wire.send(((_SQL["show_life"], ()),), 5.0)
        except Exception as e:
            raise LeadLost(f"the lead's connection is lost: {e}") from e
        self._checked = asyncio.get_running_loop().time()

    async def begin(self) -> tuple[int, int]:
        """The epoch of a new stretch, and where it begins."""
        epoch, next_id, horizon = (await self._db.fetch(_SQL["begin_epoch"], (NAME,), repeat=False))[0]
        if next_id <= horizon:
            log.error("events were deleted before they were relayed", first=next_id, last=horizon)
        return epoch, max(next_id, horizon + 1)

    async def move_mark(self, epoch: int, mark: int) -> None:
        """Moves the mark. Raises LeadLost when another leader has begun."""
        await self.check()
        if not await self._db.fetch(_SQL["move_mark"], (NAME, epoch, mark)):
            raise LeadLost("another process has taken the lead")


def _pause(failures: int) -> float:
    """Seconds before another attempt: random, up to a bound that doubles to ten seconds."""
    bound: float = min(10.0, 0.1 * 2 ** min(failures, 10))
    return random.uniform(0.5, 1.0) * bound


async def backlog(db: Database) -> tuple[int, float]:
    """Rows that are not relayed yet, at most, and the age in seconds of the oldest of them."""
    rows = await db.fetch(_SQL["read_backlog"], (NAME,))
    return (int(rows[0][0]), float(rows[0][1])) if rows else (0, 0.0)
