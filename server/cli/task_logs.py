"""Finding and printing a run's log: the artifact `public/logs/live.log`, or a worker's own file."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx

from server.cli.base import CommandError
from server.cli.calls import Connection
from server.client.artifacts import LIVE_LOG, ArtifactClient
from server.client.channel import open_aio_channel
from server.client.errors import CallError, Failure, failure_of
from tcqueue.v1.artifact_pb2 import ArtifactContent, GetArtifactContentRequest, StorageType
from tcqueue.v1.queue_service_pb2_grpc import QueueStub
from tcqueue.v1.task_pb2 import GetTaskStatusRequest, TaskState, TaskStatus

_LOOK_S = 0.5
_SILENCE_S = 0.3
"""After so long without a word a live log that is not followed is taken to be all there is for now."""

_OVER = frozenset(
    {
        TaskState.TASK_STATE_COMPLETED,
        TaskState.TASK_STATE_FAILED,
        TaskState.TASK_STATE_EXCEPTION,
    }
)


def local(task_id: str, run_id: int | None, log_dir: Path) -> bytes:
    """The log that a worker of this machine keeps."""
    folder = log_dir / task_id
    runs = sorted(int(file.stem) for file in folder.glob("*.log") if file.stem.isdigit())
    if not runs:
        raise CommandError(
            f"there is no log of {task_id} under {log_dir}", "say where the worker's logs are with --log-dir"
        )
    chosen = runs[-1] if run_id is None else run_id
    if chosen not in runs:
        raise CommandError(f"there is no log of run {chosen}; there are runs {', '.join(map(str, runs))}")
    return (folder / f"{chosen}.log").read_bytes()


def show(connection: Connection, task_id: str, run_id: int | None, *, follow: bool) -> None:
    """Prints the log of a run, or of the last run that has one."""
    asyncio.run(_Log(connection, task_id, run_id).show(follow))


class _Log:
    def __init__(self, connection: Connection, task_id: str, run_id: int | None) -> None:
        self._connection = connection
        self._task_id = task_id
        self._run_id = run_id

    async def show(self, follow: bool) -> None:
        async with open_aio_channel(self._connection.address, self._connection.tls) as channel:
            self._stub: Any = QueueStub(channel)
            self._artifacts = ArtifactClient(channel, lambda: self._connection.credentials)
            try:
                await self._show(follow)
            except CallError as e:
                raise self._connection.error(e.failure) from None

    async def _show(self, follow: bool) -> None:
        while True:
            status = await self._status()
            found = await self._find(status)
            if found is not None:
                await self._print(*found, follow=follow)
                return
            if not follow or status.state in _OVER:
                which = "" if self._run_id is None else f"run {self._run_id} of "
                hint = "`--follow` waits for it" if status.state not in _OVER else ""
                raise CommandError(f"{which}task {self._task_id} has no log", hint)
            await asyncio.sleep(_LOOK_S)

    async def _status(self) -> TaskStatus:
        try:
            answer = await self._stub.GetTaskStatus(
                GetTaskStatusRequest(task_id=self._task_id),
                metadata=self._connection.credentials.metadata(),
                timeout=30,
            )
        except grpc.aio.AioRpcError as e:
            raise CallError(failure_of(e)) from None
        status: TaskStatus = answer.status
        return status

    async def _find(self, status: TaskStatus) -> tuple[int, ArtifactContent] | None:
        """The run that has a log, and where it is."""
        runs = [run.run_id for run in reversed(status.runs)] if self._run_id is None else [self._run_id]
        for run_id in runs:
            request = GetArtifactContentRequest(task_id=self._task_id, run_id=run_id, name=LIVE_LOG)
            try:
                answer = await self._stub.GetArtifactContent(
                    request, metadata=self._connection.credentials.metadata(), timeout=30
                )
                return run_id, answer.content
            except grpc.aio.AioRpcError as e:
                if e.code() is not grpc.StatusCode.NOT_FOUND:
                    raise CallError(failure_of(e)) from None
        return None

    async def _print(self, run_id: int, content: ArtifactContent, *, follow: bool) -> None:
        if content.storage_type != StorageType.STORAGE_TYPE_REFERENCE:
            await self._artifacts.download(self._task_id, LIVE_LOG, sys.stdout.buffer, run_id=run_id)
            return
        try:
            printed = 0
            async for piece in _growing(content.url, follow=follow):
                sys.stdout.buffer.write(piece)
                sys.stdout.flush()
                printed += len(piece)
        except httpx.HTTPError as e:
            # The worker is gone, or the log complete since: then it is an artifact by now, or soon.
            again = await self._find(await self._status())
            kept = again is not None and again[1].storage_type != StorageType.STORAGE_TYPE_REFERENCE
            if again is not None and kept and not printed:
                await self._print(*again, follow=follow)
                return
            text = f"the worker that serves this log does not answer: {e}"
            raise CallError(Failure(grpc.StatusCode.UNAVAILABLE, text, "UNAVAILABLE")) from e


async def _growing(url: str, *, follow: bool) -> AsyncIterator[bytes]:
    """The live log at a URL; without `follow`, as far as it has come."""
    timeout = httpx.Timeout(10.0, read=None if follow else _SILENCE_S)
    async with httpx.AsyncClient(timeout=timeout, trust_env=False, follow_redirects=True) as client:
        async with client.stream("GET", url) as answer:
            answer.raise_for_status()
            try:
                async for piece in answer.aiter_bytes():
                    yield piece
            except httpx.ReadTimeout:
                print("(the task is still running; --follow waits for more)", file=sys.stderr)
