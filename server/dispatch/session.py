"""One ClaimWork stream: what it holds, what waits to be sent, and nothing that needs a query (design 5)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from server.codec import pieces
from server.errors import QueueError
from server.transitions.claiming import Offered
from server.views import stamp
from tcqueue.v1.claim_pb2 import (
    ClaimWorkDrain,
    ClaimWorkPing,
    ClaimWorkQuarantined,
    ClaimWorkResponse,
    ClaimWorkRevoked,
    ReclaimedRun,
    ResolutionError,
    ResolutionResult,
    Revocation,
    RevocationReason,
)

Key = tuple[str, int]
#: Sends a message, or one that is serialized already.
Send = Callable[[ClaimWorkResponse | bytes], Awaitable[None]]

# Fields of ClaimWorkResponse, and the one repeated field in each of them.
_CLAIMS, _RECLAIMED, _RESOLVED = pieces.tag(1), pieces.tag(2), pieces.tag(4)
_ITEM = pieces.tag(1)

#: Messages get no further items beyond this size: clients that do not say otherwise take 4 MiB.
_MESSAGE_BYTES = 1 << 20

REVOCATIONS = {
    "canceled": RevocationReason.REVOCATION_REASON_CANCELED,
    "deadline-exceeded": RevocationReason.REVOCATION_REASON_DEADLINE_EXCEEDED,
    "claim-expired": RevocationReason.REVOCATION_REASON_CLAIM_EXPIRED,
    "resolved-elsewhere": RevocationReason.REVOCATION_REASON_RESOLVED_ELSEWHERE,
    "taken-over": RevocationReason.REVOCATION_REASON_TAKEN_OVER,
    "unknown": RevocationReason.REVOCATION_REASON_UNKNOWN,
}


@dataclass(slots=True)
class Held:
    """A run the worker has. Until `accepted` it is an offer; `accepting` is set while the accept is under
    way, `resolving` while a resolution is, `unrenewed` when a renewal came to nothing meanwhile. A detached
    run is renewed by its worker through another door and takes its slot here only."""

    offer: Offered | None = None
    accepted: bool = False
    detached: bool = False
    resolving: bool = False
    unrenewed: bool = False
    accepting: asyncio.Future[Any] | None = None


@dataclass(slots=True)
class _Outgoing:
    """What waits to be sent; as few messages as it fits in."""

    #: Claim messages, serialized.
    claims: dict[Key, bytes] = field(default_factory=dict)
    #: ReclaimedRun messages, serialized.
    reclaimed: list[bytes] = field(default_factory=list)
    revoked: list[Revocation] = field(default_factory=list)
    #: ResolutionResult messages, serialized.
    resolved: list[bytes] = field(default_factory=list)
    others: list[ClaimWorkResponse] = field(default_factory=list)


class Session:
    """A worker's open stream. Once `ended` it must close; `failure` is then what to fail with, or None.

    `stop` is called when the server ends the stream; its handler sets it.
    """

    __slots__ = (
        "_in_flight",
        "_out",
        "_pump",
        "_send",
        "_settled",
        "closing",
        "draining",
        "failure",
        "held",
        "last_heard",
        "pinged",
        "quarantine_until",
        "queue_id",
        "retire_at",
        "seen_again_at",
        "slots",
        "stop",
        "stream_id",
        "worker_group",
        "worker_id",
    )

    def __init__(
        self,
        stream_id: str,
        queue_id: str,
        worker_group: str,
        worker_id: str,
        slots: int,
        send: Send,
        now: float,
    ) -> None:
        self.stream_id = stream_id
        self.queue_id = queue_id
        self.worker_group = worker_group
        self.worker_id = worker_id
        self.slots = slots
        self.held: dict[Key, Held] = {}
        self.draining = False
        self.closing = False
        self.quarantine_until: float | None = None
        #: When the stream is to be replaced, and 0 for never (loop time).
        self.retire_at = 0.0
        #: When the worker is to be noted as active again (loop time).
        self.seen_again_at = 0.0
        self.last_heard = now
        self.pinged: float | None = None
        self.failure: QueueError | None = None
        self.stop: Callable[[], object] | None = None
        self._in_flight = 0
        self._settled: asyncio.Future[None] | None = None
        self._send = send
        self._out = _Outgoing()
        self._pump: asyncio.Task[None] | None = None

    @property
    def free(self) -> int:
        """Slots that can be given work now."""
        if self.draining or self.closing or self.quarantine_until is not None:
            return 0
        return max(0, self.slots - len(self.held))

    def end(self, failure: QueueError | None = None) -> None:
        """Makes the stream close: politely, or with a failure."""
        self.failure = self.failure or failure
        if not self.closing:
            self.closing = True
            if self.stop is not None:
                self.stop()

    def heard(self, now: float) -> None:
        """Notes that the worker is there."""
        self.last_heard = now
        self.pinged = None

    def begin(self, count: int) -> None:
        """Notes resolutions under way; their answers are still to come."""
        self._in_flight += count

    async def settled(self) -> None:
        """Returns when every resolution has been answered and everything queued has been sent."""
        if self._in_flight:
            self._settled = asyncio.get_running_loop().create_future()
            await self._settled
        await self.flushed()

    def send_claim(self, key: Key, claim: bytes) -> None:
        """Queues a serialized claim."""
        self._out.claims[key] = claim
        self._flush()

    def send_reclaimed(self, run: ReclaimedRun) -> None:
        """Queues a renewed claim."""
        self._out.reclaimed.append(run.SerializeToString())
        self._flush()

    def revoke(self, key: Key, reason: str) -> None:
        """Forgets a run and queues the word that it is no longer the worker's. A claim not sent yet is
        just not sent."""
        self.held.pop(key, None)
        if self._out.claims.pop(key, None) is None:
            self._out.revoked.append(Revocation(task_id=key[0], run_id=key[1], reason=REVOCATIONS[reason]))
            self._flush()

    def send_result(self, key: Key, state: Any, error: QueueError | None = None) -> None:
        """Queues the answer to a resolution."""
        self._in_flight -= 1
        if self._settled is not None and not self._in_flight and not self._settled.done():
            self._settled.set_result(None)
        if error is not None:
            refused = ResolutionError(code=error.code, message=error.message)
            result = ResolutionResult(task_id=key[0], run_id=key[1], error=refused)
        else:
            result = ResolutionResult(task_id=key[0], run_id=key[1], task_state=state)
        self._out.resolved.append(result.SerializeToString())
        self._flush()

    def send_quarantined(self, until: datetime | None) -> None:
        """Queues the word of a quarantine, or of its end."""
        self._other(
            ClaimWorkResponse(
                quarantined=ClaimWorkQuarantined(quarantine_until=stamp(until) if until else None)
            )
        )

    def send_drain(self, reason: str) -> None:
        """Stops offering work and queues the word that the stream will be closed."""
        self.draining = True
        self._other(ClaimWorkResponse(drain=ClaimWorkDrain(reason=reason)))

    def send_ping(self, nonce: int) -> None:
        """Queues a ping."""
        self._other(ClaimWorkResponse(ping=ClaimWorkPing(nonce=nonce)))

    @property
    def backlog(self) -> int:
        """How many answers wait for a slow reader, or are asked for beyond what the worker can hold."""
        waiting = len(self._out.resolved) + len(self._out.others) + len(self._out.revoked)
        return waiting + max(0, self._in_flight - self.slots)

    async def flushed(self) -> None:
        """Returns when everything queued so far has been handed to the transport, or the stream is gone."""
        while self._pump is not None:
            await asyncio.wait([self._pump])

    def _other(self, message: ClaimWorkResponse) -> None:
        self._out.others.append(message)
        self._flush()

    def _flush(self) -> None:
        """Starts the pump unless it runs: an idle stream has no task but its reader."""
        if self._pump is None:
            self._pump = asyncio.get_running_loop().create_task(self._run_pump())

    async def _run_pump(self) -> None:
        try:
            while self.failure is None:
                out, self._out = self._out, _Outgoing()
                sent = False
                for chunk in _messages(_CLAIMS, out.claims.values()):
                    await self._send(chunk)
                    sent = True
                for chunk in _messages(_RECLAIMED, out.reclaimed):
                    await self._send(chunk)
                    sent = True
                if out.revoked:
                    await self._send(ClaimWorkResponse(revoked=ClaimWorkRevoked(runs=out.revoked)))
                    sent = True
                for chunk in _messages(_RESOLVED, out.resolved):
                    await self._send(chunk)
                    sent = True
                for message in out.others:
                    await self._send(message)
                    sent = True
                if not sent:
                    return
        except Exception:
            self.end()
        finally:
            self._pump = None


def _messages(kind: bytes, items: Iterable[bytes]) -> Iterator[bytes]:
    """Serialized ClaimWorkResponses of a kind that holds a list: one, unless the items are large."""
    chunk: list[bytes] = []
    size = 0
    for item in items:
        if chunk and size + len(item) > _MESSAGE_BYTES:
            yield _message(kind, chunk)
            chunk, size = [], 0
        chunk.append(item)
        size += len(item)
    if chunk:
        yield _message(kind, chunk)


def _message(kind: bytes, items: Iterable[bytes]) -> bytes:
    body = pieces.repeated(_ITEM, items)
    return b"".join((kind, pieces.varint(len(body)), body))
