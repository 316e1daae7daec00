"""kill -9 while artifacts are made, uploaded and expire: no bytes that nobody knows, no row that stays."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import pytest

from server.blobs.disk import DiskStore
from server.blobs.signing import UrlSigner
from server.config import Settings
from server.domain import slugid
from server.identity import tokens
from server.loops.orphans import orphans
from server.store.database import Database
from tcqueue.v1.artifact_pb2 import ArtifactDefinition, CreateArtifactRequest, StorageType
from tcqueue.v1.claim_pb2 import ClaimTasksRequest
from tcqueue.v1.queue_service_pb2_grpc import QueueStub
from tcqueue.v1.task_pb2 import CreateTaskRequest
from tests.conformance.building import QUEUE, at, definition
from tests.streams.harness import CHANNEL_OPTIONS, bearer
from tests.streams.serving import ServerProcess

UPLOADERS = 6
KILLS = 4
BETWEEN = 40
"""Uploads between two kills."""


class Uploads:
    """Workers that make artifacts which soon expire, and put their bytes, whatever becomes of the server."""

    def __init__(self, address: str, token: str) -> None:
        self.channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        self.stub: Any = QueueStub(self.channel)
        self.metadata = bearer(tokens.mint("root", token, lifetime_s=3000))
        self.done = 0
        self.created = 0

    async def begin(self) -> str:
        """A running task."""
        task_id = slugid.nice()
        await self.stub.CreateTask(
            CreateTaskRequest(task_id=task_id, task=definition()), metadata=self.metadata, wait_for_ready=True
        )
        asked = ClaimTasksRequest(task_queue_id=QUEUE, worker_group="g", worker_id="w")
        await self.stub.ClaimTasks(asked, metadata=self.metadata)
        return task_id

    async def work(self, task_id: str, name: str) -> None:
        """Uploads without end."""
        async with httpx.AsyncClient() as client:
            number = 0
            while True:
                number += 1
                artifact = ArtifactDefinition(
                    storage_type=StorageType.STORAGE_TYPE_S3,
                    content_type="text/x",
                    expires=at(milliseconds=random.randint(0, 300)),
                )
                request = CreateArtifactRequest(
                    task_id=task_id, run_id=0, name=f"public/{name}/{number}", artifact=artifact
                )
                # Only the server is killed: what it refuses is no fault, and what it never answers neither.
                with contextlib.suppress(grpc.aio.AioRpcError, httpx.HTTPError):
                    made = await self.stub.CreateArtifact(
                        request, metadata=self.metadata, wait_for_ready=True, timeout=10
                    )
                    self.created += 1
                    data = b"x" * random.choice((0, 1000, 300_000))
                    put = await client.put(made.put_url, content=data, headers={"Content-Type": "text/x"})
                    self.done += put.status_code == 200

    async def reached(self, count: int) -> None:
        """Returns when so many uploads were stored."""
        while self.done < count:
            await asyncio.sleep(0.01)


@pytest.mark.timeout(120)
async def test_no_orphans(settings: Settings, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    server = ServerProcess(
        settings,
        http_listen=f"127.0.0.1:{port}",
        artifact_dir=settings.artifact_dir,
        artifact_expiration_delay_s=0.0,
        expiry_interval_s=0.02,
    )
    async with server.running():
        uploads = Uploads(server.address, settings.root_access_token)
        task_id = await uploads.begin()
        workers = [asyncio.create_task(uploads.work(task_id, f"w{n}")) for n in range(UPLOADERS)]
        try:
            for kill in range(KILLS):
                await uploads.reached((kill + 1) * BETWEEN)
                await server.kill()
                await server.start()
            await uploads.reached((KILLS + 1) * BETWEEN)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        await uploads.channel.close(None)
        db = await Database.open(settings.database_url, settings=settings)
        while await db.fetch("select from artifacts limit 1"):
            await asyncio.sleep(0.02)
        assert await server.stop() == 0
    store = DiskStore(Path(settings.artifact_dir), UrlSigner(b""), lambda: "")
    assert uploads.created >= uploads.done >= (KILLS + 1) * BETWEEN
    left = [orphan async for orphan in orphans(db, store, datetime.now(UTC) + timedelta(days=1))]
    assert left == []
    assert [blob.key for bucket in ("public", "private") async for blob in _walk(store, bucket)] == []
    await db.close()
    await store.close()


async def _walk(store: DiskStore, bucket: str) -> Any:
    async for found in store.walk(bucket):
        yield found
