"""Expiry of artifacts and objects, with a store that fails and a process that is killed half-way.

In the end nothing is left of what has expired, neither rows nor bytes, and nothing else is gone.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from minio import Minio

from server import app
from server.blobs.store import BlobMeta
from server.config import Settings
from server.domain import slugid
from server.errors import RequestConflict, Unavailable
from server.loops import artifacts as loops
from server.loops.artifacts import ArtifactExpiry, ObjectExpiry
from server.objects.service import Proposal
from server.services import Services
from server.views import stamp
from tcqueue.v1.artifact_pb2 import ArtifactDefinition, StorageType
from tests.plugins.s3 import S3Server
from tests.plugins.services import Api

TEXT = BlobMeta("text/plain")
LONG_AGO = timedelta(hours=2)
AHEAD = timedelta(hours=2)

#: Where a process may end.
POINTS = ["before all", "chosen", "one deleted", "deleted", "dropped"]


class Killed(BaseException):
    """The end of the process, which nobody handles."""


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three at once."""
    monkeypatch.setattr(loops, "BATCH", 3)


@pytest.fixture(params=["disk", "s3"])
def settings(settings: Settings, request: pytest.FixtureRequest) -> Settings:
    """With artifacts in a folder, or on a real S3 server."""
    settings = dataclasses.replace(settings, root_url="http://localhost:1")
    if request.param == "disk":
        return settings
    server: S3Server = request.getfixturevalue("s3_server")
    buckets: tuple[Minio, Callable[[], str]] = request.getfixturevalue("s3_buckets")
    return dataclasses.replace(
        settings,
        s3_endpoint=server.endpoint,
        s3_access_key=server.access_key,
        s3_secret_key=server.secret_key,
        s3_region=server.region,
        s3_public_bucket=buckets[1](),
        s3_private_bucket=buckets[1](),
    )


class House:
    """What is stored, in the database and in the store."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.store = services.blobs
        self.task_id = slugid.nice()
        self.begin = datetime.now(UTC)

    # -- making

    async def artifact(self, name: str, ago: timedelta, *, kind: str = "s3", content: bool = True) -> str:
        """An artifact that expired so long ago; returns its key."""
        public = name.startswith("public/")
        bucket = self.store.public_bucket if public else self.store.private_bucket
        key = f"{self.task_id}/0/{name}"
        await self.services.db.fetch(
            "insert into artifacts"
            " (task_id, run_id, name, storage_type, content_type, expires, present, bucket)"
            " values ($1::text, 0, $2::text, $3::text, 'text/plain', $4::timestamptz, true, $5::text)",
            (self.task_id, name, kind, self.begin - ago, bucket if kind == "s3" else None),
        )
        if kind == "s3" and content:
            await self.store.put(bucket, key, TEXT, name.encode())
        return key

    async def object(self, name: str, ago: timedelta, *, finished: bool = True) -> str:
        """An object that expired so long ago, or an upload of that age; returns the key of its bytes."""
        objects, upload_id = self.services.own_objects, slugid.v4()
        expires = self.begin - ago if finished else self.begin + AHEAD
        proposal = Proposal(inline=(TEXT, name.encode()))
        await objects.create_upload(name, "none", upload_id, expires, {}, proposal)
        if finished:
            await objects.finish_upload(name, "none", upload_id, {})
        else:
            await self.services.db.fetch(
                "update objects set upload_expires = $2::timestamptz where name = $1::text",
                (name, self.begin - ago),
            )
        rows = await self.services.db.fetch("select blob_key from objects where name = $1::text", (name,))
        return str(rows[0][0])

    # -- the loops, each as a new process has it

    def artifact_loop(self, **changes: Any) -> ArtifactExpiry:
        """The loop that deletes artifacts."""
        found = self._loop("expire-artifacts", **changes)
        assert isinstance(found, ArtifactExpiry)
        return found

    def object_loop(self, name: str = "expire-objects", **changes: Any) -> ObjectExpiry:
        """The loop that deletes objects, or uploads."""
        found = self._loop(name, **changes)
        assert isinstance(found, ObjectExpiry)
        return found

    def _loop(self, name: str, **changes: Any) -> Any:
        """One of a process's loops, with changed settings."""
        settings = dataclasses.replace(self.services.settings, **changes)
        process = dataclasses.replace(self.services, settings=settings)
        return next(loop for loop in app.loops(process) if loop.name == name)

    async def finish(self) -> None:
        """A new process whose loops go on until nothing is left to do."""
        for loop in (self.artifact_loop(), self.object_loop(), self.object_loop("expire-uploads")):
            while await loop.run_once():
                pass

    # -- looking

    async def rows(self, where: str = "true") -> set[str]:
        """Keys of the artifacts in the table."""
        rows = await self.services.db.fetch(
            f"select task_id || '/' || run_id || '/' || name from artifacts where {where}"
        )
        return {row[0] for row in rows}

    async def objects(self, where: str = "true") -> set[str]:
        """Keys of the objects' bytes in the table."""
        return {row[0] for row in await self.services.db.fetch(f"select blob_key from objects where {where}")}

    async def blobs(self) -> set[str]:
        """Keys of all bytes."""
        buckets = (self.store.public_bucket, self.store.private_bucket)
        return {found.key for bucket in buckets for found in [f async for f in self.store.walk(bucket)]}

    async def check_invariants(self) -> None:
        """At any moment: no bytes without a row, and nobody is shown a row whose bytes are gone."""
        blobs = await self.blobs()
        assert blobs <= await self.rows() | await self.objects()
        assert await self.rows("storage_type = 's3' and not doomed") <= blobs
        assert await self.objects("not doomed") <= blobs

    async def check_kept(self, keys: set[str]) -> None:
        """At the end: these are there with their bytes, and nothing else of either kind."""
        assert await self.blobs() == keys
        assert await self.rows() | await self.objects() == keys
        assert await self.rows("doomed") == await self.objects("doomed") == set()


