"""The object service: uploads, downloads, their URLs, expiry (object.md)."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
from base64 import b64encode
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from server.blobs.disk import DiskStore, IncomingBlob
from server.blobs.store import BlobMeta
from server.client.credentials import Credentials
from server.domain import slugid
from server.domain.times import to_text
from server.views import stamp
from tcqueue.v1.object_pb2 import (
    AcceptDownloadMethods,
    CreateUploadRequest,
    CreateUploadResponse,
    FinishUploadRequest,
    FinishUploadResponse,
    GetObjectResponse,
    ProposedUploadMethods,
    UploadMethod,
)
from tests.auth_api.test_signatures import bewit, door_of, send
from tests.conformance.building import at, now
from tests.conformance.door import METHODS, Refused, refused, strange
from tests.conformance.shown import moment
from tests.conformance.test_artifacts import NAME as ARTIFACT
from tests.conformance.test_artifacts import begun
from tests.plugins.server import Caller, Queue

BASE = "/api/object/v1"
NAME = "some/object"
PROJECT = "a/project"
DATA = b"what is in it"
#: Names that something on the way could take for something else.
NAMES = [
    "a b",
    "100%",
    "%2F",
    "%252F",
    "a?b=c",
    "a#b",
    "a\\b",
    "..",
    ".",
    "../x",
    "a/../b",
    "a/./b",
    "/leading",
    "trailing/",
    "a//b",
    "/",
    " ",
    "~+&=;,'\"<>",
]
#: Those that no client's library tidies up, encoded as they are by the HTTP door.
IN_PATHS = [name for name in NAMES if name not in (".", "..")]


def hashes(data: bytes) -> dict[str, str]:
    """What helpers send when they finish."""
    return {kind: hashlib.new(kind, data).hexdigest() for kind in ("sha256", "sha512")}


def inline(data: bytes = DATA, content_type: str = "text/plain") -> dict[str, Any]:
    """A proposal to send the data in the call."""
    return {"data_inline": {"content_type": content_type, "object_data": b64encode(data).decode()}}


def put(length: int = len(DATA), content_type: str = "text/plain") -> dict[str, Any]:
    """A proposal to put so many bytes."""
    return {"put_url": {"content_type": content_type, "content_length": length}}


class Upload:
    """An upload as root makes it, or whoever else is given. Fields can be changed call by call."""

    def __init__(self, queue: Queue, name: str = NAME, **fields: Any) -> None:
        self.queue = queue
        self.name = name
        self.fields = {
            "name": name,
            "project_id": PROJECT,
            "upload_id": slugid.v4(),
            "expires": at(hours=1),
            **fields,
        }

    async def create(
        self, proposed: dict[str, Any] | None = None, caller: Caller | None = None, **fields: Any
    ) -> Any:
        """The answer to createUpload."""
        methods = ProposedUploadMethods(**proposed or {})
        request = {**self.fields, "proposed_upload_methods": methods, **fields}
        return await (caller or self.queue)("CreateUpload", **request)

    async def finish(self, caller: Caller | None = None, **fields: Any) -> Any:
        """The answer to finishUpload."""
        request = {name: value for name, value in self.fields.items() if name != "expires"}
        return await (caller or self.queue)("FinishUpload", **{**request, **fields})


class Downloads:
    """An object as it is read, by root or whoever else is given."""

    def __init__(self, caller: Caller, name: str = NAME) -> None:
        self.caller = caller
        self.name = name

    async def start(self, **methods: bool) -> Any:
        """The answer to startDownload."""
        accepted = AcceptDownloadMethods(**methods)
        return await self.caller("StartDownload", name=self.name, accept_download_methods=accepted)

    async def simple(self) -> Any:
        """The same for `simple`."""
        return await self.start(simple=True)

    async def metadata(self) -> Any:
        """What is known of it."""
        return await self.caller("GetObject", name=self.name)

    async def download(self) -> Any:
        """Where its data is."""
        return await self.caller("Download", name=self.name)


async def uploaded(
    queue: Queue, name: str = NAME, data: bytes = DATA, content_type: str = "text/plain"
) -> Upload:
    """A finished object with its data and hashes."""
    upload = Upload(queue, name)
    await upload.create(inline(data, content_type))
    await upload.finish(hashes=hashes(data))
    return upload


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """Gets and puts data, with nothing but a URL."""
    async with httpx.AsyncClient() as plain:
        yield plain


async def content(queue: Queue, client: httpx.AsyncClient, name: str = NAME) -> bytes:
    """An object's data."""
    answer = await client.get((await Downloads(queue, name).simple()).url)
    assert answer.status_code == 200, answer.text
    return answer.content


# -- createUpload


async def test_data_in_the_call(queue: Queue) -> None:
    """O-001: exactly this answer."""
    upload = Upload(queue)
    assert await upload.create(inline()) == CreateUploadResponse(
        project_id=PROJECT,
        upload_id=upload.fields["upload_id"],
        expires=upload.fields["expires"],
        upload_method=UploadMethod(data_inline=True),
    )


@pytest.mark.doors("http")
async def test_expires_in_json(queue: Queue) -> None:
    """O-001: as JavaScript writes instants, it comes back as it was given."""
    expires = to_text(now(hours=1))
    body = {
        "projectId": PROJECT,
        "uploadId": slugid.v4(),
        "expires": expires,
        "proposedUploadMethods": {"dataInline": {"contentType": "text/plain", "objectData": ""}},
    }
    answer = await send(queue, "PUT", f"{BASE}/upload/x", body, queue.credentials)
    assert answer.status_code == 200
    given = {name: body[name] for name in ("projectId", "uploadId", "expires")}
    assert answer.json() == {**given, "uploadMethod": {"dataInline": True}}


async def test_sizes_in_the_call(queue: Queue) -> None:
    """O-002: from nothing to 8 KiB; what is longer, or no base64, is refused and leaves nothing."""
    for size in (0, 1, 8191, 8192):
        upload = Upload(queue, f"size/{size}")
        assert (await upload.create(inline(b"x" * size))).upload_method.data_inline
    for text in ("A" * 10927, "A" * 12000, "§", "A", "AA=A"):
        upload = Upload(queue, "refused")
        proposed = {"data_inline": {"content_type": "text/plain", "object_data": text}}
        with refused("InputValidationError"):
            await upload.create(proposed)
    assert await queue.sql("select from objects where name = 'refused'") == []


@pytest.mark.doors("http")
async def test_sizes_come_back(queue: Queue, client: httpx.AsyncClient) -> None:
    """O-002: byte for byte."""
    for size in (0, 8191):
        data = bytes(i % 251 for i in range(size))
        await uploaded(queue, f"size/{size}", data)
        assert await content(queue, client, f"size/{size}") == data


