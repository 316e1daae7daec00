"""Reading artifacts: where their content is, what they are, which there are (queue.md 3.7, 7.6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from server.blobs.store import GET_LIFETIME_S
from server.call import Call
from server.domain import artifact_keys, paging
from server.errors import ErrorArtifact, InputError, ResourceExpired, ResourceNotFound
from server.handlers.pages import read
from server.store.statements import load
from server.transitions.artifacts import Artifact as Stored
from server.views import ARTIFACT_ERROR_REASONS, credentials_view, shown_type, stamp
from tcqueue.v1.artifact_pb2 import (
    Artifact,
    ArtifactContent,
    GetArtifactContentRequest,
    GetArtifactContentResponse,
    GetArtifactInfoRequest,
    GetArtifactInfoResponse,
    GetArtifactRequest,
    GetArtifactResponse,
    GetLatestArtifactContentRequest,
    GetLatestArtifactContentResponse,
    GetLatestArtifactInfoRequest,
    GetLatestArtifactInfoResponse,
    GetLatestArtifactRequest,
    GetLatestArtifactResponse,
    ListArtifactsRequest,
    ListArtifactsResponse,
    ListLatestArtifactsRequest,
    ListLatestArtifactsResponse,
)

_SQL = load("artifacts")

_DOWNLOAD_CREDENTIALS = timedelta(hours=1)
_TYPE_HEADER = "x-taskcluster-artifact-storage-type"


@dataclass(frozen=True, slots=True)
class Followed:
    """The artifact at the end of the links: its key, and the database's time."""

    key: str
    artifact: Stored
    now: datetime


async def follow(
    call: Call,
    task_id: str,
    run_id: int | None,
    name: str,
    *,
    existence_first: bool = False,
    authorize: Callable[[Sequence[str]], None] | None = None,
) -> Followed:
    """Finds an artifact, links followed, while the caller may see every name on the way. Without a run it
    is the task's last. `authorize` checks names where the method's scopes are not a list of them.

    Raises InsufficientScopes, ResourceNotFound, ResourceExpired, InputError for links in a circle; with
    `existence_first` an unknown task is told before missing scopes are.
    """
    check = authorize or (lambda names: call.authorize({"names": names}))
    if not existence_first:
        check([name])
    rows = await call.services.db.fetch(_SQL["follow_links"], (task_id, run_id, name), hot=True)
    now, found_run = rows[0][:2]
    if found_run is None:
        raise await _no_run(call, task_id)
    artifacts = {row[2]: Stored(*row[3:]) for row in rows if row[2] is not None}
    visited = [name]
    while True:
        check(visited)
        artifact = artifacts.get(visited[-1])
        if artifact is None or not artifact.present:
            raise ResourceNotFound("Artifact not found", name=visited[-1])
        if artifact.expires < now:
            raise ResourceExpired("Artifact expired", name=visited[-1])
        if artifact.storage_type != "link":
            return Followed(artifact_keys.key(task_id, found_run, visited[-1]), artifact, now)
        assert artifact.target is not None
        if artifact.target in visited:
            raise InputError(f"the links lead in a circle: {artifact.target} is met again")
        visited.append(artifact.target)


async def _no_run(call: Call, task_id: str) -> ResourceNotFound:
    known = await call.services.db.fetch(_SQL["last_run"], (task_id,), hot=True)
    if known:
        return ResourceNotFound(f"task {task_id} has no runs", taskId=task_id)
    return ResourceNotFound(f"task {task_id} does not exist", taskId=task_id)


def blob_url(call: Call, found: Followed, *, skip_cdn: bool = False, lifetime_s: int = GET_LIFETIME_S) -> str:
    """The URL of the bytes of an artifact of type s3 or azure; of type s3, it is good for so long where it
    is signed."""
    services = call.services
    store, bucket = services.blobs, found.artifact.bucket
    if services.azure is not None and bucket == services.azure.bucket:
        return services.azure.get_url(found.key, now=found.now)
    if bucket == store.public_bucket and not services.settings.sign_public_artifact_urls:
        cdn = None if skip_cdn else store.cdn_url(found.key)
        return cdn or store.plain_url(bucket, found.key)
    if bucket is None or bucket not in (store.public_bucket, store.private_bucket):
        raise ResourceNotFound("the bucket that the artifact lies in is no longer configured")
    return store.get_url(bucket, found.key, now=found.now, lifetime_s=lifetime_s)


async def content_url(
    call: Call, found: Followed, *, skip_cdn: bool = False, lifetime_s: int = GET_LIFETIME_S
) -> str:
    """Where an artifact's content is, whatever its type. Raises ErrorArtifact for one without any."""
    artifact = found.artifact
    if artifact.storage_type == "error":
        raise ErrorArtifact(artifact.reason or "", artifact.message or "")
    if artifact.storage_type == "object":
        try:
            return await call.services.objects.simple_url(artifact_keys.object_name(found.key))
        except ResourceNotFound as e:
            missing = ResourceNotFound("Object does not exist.")
            missing.headers = {_TYPE_HEADER: "object"}
            raise missing from e
    if artifact.storage_type == "reference":
        return artifact.url or ""
    return blob_url(call, found, skip_cdn=skip_cdn, lifetime_s=lifetime_s)


