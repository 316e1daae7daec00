"""The process's heartbeat: says that it lives, learns the database's clock, and keeps streams in order."""

from __future__ import annotations

import asyncio
import time

import structlog

from server.clock import Clock
from server.dispatch.dispatcher import Dispatcher
from server.errors import Unavailable
from server.store.statements import load
from server.transitions.machine import Machine

log = structlog.get_logger(__name__)

_SQL = load("claims")
#: Seconds between two rounds of stream upkeep; the resolution of every stream timeout.
UPKEEP_S = 0.2


class Heartbeat:
    """Renews the process's lease three times within its length. A process that finds itself buried
    (frozen too long, or cut off) takes its streams' runs back if they have not been retried yet."""

    def __init__(self, machine: Machine, dispatcher: Dispatcher, clock: Clock) -> None:
        self._machine = machine
        self._dispatcher = dispatcher
        self._clock = clock
        self._known = False
        self._buried = False

    async def beat(self) -> None:
        """One heartbeat. Raises Unavailable when the database is away."""
        machine = self._machine
        asked = time.time()
        rows = await machine.db.fetch(
            _SQL["renew_process"], (machine.process_id, machine.settings.process_lease_s)
        )
        now, others, was_unknown = rows[0]
        self._clock.learn(now, asked=asked, answered=time.time())
        machine.hub.has_peers = others > 0
        if was_unknown and self._known:
            log.warning("this process had been taken for dead; its runs are taken back")
            self._buried = True
        self._known = True
        if self._buried:
            await self._dispatcher.holdings.readopt()
            self._buried = False

    async def run(self, stop: asyncio.Event) -> None:
        """Beats until `stop`."""
        pause = self._machine.settings.process_lease_s / 3
        while not stop.is_set():
            try:
                await self.beat()
            except Unavailable as e:
                log.warning("heartbeat failed", error=e.message)
            except Exception:
                log.exception("heartbeat failed")
            try:
                await asyncio.wait_for(stop.wait(), pause)
            except TimeoutError:
                continue

    async def upkeep(self, stop: asyncio.Event) -> None:
        """Keeps streams in order until `stop`."""
        while not stop.is_set():
            try:
                self._dispatcher.upkeep()
            except Exception:
                log.exception("stream upkeep failed")
            try:
                await asyncio.wait_for(stop.wait(), UPKEEP_S)
            except TimeoutError:
                continue

    async def leave(self) -> None:
        """The process ends politely."""
        await self._machine.db.fetch(_SQL["forget_process"], (self._machine.process_id,))
