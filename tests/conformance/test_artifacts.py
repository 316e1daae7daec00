"""Artifacts: created, replaced, finished, read (queue.md 3.7, 7)."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest

from server.domain import slugid
from server.domain.times import to_text
from tcqueue.v1.artifact_pb2 import ArtifactDefinition, ArtifactErrorReason, StorageType
from tests.conformance.building import at, new_id, now
from tests.conformance.door import refused
from tests.conformance.shown import moment, status_json
from tests.plugins.server import Queue

NAME = "public/build/target.zip"


def artifact(kind: str, **fields: Any) -> ArtifactDefinition:
    """A definition with all that its type needs. A field given as None is left out."""
    needed: dict[str, dict[str, Any]] = {
        "s3": {"content_type": "text/plain"},
        "object": {"content_type": "text/plain"},
        "reference": {"content_type": "text/plain", "url": "https://example.com/a%20b?x=1&y=/"},
        "link": {"artifact": "public/target"},
        "error": {
            "reason": ArtifactErrorReason.ARTIFACT_ERROR_REASON_FILE_MISSING_ON_WORKER,
            "message": "no such file",
        },
    }
    given = {"expires": at(minutes=30), **needed[kind], **fields}
    return ArtifactDefinition(
        storage_type=StorageType.Value(f"STORAGE_TYPE_{kind.upper()}"),
        **{name: value for name, value in given.items() if value is not None},
    )


class Run:
    """A running run, and its artifacts as root makes and sees them."""

    def __init__(self, queue: Queue, task_id: str, run_id: int = 0) -> None:
        self.queue = queue
        self.place = {"task_id": task_id, "run_id": run_id}
        self.task_id = task_id

    async def create(self, kind: str, name: str = NAME, **fields: Any) -> Any:
        """Creates an artifact."""
        return await self.queue("CreateArtifact", **self.place, name=name, artifact=artifact(kind, **fields))

    async def get(self, name: str = NAME) -> Any:
        """Where its content is."""
        return await self.queue("GetArtifact", **self.place, name=name)

    async def content(self, name: str = NAME) -> Any:
        """How to read it."""
        return (await self.queue("GetArtifactContent", **self.place, name=name)).content

    async def info(self, name: str = NAME) -> Any:
        """What it is."""
        return (await self.queue("GetArtifactInfo", **self.place, name=name)).artifact

    async def names(self) -> list[str]:
        """The names of all of them."""
        return [a.name for a in (await self.queue("ListArtifacts", **self.place)).artifacts]

    async def finish(self, upload_id: str, name: str = NAME) -> None:
        """Says that the upload of an object artifact is done."""
        await self.queue("FinishArtifact", **self.place, name=name, upload_id=upload_id)

    async def upload(self, made: Any) -> None:
        """Finishes the object of an object artifact."""
        await self.queue("FinishUpload", name=made.name, project_id=made.project_id, upload_id=made.upload_id)


async def begun(queue: Queue, **fields: Any) -> Run:
    """A new task, claimed."""
    claim = await queue.running(expires=at(hours=2), **fields)
    await queue.published()
    return Run(queue, claim.status.task_id)


async def test_the_kinds_of_answers(queue: Queue) -> None:
    """Q-156: an upload goes to the bucket that the name chooses, and ends in 45 minutes."""
    run = await begun(queue)
    for name, bucket in ((NAME, "public"), ("private/x", "private"), ("publicity", "private")):
        made = await run.create("s3", name, content_type="text/x")
        assert made.content_type == "text/x"
        assert abs(moment(made.expires) - now(minutes=45)) < timedelta(minutes=1)
        assert f"/{bucket}/{run.task_id}/0/{name}?" in made.put_url
    for kind in ("reference", "link", "error"):
        made = await run.create(kind, f"a/{kind}")
        assert made.ListFields() == [(made.DESCRIPTOR.fields_by_name["storage_type"], made.storage_type)]


async def test_events(queue: Queue) -> None:
    """Q-154 T-54: for references, links and errors at once, for objects when they are finished, never for s3;
    again with every repeat."""
    run = await begun(queue, routes=["a.b"])
    await run.create("s3", "s3")
    assert await queue.published() == []
    for kind in ("reference", "link", "error"):
        for _ in range(2):
            await run.create(kind, kind, expires=at(minutes=40))
            event = (await queue.published()).one("artifact-created")
            assert event.payload["artifact"]["storageType"] == kind
            assert event.payload["artifact"]["name"] == kind
            assert (event.payload["runId"], event.payload["workerGroup"]) == (0, "group")
            assert event.words[1:5] == [run.task_id, "0", "group", "worker"]
            assert event.cc == ["route.a.b"]
            assert event.status == status_json(await queue.status(run.task_id))
    made = await run.create("object", "object", content_length=7)
    assert await queue.published() == []
    await run.upload(made)
    for _ in range(2):
        await run.finish(made.upload_id, "object")
        event = (await queue.published()).one("artifact-created")
        assert event.payload["artifact"] == {
            "storageType": "object",
            "name": "object",
            "contentType": "text/plain",
            "expires": to_text(moment((await run.info("object")).expires)),
        }


async def test_s3(queue: Queue) -> None:
    """Q-157 T-6: the URL, and over HTTP the redirect and its header, which the door checks."""
    run = await begun(queue)
    await run.create("s3")
    found = await run.get()
    assert found.storage_type == StorageType.STORAGE_TYPE_S3
    assert found.url.endswith(f"/public/{run.task_id}/0/{NAME}")
    latest = await queue("GetLatestArtifact", task_id=run.task_id, name=NAME)
    assert (latest.url, latest.storage_type) == (found.url, found.storage_type)
    content = await run.content()
    assert (content.storage_type, content.url) == (found.storage_type, found.url)
    assert (await queue("GetLatestArtifactContent", task_id=run.task_id, name=NAME)).content == content


async def test_signed_urls(queue: Queue) -> None:
    """Q-158: what is private is signed, what is public is not."""
    run = await begun(queue)
    await run.create("s3")
    await run.create("s3", "private/x")
    assert "?" not in (await run.get()).url
    assert "signature=" in (await run.get("private/x")).url


@pytest.mark.settings(sign_public_artifact_urls=True)
async def test_signed_public_urls(queue: Queue) -> None:
    """Q-158: or everything is."""
    run = await begun(queue)
    await run.create("s3")
    assert "signature=" in (await run.get()).url


@pytest.mark.settings(
    artifact_store="s3",
    s3_endpoint="https://s3.example.com",
    s3_access_key="key",
    s3_secret_key="secret",
    s3_region="eu-north-1",
    s3_public_bucket="open",
    s3_private_bucket="closed",
    s3_public_cdn_url="https://cdn.example.com/",
)
async def test_a_delivery_network(queue: Queue) -> None:
    """Q-159 T-56: it stands before the public bucket, unless the caller will not have it; presigning asks
    nobody, and names are encoded."""
    run = await begun(queue)
    name = "public/a b%?#.txt"
    made = await run.create("s3", name)
    encoded = f"{run.task_id}/0/public/a%20b%25%3F%23.txt"
    assert made.put_url.startswith(f"https://s3.example.com/open/{encoded}?X-Amz-Algorithm=")
    assert "X-Amz-SignedHeaders=content-type%3Bhost" in made.put_url
    assert "X-Amz-Expires=2710" in made.put_url
    assert (await run.get(name)).url == f"https://cdn.example.com/{encoded}"
    for method, place in (("GetArtifact", run.place), ("GetLatestArtifact", {"task_id": run.task_id})):
        found = await queue(method, **place, name=name, skip_cdn=True)
        assert found.url == f"https://s3.example.com/open/{encoded}"
    await run.create("s3", "private/x")
    found = await run.get("private/x")
    assert found.url.startswith(f"https://s3.example.com/closed/{run.task_id}/0/private/x?X-Amz-")
    assert "X-Amz-Expires=1800&" in found.url


async def test_object(queue: Queue) -> None:
    """Q-160 Q-161 Q-164 T-53: before it is finished it is listed and nothing else; its credentials do one
    thing each."""
    run = await begun(queue, project_id="a/project")
    made = await run.create("object", expires=at(minutes=50), content_length=5)
    name = f"t/{run.task_id}/0/{NAME}"
    assert (made.name, made.project_id) == (name, "a/project")
    assert slugid.is_slugid(made.upload_id)
    assert abs(moment(made.expires) - now(minutes=50)) < timedelta(minutes=1)
    certificate = json.loads(made.credentials.certificate)
    assert certificate["scopes"] == [f"object:upload:a/project:{name}"]
    assert made.credentials.client_id == f"artifact-upload/{run.task_id}/0/on/group/worker"
    assert certificate["expiry"] == made.expires.ToMilliseconds()
    assert await run.names() == [NAME]
    for read in (run.get, run.content, run.info):
        with refused("ResourceNotFound", "Artifact not found"):
            await read()
    await run.upload(made)
    await run.finish(made.upload_id)
    assert "signature=" in (await run.get()).url
    content = await run.content()
    assert (content.name, content.url) == (name, "")
    certificate = json.loads(content.credentials.certificate)
    assert certificate["scopes"] == [f"object:download:{name}"]
    assert certificate["expiry"] - certificate["start"] == 3600_000
    assert content.credentials.client_id == f"artifact-download/{run.task_id}/0/{NAME}"
    worker = queue.worker(content.credentials)
    assert (await worker("GetObject", name=name)).project_id == "a/project"
    with refused("InsufficientScopes"):
        await worker("GetObject", name=f"{name}x")


async def test_credentials_for_strange_names(queue: Queue) -> None:
    """Q-164: what a clientId cannot hold becomes an underscore, and they work."""
    run = await begun(queue)
    made = await run.create("object", 'a "b"\\c')
    await run.upload(made)
    await run.finish(made.upload_id, 'a "b"\\c')
    credentials = (await run.content('a "b"\\c')).credentials
    assert credentials.client_id == f"artifact-download/{run.task_id}/0/a__b__c"
    assert (await queue.worker(credentials)("GetObject", name=made.name)).project_id == "none"


async def test_finishing(queue: Queue) -> None:
    """Q-162 T-49: the right upload, once its object is there; then again, whatever the upload."""
    run = await begun(queue)
    made = await run.create("object")
    with refused("InputError", "does not match"):
        await run.finish(slugid.v4())
    with refused("InputError", "does not exist"):
        await run.finish(made.upload_id)
    with refused("InputValidationError"):
        await run.finish("")
    await run.upload(made)
    await run.finish(made.upload_id)
    await run.finish(made.upload_id)
    await run.finish(slugid.v4())


async def test_finishing_what_is_not_there(queue: Queue) -> None:
    """Q-163 T-3: unknown artifacts, runs and tasks; other types."""
    run = await begun(queue)
    with refused("ResourceNotFound", "Artifact not found"):
        await run.finish(slugid.v4())
    with refused("ResourceNotFound"):
        await Run(queue, run.task_id, 1).finish(slugid.v4())
    with refused("ResourceNotFound"):
        await Run(queue, new_id()).finish(slugid.v4())
    for kind in ("s3", "reference", "link", "error"):
        await run.create(kind, kind)
        with refused("InputError", "Only object artifacts"):
            await run.finish(slugid.v4(), kind)


async def test_an_object_that_is_gone(queue: Queue) -> None:
    """Q-161: the object is deleted before its artifact: there is no URL."""
    run = await begun(queue)
    made = await run.create("object")
    await run.upload(made)
    await run.finish(made.upload_id)
    await queue.sql("delete from objects")
    with refused("ResourceNotFound", "Object does not exist."):
        await run.get()


async def test_object_repeats(queue: Queue) -> None:
    """O-051 Q-171: a repeat goes on with the same upload, with fresh credentials, until it is finished."""
    run = await begun(queue)
    expires = at(minutes=30)
    made = await run.create("object", expires=expires)
    again = await run.create("object", expires=expires)
    assert again.upload_id == made.upload_id
    assert again.credentials.access_token != made.credentials.access_token
    for changed in ({"expires": at(minutes=50)}, {"expires": expires, "content_length": 5}):
        with refused("RequestConflict"):
            await run.create("object", **changed)
    await run.upload(made)
    # The reply of the upload was lost, and the worker begins anew.
    assert (await run.create("object", expires=expires)).upload_id == made.upload_id
    await run.finish(made.upload_id)
    with refused("RequestConflict"):
        await run.create("object", expires=expires)


async def test_reference(queue: Queue) -> None:
    """Q-165: the URL as it was given."""
    run = await begun(queue)
    url = "https://example.com/a%20b?x=1&y=/"
    await run.create("reference", url=url)
    assert (await run.get()).url == url
    assert ((await run.content()).url, (await run.content()).storage_type) == (
        url,
        StorageType.STORAGE_TYPE_REFERENCE,
    )


async def test_error(queue: Queue) -> None:
    """Q-166 T-5: an error to whoever wants the content, an answer to whoever asks what it is."""
    run = await begun(queue)
    await run.create("error")
    for method, place in (("GetArtifact", run.place), ("GetLatestArtifact", {"task_id": run.task_id})):
        with refused("ErrorArtifact", "file-missing-on-worker: no such file"):
            await queue(method, **place, name=NAME)
    content = await run.content()
    assert content.reason == ArtifactErrorReason.ARTIFACT_ERROR_REASON_FILE_MISSING_ON_WORKER
    assert content.message == "no such file"
    assert (await run.info()).content_type == "application/binary"


async def test_links(queue: Queue) -> None:
    """Q-167 Q-179 T-50: followed within the run, however long the way; a missing end is missing, a circle an
    error of whoever reads."""
    run = await begun(queue)
    await run.create("reference", "end", url="https://example.com/end")
    for i in range(30):
        await run.create("link", f"l{i}", artifact=f"l{i + 1}" if i < 29 else "end")
    assert (await run.get("l0")).url == "https://example.com/end"
    assert (await run.content("l0")).storage_type == StorageType.STORAGE_TYPE_REFERENCE
    await run.create("link", "nowhere", artifact="missing")
    await run.create("link", "self", artifact="self")
    await run.create("link", "a", artifact="b")
    await run.create("link", "b", artifact="a")
    for read in (run.get, run.content):
        with refused("ResourceNotFound", "Artifact not found"):
            await read("nowhere")
        for name in ("self", "a", "b"):
            with refused("InputError", "circle"):
                await read(name)


async def test_links_and_scopes(queue: Queue) -> None:
    """Q-168 T-50: every name on the way, and all of them are told."""
    run = await begun(queue)
    await run.create("link", "public/x", artifact="private/y")
    await run.create("reference", "private/y", url="https://example.com/")
    caller = queue.having("queue:get-artifact:public/*")
    for method in ("GetArtifact", "GetArtifactContent"):
        with refused("InsufficientScopes", "queue:get-artifact:public/x", "queue:get-artifact:private/y"):
            await caller(method, **run.place, name="public/x")
    both = queue.having("queue:get-artifact:public/*", "queue:get-artifact:private/y")
    assert (await both("GetArtifact", **run.place, name="public/x")).url == "https://example.com/"


async def test_expiries_of_repeats(queue: Queue) -> None:
    """Q-169 T-51: the same again, and later; never sooner."""
    run = await begun(queue)
    for kind in ("s3", "reference", "link", "error"):
        expires = at(minutes=30)
        for expiry in (expires, expires, at(minutes=60)):
            await run.create(kind, kind, expires=expiry)
        later = (await run.info(kind)).expires
        assert abs(moment(later) - now(minutes=60)) < timedelta(minutes=1)
        with refused("RequestConflict", kind, "expiry"):
            await run.create(kind, kind, expires=expires)
        assert (await run.info(kind)).expires == later


async def test_content_types_stay(queue: Queue) -> None:
    """Q-170 T-51: and what is stored stays, too."""
    run = await begun(queue)
    expires = at(minutes=30)
    for kind in ("s3", "object", "reference"):
        await run.create(kind, kind, expires=expires)
        with refused("RequestConflict", "text/plain"):
            await run.create(kind, kind, expires=expires, content_type="text/html")
    assert (await run.info("s3")).content_type == "text/plain"
    await run.create("s3", "counted", content_length=5)
    await run.create("s3", "counted", content_length=6, expires=at(minutes=40))
    assert (await run.info("counted")).content_length == 5


async def test_types_of_repeats(queue: Queue) -> None:
    """Q-171 T-51: a reference may get another URL or become a link; nothing else changes its type."""
    run = await begun(queue)
    kinds = ("s3", "object", "reference", "link", "error")
    for old in kinds:
        for new in kinds:
            if old == new:
                continue
            name = f"{old}-{new}"
            # An error has a content type that no other type is given by itself.
            fields: dict[str, Any] = {"content_type": "application/binary"} if "error" in (old, new) else {}
            if "link" in (old, new) and old != "reference":
                fields = {"content_type": "application/binary"}
            await run.create(old, name, **({} if old == "error" else fields), expires=at(minutes=30))
            given = {} if new == "error" else fields
            if (old, new) == ("reference", "link"):
                await run.create(new, name, expires=at(minutes=31))
                shown = await run.info(name)
                assert shown.storage_type == StorageType.STORAGE_TYPE_LINK
                # What it is listed with is what it was first.
                assert shown.content_type == fields.get("content_type", "text/plain")
            else:
                with refused("RequestConflict", f"storageType {old}"):
                    await run.create(new, name, **given, expires=at(minutes=31))
    await run.create("reference", "moving", url="https://example.com/1")
    await run.create("reference", "moving", url="https://example.com/2", expires=at(minutes=40))
    assert (await run.get("moving")).url == "https://example.com/2"


async def test_details_stay(queue: Queue) -> None:
    """Q-172: what an error says, and where a link leads."""
    run = await begun(queue)
    expires = at(minutes=30)
    other = ArtifactErrorReason.ARTIFACT_ERROR_REASON_TOO_LARGE_FILE_ON_WORKER
    await run.create("error", "error", expires=expires)
    for fields in ({"reason": other}, {"message": "another"}):
        with refused("RequestConflict"):
            await run.create("error", "error", expires=expires, **fields)
    await run.create("link", "link", expires=expires)
    with refused("RequestConflict"):
        await run.create("link", "link", expires=expires, artifact="another")


async def test_expiries(queue: Queue) -> None:
    """Q-173: not after the task, and hardly before now."""
    run = await begun(queue)
    task = await queue.task(run.task_id)
    await run.create("reference", "equal", expires=task.expires)
    await run.create("reference", "past", expires=at(minutes=-14))
    late = task.expires.__class__(seconds=task.expires.seconds, nanos=task.expires.nanos + 1_000_000)
    for expires in (late, at(minutes=-16), at(days=400)):
        with refused("InputError", "expire"):
            await run.create("reference", "refused", expires=expires)
    assert await run.names() == ["equal", "past"]


async def test_runs_without_a_worker(queue: Queue) -> None:
    """Q-174 T-3: no such task, no such run, a run that nobody claimed."""
    run = await begun(queue)
    for place in (Run(queue, new_id()), Run(queue, run.task_id, 1), Run(queue, run.task_id, 1000)):
        with refused("InputError"):
            await place.create("s3")
    canceled = await queue.resolved("canceled")
    pending = await queue.create()
    waiting = new_id()
    await queue.create(waiting, dependencies=[waiting])
    for task_id in (canceled.task_id, pending.task_id, waiting):
        with refused("InputError"):
            await Run(queue, task_id).create("s3", expires=at(minutes=10))
    # A time of its own is judged before anything else.
    with refused("InputError", "future"):
        await Run(queue, new_id()).create("s3", expires=at(hours=-1))


@pytest.mark.parametrize("outcome", ["completed", "failed"])
async def test_after_the_end(queue: Queue, outcome: str) -> None:
    """Q-175: what is done is done."""
    run = await begun(queue)
    await run.create("s3")
    await queue.resolve(run.task_id, outcome)
    for name in (NAME, "another"):
        with refused("RequestConflict", outcome):
            await run.create("s3", name)


@pytest.mark.parametrize("outcome", ["malformed-payload", "worker-shutdown", "canceled"])
async def test_after_an_exception(queue: Queue, outcome: str) -> None:
    """Q-175 Q-176 T-52: for 25 minutes, whatever came after."""
    run = await begun(queue)
    if outcome == "canceled":
        await queue("CancelTask", task_id=run.task_id)
    else:
        await queue.resolve(run.task_id, outcome)
    await run.create("s3", "soon")
    await queue.pass_time(minutes=24)
    await run.create("s3", "still")
    await queue.pass_time(minutes=2)
    with refused("RequestConflict"):
        await run.create("s3", "late")
    assert await run.names() == ["soon", "still"]


async def test_a_claim_that_ran_out_takes_artifacts_until_it_is_handled(queue: Queue) -> None:
    """Q-232: time alone changes nothing."""
    run = await begun(queue)
    await queue.pass_time(minutes=30)
    await run.create("s3", expires=at(minutes=1))


async def test_scopes_of_creation(queue: Queue) -> None:
    """Q-177: exactly this run's; task credentials have it."""
    run = await begun(queue)
    for scopes in ([], ["queue:create-artifact:x"], [f"queue:create-artifact:{run.task_id}/1"]):
        caller = queue.having(*scopes)
        with refused("InsufficientScopes", f"queue:create-artifact:{run.task_id}/0"):
            await caller("CreateArtifact", **run.place, name=NAME, artifact=artifact("s3"))
        with refused("InsufficientScopes", f"queue:create-artifact:{run.task_id}/0"):
            await caller("FinishArtifact", **run.place, name=NAME, upload_id=slugid.v4())
    claim = await queue.running(expires=at(hours=2))
    worker = queue.worker(claim.credentials)
    place = {"task_id": claim.status.task_id, "run_id": 0}
    await worker("CreateArtifact", **place, name=NAME, artifact=artifact("s3"))
    with refused("InsufficientScopes"):
        await worker("CreateArtifact", **run.place, name=NAME, artifact=artifact("s3"))