async def get_artifact(call: Call, request: GetArtifactRequest) -> GetArtifactResponse:
    """Where an artifact's content is. Also raises ErrorArtifact."""
    found = await follow(call, request.task_id, request.run_id, request.name)
    url = await content_url(call, found, skip_cdn=request.skip_cdn)
    return GetArtifactResponse(storage_type=shown_type(found.artifact.storage_type), url=url)


async def get_latest_artifact(call: Call, request: GetLatestArtifactRequest) -> GetLatestArtifactResponse:
    """The same for the task's last run."""
    found = await follow(call, request.task_id, None, request.name)
    url = await content_url(call, found, skip_cdn=request.skip_cdn)
    return GetLatestArtifactResponse(
        storage_type=shown_type(found.artifact.storage_type),
        url=url,
    )


def _content(call: Call, found: Followed) -> ArtifactContent:
    artifact = found.artifact
    content = ArtifactContent(storage_type=shown_type(artifact.storage_type))
    if artifact.storage_type == "error":
        content.reason = ARTIFACT_ERROR_REASONS[artifact.reason or ""]  # type: ignore[assignment]
        content.message = artifact.message or ""
    elif artifact.storage_type == "object":
        content.name = artifact_keys.object_name(found.key)
        credentials = call.services.objects.credentials(
            artifact_keys.download_credential(found.key),
            f"object:download:{content.name}",
            found.now,
            found.now + _DOWNLOAD_CREDENTIALS,
        )
        content.credentials.CopyFrom(credentials_view(credentials))
    elif artifact.storage_type == "reference":
        content.url = artifact.url or ""
    else:
        content.url = blob_url(call, found)
    return content


async def get_artifact_content(call: Call, request: GetArtifactContentRequest) -> GetArtifactContentResponse:
    """How to read an artifact's content, for programs; an error is an answer here."""
    found = await follow(call, request.task_id, request.run_id, request.name)
    return GetArtifactContentResponse(content=_content(call, found))


async def get_latest_artifact_content(
    call: Call, request: GetLatestArtifactContentRequest
) -> GetLatestArtifactContentResponse:
    """The same for the task's last run."""
    found = await follow(call, request.task_id, None, request.name, existence_first=True)
    return GetLatestArtifactContentResponse(content=_content(call, found))


async def get_artifact_info(call: Call, request: GetArtifactInfoRequest) -> GetArtifactInfoResponse:
    """What an artifact is; a link is a link here."""
    return GetArtifactInfoResponse(artifact=await _info(call, request.task_id, request.run_id, request.name))


async def get_latest_artifact_info(
    call: Call, request: GetLatestArtifactInfoRequest
) -> GetLatestArtifactInfoResponse:
    """The same for the task's last run."""
    return GetLatestArtifactInfoResponse(artifact=await _info(call, request.task_id, None, request.name))


async def _info(call: Call, task_id: str, run_id: int | None, name: str) -> Artifact:
    rows = await call.services.db.fetch(_SQL["read_artifact"], (task_id, run_id, name), hot=True)
    if not rows:
        raise ResourceNotFound("Artifact not found", name=name)
    return _shown(rows[0])


async def list_artifacts(call: Call, request: ListArtifactsRequest) -> ListArtifactsResponse:
    """A run's artifacts by name, those whose upload is not finished included."""
    page, token = await _list(
        call, request.task_id, request.run_id, request.continuation_token, request.limit
    )
    return ListArtifactsResponse(artifacts=page, continuation_token=token)


async def list_latest_artifacts(
    call: Call, request: ListLatestArtifactsRequest
) -> ListLatestArtifactsResponse:
    """The same for the task's last run."""
    page, token = await _list(call, request.task_id, None, request.continuation_token, request.limit)
    return ListLatestArtifactsResponse(artifacts=page, continuation_token=token)


async def _list(
    call: Call, task_id: str, run_id: int | None, token: str, limit: int
) -> tuple[list[Artifact], str]:
    (after,) = paging.position(token, ("",), strict=False)
    page, more = await list_artifact_rows(call, task_id, run_id, after, limit)
    return [_shown(row) for row in page], paging.token(page[-1][1]) if more else ""


async def list_artifact_rows(
    call: Call, task_id: str, run_id: int | None, after: str, limit: int
) -> tuple[Sequence[tuple[Any, ...]], bool]:
    """A page of the rows of `list_artifacts`, and whether there is more. Raises ResourceNotFound for an
    unknown task or run."""
    known, rows = await read(
        call.services.db,
        (_SQL["last_run"], (task_id,)),
        (_SQL["list_artifacts"], (task_id, run_id, after, paging.size(limit) + 1)),
    )
    if not known:
        raise ResourceNotFound(f"task {task_id} does not exist", taskId=task_id)
    last_run = known[0][0]
    if last_run < 0:
        raise ResourceNotFound(f"task {task_id} has no runs", taskId=task_id)
    if run_id is not None and run_id > last_run:
        raise ResourceNotFound(f"task {task_id} has no run {run_id}", taskId=task_id)
    return paging.cut(rows, limit)


def _shown(row: tuple[Any, ...]) -> Artifact:
    """A row of `read_artifact` or `list_artifacts`."""
    storage_type, name, expires, content_type, content_length = row
    artifact = Artifact(
        storage_type=shown_type(storage_type),
        name=name,
        expires=stamp(expires),
        content_type=content_type,
    )
    if content_length is not None:
        artifact.content_length = content_length
    return artifact
