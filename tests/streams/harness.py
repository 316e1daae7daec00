"""What stream tests work with: servers in the test's own loop, and workers that say what they want."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2, status_pb2

from server import app
from server.config import Settings
from server.domain import slugid
from server.identity import tokens
from server.identity.secrets import new_key
from server.loops.claims import ClaimExpiry
from server.loops.deadlines import Deadlines
from tcqueue.v1.claim_pb2 import (
    Claim,
    ClaimWorkAccept,
    ClaimWorkDrain,
    ClaimWorkOpen,
    ClaimWorkPong,
    ClaimWorkQuarantined,
    ClaimWorkRequest,
    ClaimWorkResolve,
    ClaimWorkResponse,
    ClaimWorkSlots,
    Outcome,
    ReclaimedRun,
    Resolution,
    ResolutionResult,
    Revocation,
)
from tcqueue.v1.queue_service_pb2_grpc import QueueStub
from tcqueue.v1.run_pb2 import RunReference
from tcqueue.v1.task_pb2 import (
    CreateTaskRequest,
    CreateTasksRequest,
    GetTaskStatusRequest,
    NewTask,
    TaskDefinition,
    TaskMetadata,
    TaskStatus,
)

QUEUE = "prov/streams"
PATIENCE_S = 15.0
COMPLETED, FAILED, EXCEPTION = (
    Outcome.OUTCOME_COMPLETED,
    Outcome.OUTCOME_FAILED,
    Outcome.OUTCOME_EXCEPTION,
)
#: No pooling of connections between channels, and no waiting before the next attempt.
CHANNEL_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.max_receive_message_length", 32 * 1024 * 1024),
)

Key = tuple[str, int]
Metadata = tuple[tuple[str, str], ...]


def bearer(token: str) -> Metadata:
    """Call metadata with a token."""
    return (("authorization", f"Bearer {token}"),)


def definition(**fields: Any) -> TaskDefinition:
    """A definition with all that is required, created now, due in an hour, for QUEUE."""
    now = fields.pop("now", None) or datetime.now(UTC)
    created, deadline = Timestamp(), Timestamp()
    created.FromDatetime(now)
    deadline.FromDatetime(now + timedelta(seconds=fields.pop("due_s", 3600)))
    required: dict[str, Any] = {
        "task_queue_id": QUEUE,
        "created": created,
        "deadline": deadline,
        "payload": json.dumps({"command": ["true"]}),
        "metadata": TaskMetadata(
            name="a task", description="for a test", owner="me@example.com", source="https://example.com/"
        ),
    }
    return TaskDefinition(**{**required, **fields})


class Failure(AssertionError):
    """A call or stream failed; with what."""

    def __init__(self, code: grpc.StatusCode, reason: str, message: str, fields: Sequence[str] = ()) -> None:
        super().__init__(f"{code.name} {reason}: {message}")
        self.code = code
        self.reason = reason
        self.message = message
        #: What is to blame, by path.
        self.fields = fields


async def failure_of(call: Any) -> Failure:
    """Status of a call that has ended, or ends soon, with the reason of its ErrorInfo and the fields of its
    BadRequest."""
    async with asyncio.timeout(PATIENCE_S):
        code = await call.code()
        message = await call.details() or ""
        trailers = await call.trailing_metadata() or ()
    info = error_details_pb2.ErrorInfo()
    blame = error_details_pb2.BadRequest()
    for key, value in trailers:
        if key == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                detail.Unpack(info)
                detail.Unpack(blame)
    return Failure(code, info.reason, message, [found.field for found in blame.field_violations])


class Client:
    """One caller on one channel."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Metadata) -> None:
        self.channel: Any = channel
        self.metadata = metadata
        self.stub: Any = QueueStub(channel)

    def having(self, client_id: str, access_token: str, certificate: str = "") -> Client:
        """Another caller on the same channel."""
        proof = {"certificate": json.loads(certificate)} if certificate else {}
        return Client(self.channel, bearer(tokens.mint(client_id, access_token, **proof)))

    async def __call__(self, name: str, request: Any, timeout: float = PATIENCE_S) -> Any:
        """A unary call's response; raises Failure."""
        call = getattr(self.stub, name)(request, metadata=self.metadata, timeout=timeout)
        try:
            return await call
        except grpc.aio.AioRpcError:
            raise await failure_of(call) from None

    async def create(self, **fields: Any) -> str:
        """Creates a task; returns its id."""
        task_id = fields.pop("task_id", None) or slugid.nice()
        await self("CreateTask", CreateTaskRequest(task_id=task_id, task=definition(**fields)))
        return str(task_id)

    async def create_many(self, count: int, **fields: Any) -> list[str]:
        """Creates many tasks at once; returns their ids."""
        ids = [slugid.nice() for _ in range(count)]
        task = definition(**fields)
        for begin in range(0, count, 500):
            request = CreateTasksRequest(
                tasks=[NewTask(task_id=task_id, task=task) for task_id in ids[begin : begin + 500]]
            )
            await self("CreateTasks", request)
        return ids

    async def status(self, task_id: str) -> TaskStatus:
        """A task's status."""
        response = await self("GetTaskStatus", GetTaskStatusRequest(task_id=task_id))
        status: TaskStatus = response.status
        return status

    async def work(
        self,
        worker: str = "w1",
        slots: int = 1,
        held: Iterable[Key] = (),
        *,
        queue: str = QUEUE,
        pongs: bool = True,
    ) -> Stream:
        """Opens a stream as worker `g/<worker>`."""
        stream = Stream(self, pongs=pongs)
        opening = ClaimWorkOpen(
            task_queue_id=queue,
            worker_group="g",
            worker_id=worker,
            slots=slots,
            held=[RunReference(task_id=task, run_id=run) for task, run in held],
        )
        await stream.send(ClaimWorkRequest(open=opening))
        return stream


