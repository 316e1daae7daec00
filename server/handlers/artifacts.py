"""Creating and finishing artifacts (queue.md 3.7, 7.2-7.5)."""

from __future__ import annotations

from datetime import timedelta

from server.blobs.store import PUT_LIFETIME_S, BlobMeta
from server.call import Call
from server.domain import artifact_keys
from server.errors import InputError, RequestConflict
from server.handlers import inputs
from server.transitions.artifacts import Artifact, FinishedArtifact, NewArtifact, NotSeen, new_upload_id
from server.views import ARTIFACT_ERROR_WORDS, STORAGE_TYPE_WORDS, credentials_view, stamp
from tcqueue.v1.artifact_pb2 import (
    ArtifactDefinition,
    CreateArtifactRequest,
    CreateArtifactResponse,
    FinishArtifactRequest,
    FinishArtifactResponse,
    StorageType,
)

_OTHER_CONTENT = "application/binary"
"""Content type of artifacts that say none."""

_UPLOAD_CREDENTIALS = timedelta(hours=24)


async def create_artifact(call: Call, request: CreateArtifactRequest) -> CreateArtifactResponse:
    """Creates the artifact; the answer says how its content gets to where it belongs."""
    services = call.services
    definition = request.artifact
    key = artifact_keys.key(request.task_id, request.run_id, inputs.artifact_name(request.name))
    bucket = (
        services.blobs.public_bucket
        if artifact_keys.is_public(request.name)
        else services.blobs.private_bucket
    )
    item = NewArtifact(request.task_id, request.run_id, request.name, _artifact(definition, bucket))
    offered = item.artifact.upload_id
    standing = await services.artifacts.submit(item)
    artifact, now = standing.artifact, standing.now
    response = CreateArtifactResponse(storage_type=definition.storage_type)
    if artifact.storage_type == "s3":
        response.content_type = artifact.content_type
        response.put_url = services.blobs.put_url(
            bucket, key, BlobMeta(artifact.content_type), now=now, lifetime_s=PUT_LIFETIME_S
        )
        response.expires.CopyFrom(stamp(now + timedelta(seconds=PUT_LIFETIME_S)))
    elif artifact.storage_type == "object" and artifact.upload_id is not None:
        name, project = artifact_keys.object_name(key), standing.project_id
        try:
            await services.objects.lock_in(name, project, artifact.upload_id, artifact.expires)
        except RequestConflict:
            # A repeat may find the upload finished, and the artifact not yet: there is still a way on.
            if artifact.upload_id == offered or not await services.objects.is_finished(name):
                raise
        worker = f"{standing.worker_group}/{standing.worker_id}"
        credentials = services.objects.credentials(
            f"artifact-upload/{request.task_id}/{request.run_id}/on/{worker}",
            f"object:upload:{project}:{name}",
            now,
            min(now + _UPLOAD_CREDENTIALS, artifact.expires),
        )
        response.name, response.project_id, response.upload_id = name, project, artifact.upload_id
        response.expires.CopyFrom(stamp(artifact.expires))
        response.credentials.CopyFrom(credentials_view(credentials))
    return response


async def finish_artifact(call: Call, request: FinishArtifactRequest) -> FinishArtifactResponse:
    """Lets an object artifact be seen, once its object is there."""
    services = call.services
    item = FinishedArtifact(request.task_id, request.run_id, request.name, request.upload_id, seen=False)
    try:
        await services.artifacts.submit(item)
    except NotSeen:
        key = artifact_keys.key(request.task_id, request.run_id, request.name)
        if not await services.objects.is_finished(artifact_keys.object_name(key)):
            raise
        item.seen = True
        await services.artifacts.submit(item)
    return FinishArtifactResponse()


def _artifact(definition: ArtifactDefinition, bucket: str) -> Artifact:
    """The artifact as it would be stored if nothing were there."""
    expires = inputs.instant(definition.expires, "artifact.expires")
    kind = definition.storage_type
    artifact = Artifact(
        storage_type=STORAGE_TYPE_WORDS[kind],
        content_type=definition.content_type if definition.HasField("content_type") else _OTHER_CONTENT,
        content_length=definition.content_length if definition.HasField("content_length") else None,
        expires=expires,
        present=kind != StorageType.STORAGE_TYPE_OBJECT,
    )
    if kind == StorageType.STORAGE_TYPE_S3:
        if not artifact.content_type.isprintable() or not artifact.content_type.isascii():
            raise InputError("contentType must be printable ASCII: it is sent as a header")
        artifact.bucket = bucket
    elif kind == StorageType.STORAGE_TYPE_OBJECT:
        artifact.upload_id = new_upload_id()
    elif kind == StorageType.STORAGE_TYPE_REFERENCE:
        artifact.url = definition.url
    elif kind == StorageType.STORAGE_TYPE_LINK:
        artifact.target = definition.artifact
    else:
        artifact.reason = ARTIFACT_ERROR_WORDS[definition.reason]
        artifact.message = inputs.text(definition.message, "artifact.message")
    inputs.text(artifact.content_type, "artifact.contentType")
    inputs.text(artifact.target or "", "artifact.artifact")
    return artifact