async def test_lists(queue: Queue) -> None:
    """Q-178 Q-215 Q-238 T-55: by name, page by page; a token that means nothing begins anew."""
    run = await begun(queue)
    assert await run.names() == []
    names = ["A", "a b", "a/b", "a//b", "b", "public/x"]
    for name in reversed(names):
        await run.create("reference", name)
    assert await run.names() == sorted(names)
    for method, place in (("ListArtifacts", run.place), ("ListLatestArtifacts", {"task_id": run.task_id})):
        found: list[str] = []
        token = ""
        while True:
            page = await queue(method, **place, limit=2, continuation_token=token)
            found += [a.name for a in page.artifacts]
            token = page.continuation_token
            if not token:
                break
        assert found == sorted(names)
        assert len((await queue(method, **place, continuation_token="garbage")).artifacts) == len(names)
        first = await queue(method, **place, limit=1)
        rest = await queue(method, **place, continuation_token=first.continuation_token)
        assert [a.name for a in rest.artifacts] == sorted(names)[1:]


async def test_lists_of_nothing(queue: Queue) -> None:
    """Q-178 Q-174 T-55: unknown tasks, tasks without runs, unknown runs."""
    run = await begun(queue)
    waiting = new_id()
    await queue.create(waiting, dependencies=[waiting])
    for task_id in (new_id(), waiting):
        with refused("ResourceNotFound"):
            await queue("ListArtifacts", task_id=task_id, run_id=0)
        for method in ("GetLatestArtifact", "GetLatestArtifactContent", "GetLatestArtifactInfo"):
            with refused("ResourceNotFound"):
                await queue(method, task_id=task_id, name=NAME)
        with refused("ResourceNotFound"):
            await queue("ListLatestArtifacts", task_id=task_id)
    with refused("ResourceNotFound"):
        await queue("ListArtifacts", task_id=run.task_id, run_id=1)
    for read in (run.get, run.content, run.info):
        with refused("ResourceNotFound", "Artifact not found"):
            await read()
    with refused("ResourceNotFound"):
        await Run(queue, new_id()).get()


