"""Objects kept by this deployment: rows in its database, bytes in its store (object.md 1, 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import orjson

from server.blobs.store import GET_LIFETIME_S, PUT_LIFETIME_S, BlobMeta, BlobStore
from server.clock import Clock
from server.domain import slugid
from server.errors import (
    AlreadyExists,
    InputError,
    NoMatchingMethod,
    RequestConflict,
    ResourceNotFound,
)
from server.identity.certificates import TemporaryCredentials
from server.identity.task_credentials import TaskCredentialIssuer
from server.objects.backends import Backends
from server.store.database import Database, Row, Transaction
from server.store.statements import load

_SQL = load("objects")

BLOB_PREFIX = "o/"
"""What the keys of objects begin with, in the private bucket; no artifact's key does."""

UPLOAD_LIFETIME_S = 24 * 3600
"""After this an upload that nobody finished is given up; counted from its first call."""

_PROMISED_S = 60
"""How long a URL of getUrl is promised to be good; it is good for twice that."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """How a caller could bring the data: inline, or by a PUT of so many bytes; either may be None."""

    inline: tuple[BlobMeta, bytes] | None = None
    put: tuple[BlobMeta, int] | None = None


@dataclass(frozen=True, slots=True)
class Chosen:
    """The way that was chosen: the data is stored, or to be put to a URL; or neither."""

    stored: bool = False
    url: str = ""
    expires: datetime | None = None
    headers: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Object:
    """A finished object."""

    project_id: str
    expires: datetime
    hashes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Download:
    """A way to download: `expires` and `hashes` are None for a simple one."""

    url: str
    expires: datetime | None = None
    hashes: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class _Row:
    now: datetime
    project_id: str
    backend_id: str
    expires: datetime
    hashes: Mapping[str, str]
    blob_key: str


class Objects:
    """The service. Implements ObjectKeeper for the queue beside it."""

    def __init__(
        self, db: Database, store: BlobStore, clock: Clock, backends: Backends, issuer: TaskCredentialIssuer
    ) -> None:
        self._db = db
        self._store = store
        self._clock = clock
        self._backends = backends
        self._issuer = issuer

    async def create_upload(
        self,
        name: str,
        project_id: str,
        upload_id: str,
        expires: datetime,
        hashes: Mapping[str, str],
        proposal: Proposal,
    ) -> Chosen:
        """Opens an upload, or goes on with it; see object.md 2.1. Raises NoMatchingBackend, AlreadyExists,
        RequestConflict for a hash that is known otherwise, Unavailable."""
        backend_id = self._backends.choose(name, project_id)
        parameters = (
            name,
            project_id,
            backend_id,
            expires,
            upload_id,
            orjson.dumps(dict(hashes)).decode(),
            BLOB_PREFIX + slugid.nice(),
            UPLOAD_LIFETIME_S,
        )

        async def create(tx: Transaction) -> list[Row]:
            statements = [(_SQL["lock_upload"], (upload_id,)), (_SQL["create_object"], parameters)]
            return (await tx.pipeline(statements, commit=True))[1]

        rows = await self._db.in_transaction(create, hot=False)
        exists = AlreadyExists("Object already exists", name=name)
        if not rows:
            raise exists
        now, *stored, known, blob_key, doomed = rows[0]
        if doomed or stored != [project_id, backend_id, expires, upload_id]:
            raise exists
        _check_hashes(orjson.loads(known), hashes)
        bucket = self._store.private_bucket
        if proposal.inline is not None:
            meta, data = proposal.inline

            async def put(tx: Transaction) -> None:
                # Nobody finishes the object, or deletes it, while its bytes are on their way.
                if not await tx.run(_SQL["is_uploading"], (blob_key,)):
                    raise exists
                await self._store.put(bucket, blob_key, meta, data)

            await self._db.in_transaction(put, hot=False)
            return Chosen(stored=True)
        if proposal.put is not None:
            meta, length = proposal.put
            url = self._store.put_url(
                bucket, blob_key, meta, now=now, lifetime_s=PUT_LIFETIME_S, length=length
            )
            headers = {
                "Content-Encoding": "identity",
                **meta.headers(),
                "Content-Length": str(length),
            }
            return Chosen(url=url, expires=now + timedelta(seconds=PUT_LIFETIME_S), headers=headers)
        return Chosen()

    async def finish_upload(
        self, name: str, project_id: str, upload_id: str, hashes: Mapping[str, str]
    ) -> None:
        """Ends an upload; see object.md 2.2. Raises ResourceNotFound, InputError for another project,
        RequestConflict for another upload or hash."""
        given = orjson.dumps(dict(hashes)).decode()
        rows = await self._db.fetch(_SQL["finish_object"], (name, project_id, upload_id, given))
        if not rows:
            raise ResourceNotFound(f'Object "{name}" not found')
        stored_project, stored_upload, text = rows[0]
        known = orjson.loads(text)
        if stored_project != project_id:
            raise InputError(f'Object "{name}" does not have projectId {project_id}')
        if stored_upload is None:
            for algorithm, value in hashes.items():
                if algorithm not in known:
                    raise RequestConflict(
                        f'Object "{name}" is already finished, but without hash algorithm {algorithm}'
                    )
                if known[algorithm] != value:
                    raise RequestConflict(
                        f'Object "{name}" is already finished, but with a different hash for algorithm '
                        f"{algorithm}"
                    )
            return
        if stored_upload != upload_id:
            raise RequestConflict(f'Object "{name}" does not have uploadId {upload_id}')
        _check_hashes(known, hashes)

    async def read(self, name: str) -> Object:
        """A finished object. Raises ResourceNotFound."""
        row = await self._row(name)
        return Object(row.project_id, row.expires, row.hashes)

    async def start_download(self, name: str, *, get_url: bool, simple: bool) -> Download:
        """The best of the ways that the caller knows. Raises ResourceNotFound, NoMatchingBackend,
        NoMatchingMethod."""
        row = await self._row(name)
        self._backends.require(row.backend_id)
        bucket = self._store.private_bucket
        if get_url:
            url = self._store.get_url(bucket, row.blob_key, now=row.now, lifetime_s=2 * _PROMISED_S)
            return Download(url, row.now + timedelta(seconds=_PROMISED_S), row.hashes)
        if simple:
            return Download(self._store.get_url(bucket, row.blob_key, now=row.now, lifetime_s=GET_LIFETIME_S))
        raise NoMatchingMethod("Object supports methods simple, getUrl")

    async def blob_key(self, name: str) -> str:
        """Where a finished object's bytes are, in the private bucket. Raises ResourceNotFound."""
        return (await self._row(name)).blob_key

    async def _row(self, name: str) -> _Row:
        rows = await self._db.fetch(_SQL["read_object"], (name,))
        if not rows:
            raise ResourceNotFound(f'Object "{name}" not found')
        now, project_id, backend_id, expires, hashes, blob_key = rows[0]
        return _Row(now, project_id, backend_id, expires, orjson.loads(hashes), blob_key)

    # -- as the queue's keeper

    async def lock_in(self, name: str, project_id: str, upload_id: str, expires: datetime) -> None:
        """See ObjectKeeper."""
        await self.create_upload(name, project_id, upload_id, expires, {}, Proposal())

    async def is_finished(self, name: str) -> bool:
        """See ObjectKeeper."""
        return bool(await self._db.fetch(_SQL["read_object"], (name,)))

    async def simple_url(self, name: str) -> str:
        """See ObjectKeeper."""
        return (await self.start_download(name, get_url=False, simple=True)).url

    def credentials(
        self, client_id: str, scope: str, start: datetime, expiry: datetime
    ) -> TemporaryCredentials:
        """See ObjectKeeper."""
        return self._issuer.issue_one(client_id, scope, start, expiry)


def upload_meta(content_type: str) -> BlobMeta:
    """What is kept of an object's data: a page is never shown by browsers, whoever uploaded it."""
    kind = content_type.partition(";")[0].strip().lower()
    return BlobMeta(content_type, attachment=kind == "text/html")


def _check_hashes(known: Mapping[str, str], given: Mapping[str, str]) -> None:
    if any(known.get(algorithm, value) != value for algorithm, value in given.items()):
        raise RequestConflict("Content hash already exists with a different value")