class Stream:
    """A worker's stream; what comes in waits in one queue for each kind."""

    def __init__(self, client: Client, *, pongs: bool = True, reading: bool = True) -> None:
        self.call: Any = client.stub.ClaimWork(metadata=client.metadata)
        self.kinds: list[str] = []
        self.pings = 0
        self._pongs = pongs
        self._queues: dict[str, asyncio.Queue[Any]] = {}
        self._all: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self._ended = asyncio.Event()
        self._reader = asyncio.create_task(self._read()) if reading else None

    # What the worker says

    async def send(self, request: ClaimWorkRequest) -> None:
        """Sends a message."""
        async with asyncio.timeout(PATIENCE_S):
            await self.call.write(request)

    async def accept(self, *claims: Claim) -> None:
        """Takes claims on."""
        await self.accept_runs(*(key_of(claim) for claim in claims))

    async def accept_runs(self, *keys: Key) -> None:
        """Takes runs on."""
        runs = [RunReference(task_id=task, run_id=run) for task, run in keys]
        await self.send(ClaimWorkRequest(accept=ClaimWorkAccept(runs=runs)))

    async def resolve(self, *claims: Claim, outcome: Any = COMPLETED, reason: Any = 0) -> None:
        """Resolves claimed runs."""
        await self.resolve_runs(*(key_of(claim) for claim in claims), outcome=outcome, reason=reason)

    async def resolve_runs(self, *keys: Key, outcome: Any = COMPLETED, reason: Any = 0) -> None:
        """Resolves runs."""
        resolutions = [
            Resolution(task_id=task, run_id=run, outcome=outcome, reason=reason) for task, run in keys
        ]
        await self.send(ClaimWorkRequest(resolve=ClaimWorkResolve(resolutions=resolutions)))

    async def slots(self, slots: int) -> None:
        """Offers another number of slots."""
        await self.send(ClaimWorkRequest(slots=ClaimWorkSlots(slots=slots)))

    async def round_trip(self) -> None:
        """Returns when the server has dealt with everything sent before; takes no part in claims."""
        unknown = slugid.nice()
        await self.resolve_runs((unknown, 0))
        while (result := await self.resolved()).task_id != unknown:
            raise AssertionError(f"an unexpected answer: {result}")

    async def finish(self) -> None:
        """Says that nothing more comes."""
        await self.call.done_writing()

    def break_off(self) -> None:
        """Ends the stream without a word, as a dying worker does."""
        self.call.cancel()

    # What the queue says

    async def next(self, kind: str) -> Any:
        """The next item of a kind."""
        return await asyncio.wait_for(self._queue(kind).get(), PATIENCE_S)

    def waiting(self, kind: str) -> int:
        """How many items of a kind have come and were not taken."""
        return self._queue(kind).qsize()

    async def claim(self) -> Claim:
        """The next claim."""
        claim: Claim = await self.next("claims")
        return claim

    async def claims(self, count: int) -> list[Claim]:
        """The next claims."""
        return [await self.claim() for _ in range(count)]

    async def started(self, count: int = 1) -> list[Claim]:
        """The next claims, accepted."""
        claims = await self.claims(count)
        await self.accept(*claims)
        return claims

    async def revoked(self) -> Revocation:
        """The next revocation."""
        revocation: Revocation = await self.next("revoked")
        return revocation

    async def resolved(self) -> ResolutionResult:
        """The next answer to a resolution."""
        result: ResolutionResult = await self.next("resolved")
        return result

    async def reclaimed(self) -> ReclaimedRun:
        """The next renewal."""
        run: ReclaimedRun = await self.next("reclaimed")
        return run

    async def quarantined(self) -> ClaimWorkQuarantined:
        """The next word about a quarantine."""
        word: ClaimWorkQuarantined = await self.next("quarantined")
        return word

    async def drain(self) -> ClaimWorkDrain:
        """The word that the stream will be closed."""
        word: ClaimWorkDrain = await self.next("drain")
        return word

    async def end(self) -> Failure:
        """How the stream ended; waits for it."""
        await asyncio.wait_for(self._ended.wait(), PATIENCE_S)
        return await failure_of(self.call)

    async def messages(self) -> AsyncIterator[tuple[str, Any]]:
        """Everything as it comes, as (kind, item), until the stream ends; instead of `next` and its like."""
        while True:
            kind, item = await self._all.get()
            if not kind:
                return
            yield kind, item

    def _queue(self, kind: str) -> asyncio.Queue[Any]:
        return self._queues.setdefault(kind, asyncio.Queue())

    async def _read(self) -> None:
        try:
            async for message in self.call:
                await self._take(message)
        except (grpc.aio.AioRpcError, asyncio.CancelledError, asyncio.InvalidStateError):
            pass
        finally:
            self._ended.set()
            self._all.put_nowait(("", None))

    async def _take(self, message: ClaimWorkResponse) -> None:
        kind = message.WhichOneof("message") or ""
        self.kinds.append(kind)
        body = getattr(message, kind)
        if kind == "claims":
            items: Iterable[Any] = body.claims
        elif kind in ("reclaimed", "revoked"):
            items = body.runs
        elif kind == "resolved":
            items = body.results
        else:
            items = [body]
        if kind == "ping":
            self.pings += 1
            if self._pongs:
                await self.call.write(ClaimWorkRequest(pong=ClaimWorkPong(nonce=body.nonce)))
        for item in items:
            self._queue(kind).put_nowait(item)
            self._all.put_nowait((kind, item))

    async def close(self) -> None:
        """Ends the stream, whatever its state."""
        self.call.cancel()
        if self._reader is not None:
            await asyncio.wait([self._reader])