async def test_a_url_to_put_to(queue: Queue) -> None:
    """O-003: it says until when, and with which headers."""
    made = (await Upload(queue).create(put(100_000))).upload_method
    assert not made.HasField("data_inline")
    target = made.put_url
    assert "signature=" in target.url
    assert now(minutes=44) < moment(target.expires) < now(minutes=46)
    assert target.headers["Content-Type"] == "text/plain"
    assert target.headers["Content-Length"] == "100000"
    assert "Content-Disposition" not in target.headers
    for content_type in ("text/html", "text/html; charset=latin-1", "Text/HTML ;x=y"):
        target = (await Upload(queue, content_type).create(put(5, content_type))).upload_method.put_url
        assert target.headers["Content-Type"] == content_type
        assert target.headers["Content-Disposition"] == "attachment"


async def test_the_encoding_to_put_with(queue: Queue) -> None:
    """O-003: the data is sent as it is."""
    target = (await Upload(queue).create(put())).upload_method.put_url
    assert target.headers["Content-Encoding"] == "identity"


@pytest.mark.doors("http")
async def test_putting(queue: Queue, client: httpx.AsyncClient) -> None:
    """O-003: a PUT with exactly those headers is taken, in one piece or in many; one that does not say how
    long it is, too."""
    data = b"0123456789" * 20_000

    async def pieces() -> AsyncIterator[bytes]:
        for begin in range(0, len(data), 65536):
            yield data[begin : begin + 65536]

    for name, sent in (("whole", data), ("pieces", pieces()), ("chunked", pieces())):
        upload = Upload(queue, name)
        target = (await upload.create(put(len(data)))).upload_method.put_url
        headers = dict(target.headers)
        if name == "chunked":
            del headers["Content-Length"]
        answer = await client.put(target.url, content=sent, headers=headers)
        assert answer.status_code in (200, 204), answer.text
        await upload.finish(hashes=hashes(data))
        assert await content(queue, client, name) == data


async def test_which_way_is_chosen(queue: Queue) -> None:
    """O-004 O-005: inline whenever it is proposed; nothing when nothing is."""
    made = await Upload(queue, "both").create({**inline(), **put()})
    assert made.upload_method == UploadMethod(data_inline=True)
    made = await Upload(queue, "nothing").create()
    assert made.HasField("upload_method")
    assert made.upload_method == UploadMethod()


@pytest.mark.doors("http")
async def test_locked_in_and_filled_later(queue: Queue, client: httpx.AsyncClient) -> None:
    """O-006: the same upload with a real proposal, inline or by URL."""
    upload = Upload(queue)
    await upload.create()
    assert (await upload.create(inline(b"first"))).upload_method.data_inline
    target = (await upload.create(put(6))).upload_method.put_url
    answer = await client.put(target.url, content=b"second", headers=dict(target.headers))
    assert answer.status_code == 200
    await upload.finish()
    assert await content(queue, client) == b"second"


async def test_repeats(queue: Queue) -> None:
    """O-007: nothing new, the same answer."""
    for name, proposed in (("inline", inline()), ("nothing", {})):
        upload = Upload(queue, name)
        assert await upload.create(proposed) == await upload.create(proposed)
    upload = Upload(queue, "put")
    await upload.create(put())
    assert (await upload.create(put())).upload_method.HasField("put_url")
    assert await queue.sql("select count(*) from objects") == [(3,)]


async def test_others_with_the_same_name(queue: Queue) -> None:
    """O-008 O-009 O-010: another upload, expiry or project; the first goes on."""
    upload = Upload(queue)
    await upload.create()
    for changed in (
        {"upload_id": slugid.v4()},
        {"expires": stamp(moment(upload.fields["expires"]) + timedelta(milliseconds=1))},
        {"expires": stamp(moment(upload.fields["expires"]) - timedelta(milliseconds=1))},
        {"project_id": "another"},
    ):
        for proposed in ({}, inline(b"not mine"), put()):
            with refused("RequestConflict", "Object already exists"):
                await upload.create(proposed, hashes={"md5": "a"}, **changed)
    await upload.create(inline())
    await upload.finish()
    assert await Downloads(queue).metadata() == GetObjectResponse(
        project_id=PROJECT, expires=upload.fields["expires"]
    )


async def test_expires_below_a_millisecond(queue: Queue) -> None:
    """O-009: what is less than a millisecond is no difference."""
    upload = Upload(queue)
    await upload.create()
    expires = Timestamp()
    expires.CopyFrom(upload.fields["expires"])
    expires.nanos += 999_999
    await upload.create(expires=expires)


@pytest.mark.doors("http")
async def test_notations_of_expires(queue: Queue) -> None:
    """O-001 O-009: the same instant, however it is written, and it comes back as it was written; another one
    is refused."""
    instant = datetime(2044, 5, 6, 7, 8, 9, tzinfo=UTC)
    body = {"projectId": PROJECT, "uploadId": slugid.v4(), "proposedUploadMethods": {}}
    east = instant.astimezone(timezone(timedelta(hours=5, minutes=30)))
    for text, status in (
        ("2044-05-06T07:08:09.000Z", 200),
        ("2044-05-06T07:08:09Z", 200),
        ("2044-05-06T07:08:09.000000+00:00", 200),
        (east.isoformat(), 200),
        ("2044-05-06T07:08:09.001Z", 409),
        (east.replace(tzinfo=UTC).isoformat(), 409),
    ):
        answer = await send(queue, "PUT", f"{BASE}/upload/x", {**body, "expires": text}, queue.credentials)
        assert answer.status_code == status, (text, answer.text)
        if status == 200:
            assert answer.json()["expires"] == text


async def test_after_the_end(queue: Queue) -> None:
    """O-011: a finished object is never opened again."""
    upload = await uploaded(queue)
    for proposed in ({}, inline(), inline(b"something else"), put()):
        with refused("RequestConflict", "Object already exists"):
            await upload.create(proposed)
    assert (await Downloads(queue).metadata()).hashes == hashes(DATA)


async def test_an_upload_id_of_another_object(queue: Queue) -> None:
    """O-012: an upload is of one object, and the other one never comes to be."""
    upload = Upload(queue)
    await upload.create()
    with refused("RequestConflict", "Object already exists"):
        await upload.create(name="another")
    with refused("ResourceNotFound"):
        await upload.finish(name="another")


@pytest.mark.settings(cold_pool_size=6)
async def test_an_upload_id_for_several_objects_at_once(queue: Queue) -> None:
    """O-012: one of them has it, however their openings meet."""
    upload = Upload(queue)
    names = ["a", "b", "c"]
    waiting = """select count(*) from pg_stat_activity
        where datname = current_database() and wait_event_type = 'Lock'"""
    async with queue.services.db.transaction(hot=False) as tx:
        # As long as nobody knows whether these names are taken, openings wait in the middle.
        await tx.run(
            "insert into objects (name, project_id, backend_id, expires, blob_key) "
            "select name, 'p', 'b', now(), name from unnest($1::text[]) as name",
            [names],
        )
        opening = [asyncio.create_task(upload.create(name=name)) for name in names]
        while await queue.sql(waiting) != [(len(names),)]:
            await asyncio.sleep(0.01)
        await tx.run("delete from objects where name = any ($1::text[])", [names])
    opened = await asyncio.gather(*opening, return_exceptions=True)
    codes = [one.code if isinstance(one, Refused) else "opened" for one in opened]
    assert sorted(codes) == ["RequestConflict", "RequestConflict", "opened"]


