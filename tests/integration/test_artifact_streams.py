"""Artifacts over gRPC alone: uploads that are checked, break off and go on; downloads from any offset."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from server.client.artifacts import ArtifactClient, RunPlace
from server.client.errors import CallError, failure_of
from tcqueue.v1.artifact_pb2 import (
    DownloadArtifactRequest,
    GetArtifactUploadRequest,
    UploadArtifactFinish,
    UploadArtifactOpen,
    UploadArtifactRequest,
)
from tcqueue.v1.queue_service_pb2_grpc import QueueStub
from tests.conformance.building import at
from tests.conformance.door import GrpcDoor, refused
from tests.conformance.test_artifacts import Run, begun
from tests.plugins.server import Queue

pytestmark = pytest.mark.doors("grpc")

NAME = "public/data.bin"
MEGABYTE = 1024 * 1024


class Streams:
    """Upload and download streams of one run, message by message."""

    def __init__(self, queue: Queue, run: Run) -> None:
        assert isinstance(queue.door, GrpcDoor)
        self.stub: Any = QueueStub(queue.door.channel)
        self.client = ArtifactClient(queue.door.channel, lambda: queue.credentials)
        self.metadata = queue.credentials.metadata()
        self.place: dict[str, Any] = {"task_id": run.task_id, "run_id": 0, "name": NAME}
        self.expires: Timestamp = at(minutes=30)

    def open(self, **fields: Any) -> UploadArtifactRequest:
        """The message that opens an upload."""
        given = {**self.place, "content_type": "application/x", "expires": self.expires, **fields}
        return UploadArtifactRequest(open=UploadArtifactOpen(**given))

    async def send(self, *messages: UploadArtifactRequest) -> Any:
        """The answer to a stream of these messages. Raises CallError."""

        async def stream() -> AsyncIterator[UploadArtifactRequest]:
            for message in messages:
                yield message

        try:
            return await self.stub.UploadArtifact(stream(), metadata=self.metadata)
        except grpc.aio.AioRpcError as e:
            raise CallError(failure_of(e)) from None

    async def received(self) -> int:
        """How much of an upload has arrived."""
        request = GetArtifactUploadRequest(**self.place)
        return int((await self.stub.GetArtifactUpload(request, metadata=self.metadata)).received)

    async def download(self, **fields: Any) -> list[Any]:
        """All messages of a download. Raises CallError."""
        request = DownloadArtifactRequest(**{**self.place, **fields})
        try:
            return [m async for m in self.stub.DownloadArtifact(request, metadata=self.metadata)]
        except grpc.aio.AioRpcError as e:
            raise CallError(failure_of(e)) from None


@pytest.fixture
async def run(queue: Queue) -> Run:
    return await begun(queue)


@pytest.fixture
def streams(queue: Queue, run: Run) -> Streams:
    return Streams(queue, run)


def chunk(data: bytes) -> UploadArtifactRequest:
    return UploadArtifactRequest(chunk=data)


def finish(data: bytes) -> UploadArtifactRequest:
    return UploadArtifactRequest(finish=UploadArtifactFinish(sha256=hashlib.sha256(data).hexdigest()))


def content(messages: list[Any]) -> bytes:
    return b"".join(m.chunk for m in messages if m.WhichOneof("message") == "chunk")


async def failed(code: grpc.StatusCode, words: str, work: Any) -> CallError:
    """The work must be refused with this status and these words."""
    with pytest.raises(CallError) as caught:
        await work
    assert (caught.value.failure.status, words in caught.value.failure.message) == (code, True), str(
        caught.value
    )
    return caught.value


async def test_up_and_down(streams: Streams, run: Run) -> None:
    data = os.urandom(3 * MEGABYTE + 17)
    parts = [chunk(data[i : i + 700_000]) for i in range(0, len(data), 700_000)]
    stored = await streams.send(streams.open(content_length=len(data)), *parts, finish(data))
    assert (stored.content_length, stored.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert (await run.info(NAME)).content_length == len(data)
    head, *chunks, end = await streams.download()
    assert (head.head.content_type, head.head.content_length) == ("application/x", len(data))
    assert content(chunks) == data
    assert end.end.sha256 == stored.sha256
    assert content(await streams.download(offset=MEGABYTE, etag=head.head.etag)) == data[MEGABYTE:]
    assert content(await streams.download(offset=len(data))) == b""
    await failed(grpc.StatusCode.INVALID_ARGUMENT, "beyond", streams.download(offset=len(data) + 1))


async def test_nothing_at_all_and_replacements(streams: Streams) -> None:
    await streams.send(streams.open(), finish(b""))
    (head, end) = await streams.download()
    assert (head.head.content_length, end.end.sha256) == (0, hashlib.sha256(b"").hexdigest())
    await streams.send(streams.open(content_encoding="gzip"), chunk(b"new"), finish(b"new"))
    again = await streams.download()
    assert (content(again), again[0].head.content_encoding) == (b"new", "gzip")
    await failed(
        grpc.StatusCode.FAILED_PRECONDITION, "replaced", streams.download(etag=head.head.etag, offset=0)
    )


async def test_wrong_content_is_forgotten(streams: Streams) -> None:
    await streams.send(streams.open(), chunk(b"old"), finish(b"old"))
    precondition = grpc.StatusCode.FAILED_PRECONDITION
    for messages, words in (
        ([streams.open(), chunk(b"new"), finish(b"newer")], "SHA-256"),
        ([streams.open(content_length=4), chunk(b"new"), finish(b"new")], "3 bytes arrived"),
        ([streams.open(content_length=2), chunk(b"new"), finish(b"new")], "longer than"),
    ):
        await failed(precondition, words, streams.send(*messages))
        assert await streams.received() == 0
        assert content(await streams.download()) == b"old"


async def test_an_upload_that_breaks_off_goes_on(streams: Streams, queue: Queue) -> None:
    data = os.urandom(2 * MEGABYTE)
    half = MEGABYTE + 5
    await failed(
        grpc.StatusCode.INVALID_ARGUMENT,
        "without `finish`",
        streams.send(streams.open(content_length=len(data)), chunk(data[:half])),
    )
    # The artifact is known, and its content is not there.
    await failed(grpc.StatusCode.NOT_FOUND, "content", streams.download())
    assert await streams.received() == half
    for offset, words in ((half + 1, "can go on at"),):
        await failed(
            grpc.StatusCode.INVALID_ARGUMENT, words, streams.send(streams.open(offset=offset), finish(data))
        )
    stored = await streams.send(
        streams.open(content_length=len(data), offset=half - 3), chunk(data[half - 3 :]), finish(data)
    )
    assert stored.sha256 == hashlib.sha256(data).hexdigest()
    assert await streams.received() == 0
    assert content(await streams.download()) == data


async def test_a_cancelled_upload_keeps_what_was_written(streams: Streams) -> None:
    data = os.urandom(2 * MEGABYTE)
    call = streams.stub.UploadArtifact(metadata=streams.metadata)
    await call.write(streams.open())
    await call.write(chunk(data))
    while await streams.received() < len(data):
        await asyncio.sleep(0.01)
    busy = await failed(
        grpc.StatusCode.FAILED_PRECONDITION, "under way", streams.send(streams.open(), finish(b""))
    )
    assert busy.failure.reason == "REQUEST_CONFLICT"
    call.cancel()
    async with asyncio.timeout(10):
        while True:
            try:
                stored = await streams.send(streams.open(offset=len(data)), finish(data))
                break
            except CallError as e:
                assert "under way" in e.failure.message
                await asyncio.sleep(0.01)
    assert stored.content_length == len(data)


async def test_the_client_goes_on_by_itself(
    streams: Streams, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that breaks in the middle, both ways, is gone on with."""
    monkeypatch.setattr("server.client.artifacts._PAUSE_S", 0.0)
    data = os.urandom(4 * MEGABYTE)
    (tmp_path / "file").write_bytes(data)
    breaking = Breaking(streams.stub)
    streams.client._stub = breaking
    stored = await streams.client.upload(
        RunPlace(run.task_id, 0),
        NAME,
        tmp_path / "file",
        content_type="application/x",
        expires=streams.expires.ToDatetime(),
    )
    assert (stored.content_length, breaking.broken) == (len(data), 1)
    sink = io.BytesIO()
    head = await streams.client.download(run.task_id, NAME, sink)
    assert (sink.getvalue() == data, head.content_type, breaking.broken) == (True, "application/x", 2)