def key_of(claim: Claim) -> Key:
    """The run a claim is about."""
    return claim.status.task_id, claim.run_id


class Instance:
    """A server in the test's loop: everything `serve` runs but the loops, which tests drive."""

    def __init__(self, process: app.Process, door: app.GrpcDoor, port: int, metadata: Metadata) -> None:
        self.process = process
        self.services = process.services
        self.machine = process.services.machine
        self.door = door
        self.address = f"127.0.0.1:{port}"
        self.metadata = metadata
        self._expiry = ClaimExpiry(self.machine)
        self._deadlines = Deadlines(self.machine)
        self._draining: asyncio.Task[None] | None = None

    async def expire_claims(self) -> int:
        """One round of claim expiry; how many runs it lost."""
        return await self._expiry.run_once()

    async def exceed_deadlines(self) -> int:
        """One round of the deadline loop; how many tasks it ended."""
        return await self._deadlines.run_once()

    def drain(self) -> asyncio.Task[None]:
        """Begins to shut the door politely."""
        if self._draining is None:
            self._draining = asyncio.create_task(app.close_doors(self.services, self.door))
        return self._draining

    async def rows(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """A look into the database."""
        return await self.services.db.fetch(sql, parameters)

    async def run_row(self, task_id: str, run_id: int, columns: str) -> tuple[Any, ...]:
        """Columns of a run."""
        (row,) = await self.rows(
            f"select {columns} from runs where task_id = $1 and run_id = $2", task_id, run_id
        )
        return row


class Cluster:
    """Servers on one database, and clients to them."""

    def __init__(self, dsn: str, stack: AsyncExitStack) -> None:
        self.root_token = slugid.v4() + slugid.v4()
        self.settings = Settings(
            database_url=dsn,
            encryption_key=new_key(),
            root_access_token=self.root_token,
            grpc_listen="127.0.0.1:0",
            http_listen="",
            hot_pool_size=3,
            cold_pool_size=3,
            shutdown_grace_s=2.0,
        )
        self.metadata = bearer(tokens.mint("root", self.root_token, lifetime_s=3000))
        self._stack = stack

    async def start(self, **settings: Any) -> Instance:
        """One more server."""
        return await self._stack.enter_async_context(self._instance(replace(self.settings, **settings)))

    async def client(self, address: str, metadata: Metadata | None = None) -> Client:
        """A client with a connection of its own; root unless told otherwise."""
        channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._stack.push_async_callback(channel.close, None)
        return Client(channel, self.metadata if metadata is None else metadata)

    @asynccontextmanager
    async def _instance(self, settings: Settings) -> AsyncIterator[Instance]:
        process = await app.start(settings)
        stop = asyncio.Event()
        door = app.GrpcDoor(settings, app.open_pipelines(process.services), reuse_port=False)
        instance = Instance(process, door, await door.open(), self.metadata)
        upkeep = asyncio.create_task(process.heartbeat.upkeep(stop))
        try:
            yield instance
        finally:
            for session in list(process.services.dispatcher.sessions.values()):
                session.end()
            await instance.drain()
            stop.set()
            await upkeep
            await process.close()


async def all_of(streams: Sequence[Stream], kind: str, count: int) -> list[tuple[int, Any]]:
    """The first `count` items of a kind, whichever stream they come to: (index of the stream, item)."""

    async def take(index: int) -> None:
        while True:
            item = await streams[index].next(kind)
            found.append((index, item))
            if len(found) >= count:
                done.set()

    found: list[tuple[int, Any]] = []
    done = asyncio.Event()
    tasks = [asyncio.create_task(take(index)) for index in range(len(streams))]
    try:
        await asyncio.wait_for(done.wait(), PATIENCE_S)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return found