async def test_the_latest_run(queue: Queue) -> None:
    """Q-179: the last one, even if it has just been made and is empty."""
    run = await begun(queue)
    await run.create("reference", url="https://example.com/0")
    latest = {"task_id": run.task_id, "name": NAME}
    assert (await queue("GetLatestArtifact", **latest)).url == "https://example.com/0"
    await queue.resolve(run.task_id, "worker-shutdown")
    for method in ("GetLatestArtifact", "GetLatestArtifactContent", "GetLatestArtifactInfo"):
        with refused("ResourceNotFound", "Artifact not found"):
            await queue(method, **latest)
    assert list((await queue("ListLatestArtifacts", task_id=run.task_id)).artifacts) == []
    await queue.claim()
    await Run(queue, run.task_id, 1).create("reference", url="https://example.com/1")
    assert (await queue("GetLatestArtifact", **latest)).url == "https://example.com/1"
    assert (await run.get()).url == "https://example.com/0"


async def test_what_comes_first(queue: Queue) -> None:
    """T-4: whether the caller may, or whether there is such a task."""
    nobody = queue.having()
    unknown = {"task_id": new_id(), "name": NAME}
    with refused("InsufficientScopes"):
        await nobody("GetLatestArtifact", **unknown)
    with refused("ResourceNotFound"):
        await nobody("GetLatestArtifactContent", **unknown)
    for method in ("GetArtifact", "GetArtifactContent", "GetArtifactInfo"):
        with refused("InsufficientScopes"):
            await nobody(method, **unknown, run_id=0)
    with refused("InsufficientScopes", "queue:list-artifacts:"):
        await nobody("GetLatestArtifactInfo", **unknown)