@pytest.fixture
def house(services: Services) -> House:
    """An empty one."""
    return House(services)


async def _furnish(house: House) -> set[str]:
    """Things of every kind, expired and not; returns the keys of those that are not."""
    for number in range(4):
        await house.artifact(f"public/{number}", LONG_AGO)
        await house.artifact(f"private/{number}", LONG_AGO)
        await house.object(f"object {number}", LONG_AGO)
        await house.object(f"upload {number}", LONG_AGO, finished=False)
    return {
        await house.artifact("public/kept", -AHEAD),
        await house.artifact("private/kept", -AHEAD),
        # Not for half an hour.
        await house.artifact("private/just now", timedelta(minutes=20)),
        await house.object("kept", -AHEAD),
        await house.object("an upload that is kept", -AHEAD, finished=False),
    }


class Deletions:
    """What was asked to be deleted, and what is to happen then."""

    def __init__(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[list[str]] = []
        self.away: Callable[[], bool] = lambda: False
        self.stuck: set[str] = set()
        self._delete = house.store.delete
        monkeypatch.setattr(house.store, "delete", self)

    async def __call__(self, bucket: str, keys: Sequence[str]) -> Mapping[str, str]:
        """In the store's place."""
        if self.away():
            raise Unavailable("the store is away")
        self.asked.append(list(keys))
        failed = await self._delete(bucket, [key for key in keys if key not in self.stuck])
        return {**failed, **{key: "stuck" for key in keys if key in self.stuck}}


@pytest.fixture
def deletions(house: House, monkeypatch: pytest.MonkeyPatch) -> Deletions:
    """The store's deletions, watched."""
    return Deletions(house, monkeypatch)


# -- nothing goes wrong


async def test_what_has_expired_goes(house: House, deletions: Deletions) -> None:
    """queue.md 7.8: bytes and rows of every kind, in batches; the rest stays."""
    kept = await _furnish(house)
    await house.check_invariants()
    artifacts, objects = house.artifact_loop(), house.object_loop()
    assert [await artifacts.run_once() for _ in range(4)] == [3, 3, 2, 0]
    assert [await objects.run_once() for _ in range(3)] == [3, 1, 0]
    uploads = house.object_loop("expire-uploads")
    assert [await uploads.run_once() for _ in range(3)] == [3, 1, 0]
    assert all(len(keys) <= 3 for keys in deletions.asked)
    assert len([key for keys in deletions.asked for key in keys]) == 16
    await house.check_kept(kept)


async def test_the_first_go_first(house: House) -> None:
    """Those that expired first, whatever their names."""
    hours = {"c": 9, "a": 5, "e": 8, "b": 3, "d": 7, "f": 4}
    keys = {name: await house.artifact(name, timedelta(hours=ago)) for name, ago in hours.items()}
    assert await house.artifact_loop().run_once() == 3
    assert await house.rows() == await house.blobs() == {keys[name] for name in "abf"}
    blobs = {name: await house.object(name, timedelta(hours=ago)) for name, ago in hours.items()}
    assert await house.object_loop().run_once() == 3
    assert await house.objects() == {blobs[name] for name in "abf"}


async def test_the_cut_off(house: House) -> None:
    """Moved by the delay, in both directions."""
    for minutes in (-20, 0, 20, 40):
        await house.artifact(f"expired {minutes} minutes ago", timedelta(minutes=minutes))
    assert await house.artifact_loop(artifact_expiration_delay_s=-1800.0).run_once() == 1
    assert await house.artifact_loop(artifact_expiration_delay_s=-600.0).run_once() == 1
    assert await house.artifact_loop(artifact_expiration_delay_s=1800.0).run_once() == 2
    await house.check_kept(set())


async def test_artifacts_without_content(house: House, deletions: Deletions) -> None:
    """The store is asked only for what may be there; what never came counts as gone."""
    for kind in ("reference", "link", "error", "object"):
        await house.artifact(kind, LONG_AGO, kind=kind)
    never = await house.artifact("private/never", LONG_AGO, content=False)
    await house.finish()
    assert deletions.asked == [[never]]
    await house.check_kept(set())


async def test_runs_of_one_task(house: House) -> None:
    """The same name in another run is another artifact."""
    await house.artifact("public/a", LONG_AGO)
    await house.services.db.fetch(
        "insert into artifacts (task_id, run_id, name, storage_type, content_type, expires, present, bucket)"
        " values ($1::text, 1, 'public/a', 's3', 'text/plain', now() + interval '1 hour', true, $2::text)",
        (house.task_id, house.store.public_bucket),
    )
    kept = f"{house.task_id}/1/public/a"
    await house.store.put(house.store.public_bucket, kept, TEXT, b"kept")
    await house.finish()
    await house.check_kept({kept})


async def test_a_bucket_of_before(house: House, deletions: Deletions) -> None:
    """A bucket that is no longer configured is not touched, and its rows do not stay for ever."""
    await house.artifact("private/a", LONG_AGO, content=False)
    await house.services.db.fetch("update artifacts set bucket = 'of-before'")
    other = await house.artifact("private/b", LONG_AGO)
    assert await house.artifact_loop().run_once() == 2
    assert deletions.asked == [[other]]
    await house.check_kept(set())


async def test_two_processes_at_once(house: House) -> None:
    """Each does its part, and together they do all of it."""
    kept = await _furnish(house)
    await asyncio.gather(*(house.finish() for _ in range(4)))
    await house.finish()
    await house.check_kept(kept)


async def test_nobody_goes_on_with_what_is_being_deleted(
    house: House, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An artifact whose bytes are about to go cannot be made anew, or the new bytes would go, too; once it is
    gone, it can."""
    task_id = await api.create()
    await api.claim()
    expires = stamp(datetime.now(UTC) + timedelta(minutes=50))
    definition = ArtifactDefinition(
        storage_type=StorageType.STORAGE_TYPE_S3, content_type="text/plain", expires=expires
    )
    fields = {"task_id": task_id, "run_id": 0, "name": "private/a", "artifact": definition}
    await api("CreateArtifact", **fields)
    await house.services.db.fetch("update artifacts set expires = now() - interval '1 hour'")
    delete = house.store.delete
    met: list[str] = []

    async def deleting(bucket: str, keys: Sequence[str]) -> Mapping[str, str]:
        with pytest.raises(RequestConflict):
            await api("CreateArtifact", **fields)
        met.extend(keys)
        return await delete(bucket, keys)

    monkeypatch.setattr(house.store, "delete", deleting)
    await house.finish()
    assert met == [f"{task_id}/0/private/a"]
    await api("CreateArtifact", **fields)
    assert await house.rows("not doomed") == {f"{task_id}/0/private/a"}


# -- a store that fails


async def test_a_blob_that_cannot_be_deleted(house: House, deletions: Deletions) -> None:
    """Its row stays, out of sight, and the others go; a later round deletes it."""
    kept = await _furnish(house)
    artifact, blob = f"{house.task_id}/0/public/2", await house.object("stuck", LONG_AGO)
    upload = await house.object("stuck upload", LONG_AGO, finished=False)
    deletions.stuck = {artifact, blob, upload}
    await house.finish()
    await house.check_invariants()
    assert await house.blobs() == kept | deletions.stuck
    assert await house.rows("doomed") == {artifact}
    assert await house.objects("doomed") == {blob, upload}
    deletions.stuck = set()
    await house.finish()
    await house.check_kept(kept)


async def test_those_that_are_stuck_block_nobody(house: House, deletions: Deletions) -> None:
    """Whole batches of them come first; the same loop goes past them, and comes back in its next round."""
    stuck = {await house.artifact(f"private/{n}", timedelta(hours=9)) for n in range(7)}
    for number in range(2):
        await house.artifact(f"public/{number}", LONG_AGO)
    deletions.stuck = stuck
    loop = house.artifact_loop()
    assert await loop.run_once() == 2
    assert await house.rows() == await house.blobs() == stuck
    assert await loop.run_once() == 0
    assert await house.rows("not doomed") == set()
    deletions.asked.clear()
    assert await loop.run_once() == 0
    assert {key for keys in deletions.asked for key in keys} == stuck
    deletions.stuck = set()
    assert [await loop.run_once() for _ in range(4)] == [3, 3, 1, 0]
    await house.check_kept(set())


async def test_objects_that_are_stuck_block_nobody(house: House, deletions: Deletions) -> None:
    """The same for objects."""
    deletions.stuck = {await house.object(f"stuck {n}", timedelta(hours=9)) for n in range(7)}
    for number in range(2):
        await house.object(f"other {number}", LONG_AGO)
    loop = house.object_loop()
    assert [await loop.run_once() for _ in range(2)] == [2, 0]
    assert await house.objects() == await house.blobs() == deletions.stuck
    deletions.stuck = set()
    assert [await loop.run_once() for _ in range(4)] == [3, 3, 1, 0]
    await house.check_kept(set())


async def test_a_backend_that_is_gone(house: House) -> None:
    """object.md 1: its objects stay, whole batches of them, and do not stop the others."""
    orphans = {await house.object(f"old {n}", timedelta(hours=9)) for n in range(4)}
    await house.services.db.fetch("update objects set backend_id = 'gone'")
    await house.object("new", LONG_AGO)
    loop = house.object_loop()
    assert [await loop.run_once() for _ in range(2)] == [1, 0]
    assert await house.objects() == await house.blobs() == orphans
    loop = house.object_loop(object_backends=[{"backendId": "gone"}, {"backendId": "store"}])
    assert [await loop.run_once() for _ in range(3)] == [3, 1, 0]
    await house.check_kept(set())


async def _drain(loop: ArtifactExpiry | ObjectExpiry) -> None:
    while await loop.run_once():
        pass


@pytest.mark.parametrize("requests", [0, 1])
async def test_a_store_that_goes_away(house: House, deletions: Deletions, requests: int) -> None:
    """After so many requests: no row goes whose bytes are there, and the loops go on when it is back."""
    kept = await _furnish(house)
    for loop in (house.artifact_loop(), house.object_loop(), house.object_loop("expire-uploads")):
        deletions.asked.clear()
        deletions.away = lambda: len(deletions.asked) >= requests
        for _ in range(2):
            with pytest.raises(Unavailable):
                await _drain(loop)
            await house.check_invariants()
        assert len(deletions.asked) == requests
        deletions.away = lambda: False
        await _drain(loop)
        await house.check_invariants()
    await house.check_kept(kept)


async def test_one_bucket_is_away(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch is not done while a part of it is not."""
    kept = await _furnish(house)
    delete, away = house.store.delete, [house.store.public_bucket]

    async def deleting(bucket: str, keys: Sequence[str]) -> Mapping[str, str]:
        if bucket in away:
            raise Unavailable("the bucket is away")
        return await delete(bucket, keys)

    monkeypatch.setattr(house.store, "delete", deleting)
    loop = house.artifact_loop()
    with pytest.raises(Unavailable):
        await _drain(loop)
    await house.check_invariants()
    public = {f"{house.task_id}/0/public/{number}" for number in range(4)}
    assert public <= await house.blobs()
    assert public <= await house.rows()
    away.clear()
    await _drain(loop)
    await house.finish()
    await house.check_kept(kept)


# -- a process that is killed


class Death:
    """Ends the process at a point of the nth batch."""

    def __init__(self, house: House, monkeypatch: pytest.MonkeyPatch, point: str, batch: int) -> None:
        self._point = point
        self._left = batch
        self._fetch = house.services.db.fetch
        self._delete = house.store.delete
        monkeypatch.setattr(house.services.db, "fetch", self.fetch)
        monkeypatch.setattr(house.store, "delete", self.delete)

    async def fetch(self, sql: str, parameters: Sequence[Any] = (), **options: Any) -> Any:
        """In the database's place."""
        if "SET doomed = true" in sql:
            self._reached("before all")
        if sql.startswith("WITH gone"):
            self._reached("deleted")
        rows = await self._fetch(sql, parameters, **options)
        if sql.startswith("WITH gone"):
            self._reached("dropped")
        return rows

    async def delete(self, bucket: str, keys: Sequence[str]) -> Mapping[str, str]:
        """In the store's place."""
        self._reached("chosen")
        if self._point == "one deleted":
            await self._delete(bucket, keys[:1])
            self._reached("one deleted")
        return await self._delete(bucket, keys)

    def _reached(self, point: str) -> None:
        if point == self._point:
            self._left -= 1
            if self._left < 0:
                raise Killed


@pytest.mark.parametrize("batch", [0, 1])
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("name", ["expire-artifacts", "expire-objects", "expire-uploads"])
async def test_killed(house: House, name: str, point: str, batch: int) -> None:
    """Wherever it ends, nothing is lost sight of, and another process finishes it."""
    kept = await _furnish(house)
    before = await house.blobs()
    loop = house.artifact_loop() if name == "expire-artifacts" else house.object_loop(name)
    with pytest.MonkeyPatch.context() as patch:
        Death(house, patch, point, batch)
        with pytest.raises(Killed):
            await _drain(loop)
    after = await house.blobs()
    assert after < before if batch or point not in ("before all", "chosen") else after == before
    assert kept <= after
    await house.check_invariants()
    await house.finish()
    await house.check_kept(kept)


async def test_killed_again_and_again(house: House) -> None:
    """Every process comes one batch further."""
    kept = await _furnish(house)
    for _ in range(7):
        left = await house.blobs()
        with pytest.MonkeyPatch.context() as patch:
            Death(house, patch, "dropped", 0)
            with pytest.raises(Killed):
                await house.finish()
        await house.check_invariants()
        assert await house.blobs() < left
    await house.check_kept(kept)
