"""PyPI taskcluster: artifacts of every type, with its own helpers for upload and download, signed URLs, and
what a browser does with them."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import tempfile
from typing import Any

import requests
import taskcluster
import taskcluster.aio
import taskcluster.download
import taskcluster.upload
from common import CREDENTIALS, ROOT_URL, definition, run
from slugid import nice
from taskcluster.aio import Object as AsyncObject
from taskcluster.aio import Queue as AsyncQueue
from taskcluster.aio import download as aio_download
from taskcluster.aio import upload as aio_upload
from taskcluster.exceptions import TaskclusterArtifactError, TaskclusterRestFailure

OPTIONS = {"rootUrl": ROOT_URL, "credentials": CREDENTIALS}
queue = taskcluster.Queue(OPTIONS)
objects = taskcluster.Object(OPTIONS)
EXPIRES = taskcluster.fromNowJSON("2 days")


def claimed(queue_id: str) -> tuple[str, taskcluster.Queue]:
    """A running task, and a client with its credentials."""
    task_id = nice()
    queue.createTask(task_id, {**definition(queue_id), "expires": taskcluster.fromNowJSON("1 month")})
    (claim,) = queue.claimWork(queue_id, {"workerGroup": "g", "workerId": "w", "tasks": 1})["tasks"]
    return task_id, taskcluster.Queue({"rootUrl": ROOT_URL, "credentials": claim["credentials"]})


def upload(name: str, data: bytes, content_type: str) -> dict[str, Any]:
    """What the helpers for uploads are told."""
    return {
        "projectId": "none",
        "name": name,
        "contentType": content_type,
        "contentLength": len(data),
        "expires": EXPIRES,
    }


def refused(status: int, call: Any, *arguments: Any) -> Any:
    """The body of a refusal with this status."""
    try:
        call(*arguments)
    except TaskclusterRestFailure as e:
        assert e.status_code == status, (e.status_code, e.body)
        return e.body
    raise AssertionError(f"{call} was not refused")


def s3() -> None:
    """Created, put, listed, read by redirect, by content, by the helper, by a signed URL."""
    task_id, own = claimed("py-artifacts/s3")
    for name in ("public/build/a b%?#.txt", "private/x.txt"):
        made = own.createArtifact(
            task_id, 0, name, {"storageType": "s3", "contentType": "text/plain", "expires": EXPIRES}
        )
        put = requests.put(made["putUrl"], data=b"hello", headers={"Content-Type": "text/plain"}, timeout=10)
        assert put.status_code in (200, 204), (put.status_code, put.text)
        answer = queue.latestArtifact(task_id, name)
        assert answer["storageType"] == "s3"
        assert requests.get(answer["url"], timeout=10).content == b"hello"
        data, kind = taskcluster.download.downloadArtifactToBuf(taskId=task_id, name=name, queueService=queue)
        assert (data, kind) == (b"hello", "text/plain"), (data, kind)
        signed = requests.get(queue.buildSignedUrl("getArtifact", task_id, 0, name), timeout=10)
        assert (signed.status_code, signed.content) == (200, b"hello"), signed.url
        assert signed.history[0].status_code == 303
        assert signed.history[0].headers["x-taskcluster-artifact-storage-type"] == "s3"
        body = queue.getLatestArtifact(task_id, name)
        assert body["storageType"] == "s3" and body["url"].startswith("http")
    assert [a["name"] for a in queue.listLatestArtifacts(task_id)["artifacts"]] == [
        "private/x.txt",
        "public/build/a b%?#.txt",
    ]
    assert (
        requests.get(queue.buildUrl("getLatestArtifact", task_id, "private/x.txt"), timeout=10).status_code
        == 403
    )
    anonymous = requests.get(
        queue.buildUrl("getLatestArtifact", task_id, "public/build/a b%?#.txt"), timeout=10
    )
    assert anonymous.content == b"hello"
    assert own.reportCompleted(task_id, 0)["status"]["state"] == "completed"
    body = {"storageType": "s3", "contentType": "text/plain", "expires": EXPIRES}
    refused(409, own.createArtifact, task_id, 0, "public/late.txt", body)


def compressed_log() -> None:
    """As generic-worker puts its logs: gzip on the wire, plain to whoever reads it."""
    task_id, own = claimed("py-artifacts/log")
    name = "public/logs/live_backing.log"
    made = own.createArtifact(
        task_id,
        0,
        name,
        {"storageType": "s3", "contentType": "text/plain", "expires": EXPIRES, "contentLength": 6},
    )
    headers = {"Content-Type": "text/plain", "Content-Encoding": "gzip"}
    assert requests.put(made["putUrl"], data=gzip.compress(b"line 1"), headers=headers, timeout=10).ok
    own.createArtifact(
        task_id,
        0,
        "public/logs/live.log",
        {
            "storageType": "reference",
            "contentType": "text/plain",
            "url": "https://worker.example.com/log",
            "expires": taskcluster.fromNowJSON("1 hour"),
        },
    )
    assert queue.getLatestArtifact(task_id, "public/logs/live.log")["url"] == "https://worker.example.com/log"
    link = {"storageType": "link", "artifact": name, "contentType": "text/plain", "expires": EXPIRES}
    own.createArtifact(task_id, 0, "public/logs/live.log", link)
    got = requests.get(queue.buildUrl("getLatestArtifact", task_id, "public/logs/live.log"), timeout=10)
    assert got.content == b"line 1", got.content
    assert got.headers["content-type"] == "text/plain"
    assert queue.latestArtifactInfo(task_id, name)["contentLength"] == 6


def object_artifacts() -> None:
    """O-047, O-050: created, uploaded with the credentials given, finished, downloaded and checked."""
    task_id, own = claimed("py-artifacts/object")
    for name, data in (("public/small.bin", b"x" * 12), ("private/large.bin", os.urandom(100_000))):
        made = own.createArtifact(
            task_id, 0, name, {"storageType": "object", "contentType": "application/x", "expires": EXPIRES}
        )
        refused(404, queue.latestArtifact, task_id, name)
        refused(400, own.finishArtifact, task_id, 0, name, {"uploadId": made["uploadId"]})
        service = taskcluster.Object({"rootUrl": ROOT_URL, "credentials": made["credentials"]})
        taskcluster.upload.uploadFromBuf(
            projectId=made["projectId"],
            name=made["name"],
            contentType="application/x",
            expires=made["expires"],
            uploadId=made["uploadId"],
            data=data,
            contentLength=len(data),
            objectService=service,
        )
        own.finishArtifact(task_id, 0, name, {"uploadId": made["uploadId"]})
        got, kind = taskcluster.download.downloadArtifactToBuf(taskId=task_id, name=name, queueService=queue)
        assert (got, kind) == (data, "application/x")
        redirected = requests.get(queue.buildSignedUrl("getLatestArtifact", task_id, name), timeout=10)
        assert redirected.content == data
    refused(403, service.createUpload, "other", {
        "projectId": "none", "uploadId": nice(), "expires": EXPIRES, "proposedUploadMethods": {},
    })  # fmt: skip


def other_artifacts() -> None:
    """O-047: references are fetched, errors raised."""
    task_id, own = claimed("py-artifacts/other")
    own.createArtifact(
        task_id,
        0,
        "public/ref",
        {
            "storageType": "reference",
            "contentType": "application/json",
            "url": f"{ROOT_URL}/api/queue/v1/ping",
            "expires": EXPIRES,
        },
    )
    data, kind = taskcluster.download.downloadArtifactToBuf(
        taskId=task_id, name="public/ref", queueService=queue
    )
    assert b"alive" in bytes(data) and kind.startswith("application/json")
    own.createArtifact(
        task_id,
        0,
        "public/err",
        {
            "storageType": "error",
            "reason": "file-missing-on-worker",
            "message": "no such file",
            "expires": EXPIRES,
        },
    )
    try:
        taskcluster.download.downloadArtifactToBuf(taskId=task_id, name="public/err", queueService=queue)
    except TaskclusterArtifactError as e:
        assert "no such file" in str(e)
    else:
        raise AssertionError("an error was downloaded")
    answer = requests.get(queue.buildUrl("getArtifact", task_id, 0, "public/err"), timeout=10)
    assert answer.status_code == 424
    assert answer.json() == {"reason": "file-missing-on-worker", "message": "no such file"}


def helpers() -> None:
    """O-044: the object helpers by themselves: buffer, file, and both ways back."""
    for data in (b"hello world!", os.urandom(100 * 1024)):
        name = f"py/{nice()}"
        taskcluster.upload.uploadFromBuf(
            projectId="none",
            name=name,
            contentType="text/plain",
            expires=EXPIRES,
            data=data,
            contentLength=len(data),
            objectService=objects,
        )
        assert taskcluster.download.downloadToBuf(name=name, objectService=objects) == (data, "text/plain")
    data = os.urandom(300_000)
    name = f"py/{nice()}"
    with tempfile.TemporaryFile() as file:
        file.write(data)
        taskcluster.upload.uploadFromFile(
            projectId="none",
            name=name,
            contentType="image/x",
            expires=EXPIRES,
            file=file,
            contentLength=len(data),
            objectService=objects,
        )
    back = io.BytesIO()
    assert taskcluster.download.downloadToFile(name=name, file=back, objectService=objects) == "image/x"
    assert back.getvalue() == data
    # O-049.
    refused(404, lambda: taskcluster.download.downloadToBuf(name="py/none", objectService=objects))


def wrong_hashes() -> None:
    """O-048: data that does not fit its hash is refused by the helper."""
    name, upload_id = f"py/{nice()}", nice()
    opened = objects.createUpload(
        name,
        {
            "projectId": "none",
            "uploadId": upload_id,
            "expires": EXPIRES,
            "hashes": {"sha256": "0" * 64},
            "proposedUploadMethods": {"dataInline": {"contentType": "text/plain", "objectData": "aGVsbG8="}},
        },
    )
    assert opened["uploadMethod"] == {"dataInline": True}
    objects.finishUpload(name, {"projectId": "none", "uploadId": upload_id})
    try:
        taskcluster.download.downloadToBuf(name=name, objectService=objects)
    except Exception as e:
        assert "hash" in str(e).lower(), e
    else:
        raise AssertionError("wrong data was taken")


def asynchronous() -> None:
    """O-045: the same with asyncio."""

    async def both() -> None:
        async with taskcluster.aio.createSession() as session:
            service = AsyncObject(OPTIONS, session=session)
            for data in (b"hello world!", os.urandom(100 * 1024)):
                name = f"py/{nice()}"
                await aio_upload.uploadFromBuf(
                    projectId="none",
                    name=name,
                    contentType="text/x",
                    expires=EXPIRES,
                    data=data,
                    contentLength=len(data),
                    objectService=service,
                )
                assert await aio_download.downloadToBuf(name=name, objectService=service) == (data, "text/x")
            task_id, own = claimed("py-artifacts/async")
            made = own.createArtifact(
                task_id, 0, "public/a", {"storageType": "s3", "contentType": "text/x", "expires": EXPIRES}
            )
            async with session.put(made["putUrl"], data=b"1", headers={"Content-Type": "text/x"}) as answer:
                assert answer.status in (200, 204)
            got = await aio_download.downloadArtifactToBuf(
                taskId=task_id, name="public/a", queueService=AsyncQueue(OPTIONS, session=session)
            )
            assert got == (b"1", "text/x")

    asyncio.run(both())


if __name__ == "__main__":
    run(
        {
            check.__name__: check
            for check in (
                s3, compressed_log, object_artifacts, other_artifacts, helpers, wrong_hashes, asynchronous,
            )
        }
    )  # fmt: skip