async def test_scopes_of_lists(queue: Queue) -> None:
    """T-50 Q-180: a run's list, and the latest run's, are different rights."""
    run = await begun(queue)
    await run.create("link")
    one = queue.having(f"queue:list-artifacts:{run.task_id}:0")
    latest = queue.having(f"queue:list-artifacts:{run.task_id}")
    assert len((await one("ListArtifacts", **run.place)).artifacts) == 1
    assert (await one("GetArtifactInfo", **run.place, name=NAME)).artifact.name == NAME
    assert len((await latest("ListLatestArtifacts", task_id=run.task_id)).artifacts) == 1
    for caller, method, place in (
        (one, "ListLatestArtifacts", {"task_id": run.task_id}),
        (latest, "ListArtifacts", run.place),
    ):
        with refused("InsufficientScopes"):
            await caller(method, **place)
    # The information on a link is on the link.
    assert (await run.info()).storage_type == StorageType.STORAGE_TYPE_LINK


async def test_expired(queue: Queue) -> None:
    """Q-181 Q-186: refused for half an hour, then gone; what is younger stays."""
    run = await begun(queue)
    await run.create("s3", "old", expires=at(minutes=10))
    await run.create("s3", "young", expires=at(minutes=100))
    await queue.pass_time(minutes=11)
    for read in (run.get, run.content):
        with refused("ResourceExpired", "Artifact expired"):
            await read("old")
    assert (await run.info("old")).name == "old"
    assert await run.names() == ["old", "young"]
    assert await queue.round("expire-artifacts") == 0
    await queue.pass_time(minutes=30)
    assert await queue.round("expire-artifacts") == 1
    for read in (run.get, run.content, run.info):
        with refused("ResourceNotFound"):
            await read("old")
    assert await run.names() == ["young"]


