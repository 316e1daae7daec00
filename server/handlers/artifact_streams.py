"""Artifacts over gRPC alone: content up and down on streams, for workers that speak no HTTP."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator

from server.blobs.staging import Upload
from server.blobs.store import BlobMeta, Reading
from server.call import Call
from server.domain import artifact_keys
from server.errors import ErrorArtifact, InputError, RequestConflict, ResourceNotFound
from server.handlers import inputs
from server.handlers.artifact_reading import Followed, follow
from server.store.statements import load
from server.transitions.artifacts import Artifact, NewArtifact
from server.views import shown_type
from tcqueue.v1.artifact_pb2 import (
    DownloadArtifactEnd,
    DownloadArtifactHead,
    DownloadArtifactRequest,
    DownloadArtifactResponse,
    GetArtifactUploadRequest,
    GetArtifactUploadResponse,
    UploadArtifactFinish,
    UploadArtifactOpen,
    UploadArtifactRequest,
    UploadArtifactResponse,
)

_SQL = load("artifacts")

_GATHERED_BYTES = 1024 * 1024
"""How much is gathered before it is written: a thread for every little chunk costs more than the writing."""


async def upload_artifact(
    call: Call, requests: AsyncIterator[UploadArtifactRequest]
) -> UploadArtifactResponse:
    """Creates an artifact with its content."""
    first = await anext(aiter(requests), None)
    if first is not None:
        call.check(first)
    if first is None or first.WhichOneof("message") != "open":
        raise InputError("the first message of an upload must be `open`")
    opening = first.open
    call.authorize({"taskId": opening.task_id, "runId": opening.run_id})
    services = call.services
    store = services.blobs
    key = artifact_keys.key(opening.task_id, opening.run_id, inputs.artifact_name(opening.name))
    bucket = store.public_bucket if artifact_keys.is_public(opening.name) else store.private_bucket
    if not opening.content_type.isprintable() or not opening.content_type.isascii():
        raise InputError("content_type must be printable ASCII")
    # The row comes first: bytes without one would be nobody's.
    await services.artifacts.submit(_new(opening, bucket))
    upload = await asyncio.to_thread(services.staging.open, key, opening.offset)
    try:
        finish = await _gather(call, requests, opening, upload)
        await _check(opening, finish, upload)
        encoding = opening.content_encoding.replace("identity", "")
        await store.put_file(bucket, key, BlobMeta(opening.content_type, encoding), upload.path)
        place = (opening.task_id, opening.run_id, opening.name, bucket)
        if not await services.db.fetch(_SQL["has_blob"], place, hot=True):
            # It expired while it was uploaded: bytes without a row would never be deleted.
            await store.delete(bucket, [key])
            raise RequestConflict("the artifact has expired meanwhile")
    finally:
        upload.close()
    return UploadArtifactResponse(content_length=upload.length, sha256=finish.sha256)


def _new(opening: UploadArtifactOpen, bucket: str) -> NewArtifact:
    artifact = Artifact(
        storage_type="s3",
        content_type=opening.content_type,
        content_length=opening.content_length if opening.HasField("content_length") else None,
        expires=inputs.instant(opening.expires, "expires"),
        present=True,
        bucket=bucket,
    )
    return NewArtifact(opening.task_id, opening.run_id, opening.name, artifact)


async def _gather(
    call: Call,
    requests: AsyncIterator[UploadArtifactRequest],
    opening: UploadArtifactOpen,
    upload: Upload,
) -> UploadArtifactFinish:
    """Writes the chunks; returns what ends them. What was written stays when the stream breaks."""
    pieces: list[bytes] = []
    size = 0
    most = opening.content_length if opening.HasField("content_length") else None
    async for request in requests:
        kind = request.WhichOneof("message")
        call.check(request)
        if kind == "finish":
            await asyncio.to_thread(upload.write, pieces)
            return request.finish
        if kind != "chunk":
            raise InputError("an upload is opened once")
        pieces.append(request.chunk)
        size += len(request.chunk)
        if most is not None and upload.length + size > most:
            await asyncio.to_thread(upload.drop)
            raise RequestConflict(f"the content is longer than the {most} bytes announced")
        if size >= _GATHERED_BYTES:
            writing, pieces, size = pieces, [], 0
            await asyncio.to_thread(upload.write, writing)
    await asyncio.to_thread(upload.write, pieces)
    raise InputError("the stream ended without `finish`; the upload can be continued")


async def _check(opening: UploadArtifactOpen, finish: UploadArtifactFinish, upload: Upload) -> None:
    """Raises RequestConflict for content that is not what was said, and forgets it."""
    refusal = ""
    if opening.HasField("content_length") and upload.length != opening.content_length:
        refusal = f"{upload.length} bytes arrived, {opening.content_length} were announced"
    elif upload.sha256() != finish.sha256:
        refusal = f"the content's SHA-256 is {upload.sha256()}, not {finish.sha256}"
    if refusal:
        await asyncio.to_thread(upload.drop)
        raise RequestConflict(refusal)


async def get_artifact_upload(call: Call, request: GetArtifactUploadRequest) -> GetArtifactUploadResponse:
    """How much of an upload that broke off is here."""
    key = artifact_keys.key(request.task_id, request.run_id, request.name)
    return GetArtifactUploadResponse(received=await asyncio.to_thread(call.services.staging.received, key))


async def download_artifact(
    call: Call, request: DownloadArtifactRequest
) -> AsyncIterator[DownloadArtifactResponse]:
    """An artifact's content from an offset."""
    run_id = request.run_id if request.HasField("run_id") else None
    found = await follow(call, request.task_id, run_id, request.name)
    reading = await _reading(call, found, request.offset)
    try:
        if request.etag and request.etag != reading.etag:
            raise RequestConflict("the content has been replaced since; begin anew", etag=reading.etag)
        yield DownloadArtifactResponse(
            head=DownloadArtifactHead(
                storage_type=shown_type(found.artifact.storage_type),
                content_type=reading.meta.content_type,
                content_encoding=reading.meta.content_encoding,
                content_length=reading.length,
                etag=reading.etag,
            )
        )
        checksum = hashlib.sha256()
        async for chunk in reading.chunks:
            await asyncio.to_thread(checksum.update, chunk)
            yield DownloadArtifactResponse(chunk=chunk)
        yield DownloadArtifactResponse(end=DownloadArtifactEnd(sha256=checksum.hexdigest()))
    finally:
        await reading.close()


async def _reading(call: Call, found: Followed, offset: int) -> Reading:
    services, artifact = call.services, found.artifact
    store = services.blobs
    bucket, key = artifact.bucket, found.key
    if artifact.storage_type == "error":
        raise ErrorArtifact(artifact.reason or "", artifact.message or "")
    if artifact.storage_type == "reference":
        raise RequestConflict("the content of a reference is elsewhere", url=artifact.url or "")
    if artifact.storage_type == "object":
        name = artifact_keys.object_name(found.key)
        if services.objects is not services.own_objects:
            url = await services.objects.simple_url(name)
            raise RequestConflict("the object is kept by another deployment", url=url)
        bucket, key = store.private_bucket, await services.own_objects.blob_key(name)
    if services.azure is not None and bucket == services.azure.bucket:
        url = services.azure.get_url(key, now=found.now)
        raise RequestConflict("the content of an artifact of type azure is elsewhere", url=url)
    if bucket is None or bucket not in (store.public_bucket, store.private_bucket):
        raise ResourceNotFound("the bucket that the artifact lies in is no longer configured")
    reading = await store.read(bucket, key, offset)
    if reading is None:
        raise ResourceNotFound("the artifact's content is not there", name=key)
    return reading
