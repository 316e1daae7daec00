"""Artifacts over gRPC: files up and down, checked by their SHA-256, going on where a stream broke off."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import grpc
import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp

from server.client.credentials import Credentials
from server.client.errors import CallError, failure_of
from tcqueue.v1.artifact_pb2 import (
    ArtifactDefinition,
    CreateArtifactRequest,
    DownloadArtifactHead,
    DownloadArtifactRequest,
    GetArtifactUploadRequest,
    StorageType,
    UploadArtifactFinish,
    UploadArtifactOpen,
    UploadArtifactRequest,
    UploadArtifactResponse,
)
from tcqueue.v1.queue_service_pb2_grpc import QueueStub

LIVE_LOG = "public/logs/live.log"
"""Name of the artifact that leads to a run's log, by the convention that all workers share."""

BACKING_LOG = "public/logs/live_backing.log"
"""Name of the artifact that holds the whole log."""

CHUNK_BYTES = 256 * 1024
_ATTEMPTS = 5
_PAUSE_S = 0.5


class ContentChanged(Exception):
    """What was downloaded is not what the queue sent: a checksum differs."""


@dataclass(frozen=True, slots=True)
class RunPlace:
    """A run, as artifacts name it."""

    task_id: str
    run_id: int


class ArtifactClient:
    """Artifacts of any run that the credentials reach. Methods raise CallError for refusals, and for a queue
    that stayed away over several attempts."""

    def __init__(self, channel: grpc.aio.Channel, credentials: Callable[[], Credentials]) -> None:
        """`credentials` is asked before every call: those of a run are renewed while it runs."""
        self._stub: Any = QueueStub(channel)
        self._credentials = credentials

    async def reference(
        self, place: RunPlace, name: str, url: str, *, content_type: str, expires: datetime
    ) -> None:
        """Makes, or changes, an artifact whose content is at a URL."""
        await self._create(
            place,
            name,
            ArtifactDefinition(
                storage_type=StorageType.STORAGE_TYPE_REFERENCE,
                url=url,
                content_type=content_type,
                expires=_stamp(expires),
            ),
        )

    async def link(self, place: RunPlace, name: str, target: str, *, expires: datetime) -> None:
        """Makes an artifact that stands for another, or a reference into one."""
        await self._create(
            place,
            name,
            ArtifactDefinition(
                storage_type=StorageType.STORAGE_TYPE_LINK, artifact=target, expires=_stamp(expires)
            ),
        )

    async def _create(self, place: RunPlace, name: str, artifact: ArtifactDefinition) -> None:
        request = CreateArtifactRequest(
            task_id=place.task_id, run_id=place.run_id, name=name, artifact=artifact
        )
        try:
            await self._stub.CreateArtifact(request, metadata=self._credentials().metadata(), timeout=30)
        except grpc.aio.AioRpcError as e:
            raise CallError(failure_of(e)) from None

    async def upload(
        self, place: RunPlace, name: str, file: Path, *, content_type: str, expires: datetime
    ) -> UploadArtifactResponse:
        """Uploads a file that does not change meanwhile."""
        opening = UploadArtifactOpen(
            task_id=place.task_id,
            run_id=place.run_id,
            name=name,
            content_type=content_type,
            content_length=(await asyncio.to_thread(file.stat)).st_size,
            expires=_stamp(expires),
        )
        for attempt in range(_ATTEMPTS):
            try:
                if attempt:
                    opening.offset = await self._received(place, name)
                answer: UploadArtifactResponse = await self._stub.UploadArtifact(
                    _messages(opening, file), metadata=self._credentials().metadata()
                )
                return answer
            except grpc.aio.AioRpcError as e:
                failure = failure_of(e)
                if not failure.passing or attempt == _ATTEMPTS - 1:
                    raise CallError(failure) from None
            await asyncio.sleep(_PAUSE_S * 2**attempt)
        raise AssertionError("unreachable")

    async def _received(self, place: RunPlace, name: str) -> int:
        request = GetArtifactUploadRequest(task_id=place.task_id, run_id=place.run_id, name=name)
        answer = await self._stub.GetArtifactUpload(
            request, metadata=self._credentials().metadata(), timeout=30
        )
        return int(answer.received)

    async def download(
        self, task_id: str, name: str, sink: BinaryIO, *, run_id: int | None = None
    ) -> DownloadArtifactHead:
        """Writes an artifact's content, of the last run if none is named, links followed. Raises
        ContentChanged when its checksum is not the queue's."""
        request = DownloadArtifactRequest(task_id=task_id, name=name)
        if run_id is not None:
            request.run_id = run_id
        for attempt in range(_ATTEMPTS):
            try:
                return await self._read(request, sink)
            except grpc.aio.AioRpcError as e:
                failure = failure_of(e)
                if not failure.passing or attempt == _ATTEMPTS - 1:
                    raise CallError(failure) from None
            await asyncio.sleep(_PAUSE_S * 2**attempt)
        raise AssertionError("unreachable")

    async def _read(self, request: DownloadArtifactRequest, sink: BinaryIO) -> DownloadArtifactHead:
        """Goes on with a download; notes in the request how far it came."""
        head = DownloadArtifactHead()
        checksum = hashlib.sha256()
        async for message in self._stub.DownloadArtifact(request, metadata=self._credentials().metadata()):
            kind = message.WhichOneof("message")
            if kind == "head":
                head = message.head
                request.etag = head.etag
            elif kind == "chunk":
                checksum.update(message.chunk)
                sink.write(message.chunk)
                request.offset += len(message.chunk)
            elif message.end.sha256 != checksum.hexdigest():
                raise ContentChanged("the content was damaged on its way")
        return head


def _stamp(moment: datetime) -> Timestamp:
    found = Timestamp()
    found.FromDatetime(moment)
    return found


async def _messages(opening: UploadArtifactOpen, file: Path) -> AsyncIterator[UploadArtifactRequest]:
    """The stream that uploads a file from the offset of its opening."""
    yield UploadArtifactRequest(open=opening)
    checksum = hashlib.sha256()
    sent = 0
    with file.open("rb") as source:
        while piece := await asyncio.to_thread(source.read, CHUNK_BYTES):
            checksum.update(piece)
            fresh = piece[max(0, opening.offset - sent) :]
            sent += len(piece)
            if fresh:
                yield UploadArtifactRequest(chunk=fresh)
    yield UploadArtifactRequest(finish=UploadArtifactFinish(sha256=checksum.hexdigest()))
