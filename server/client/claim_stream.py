"""One ClaimWork stream, from opening to end: sends what its worker says, gives what the queue says.

Sending never blocks the caller: what is said while a message is on its way goes into the next one,
accepts before resolutions. Nothing here outlives the stream; that is the worker's business
(`stream_worker`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc.aio

from tcqueue.v1.claim_pb2 import (
    ClaimWorkAccept,
    ClaimWorkOpen,
    ClaimWorkPong,
    ClaimWorkRequest,
    ClaimWorkResolve,
    ClaimWorkResponse,
    ClaimWorkSlots,
    Resolution,
)
from tcqueue.v1.queue_service_pb2_grpc import QueueStub
from tcqueue.v1.run_pb2 import RunReference

#: The queue takes at most this many items in a message.
_MOST = 1024

_OPEN_FAILED = (grpc.aio.AioRpcError, asyncio.InvalidStateError)


class ClaimWorkStream:
    """A stream as its worker uses it: make it, iterate over it, call the methods, leave it.

    Iteration gives the queue's messages, pings excepted, which are answered by themselves; it ends when
    the queue has closed the stream and raises grpc.aio.AioRpcError when the stream broke.
    """

    def __init__(
        self, channel: grpc.aio.Channel, metadata: Iterable[tuple[str, str]], opening: ClaimWorkOpen
    ) -> None:
        # Without a request iterator the call takes its requests by `write`; the stubs' types forget that.
        stub: Any = QueueStub(channel)
        self._call = stub.ClaimWork(metadata=tuple(metadata))
        self._accepts: list[RunReference] = []
        self._resolutions: list[Resolution] = []
        self._others: list[ClaimWorkRequest] = [ClaimWorkRequest(open=opening)]
        self._closing = False
        self._ended = False
        self._end_timer: asyncio.TimerHandle | None = None
        self._wake = asyncio.Event()
        self._wake.set()
        self._writer = asyncio.create_task(self._write())

    def accept(self, runs: Iterable[RunReference]) -> None:
        """Takes claims on."""
        self._accepts.extend(runs)
        self._wake.set()

    def resolve(self, resolutions: Iterable[Resolution]) -> None:
        """Resolves runs."""
        self._resolutions.extend(resolutions)
        self._wake.set()

    def set_slots(self, slots: int) -> None:
        """Changes how many runs the worker can hold."""
        self._other(ClaimWorkRequest(slots=ClaimWorkSlots(slots=slots)))

    def finish(self, patience_s: float) -> None:
        """Says that nothing more will be sent; the queue answers what it has and closes the stream.

        It is closed from here when the queue takes longer than that.
        """
        self._closing = True
        self._wake.set()
        self._end_timer = asyncio.get_running_loop().call_later(patience_s, self.end)

    def end(self) -> None:
        """Ends the stream here and now; iteration ends too."""
        self._ended = True
        self._writer.cancel()
        self._call.cancel()

    async def __aiter__(self) -> AsyncIterator[ClaimWorkResponse]:
        try:
            async for message in self._call:
                if message.HasField("ping"):
                    self._other(ClaimWorkRequest(pong=ClaimWorkPong(nonce=message.ping.nonce)))
                else:
                    yield message
        except asyncio.CancelledError:
            # A call that was cancelled from here looks to its reader as if the reader had been.
            if not self._ended:
                raise

    async def leave(self) -> None:
        """Ends the stream whatever its state, and returns when nothing of it is left."""
        if self._end_timer is not None:
            self._end_timer.cancel()
        self.end()
        await asyncio.wait([self._writer])

    def _other(self, message: ClaimWorkRequest) -> None:
        self._others.append(message)
        self._wake.set()

    async def _write(self) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                for message in self._take():
                    await self._call.write(message)
                if self._closing and not self._wake.is_set():
                    await self._call.done_writing()
                    return
        except _OPEN_FAILED:
            # The reader is told why, with the whole status.
            return

    def _take(self) -> list[ClaimWorkRequest]:
        others, self._others = self._others, []
        accepts, self._accepts = self._accepts, []
        resolutions, self._resolutions = self._resolutions, []
        return [
            *others,
            *(
                ClaimWorkRequest(accept=ClaimWorkAccept(runs=accepts[i : i + _MOST]))
                for i in range(0, len(accepts), _MOST)
            ),
            *(
                ClaimWorkRequest(resolve=ClaimWorkResolve(resolutions=resolutions[i : i + _MOST]))
                for i in range(0, len(resolutions), _MOST)
            ),
        ]
