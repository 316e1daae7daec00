"""Wake-ups between the parts of one process and between processes, over LISTEN/NOTIFY.

A message is a hint that something changed, never the change itself: whoever hears it looks into the
database. Subscribers in the same process hear it at once and for certain; those in other processes
within milliseconds, and after a lost connection they are told that they may have missed some.

A process that believes itself alone sends nothing. So that a newcomer misses nothing all the same, it
says hello once it listens, and whoever had kept silent answers with a gap.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable
from typing import Any

import orjson
import structlog

from server.errors import Unavailable
from server.store.database import Database
from server.store.statements import load
from server.store.wire import Wire

_log = structlog.get_logger(__name__)
_SQL = load("hub")
_PROBE = load("database")["probe"]

_MESSAGE_BYTES = 7900  # PostgreSQL takes payloads shorter than 8000
_INTERVAL_S = 0.003  # NOTIFY serialises commits, so statements keep this distance
_BACKLOG = 10_000  # more than this unsent, and a single gap takes their place
_ANSWER_S = 5.0
_PROBE_S = 10.0
_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 1.0
# How long having heard from another process outweighs being told that there is none.
_PEER_MEMORY_S = 30.0

_NEWS, _HELLO, _GAP = "news", "hello", "gap"


class NotifyHub:
    """One per process. `publish` and `subscribe` work from the start, across processes after `start`."""

    def __init__(self, db: Database, process_id: str) -> None:
        self.process_id = process_id
        self._db = db
        self._subscribers: dict[str, list[Callable[[str], None]]] = {}
        self._gap_subscribers: list[Callable[[], None]] = []
        self._has_peers = True
        self._peer_heard = -_PEER_MEMORY_S
        self._unsent: dict[tuple[str, str], None] = {}
        self._marks: dict[str, None] = {}
        self._sender: asyncio.Task[None] | None = None
        self._sending: Wire | None = None
        self._listener: asyncio.Task[None] | None = None
        self._listening = asyncio.Event()
        self._sent = 0.0

    @property
    def has_peers(self) -> bool:
        """Whether other processes may be listening; if not, nothing is sent to them.

        True until somebody who knows sets it. Setting it to False has no effect soon after another
        process was heard.
        """
        return self._has_peers

    @has_peers.setter
    def has_peers(self, value: bool) -> None:
        if value and not self._has_peers:
            self._has_peers = True
            self._mark(_GAP)  # they have missed what we kept to ourselves
        elif not value and time.monotonic() - self._peer_heard > _PEER_MEMORY_S:
            self._has_peers = False

    @property
    def listening(self) -> bool:
        """Whether messages of other processes arrive now."""
        return self._listening.is_set()

    async def start(self) -> None:
        """Begins to listen; returns once it does. Raises Unavailable if that takes too long."""
        self._listener = asyncio.create_task(self._listen(), name="hub listener")
        try:
            async with asyncio.timeout(self._db.wait_timeout_s):
                await self._listening.wait()
        except TimeoutError:
            await self.stop()
            raise Unavailable("the database cannot be reached, or LISTEN does not work there") from None

    async def stop(self) -> None:
        """Sends what is unsent if that goes quickly, and closes both connections."""
        if self._sender is not None:
            await asyncio.wait([self._sender], timeout=1.0)
        tasks = [task for task in (self._sender, self._listener) if task is not None]
        self._listener = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._sending is not None:
            self._sending.close()
            self._sending = None
        self._listening.clear()

    def subscribe(self, channel: str, callback: Callable[[str], None], /) -> Callable[[], None]:
        """Has `callback(payload)` called for each message on a channel, in the event loop, until the
        returned function is called. It must be quick and must not raise (that is logged)."""
        callbacks = self._subscribers.setdefault(channel, [])
        callbacks.append(callback)
        return lambda: _remove(callbacks, callback)

    def subscribe_gap(self, callback: Callable[[], None], /) -> Callable[[], None]:
        """Has `callback()` called whenever messages may have been missed, on any channel."""
        self._gap_subscribers.append(callback)
        return lambda: _remove(self._gap_subscribers, callback)

    def publish(self, channel: str, payload: str) -> None:
        """Tells subscribers here before it returns, and other processes soon; repeats of a message not
        yet sent are dropped. Raises ValueError for one of more than about 7,800 bytes."""
        if self._has_peers and (channel, payload) not in self._unsent:
            if len(channel) + len(payload) > 1000:
                self._check_size(channel, payload)
            self._unsent[channel, payload] = None
            if len(self._unsent) > _BACKLOG:
                self._unsent.clear()
                self._marks[_GAP] = None
            if self._sender is None:
                self._start_sender()
        self._deliver(channel, payload)

    def _deliver(self, channel: str, payload: str) -> None:
        for callback in tuple(self._subscribers.get(channel, ())):
            try:
                callback(payload)
            except Exception:
                _log.exception("hub subscriber failed", channel=channel)

    def _tell_gap(self) -> None:
        for callback in tuple(self._gap_subscribers):
            try:
                callback()
            except Exception:
                _log.exception("gap subscriber failed")

    # Hearing

    async def _listen(self) -> None:
        """Listens, and begins anew when the connection ends, for as long as the hub lives."""
        pause = _FIRST_PAUSE_S
        started = False
        while True:
            lost = asyncio.Event()
            wire: Wire | None = None
            try:
                wire = await self._db.connect({}, name="tcqueue hub")
                wire.on_notify = self._heard
                wire.on_lost = lost.set
                await wire.send([(_SQL["listen"], ())], _ANSWER_S)
                pause = _FIRST_PAUSE_S
                self._listening.set()
                self._mark(_HELLO)
                if started:
                    _log.warning("hub listens again; what was said meanwhile is lost")
                    self._tell_gap()
                started = True
                await self._watch(wire, lost)
                _log.warning("hub lost its connection")
            except Exception as e:
                _log.warning("hub cannot listen", error=str(e))
                await asyncio.sleep(random.uniform(pause / 2, pause))
                pause = min(pause * 2, _LONGEST_PAUSE_S)
            finally:
                self._listening.clear()
                if wire is not None:
                    wire.close()

    async def _watch(self, wire: Wire, lost: asyncio.Event) -> None:
        """Returns when the connection has ended, which a silent network only shows when asked."""
        while not lost.is_set():
            try:
                async with asyncio.timeout(_PROBE_S):
                    await lost.wait()
            except TimeoutError:
                await wire.send([(_PROBE, ())], _ANSWER_S)

    def _heard(self, channel: str, text: str, backend_pid: int) -> None:
        try:
            process_id, kind, news = orjson.loads(text)
            pairs = [(str(name), str(payload)) for name, payload in news]
        except (ValueError, TypeError):
            _log.warning("hub heard something unreadable", backend_pid=backend_pid)
            return
        if process_id == self.process_id:
            return
        if process_id:
            # A command that tells of a change, or our own transaction, is nobody who listens.
            self._peer_heard = time.monotonic()
        if kind == _HELLO:
            self.has_peers = True
        elif kind == _GAP:
            self._tell_gap()
        for name, payload in pairs:
            self._deliver(name, payload)

    # Telling

    def _mark(self, kind: str) -> None:
        self._marks[kind] = None
        if self._sender is None:
            self._start_sender()

    def _start_sender(self) -> None:
        if self._listener is None:
            return  # not started yet; what is unsent goes with the first hello
        self._sender = asyncio.get_running_loop().create_task(self._send(), name="hub sender")

    async def _send(self) -> None:
        """Sends until nothing is unsent, keeping the interval; what cannot be sent waits."""
        pause = _FIRST_PAUSE_S
        try:
            while self._unsent or self._marks:
                await asyncio.sleep(max(0.0, self._sent + _INTERVAL_S - time.monotonic()))
                marks, self._marks = self._marks, {}
                unsent, self._unsent = self._unsent, {}
                messages = [*(self._message(mark, []) for mark in marks), *self._pack(unsent)]
                try:
                    if self._sending is None or not self._sending.usable():
                        # Hints need not survive a crash, so their commits need not wait for the disk.
                        options = {"synchronous_commit": "off"}
                        self._sending = await self._db.connect(options, name="tcqueue hub sender")
                    await self._sending.send([(_SQL["notify"], (messages,))], _ANSWER_S)
                    self._sent = time.monotonic()
                    pause = _FIRST_PAUSE_S
                except Exception as e:
                    self._marks = marks | self._marks
                    self._unsent = unsent | self._unsent
                    if self._sending is not None:
                        self._sending.close()
                        self._sending = None
                    _log.warning("hub cannot notify", error=str(e))
                    await asyncio.sleep(random.uniform(pause / 2, pause))
                    pause = min(pause * 2, _LONGEST_PAUSE_S)
        finally:
            self._sender = None

    def _pack(self, pairs: Iterable[tuple[str, str]]) -> list[str]:
        """As few messages as the size limit allows."""
        messages: list[str] = []
        batch: list[tuple[str, str]] = []
        room = 0
        for pair in pairs:
            size = len(orjson.dumps(pair)) + 1
            if batch and size > room:
                messages.append(self._message(_NEWS, batch))
                batch = []
            if not batch:
                room = _MESSAGE_BYTES - len(self._message(_NEWS, []).encode())
            batch.append(pair)
            room -= size
        if batch:
            messages.append(self._message(_NEWS, batch))
        return messages

    def _message(self, kind: str, pairs: list[tuple[str, str]]) -> str:
        return _encode(self.process_id, kind, pairs)

    def _check_size(self, channel: str, payload: str) -> None:
        if len(self._message(_NEWS, [(channel, payload)]).encode()) > _MESSAGE_BYTES:
            raise ValueError(f"a message on {channel} is too long for NOTIFY")


def message(process_id: str, channel: str, payload: str) -> str:
    """What NOTIFY carries for one message, to be sent inside a transaction of one's own where it must
    be told if and only if that commits. An empty `process_id` is heard by the sender's hub as well."""
    return _encode(process_id, _NEWS, [(channel, payload)])


def _encode(process_id: str, kind: str, pairs: list[tuple[str, str]]) -> str:
    return orjson.dumps([process_id, kind, pairs]).decode()


def _remove(callbacks: list[Any], callback: Any) -> None:
    if callback in callbacks:
        callbacks.remove(callback)
