"""A worker's logs as artifacts: a reference to the log while it grows, a link to its copy afterwards.

    public/logs/live.log          what people open: first where this worker serves the log, then a link
    public/logs/live_backing.log  the whole log, uploaded when the command has ended

A log that cannot be published is said on stderr; the run goes on as if it could.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, timedelta
from pathlib import Path

import grpc.aio
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from server.cli.base import CommandError
from server.client.artifacts import BACKING_LOG, LIVE_LOG, ArtifactClient, RunPlace
from server.client.credentials import Credentials
from server.client.errors import CallError
from server.client.held_runs import HeldRun, Result
from server.client.stream_worker import Execute

_TEXT = "text/plain; charset=utf-8"
_CHUNK_BYTES = 64 * 1024
_LOOK_S = 0.2
_KEEP = timedelta(minutes=15)
"""How much longer than its task may run a reference to a live log lasts (compat.md 9)."""

_PUBLISH_S = 120.0
_SHUTDOWN_S = 5.0


class LogServer:
    """Serves logs while they grow, each at a URL that nobody can guess."""

    def __init__(self, listen: str, url: str) -> None:
        """`url` is what others know the address by; empty: the address itself."""
        self._listen = listen
        self._url = url.rstrip("/")
        self._growing: dict[str, tuple[Path, asyncio.Event]] = {}
        app = Starlette(routes=[Route("/log/{token}", self._serve)])
        self._server = _Server(
            uvicorn.Config(
                app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=2
            )
        )
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Starts to listen. Raises CommandError when the address cannot be had."""
        host, _, port = self._listen.rpartition(":")
        try:
            listener = socket.create_server((host.strip("[]") or "127.0.0.1", int(port)))
        except (OSError, ValueError) as e:
            text = f"cannot serve logs on {self._listen}: {e}"
            raise CommandError(text, "choose another --live-log") from None
        self._url = self._url or f"http://{host or '127.0.0.1'}:{listener.getsockname()[1]}"
        self._task = asyncio.create_task(self._server.serve([listener]))

    async def close(self) -> None:
        """Ends what still reads."""
        for _, ended in self._growing.values():
            ended.set()
        self._server.should_exit = True
        if self._task is not None:
            await self._task

    def add(self, file: Path) -> tuple[str, str]:
        """A token for a growing log, and its URL."""
        token = secrets.token_urlsafe(24)
        self._growing[token] = (file, asyncio.Event())
        return token, f"{self._url}/log/{token}"

    def ended(self, token: str) -> None:
        """The log is complete; who reads it gets the rest."""
        self._growing[token][1].set()

    def remove(self, token: str) -> None:
        """Nobody is sent here any more."""
        self._growing.pop(token, None)

    async def _serve(self, request: Request) -> Response:
        found = self._growing.get(request.path_params["token"])
        if found is None:
            return PlainTextResponse("this log is complete, and an artifact of its task\n", 404)
        headers = {"access-control-allow-origin": "*", "cache-control": "no-store"}
        return StreamingResponse(_grow(*found), media_type=_TEXT, headers=headers)


async def _grow(file: Path, ended: asyncio.Event) -> AsyncIterator[bytes]:
    """The log as it grows, up to its end."""
    with file.open("rb") as source:
        while True:
            last = ended.is_set()
            while piece := source.read(_CHUNK_BYTES):
                yield piece
            if last:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), _LOOK_S)


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: signals are the worker's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Captures none."""
        yield


class LogPublisher:
    """Executes runs with their logs published."""

    def __init__(
        self,
        server: LogServer,
        channel: grpc.aio.Channel,
        execute: Execute,
        log_file: Callable[[HeldRun], Path],
    ) -> None:
        self._server = server
        self._channel = channel
        self._execute = execute
        self._log_file = log_file

    async def execute(self, run: HeldRun) -> Result:
        """The run's result. Its log can be read meanwhile, and is an artifact afterwards, also of a run that
        was taken away."""
        file = self._log_file(run)
        await asyncio.to_thread(_touch, file)
        client = ArtifactClient(self._channel, lambda: _credentials(run))
        token, url = self._server.add(file)
        try:
            await _tried(run, self._announce(run, client, url))
            return await self._execute(run)
        finally:
            self._server.ended(token)
            await _tried(run, self._keep(run, client, file))
            self._server.remove(token)

    async def _announce(self, run: HeldRun, client: ArtifactClient, url: str) -> None:
        end = run.task.expires.ToDatetime(UTC)
        soon = run.task.deadline.ToDatetime(UTC) + _KEEP
        place = RunPlace(run.task_id, run.run_id)
        await client.reference(place, LIVE_LOG, url, content_type=_TEXT, expires=min(soon, end))

    async def _keep(self, run: HeldRun, client: ArtifactClient, file: Path) -> None:
        end = run.task.expires.ToDatetime(UTC)
        place = RunPlace(run.task_id, run.run_id)
        await client.upload(place, BACKING_LOG, file, content_type=_TEXT, expires=end)
        await client.link(place, LIVE_LOG, BACKING_LOG, expires=end)


def _touch(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()


async def _tried(run: HeldRun, work: Awaitable[None]) -> None:
    """Does it, within a time; says what is wrong unless nobody wants to know any more."""
    try:
        async with asyncio.timeout(_SHUTDOWN_S if run.shutting_down else _PUBLISH_S):
            await work
    except (CallError, OSError) as e:
        if run.revocation is None:
            print(
                f"the log of {run.task_id}/{run.run_id} is not published: {e or 'no time'}", file=sys.stderr
            )


def _credentials(run: HeldRun) -> Credentials:
    held = run.credentials
    return Credentials(held.client_id, held.access_token, held.certificate)
