"""A fixed number of wires, made when first needed, replaced when lost.

psycopg_pool was the first choice. It loses two things that are needed here: its reconnection waits
grow without bound, so a database that was away for a minute may be missed for another, and it hands
out connections that died while idle, which turns a clean retry into an unknown outcome.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable

import structlog

from server.errors import Unavailable
from server.store.wire import Wire

_log = structlog.get_logger(__name__)

_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 1.0
_MEND_S = 5.0


class Pool:
    """`acquire` a wire, always `release` it; the last released is the first used again."""

    def __init__(
        self, name: str, connect: Callable[[], Awaitable[Wire]], *, size: int, wait_timeout_s: float
    ) -> None:
        self.name = name
        self.size = size
        self._connect = connect
        self._wait_timeout_s = wait_timeout_s
        self._idle: list[Wire] = []
        self._lent: set[Wire] = set()
        self._waiting: deque[asyncio.Future[Wire]] = deque()
        self._filler: asyncio.Task[None] | None = None
        self._menders: set[asyncio.Task[None]] = set()
        self._trouble = "all connections are in use"
        self._closed = False

    async def acquire(self) -> Wire:
        """A wire that is idle and, as far as can be known, alive. Raises Unavailable if none comes."""
        while self._idle:
            wire = self._idle.pop()
            if wire.usable():
                self._lent.add(wire)
                return wire
        if self._closed:
            raise Unavailable("the server is shutting down")
        waiter: asyncio.Future[Wire] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        self._fill()
        try:
            async with asyncio.timeout(self._wait_timeout_s):
                return await waiter
        except BaseException as e:
            if waiter.done() and not waiter.cancelled():
                self.release(waiter.result())  # handed over in the very moment we gave up
            if not isinstance(e, TimeoutError):
                raise
            _log.warning("no database connection in time", pool=self.name, reason=self._trouble)
            raise Unavailable("the database cannot be reached or is too busy; try again soon") from None

    def release(self, wire: Wire) -> None:
        """Gives a wire back, in whatever state: it is mended or replaced if need be."""
        if wire.closed or self._closed:
            self._drop(wire)
        elif wire.busy or wire.in_transaction:
            task = asyncio.get_running_loop().create_task(self._mend(wire))
            self._menders.add(task)
            task.add_done_callback(self._menders.discard)
        else:
            self._offer(wire)

    async def close(self) -> None:
        """Closes what is idle at once and what is lent when it comes back; waiters get Unavailable."""
        self._closed = True
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(Unavailable("the server is shutting down"))
        self._waiting.clear()
        tasks = [*self._menders, *([self._filler] if self._filler is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for wire in self._idle:
            wire.close()
        self._idle.clear()

    def _offer(self, wire: Wire) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(wire)
                return
        self._lent.discard(wire)
        self._idle.append(wire)

    def _drop(self, wire: Wire) -> None:
        self._lent.discard(wire)
        wire.close()
        if any(not waiter.done() for waiter in self._waiting):
            self._fill()

    async def _mend(self, wire: Wire) -> None:
        """Waits for an answer that its asker abandoned, ends the open transaction, and offers the wire."""
        try:
            async with asyncio.timeout(_MEND_S):
                await wire.settle()
                if not wire.closed and wire.in_transaction:
                    await wire.send([("ROLLBACK", ())], _MEND_S)
        except (Exception, asyncio.CancelledError) as e:
            wire.close()
            self._drop(wire)
            if isinstance(e, asyncio.CancelledError):
                raise
        else:
            self.release(wire)

    def _fill(self) -> None:
        if self._filler is None and len(self._idle) + len(self._lent) < self.size and not self._closed:
            self._filler = asyncio.get_running_loop().create_task(self._connect_for_waiters())
            self._filler.add_done_callback(self._filled)

    def _filled(self, task: asyncio.Task[None]) -> None:
        self._filler = None
        if any(not waiter.done() for waiter in self._waiting):
            self._fill()  # somebody came between its last look and now

    async def _connect_for_waiters(self) -> None:
        """One connection after another while somebody waits and there is room."""
        pause = _FIRST_PAUSE_S
        while len(self._idle) + len(self._lent) < self.size and any(not w.done() for w in self._waiting):
            try:
                wire = await self._connect()
            except Exception as e:
                if str(e) != self._trouble:
                    self._trouble = str(e)
                    _log.warning("cannot connect to the database", pool=self.name, error=self._trouble)
                # Full jitter: many processes come back to one database.
                await asyncio.sleep(random.uniform(pause / 2, pause))
                pause = min(pause * 2, _LONGEST_PAUSE_S)
            else:
                pause = _FIRST_PAUSE_S
                self._trouble = "all connections are in use"
                self._lent.add(wire)
                self._offer(wire)