@pytest.mark.settings(object_backends=[])
async def test_no_backend(queue: Queue) -> None:
    """O-013: nothing can be uploaded."""
    with refused("NoMatchingBackend", "No backend matched the given name and projectId"):
        await Upload(queue).create(inline())
    assert await queue.sql("select from objects") == []


@pytest.mark.settings(
    object_backends=[
        {"backendId": "first", "when": {"name": {"regexp": "b.c"}, "projectId": {"is": "p"}}},
        {"backendId": "second", "when": {"name": "exact"}},
        {"backendId": "third", "when": {"projectId": {"regexp": "^q"}}},
        {"backendId": "fourth", "when": {"projectId": {"regexp": "^q$"}}},
    ]
)
async def test_which_backend(queue: Queue) -> None:
    """O-013: the first that fits name and project; patterns are searched, texts are whole."""
    for name, project, backend in (
        ("abxcd", "p", "first"),
        ("exact", "p", "second"),
        ("exact", "q", "second"),
        ("abxcd", "q", "third"),
    ):
        upload = Upload(queue, f"{name}", project_id=project)
        await upload.create()
        rows = await queue.sql("delete from objects returning name, backend_id")
        assert rows == [(name, backend)]
    for name, project in (("abxcd", "pp"), ("bc", "p"), ("exactly", "p"), ("x", "aq")):
        with refused("NoMatchingBackend"):
            await Upload(queue, name, project_id=project).create()


async def test_what_is_not_understood(queue: Queue) -> None:
    """O-014: ids, hashes, projects, contents and names have their forms, and nothing else is known."""
    upload = Upload(queue)
    good = {"sha256": "0" * 64}
    bad_hashes = [
        {"sha256": "0" * 63},
        {"sha256": "0" * 65},
        {"sha256": "A" * 64},
        {"sha512": "0" * 64},
        {**good, "sha512": ""},
    ]
    bad_uploads: tuple[dict[str, Any], ...] = (
        *({"upload_id": text} for text in ("", "short", "x" * 22, slugid.v4() + "A")),
        *({"hashes": given} for given in bad_hashes),
        *({"project_id": text} for text in ("", "a b", "x" * 501, "ä")),
        {"expires": None},
        {"proposed_upload_methods": None},
    )
    for fields in bad_uploads:
        with refused("InputValidationError"):
            await upload.create(**fields)
    await upload.create()
    bad_ends: tuple[dict[str, Any], ...] = (
        *({"upload_id": text} for text in ("", "short")),
        *({"hashes": given} for given in bad_hashes),
        {"project_id": "a b"},
    )
    for fields in bad_ends:
        with refused("InputValidationError"):
            await upload.finish(**fields)
    for proposed in (
        {"data_inline": {"content_type": "text/plain"}},
        {"data_inline": {"object_data": ""}},
        {"put_url": {"content_type": "text/plain"}},
        {"put_url": {"content_length": 5}},
        put(-1),
        put(5, "text/plain\n"),
        inline(b"", "text/plain\r\nx: y"),
    ):
        with refused("InputValidationError"):
            await upload.create(proposed)
    for name in ("ä", "\n", "a\x7f"):
        with refused("InvalidRequestArguments"):
            await upload.create(name=name)
        for read in (Downloads(queue, name).metadata, Downloads(queue, name).simple):
            with refused("InvalidRequestArguments"):
                await read()


async def test_unknown_fields(queue: Queue) -> None:
    """O-014: keys that nobody knows, at the top and inside."""
    upload = Upload(queue)
    proposals = [
        ProposedUploadMethods(**inline()),
        ProposedUploadMethods(**put()),
        ProposedUploadMethods(),
    ]
    strange(proposals[0].data_inline)
    strange(proposals[1].put_url)
    strange(proposals[2])
    for proposal in proposals if not queue.door.in_paths else []:
        with refused("InputValidationError"):
            await upload.create(proposed_upload_methods=proposal)
    request = CreateUploadRequest(**upload.fields, proposed_upload_methods=ProposedUploadMethods())
    with refused("InputValidationError"):
        await queue.send("CreateUpload", strange(request))
    await upload.create()
    fields = {name: value for name, value in upload.fields.items() if name != "expires"}
    with refused("InputValidationError"):
        await queue.send("FinishUpload", strange(FinishUploadRequest(**fields)))
    await upload.finish()
    with refused("InputValidationError"):
        await queue.send(
            "StartDownload",
            strange(
                METHODS["StartDownload"].request_class(
                    name=NAME, accept_download_methods=AcceptDownloadMethods(simple=True)
                )
            ),
        )


@pytest.mark.doors("http")
async def test_bodies_that_are_not_understood(queue: Queue) -> None:
    """O-014: the same in JSON, with the types of values."""
    good: dict[str, Any] = {
        "projectId": PROJECT,
        "uploadId": slugid.v4(),
        "expires": to_text(now(hours=1)),
        "proposedUploadMethods": {},
    }
    data = {"contentType": "text/plain", "objectData": ""}
    target = {"contentType": "text/plain", "contentLength": 5}
    changed: dict[str, Any]
    for changed in (
        {"name": NAME},
        {"expires": "tomorrow"},
        {"hashes": []},
        {"proposedUploadMethods": {"dataInline": True}},
        {"proposedUploadMethods": {"dataInline": {**data, "extra": 1}}},
        {"proposedUploadMethods": {"putUrl": {**target, "extra": 1}}},
        {"proposedUploadMethods": {"putUrl": {**target, "contentLength": "5"}}},
        {"proposedUploadMethods": {"putUrl": {**target, "contentLength": 5.5}}},
        {"proposedUploadMethods": {"simple": True}},
    ):
        answer = await send(queue, "PUT", f"{BASE}/upload/x", {**good, **changed}, queue.credentials)
        assert (answer.status_code, answer.json()["code"]) == (400, "InputValidationError"), changed
    for lacking in good:
        body = {name: value for name, value in good.items() if name != lacking}
        answer = await send(queue, "PUT", f"{BASE}/upload/x", body, queue.credentials)
        assert (answer.status_code, answer.json()["code"]) == (400, "InputValidationError"), lacking
    answer = await send(queue, "PUT", f"{BASE}/upload/x", good, queue.credentials)
    assert answer.status_code == 200


# -- hashes


async def test_hashes_accumulate(queue: Queue) -> None:
    """O-015 O-017: over all calls, of any algorithm; the metadata shows them and no others."""
    known = hashes(DATA)
    upload = Upload(queue)
    await upload.create(hashes={"sha256": known["sha256"]})
    await upload.create(hashes={"md5": "Any Value"})
    await upload.create(hashes={"sha256": known["sha256"]})
    await upload.create()
    await upload.finish(hashes={"sha512": known["sha512"], "md5": "Any Value"})
    assert await Downloads(queue).metadata() == GetObjectResponse(
        project_id=PROJECT, expires=upload.fields["expires"], hashes={**known, "md5": "Any Value"}
    )