async def test_artifacts_and_objects_expire_together(queue: Queue) -> None:
    """O-053: neither is left behind."""
    run = await begun(queue)
    made = await run.create("object", expires=at(minutes=10))
    await run.upload(made)
    await run.finish(made.upload_id)
    await queue.pass_time(minutes=41)
    await queue.expire()
    assert await queue.sql("select from artifacts") == []
    assert await queue.sql("select from objects") == []


async def test_anonymous_readers(queue: Queue) -> None:
    """Q-182: if the anonymous role lets them."""
    run = await begun(queue)
    await run.create("reference")
    with refused("InsufficientScopes"):
        await queue.anonymous("GetArtifact", **run.place, name=NAME)
    scopes = {"scopes": ["queue:get-artifact:public/*"]}
    await queue("CreateRole", role_id="anonymous", description="", scopes=scopes)
    assert (await queue.anonymous("GetArtifact", **run.place, name=NAME)).url.startswith("https:")


async def test_names(queue: Queue) -> None:
    """Q-184 T-56: any printable ASCII, slashes wherever; nothing else."""
    run = await begun(queue)
    names = ["a//b", "/", "a/", "%2F", "a?b#c", " ", "..", "../x", "a\\b", "~", "x" * 1024, "+", "a;b,c"]
    if queue.door.in_paths:
        # A segment of two dots does not leave any client's library as it is.
        names.remove("..")
    for name in names:
        await run.create("reference", name)
        assert (await run.info(name)).name == name
        assert (await run.get(name)).url.startswith("https:")
    assert await run.names() == sorted(names)
    for name in ("ä", "\n", "a\x7f", "\0"):
        with refused("InvalidRequestArguments"):
            await run.create("reference", name)
    with refused("InputError|InvalidRequestArguments", "1024"):
        await run.create("reference", "x" * 1025)