class Away(grpc.aio.AioRpcError):
    """A server that went away."""

    def __init__(self) -> None:
        nothing = grpc.aio.Metadata()
        super().__init__(grpc.StatusCode.UNAVAILABLE, nothing, nothing, "away", None)


class Breaking:
    """A stub whose first upload and first download end in the middle."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub
        self._uploads = self._downloads = 0
        self.broken = 0
        self.GetArtifactUpload = stub.GetArtifactUpload

    def UploadArtifact(self, messages: Any, *, metadata: Any) -> Any:
        self._uploads += 1
        return (
            self._broken_upload(messages, metadata)
            if self._uploads == 1
            else self._stub.UploadArtifact(messages, metadata=metadata)
        )

    async def _broken_upload(self, messages: Any, metadata: Any) -> Any:
        async def half() -> AsyncIterator[UploadArtifactRequest]:
            count = 0
            async for message in messages:
                yield message
                count += 1
                if count == 8:
                    return

        self.broken += 1
        with pytest.raises(grpc.aio.AioRpcError):
            await self._stub.UploadArtifact(half(), metadata=metadata)
        raise Away

    async def DownloadArtifact(self, request: Any, *, metadata: Any) -> AsyncIterator[Any]:
        self._downloads += 1
        count = 0
        async for message in self._stub.DownloadArtifact(request, metadata=metadata):
            yield message
            count += 1
            if self._downloads == 1 and count == 3:
                self.broken += 1
                raise Away


async def test_who_may(queue: Queue, streams: Streams, run: Run) -> None:
    """As CreateArtifact and GetArtifact ask."""
    claim_scope = f"queue:create-artifact:{run.task_id}/1"
    streams.metadata = queue.having(claim_scope).credentials.metadata()
    needed = f"queue:create-artifact:{run.task_id}/0"
    denied = grpc.StatusCode.PERMISSION_DENIED
    await failed(denied, needed, streams.send(streams.open(), finish(b"")))
    with pytest.raises(grpc.aio.AioRpcError):
        await streams.received()
    await failed(denied, f"queue:get-artifact:{NAME}", streams.download())
    streams.metadata = queue.credentials.metadata()
    await queue.resolve(run.task_id, "completed")
    await failed(grpc.StatusCode.FAILED_PRECONDITION, "completed", streams.send(streams.open(), finish(b"")))


async def test_messages_out_of_order(streams: Streams) -> None:
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    await failed(invalid, "`open`", streams.send())
    await failed(invalid, "`open`", streams.send(chunk(b"x")))
    await failed(invalid, "opened once", streams.send(streams.open(), streams.open()))
    await failed(invalid, "", streams.send(streams.open(), UploadArtifactRequest()))
    await failed(invalid, "", streams.send(streams.open(content_type="")))
    await failed(invalid, "ASCII", streams.send(streams.open(content_type="\u00fc")))
    wrong = UploadArtifactRequest(finish=UploadArtifactFinish(sha256="ABC"))
    await failed(invalid, "", streams.send(streams.open(), wrong))


async def test_what_has_no_content(streams: Streams, run: Run, queue: Queue) -> None:
    """References, errors, links to what there is, objects."""
    await run.create("reference", "reference", url="https://example.com/x")
    await run.create("error", "error")
    await run.create("link", "link", artifact=NAME)
    precondition = grpc.StatusCode.FAILED_PRECONDITION
    elsewhere = await failed(precondition, "elsewhere", streams.download(name="reference"))
    assert elsewhere.failure.metadata["url"] == "https://example.com/x"
    missing = await failed(precondition, "no such file", streams.download(name="error"))
    assert missing.failure.reason == "ERROR_ARTIFACT"
    await failed(grpc.StatusCode.NOT_FOUND, "Artifact not found", streams.download(name="link"))
    await streams.send(streams.open(), chunk(b"data"), finish(b"data"))
    assert content(await streams.download(name="link")) == b"data"
    made = await run.create("object", "object")
    proposed = {"data_inline": {"content_type": "text/x", "object_data": "aGVsbG8="}}
    await queue(
        "CreateUpload",
        name=made.name,
        project_id=made.project_id,
        upload_id=made.upload_id,
        expires=made.expires,
        proposed_upload_methods=proposed,
    )
    await run.upload(made)
    await run.finish(made.upload_id, "object")
    messages = await streams.download(name="object")
    assert (content(messages), messages[0].head.content_type) == (b"hello", "text/x")
    with refused("RequestConflict"):
        await run.create("reference", NAME)