async def test_changed_hashes(queue: Queue) -> None:
    """O-016: a hash that is known stays, and what came with the other one is not taken."""
    upload = Upload(queue)
    await upload.create(hashes={"x": "1", "y": "1"})
    for call in (upload.create, upload.finish):
        with refused("RequestConflict", "Content hash already exists with a different value"):
            await call(hashes={"x": "2", "z": "1"})
        with refused("RequestConflict"):
            await call(hashes={"x": "1", "y": "2"})
    with refused("ResourceNotFound"):
        await Downloads(queue).metadata()
    await upload.finish(hashes={"x": "1"})
    assert (await Downloads(queue).metadata()).hashes == {"x": "1", "y": "1"}


@pytest.mark.doors("http")
async def test_data_of_a_refused_call(queue: Queue, client: httpx.AsyncClient) -> None:
    """O-016: it is not stored."""
    upload = Upload(queue)
    await upload.create(inline(), hashes=hashes(DATA))
    with refused("RequestConflict"):
        await upload.create(inline(b"other"), hashes=hashes(b"other"))
    await upload.finish()
    assert await content(queue, client) == DATA


async def test_no_hashes(queue: Queue) -> None:
    """O-018: an object is finished without any."""
    upload = Upload(queue)
    await upload.create(inline())
    assert await upload.finish() == FinishUploadResponse()
    assert (await Downloads(queue).metadata()).hashes == {}


@pytest.mark.doors("http")
async def test_no_hashes_in_json(queue: Queue) -> None:
    """O-017 O-018: an empty object where there are none, exactly these members where there are."""
    expires = now(hours=1)
    for name, given in (("with", {"sha256": "0" * 64, "x": "y"}), ("without", {})):
        upload = Upload(queue, name, expires=stamp(expires))
        await upload.create(inline())
        body = {"projectId": PROJECT, "uploadId": upload.fields["upload_id"]}
        if given:
            body["hashes"] = given
        answer = await send(queue, "POST", f"{BASE}/finish-upload/{name}", body, queue.credentials)
        assert (answer.status_code, answer.json()) == (200, {})
        answer = await send(queue, "GET", f"{BASE}/metadata/{name}", None, queue.credentials)
        assert answer.json() == {"projectId": PROJECT, "expires": to_text(expires), "hashes": given}


# -- finishUpload


async def test_finishing_what_is_not_there(queue: Queue) -> None:
    """O-019: an unknown object."""
    with refused("ResourceNotFound", f'Object "{NAME}" not found'):
        await Upload(queue).finish()


async def test_finishing_another_upload(queue: Queue) -> None:
    """O-020: the object stays open."""
    upload = Upload(queue)
    await upload.create()
    other = slugid.v4()
    with refused("RequestConflict", f'Object "{NAME}" does not have uploadId {other}'):
        await upload.finish(upload_id=other)
    with refused("ResourceNotFound"):
        await Downloads(queue).metadata()
    await upload.finish()


async def test_finishing_for_another_project(queue: Queue) -> None:
    """O-021: before and after the end, even with the wrong upload; the other project's scope comes first."""
    upload = Upload(queue)
    await upload.create()
    one = queue.having(f"object:upload:{PROJECT}:{NAME}")
    for _ in range(2):
        for upload_id in (upload.fields["upload_id"], slugid.v4()):
            with refused("InputError", f'Object "{NAME}" does not have projectId other'):
                await upload.finish(project_id="other", upload_id=upload_id)
        with refused("InsufficientScopes", f"object:upload:other:{NAME}"):
            await upload.finish(one, project_id="other")
        await upload.finish(one)


async def test_finishing_again(queue: Queue) -> None:
    """O-022 O-023 O-024 O-025: with what is known, or less of it, whatever the upload; nothing else."""
    upload = Upload(queue)
    await upload.create(inline())
    known = hashes(DATA)
    await upload.finish(hashes=known)
    for upload_id in (upload.fields["upload_id"], slugid.v4()):
        for given in (known, {"sha256": known["sha256"]}, {}):
            assert await upload.finish(upload_id=upload_id, hashes=given) == FinishUploadResponse()
        text = f'Object "{NAME}" is already finished, but'
        with refused("RequestConflict", f"{text} without hash algorithm md5"):
            await upload.finish(upload_id=upload_id, hashes={**known, "md5": "x"})
        with refused("RequestConflict", f"{text} with a different hash for algorithm sha512"):
            await upload.finish(upload_id=upload_id, hashes={**known, "sha512": "0" * 128})
    assert (await Downloads(queue).metadata()).hashes == known


# -- downloads


async def test_what_cannot_be_seen(queue: Queue) -> None:
    """O-026: unknown and unfinished objects, even when their data is there."""
    await Upload(queue, "open").create(inline())
    for name in ("unknown", "open"):
        found = Downloads(queue, name)
        for read in (found.metadata, found.simple, found.start, found.download):
            with refused("ResourceNotFound"):
                await read()


async def test_simple(queue: Queue) -> None:
    """O-027: a URL, and nothing else."""
    await uploaded(queue)
    found = await Downloads(queue).simple()
    assert (found.method, [field.name for field, _ in found.ListFields()]) == ("simple", ["method", "url"])
    assert "signature=" in found.url


async def test_get_url(queue: Queue) -> None:
    """O-028: with hashes, and a time until which it is good."""
    await uploaded(queue)
    found = await Downloads(queue).start(get_url=True)
    assert found.method == "getUrl"
    assert found.hashes.hashes == hashes(DATA)
    assert now() < moment(found.expires) < now(minutes=2)
    assert "signature=" in found.url


async def test_the_best_way(queue: Queue) -> None:
    """O-029: getUrl when there is a choice."""
    await uploaded(queue)
    assert (await Downloads(queue).start(get_url=True, simple=True)).method == "getUrl"


@pytest.mark.doors("http")
async def test_ways_to_download_in_json(queue: Queue) -> None:
    """O-027 O-028 O-029: exactly these members; a way is wanted or not named."""
    await uploaded(queue)
    path = f"{BASE}/start-download/{quote(NAME, safe='')}"
    for accepted, members in (
        ({"simple": True}, {"method", "url"}),
        ({"getUrl": True}, {"method", "url", "expires", "hashes"}),
        ({"getUrl": True, "simple": True}, {"method", "url", "expires", "hashes"}),
    ):
        body = {"acceptDownloadMethods": accepted}
        answer = await send(queue, "PUT", path, body, queue.credentials)
        assert (answer.status_code, set(answer.json())) == (200, members)
    unknown: dict[str, Any]
    for unknown in ({"simple": False}, {"other": True}, {"getUrl": {}}):
        answer = await send(queue, "PUT", path, {"acceptDownloadMethods": unknown}, queue.credentials)
        assert (answer.status_code, answer.json()["code"]) == (400, "InputValidationError"), unknown
    answer = await send(queue, "PUT", path, {"acceptDownloadMethods": {}}, queue.credentials)
    assert (answer.status_code, answer.json()["code"]) == (406, "NoMatchingMethod")