@pytest.mark.doors("grpc")
async def test_an_empty_name(queue: Queue) -> None:
    """Q-184: there is none."""
    run = await begun(queue)
    with refused("InvalidRequestArguments"):
        await run.create("reference", "")
    with refused("InvalidRequestArguments"):
        await run.get("")


async def test_lengths(queue: Queue) -> None:
    """Q-185: as given, or not at all."""
    run = await begun(queue)
    await run.create("s3", "none")
    await run.create("s3", "zero", content_length=0)
    await run.create("s3", "large", content_length=2**53)
    assert not (await run.info("none")).HasField("content_length")
    assert (await run.info("zero")).HasField("content_length")
    assert (await run.info("large")).content_length == 2**53


async def test_what_belongs_to_which_type(queue: Queue) -> None:
    """Each type has its fields, and no others."""
    run = await begun(queue)
    for kind, fields in (
        ("s3", {"url": "https://example.com/"}),
        ("s3", {"content_type": None}),
        ("object", {"content_type": None}),
        ("object", {"artifact": "x"}),
        ("reference", {"url": None}),
        ("reference", {"url": "no url"}),
        ("reference", {"content_length": 5}),
        ("link", {"artifact": None}),
        ("link", {"content_length": 5}),
        ("error", {"content_type": "text/plain"}),
        ("error", {"message": None}),
        ("error", {"message": "x" * 4097}),
        ("s3", {"content_type": "x" * 256}),
        ("s3", {"content_length": -1}),
        ("s3", {"expires": None}),
    ):
        with refused("InputValidationError"):
            await run.create(kind, **fields)
    assert await run.names() == []


async def test_many_at_once(queue: Queue) -> None:
    """Concurrent creations are one transaction or several, and each gets its own answer."""
    run = await begun(queue)
    expires = at(minutes=30)
    await run.create("link", "there", artifact="x")
    results = await asyncio.gather(
        *(run.create("reference", f"n{i % 10}", expires=expires) for i in range(40)),
        run.create("link", "there", artifact="y"),
        return_exceptions=True,
    )
    assert [type(r).__name__ for r in results[:40]] == ["CreateArtifactResponse"] * 40
    assert type(results[40]).__name__ == "Refused"
    assert len(await run.names()) == 11
