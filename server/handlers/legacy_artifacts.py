"""Artifacts for clients of 2014 (queue.md 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Any

from server.blobs import azure
from server.blobs.store import BlobMeta
from server.call import Call
from server.codec.words import words
from server.domain import artifact_keys
from server.errors import ErrorArtifact, InputError, LegacyErrorArtifact
from server.handlers import inputs
from server.handlers.artifact_reading import content_url, follow, list_artifact_rows
from server.handlers.legacy_claims import read_claimant
from server.transitions.artifacts import Artifact, NewArtifact
from server.views import stamp
from tcqueue.v1.legacy_artifact_pb2 import (
    LegacyArtifact,
    LegacyArtifactDefinition,
    LegacyArtifactErrorReason,
    LegacyQueueCreateArtifactRequest,
    LegacyQueueCreateArtifactResponse,
    LegacyQueueGetArtifactRequest,
    LegacyQueueGetArtifactResponse,
    LegacyQueueGetLatestArtifactRequest,
    LegacyQueueGetLatestArtifactResponse,
    LegacyQueueListArtifactsRequest,
    LegacyQueueListArtifactsResponse,
    LegacyQueueListLatestArtifactsRequest,
    LegacyQueueListLatestArtifactsResponse,
    LegacyStorageType,
)

_STORAGE_TYPES = words(LegacyStorageType.DESCRIPTOR)
_STORAGE_TYPE_WORDS = {number: word for word, number in _STORAGE_TYPES.items()}
_REASON_WORDS = {number: word for word, number in words(LegacyArtifactErrorReason.DESCRIPTOR).items()}

_OTHER_CONTENT = "application/binary"
"""Content type of artifacts that say none."""

_S3_LIFETIME_S = 20 * 60
"""How long URLs of artifacts of type s3 are good, for uploads as for downloads (queue.md 4.2)."""


async def create_artifact(
    call: Call, request: LegacyQueueCreateArtifactRequest
) -> LegacyQueueCreateArtifactResponse:
    """Creates the artifact; the answer says how its content gets to where it belongs. Raises
    ResourceNotFound for an unknown task or run."""
    services = call.services
    claimant = await read_claimant(call, request.task_id, request.run_id)
    call.authorize(
        {
            "name": request.name,
            "workerGroup": claimant.worker_group,
            "workerId": claimant.worker_id,
        }
    )
    artifact = _artifact(call, request.name, request.artifact)
    item = NewArtifact(
        request.task_id, request.run_id, inputs.artifact_name(request.name), artifact, of_2014=True
    )
    standing = await services.artifacts.submit(item)
    artifact, now = standing.artifact, standing.now
    response = LegacyQueueCreateArtifactResponse(storage_type=request.artifact.storage_type)
    if artifact.storage_type not in ("s3", "azure") or artifact.bucket is None:
        return response
    key = artifact_keys.key(request.task_id, request.run_id, request.name)
    # The type that was asked for this time is the one that is uploaded with; what was stored first stays.
    content_type = request.artifact.content_type
    if artifact.storage_type == "s3":
        lifetime = _S3_LIFETIME_S
        url = services.blobs.put_url(
            artifact.bucket, key, BlobMeta(content_type), now=now, lifetime_s=lifetime
        )
    else:
        assert services.azure is not None
        lifetime = azure.PUT_LIFETIME_S
        url = services.azure.put_url(key, now=now)
    response.content_type, response.put_url = content_type, url
    response.expires.CopyFrom(stamp(now + timedelta(seconds=lifetime)))
    return response


def _artifact(call: Call, name: str, definition: LegacyArtifactDefinition) -> Artifact:
    """The artifact as it would be stored if nothing were there."""
    services = call.services
    kind = _STORAGE_TYPE_WORDS[definition.storage_type]
    artifact = Artifact(
        storage_type=kind,
        content_type=definition.content_type if definition.HasField("content_type") else _OTHER_CONTENT,
        content_length=None,
        expires=inputs.instant(definition.expires, "artifact.expires"),
        present=True,
    )
    inputs.text(artifact.content_type, "artifact.contentType")
    if kind in ("s3", "azure") and not (
        artifact.content_type.isprintable() and artifact.content_type.isascii()
    ):
        raise InputError("contentType must be printable ASCII: it is sent as a header")
    if kind == "s3":
        public = artifact_keys.is_public(name)
        artifact.bucket = services.blobs.public_bucket if public else services.blobs.private_bucket
    elif kind == "azure":
        if services.azure is None:
            raise InputError("this deployment has no Azure account for artifacts of type azure")
        artifact.bucket = services.azure.bucket
    elif kind == "reference":
        artifact.url = definition.url
    else:
        artifact.reason = _REASON_WORDS[definition.reason]
        artifact.message = inputs.text(definition.message, "artifact.message")
    return artifact


def _authorize(call: Call, names: Sequence[str]) -> None:
    """What is below `public/` is everybody's, whatever the anonymous role holds."""
    for name in names:
        if artifact_keys.is_public(name):
            call.authorized = True
        else:
            call.authorize({"name": name})


async def _url(call: Call, task_id: str, run_id: int | None, name: str) -> str:
    found = await follow(call, task_id, run_id, name, authorize=partial(_authorize, call))
    try:
        return await content_url(call, found, lifetime_s=_S3_LIFETIME_S)
    except ErrorArtifact as e:
        raise LegacyErrorArtifact(e.reason, e.text) from None


async def get_artifact(call: Call, request: LegacyQueueGetArtifactRequest) -> LegacyQueueGetArtifactResponse:
    """Where an artifact's content is. Raises LegacyErrorArtifact for one that could not be made."""
    return LegacyQueueGetArtifactResponse(url=await _url(call, request.task_id, request.run_id, request.name))


async def get_latest_artifact(
    call: Call, request: LegacyQueueGetLatestArtifactRequest
) -> LegacyQueueGetLatestArtifactResponse:
    """The same for the task's last run."""
    return LegacyQueueGetLatestArtifactResponse(url=await _url(call, request.task_id, None, request.name))


async def list_artifacts(
    call: Call, request: LegacyQueueListArtifactsRequest
) -> LegacyQueueListArtifactsResponse:
    """All artifacts of a run, by name."""
    return LegacyQueueListArtifactsResponse(artifacts=await _all(call, request.task_id, request.run_id))


async def list_latest_artifacts(
    call: Call, request: LegacyQueueListLatestArtifactsRequest
) -> LegacyQueueListLatestArtifactsResponse:
    """The same for the task's last run."""
    return LegacyQueueListLatestArtifactsResponse(artifacts=await _all(call, request.task_id, None))


async def _all(call: Call, task_id: str, run_id: int | None) -> list[LegacyArtifact]:
    found: list[LegacyArtifact] = []
    after, more = "", True
    while more:
        rows, more = await list_artifact_rows(call, task_id, run_id, after, 0)
        found += map(_shown, rows)
        after = rows[-1][1] if rows else ""
    return found


def _shown(row: tuple[Any, ...]) -> LegacyArtifact:
    storage_type, name, expires, content_type, _ = row
    return LegacyArtifact(
        storage_type=_STORAGE_TYPES.get(storage_type, LegacyStorageType.LEGACY_STORAGE_TYPE_REFERENCE),  # type: ignore[arg-type]
        name=name,
        expires=stamp(expires),
        content_type=content_type,
    )