async def test_no_way_fits(queue: Queue) -> None:
    """O-030: and what would have."""
    await uploaded(queue)
    with refused("NoMatchingMethod", "Object supports methods simple, getUrl"):
        await Downloads(queue).start()


async def test_a_backend_that_is_gone(queue: Queue) -> None:
    """O-013: its objects are known and cannot be downloaded."""
    await uploaded(queue)
    await queue.sql("update objects set backend_id = 'old'")
    found = Downloads(queue)
    for read in (found.simple, found.start, found.download):
        with refused("NoMatchingBackend", "The backend for this object is no longer defined"):
            await read()
    assert (await found.metadata()).project_id == PROJECT


async def test_download(queue: Queue) -> None:
    """O-031: the simple URL; over HTTP a redirect, which the door checks."""
    await uploaded(queue)
    url = (await Downloads(queue).download()).url
    simple = (await Downloads(queue).simple()).url
    assert url.partition("?")[0] == simple.partition("?")[0]
    assert "signature=" in url


@pytest.mark.doors("http")
async def test_download_by_bewit(queue: Queue, client: httpx.AsyncClient) -> None:
    """O-031: the redirect needs no header when the URL is signed, and the data is at its end."""
    await uploaded(queue, "a b/c")
    door, root = door_of(queue), queue.credentials
    path = f"{BASE}/download/a%20b%2Fc"
    answer = await client.get(door.base + bewit(door, path, root))
    assert answer.status_code == 303
    assert (await client.get(answer.headers["location"])).content == DATA
    for scopes, status in (["object:download:a b/c"], 303), (["object:download:a%20b%2Fc"], 403):
        limited = Credentials(root.client_id, root.access_token, authorized_scopes=scopes)
        answer = await client.get(door.base + bewit(door, path, limited))
        assert answer.status_code == status
    assert (await client.get(door.base + path)).status_code in (401, 403)


# -- data URLs


@pytest.mark.doors("http")
async def test_a_foreign_content_type(queue: Queue, client: httpx.AsyncClient) -> None:
    """O-032: refused for good, and nothing is stored."""
    upload = Upload(queue)
    target = (await upload.create(put())).upload_method.put_url
    for content_type in ("application/json", "text/plain; charset=utf-8", ""):
        headers = {**target.headers, "Content-Type": content_type}
        answer = await client.put(target.url, content=DATA, headers=headers)
        assert 400 <= answer.status_code < 500
    await upload.finish()
    answer = await client.get((await Downloads(queue).simple()).url)
    assert answer.status_code == 404


@pytest.mark.doors("http")
async def test_another_length(queue: Queue, client: httpx.AsyncClient) -> None:
    """O-032: the length is handed out, too."""
    upload = Upload(queue)
    target = (await upload.create(put(5))).upload_method.put_url
    for data in (b"1234", b"123456", b""):
        headers = {"Content-Type": "text/plain"}
        assert (await client.put(target.url, content=data, headers=headers)).status_code == 400
    await upload.finish()
    answer = await client.get((await Downloads(queue).simple()).url)
    assert answer.status_code == 404


@pytest.mark.doors("http")
async def test_putting_nothing(queue: Queue, client: httpx.AsyncClient) -> None:
    """O-033: an object of no bytes."""
    upload = Upload(queue)
    target = (await upload.create(put(0))).upload_method.put_url
    assert target.headers["Content-Length"] == "0"
    answer = await client.put(target.url, content=b"", headers=dict(target.headers))
    assert answer.status_code == 200
    await upload.finish(hashes=hashes(b""))
    answer = await client.get((await Downloads(queue).start(get_url=True)).url)
    assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"", "0")


@pytest.mark.doors("http")
async def test_putting_again(queue: Queue, client: httpx.AsyncClient) -> None:
    """O-034: the last one stays, until the object is finished."""
    upload = Upload(queue)
    target = (await upload.create(put(3))).upload_method.put_url
    headers = dict(target.headers)
    for data in (b"one", b"two", b"two"):
        assert (await client.put(target.url, content=data, headers=headers)).status_code == 200
    await upload.finish()
    answer = await client.put(target.url, content=b"six", headers=headers)
    assert 400 <= answer.status_code < 500
    assert await content(queue, client) == b"two"


@pytest.mark.doors("http")
async def test_finished_while_bytes_come(
    queue: Queue, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O-034: a PUT that is still under way when the object is finished comes too late."""
    store = queue.services.blobs
    assert isinstance(store, DiskStore)
    begin, loop, begun_to_come = store.incoming, asyncio.get_running_loop(), asyncio.Event()

    def incoming() -> IncomingBlob:
        loop.call_soon_threadsafe(begun_to_come.set)
        return begin()

    upload = Upload(queue)
    await upload.create(inline(b"first!"))
    target = (await upload.create(put(6))).upload_method.put_url
    monkeypatch.setattr(store, "incoming", incoming)

    async def pieces() -> AsyncIterator[bytes]:
        yield b"sec"
        await asyncio.wait_for(begun_to_come.wait(), 20)
        await upload.finish()
        yield b"ond"

    answer = await client.put(target.url, content=pieces(), headers=dict(target.headers))
    assert 400 <= answer.status_code < 500
    assert await content(queue, client) == b"first!"


@pytest.mark.doors("http")
async def test_types_come_back(queue: Queue, client: httpx.AsyncClient) -> None:
    """O-035: the bytes, their number, and the type to the letter, whichever way they came and go."""
    data = bytes(range(256))
    for content_type in (
        "text/plain",
        "text/plain; charset=latin-1",
        'application/x-Strange;a="b c"',
        "application/json",
    ):
        await uploaded(queue, f"inline/{content_type}", data, content_type)
        upload = Upload(queue, f"put/{content_type}")
        target = (await upload.create(put(len(data), content_type))).upload_method.put_url
        answer = await client.put(target.url, content=data, headers=dict(target.headers))
        assert answer.status_code == 200
        await upload.finish(hashes=hashes(data))
        for way in ("inline", "put"):
            found = Downloads(queue, f"{way}/{content_type}")
            for accepted in ({"simple": True}, {"get_url": True}):
                answer = await client.get((await found.start(**accepted)).url)
                assert (answer.status_code, answer.content) == (200, data)
                assert answer.headers["content-type"] == content_type
                assert answer.headers["content-length"] == "256"
                assert "content-encoding" not in answer.headers
                assert "content-disposition" not in answer.headers


@pytest.mark.doors("http")
async def test_compressed_data(queue: Queue, client: httpx.AsyncClient) -> None:
    """O-035: what was put as gzip goes out as gzip; anything else is not compressed on the way."""
    packed = gzip.compress(b"x" * 5000)
    upload = Upload(queue)
    target = (await upload.create(put(len(packed)))).upload_method.put_url
    headers = {**target.headers, "Content-Encoding": "gzip"}
    assert (await client.put(target.url, content=packed, headers=headers)).status_code == 200
    await upload.finish()
    answer = await client.get((await Downloads(queue).simple()).url)
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.headers["content-length"] == str(len(packed))
    assert answer.content == b"x" * 5000
    await uploaded(queue, "plain", b"x" * 5000)
    url = (await Downloads(queue, "plain").simple()).url
    answer = await client.get(url, headers={"Accept-Encoding": "gzip, br"})
    assert "content-encoding" not in answer.headers
    assert answer.headers["content-length"] == "5000"


@pytest.mark.doors("http")
async def test_pages_are_attachments(queue: Queue, client: httpx.AsyncClient) -> None:
    """O-036: HTML, with parameters or without, whichever way it came."""
    for content_type in ("text/html", "text/html; charset=latin-1", "TEXT/html;x=y"):
        await uploaded(queue, f"inline/{content_type}", DATA, content_type)
        upload = Upload(queue, f"put/{content_type}")
        target = (await upload.create(put(content_type=content_type))).upload_method.put_url
        answer = await client.put(target.url, content=DATA, headers=dict(target.headers))
        assert answer.status_code == 200
        await upload.finish()
        for way in ("inline", "put"):
            answer = await client.get((await Downloads(queue, f"{way}/{content_type}").simple()).url)
            assert answer.headers["content-disposition"] == "attachment"
            assert answer.headers["content-type"] == content_type


@pytest.mark.doors("http")
async def test_ranges(queue: Queue, client: httpx.AsyncClient) -> None:
    """O-037: a part, by either kind of URL."""
    await uploaded(queue, data=b"0123456789")
    for accepted in ({"simple": True}, {"get_url": True}):
        url = (await Downloads(queue).start(**accepted)).url
        for wanted, data, place in (
            ("bytes=2-4", b"234", "2-4"),
            ("bytes=7-", b"789", "7-9"),
            ("bytes=-3", b"789", "7-9"),
            ("bytes=5-500", b"56789", "5-9"),
        ):
            answer = await client.get(url, headers={"Range": wanted})
            assert (answer.status_code, answer.content) == (206, data)
            assert answer.headers["content-range"] == f"bytes {place}/10"
            assert answer.headers["content-length"] == str(len(data))
        answer = await client.get(url, headers={"Range": "bytes=10-"})
        assert (answer.status_code, answer.headers["content-range"]) == (416, "bytes */10")


@pytest.mark.doors("http")
async def test_urls_are_what_they_are(queue: Queue, client: httpx.AsyncClient) -> None:
    """O-038: good without a header, for their verb and blob only, as long as they last, and unchanged."""
    await uploaded(queue)
    await uploaded(queue, "another", b"another")
    upload = Upload(queue, "open")
    target = (await upload.create(put())).upload_method.put_url
    url = (await Downloads(queue).simple()).url
    other = (await Downloads(queue, "another").simple()).url
    assert (await client.get(url)).content == DATA
    query = httpx.URL(url).query.decode()
    expires, signature = (httpx.URL(url).params[name] for name in ("expires", "signature"))
    flipped = ("B" if signature[0] == "A" else "A") + signature[1:]
    for changed in (
        url.partition("?")[0],
        f"{other.partition('?')[0]}?{query}",
        url.replace(f"expires={expires}", f"expires={int(expires) + 1}"),
        url.replace(signature, flipped),
        url.replace(signature, ""),
        f"{url}&expires={expires}9",
        f"{url}&attachment=1",
        target.url,
    ):
        assert (await client.get(changed)).status_code == 403, changed
    headers = dict(target.headers)
    for changed in (
        target.url.partition("?")[0],
        url,
        target.url.replace("type=text", "type=test"),
        target.url.replace("length=13", "length=14"),
        f"{target.url}&attachment=1",
    ):
        assert (await client.put(changed, content=DATA, headers=headers)).status_code == 403, changed
    assert (await client.put(target.url, content=DATA, headers=headers)).status_code == 200


@pytest.mark.doors("http")
async def test_urls_that_have_expired(queue: Queue, client: httpx.AsyncClient) -> None:
    """O-038: refused, and nothing is stored."""
    store = queue.services.blobs
    assert isinstance(store, DiskStore)
    await uploaded(queue)
    upload = Upload(queue, "open")
    await upload.create(inline())
    keys = dict(await queue.sql("select name, blob_key from objects"))
    bucket = store.private_bucket
    for age, get_status, put_status in ((timedelta(), 200, 200), (timedelta(minutes=5), 403, 403)):
        made = now() - age
        url = store.get_url(bucket, keys[NAME], now=made, lifetime_s=60)
        assert (await client.get(url)).status_code == get_status
        meta = BlobMeta("text/plain")
        url = store.put_url(bucket, keys["open"], meta, now=made, lifetime_s=60)
        data = b"%d" % put_status
        answer = await client.put(url, content=data, headers=meta.headers())
        assert answer.status_code == put_status
    await upload.finish()
    assert await content(queue, client, "open") == b"200"


# -- scopes and names


async def test_scopes_of_uploads(queue: Queue) -> None:
    """O-039 O-041: project and name as they are, to create and to finish."""
    name = "a b%2F/c"
    upload = Upload(queue, name)
    enough = queue.having(f"object:upload:{PROJECT}:{name}")
    star = queue.having(f"object:upload:{PROJECT}:a *")
    for scopes in (
        [],
        [f"object:upload:other:{name}"],
        [f"object:upload:{PROJECT}:a%20b%252F%2Fc"],
        [f"object:upload:{PROJECT}:a b//c"],
        [f"object:upload:{PROJECT}:{name}x"],
        [f"object:download:{name}"],
    ):
        for call in (upload.create, upload.finish):
            with refused("InsufficientScopes", f"object:upload:{PROJECT}:{name}"):
                await call(caller=queue.having(*scopes))
    for call in (upload.create, upload.finish):
        with refused("InsufficientScopes"):
            await call(caller=queue.anonymous)
    for caller in (enough, star):
        await upload.create(inline(), caller)
    with refused("InsufficientScopes"):
        await upload.create(caller=enough, project_id="other")
    for caller in (enough, star):
        await upload.finish(caller)


async def test_scopes_of_downloads(queue: Queue) -> None:
    """O-040 O-041: the name as it is, told before whether there is such an object."""
    name = "a b%2F/c"
    await uploaded(queue, name)
    for scopes in ([f"object:download:{name}"], ["object:download:a *"]):
        found = Downloads(queue.having(*scopes), name)
        for read in (found.metadata, found.simple, found.download):
            await read()
    for scopes in (
        [],
        ["object:download:a%20b%252F%2Fc"],
        ["object:download:a b//c"],
        [f"object:upload:{PROJECT}:*"],
    ):
        found = Downloads(queue.having(*scopes), name)
        for read in (found.metadata, found.simple, found.start, found.download):
            with refused("InsufficientScopes", f"object:download:{name}"):
                await read()
    found = Downloads(queue.anonymous, "unknown")
    for read in (found.metadata, found.simple, found.download):
        with refused("InsufficientScopes"):
            await read()


@pytest.mark.doors("grpc")
async def test_names(queue: Queue) -> None:
    """O-042: byte for byte, none is taken for another."""
    for i, name in enumerate(NAMES):
        await Upload(queue, name, project_id=f"p{i}").create()
    for i, name in enumerate(NAMES):
        upload = Upload(queue, name, project_id=f"p{i}")
        (row,) = await queue.sql("select upload_id from objects where name = $1", name)
        await upload.finish(upload_id=row[0])
        assert (await Downloads(queue, name).metadata()).project_id == f"p{i}"
    assert await queue.sql("select count(*) from objects") == [(len(NAMES),)]


@pytest.mark.doors("http")
async def test_names_and_data(queue: Queue, client: httpx.AsyncClient) -> None:
    """O-042: each has data of its own, and URLs that work."""
    for name in IN_PATHS:
        upload = Upload(queue, name)
        data = name.encode()
        target = (await upload.create(put(len(data)))).upload_method.put_url
        answer = await client.put(target.url, content=data, headers=dict(target.headers))
        assert answer.status_code == 200
        await upload.finish(hashes=hashes(data))
    for name in IN_PATHS:
        found = Downloads(queue, name)
        assert (await found.metadata()).hashes == hashes(name.encode())
        for url in ((await found.simple()).url, (await found.download()).url):
            assert (await client.get(url)).content == name.encode()


@pytest.mark.doors("http")
async def test_dots_in_paths(queue: Queue) -> None:
    """O-042: encoded, they are names as any others."""
    for name, path in (("..", "%2E%2E"), (".", "%2e"), ("a/..", "a%2F%2e%2E")):
        await uploaded_by(queue, path)
        (row,) = await queue.sql("select upload_id from objects where name = $1", name)
        assert row == (None,)
        answer = await send(queue, "GET", f"{BASE}/metadata/{path}", None, queue.credentials)
        assert answer.status_code == 200


async def uploaded_by(queue: Queue, path: str, end: str | None = None) -> None:
    """An object made by paths with its name as it stands here; another one where it is finished."""
    body: dict[str, Any] = {"projectId": PROJECT, "uploadId": slugid.v4()}
    data = {"contentType": "text/plain", "objectData": b64encode(DATA).decode()}
    rest = {"expires": to_text(now(hours=1)), "proposedUploadMethods": {"dataInline": data}}
    answer = await send(queue, "PUT", f"{BASE}/upload/{path}", {**body, **rest}, queue.credentials)
    assert answer.status_code == 200, answer.text
    end = f"{BASE}/finish-upload/{path if end is None else end}"
    answer = await send(queue, "POST", end, body, queue.credentials)
    assert answer.status_code == 200, answer.text


@pytest.mark.doors("http")
async def test_slashes_in_paths(queue: Queue) -> None:
    """O-043: literal or encoded, in every route, they are the same."""
    spellings = ("{0}/a/b/", "{0}%2Fa%2Fb%2F", "{0}%2fa/b%2F")
    for i, spelling in enumerate(spellings):
        created, finished = spelling.format(i), spellings[i - 1].format(i)
        await uploaded_by(queue, created, finished)
        assert await queue.sql("delete from objects returning name") == [(f"{i}/a/b/",)]
        await uploaded_by(queue, created, finished)
        for other in spellings:
            path = other.format(i)
            answer = await send(queue, "GET", f"{BASE}/metadata/{path}", None, queue.credentials)
            assert answer.status_code == 200
            accepted = {"acceptDownloadMethods": {"simple": True}}
            answer = await send(queue, "PUT", f"{BASE}/start-download/{path}", accepted, queue.credentials)
            assert answer.status_code == 200
            answer = await send(queue, "GET", f"{BASE}/download/{path}", None, queue.credentials)
            assert answer.status_code == 303
        await queue.sql("delete from objects")


# -- artifacts


@pytest.mark.doors("http")
async def test_an_artifact_from_end_to_end(queue: Queue, client: httpx.AsyncClient) -> None:
    """O-050: created, uploaded and finished by a worker, downloaded with what the queue gives out."""
    claim = await queue.running(project_id="a/project", expires=at(hours=2))
    place = {"task_id": claim.status.task_id, "run_id": 0}
    worker = queue.worker(claim.credentials)
    definition = {"storage_type": 2, "content_type": "text/plain", "expires": at(hours=1)}
    made = await worker("CreateArtifact", **place, name=ARTIFACT, artifact=definition)
    assert made.name == f"t/{claim.status.task_id}/0/{ARTIFACT}"
    uploader = queue.worker(made.credentials)
    upload = Upload(
        queue, made.name, project_id=made.project_id, upload_id=made.upload_id, expires=made.expires
    )
    target = (await upload.create(put(), uploader)).upload_method.put_url
    answer = await client.put(target.url, content=DATA, headers=dict(target.headers))
    assert answer.status_code == 200
    finish = {**place, "name": ARTIFACT, "upload_id": made.upload_id}
    with refused("InputError", "Object storing artifact data does not exist"):
        await worker("FinishArtifact", **finish)
    await upload.finish(uploader, hashes=hashes(DATA))
    with refused("InsufficientScopes"):
        await Downloads(uploader, made.name).simple()
    await worker("FinishArtifact", **finish)
    found = (await queue("GetArtifactContent", **place, name=ARTIFACT)).content
    assert (found.storage_type, found.name) == (2, made.name)
    reader = queue.worker(found.credentials)
    start = await Downloads(reader, found.name).start(get_url=True)
    assert start.hashes.hashes == hashes(DATA)
    assert (await client.get(start.url)).content == DATA
    with refused("InsufficientScopes"):
        await upload.finish(reader)
    url = (await queue("GetArtifact", **place, name=ARTIFACT)).url
    answer = await client.get(url)
    assert (answer.content, answer.headers["content-type"]) == (DATA, "text/plain")


async def test_the_object_of_an_artifact(queue: Queue) -> None:
    """O-050: its name, project and expiry are settled by the queue; the credentials do no more."""
    run = await begun(queue, project_id="a/project")
    made = await run.create("object", expires=at(minutes=50))
    uploader = queue.worker(made.credentials)
    upload = Upload(
        queue, made.name, project_id=made.project_id, upload_id=made.upload_id, expires=made.expires
    )
    with refused("RequestConflict"):
        await upload.create(inline(), uploader, expires=at(minutes=51))
    with refused("RequestConflict"):
        await upload.create(inline(), uploader, upload_id=slugid.v4())
    for changed in ({"name": f"{made.name}x"}, {"project_id": "none"}):
        with refused("InsufficientScopes"):
            await upload.create(inline(), uploader, **changed)
    await upload.create(inline(), uploader)
    await upload.finish(uploader)
    certificate = json.loads(made.credentials.certificate)
    assert certificate["expiry"] == moment(made.expires).timestamp() * 1000
    assert (await Downloads(queue, made.name).metadata()).expires == made.expires


async def test_credentials_last_no_longer_than_a_day(queue: Queue) -> None:
    """O-050: for an artifact that lasts longer."""
    claim = await queue.running(expires=at(days=30))
    definition = {"storage_type": 2, "content_type": "text/plain", "expires": at(days=20)}
    place = {"task_id": claim.status.task_id, "run_id": 0}
    made = await queue("CreateArtifact", **place, name=ARTIFACT, artifact=definition)
    certificate = json.loads(made.credentials.certificate)
    assert certificate["expiry"] - certificate["start"] == 24 * 3600_000


async def test_an_artifact_begun_twice(queue: Queue) -> None:
    """O-051: either answer's credentials go on with the one upload."""
    run = await begun(queue)
    expires = at(minutes=50)
    first = await run.create("object", expires=expires)
    second = await run.create("object", expires=expires)
    assert (second.upload_id, second.name) == (first.upload_id, first.name)
    upload = Upload(queue, first.name, project_id="none", upload_id=first.upload_id, expires=expires)
    await upload.create(inline(), queue.worker(first.credentials))
    await upload.finish(queue.worker(second.credentials))
    await run.finish(second.upload_id)
    assert (await run.info()).content_type == "text/plain"


# -- expiry


async def blobs(queue: Queue) -> set[str]:
    """Keys of what is stored for objects."""
    store = queue.services.blobs
    return {found.key async for found in store.walk(store.private_bucket)}


async def names(queue: Queue) -> list[str]:
    """Names of the objects in the database."""
    return [row[0] for row in await queue.sql("select name from objects order by name")]


async def test_expired_objects(queue: Queue) -> None:
    """O-052: at once, with their data, finished or not; a time that has passed already is no mistake."""
    for name, finished, offset in (
        ("later", True, {"minutes": 30}),
        ("open", False, {"minutes": 10}),
        ("past", True, {"hours": -1}),
        ("soon", True, {"minutes": 10}),
    ):
        upload = Upload(queue, name, expires=at(**offset))
        await upload.create(inline())
        if finished:
            await upload.finish(hashes=hashes(DATA))
    assert len(await blobs(queue)) == 4
    assert (await Downloads(queue, "past").metadata()).hashes == hashes(DATA)
    assert await queue.round("expire-objects") == 1
    assert await names(queue) == ["later", "open", "soon"]
    await queue.pass_time(minutes=11)
    assert await queue.round("expire-objects") == 2
    assert await names(queue) == ["later"]
    rows = await queue.sql("select blob_key from objects")
    assert await blobs(queue) == {rows[0][0]}
    for name in ("open", "past", "soon"):
        found = Downloads(queue, name)
        for read in (found.metadata, found.simple, found.download):
            with refused("ResourceNotFound"):
                await read()
    # The name is free again.
    await uploaded(queue, "soon")
    assert (await Downloads(queue, "soon").metadata()).project_id == PROJECT


async def test_uploads_that_nobody_finished(queue: Queue) -> None:
    """O-052: given up a day after their first call, with their data; what is finished stays."""
    expires = at(days=10)
    uploads = {name: Upload(queue, name, expires=expires) for name in ("finished", "open", "repeated")}
    for upload in uploads.values():
        await upload.create(inline())
    await uploads["finished"].finish()
    await queue.pass_time(hours=23)
    await uploads["repeated"].create(
        inline(), expires=stamp(moment(expires) - timedelta(hours=23)), hashes={"x": "y"}
    )
    assert await queue.round("expire-uploads") == 0
    await Upload(queue, "young", expires=expires).create(inline())
    await queue.pass_time(hours=2)
    await queue.round("expire-objects")
    assert await names(queue) == ["finished", "open", "repeated", "young"]
    assert await queue.round("expire-uploads") == 2
    assert await names(queue) == ["finished", "young"]
    assert len(await blobs(queue)) == 2
    for name in ("open", "repeated"):
        with refused("ResourceNotFound"):
            await uploads[name].finish()
    await uploads["open"].create(inline())


async def test_trouble_with_one_object(queue: Queue) -> None:
    """O-052: one whose backend is gone keeps its row; the others go, even if their data has gone before."""
    for name in ("a", "b", "c"):
        await Upload(queue, name).create(inline())
    await Upload(queue, "nothing").create()
    await queue.sql("update objects set backend_id = 'old' where name = 'a'")
    (key,) = (row[0] for row in await queue.sql("select blob_key from objects where name = 'b'"))
    store = queue.services.blobs
    assert await store.delete(store.private_bucket, [key]) == {}
    await queue.pass_time(hours=2)
    await queue.round("expire-objects")
    assert await names(queue) == ["a"]
    assert len(await blobs(queue)) == 1
    await queue.sql("update objects set backend_id = 'store'")
    await queue.round("expire-objects")
    assert await names(queue) == []
    assert await blobs(queue) == set()


async def test_an_artifact_and_its_object_expire(queue: Queue) -> None:
    """O-053: the object goes when its time is over, the artifact half an hour later; until then it is
    called expired."""
    run = await begun(queue)
    made = await run.create("object", expires=at(minutes=10))
    upload = Upload(
        queue, made.name, project_id=made.project_id, upload_id=made.upload_id, expires=made.expires
    )
    await upload.create(inline())
    await upload.finish(hashes=hashes(DATA))
    await run.finish(made.upload_id)
    await queue.pass_time(minutes=11)
    await queue.expire()
    assert await names(queue) == []
    assert await blobs(queue) == set()
    for read in (run.get, run.content):
        with refused("ResourceExpired", "Artifact expired"):
            await read()
    await queue.pass_time(minutes=30)
    await queue.expire()
    for read in (run.get, run.content, run.info):
        with refused("ResourceNotFound"):
            await read()


async def test_finishing_without_data(queue: Queue) -> None:
    """O-054: the object is there, and so is its artifact."""
    run = await begun(queue)
    made = await run.create("object")
    await run.upload(made)
    await run.finish(made.upload_id)
    assert (await run.info()).name == ARTIFACT
    found = Downloads(queue, made.name)
    assert (await found.metadata()).hashes == {}
    assert (await found.start(get_url=True)).method == "getUrl"
    assert (await run.get()).url.startswith("http")


@pytest.mark.doors("http")
async def test_data_that_never_came(queue: Queue, client: httpx.AsyncClient) -> None:
    """O-054: only the data's URL knows."""
    upload = Upload(queue)
    await upload.create()
    await upload.finish()
    found = Downloads(queue)
    for url in ((await found.simple()).url, (await found.start(get_url=True)).url):
        assert (await client.get(url)).status_code == 404
