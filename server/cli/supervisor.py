"""`serve --processes N`: a parent that keeps N serving processes running, all on the same ports.

The kernel spreads connections over them (SO_REUSEPORT). A process that dies is started again; when the
parent dies, even by SIGKILL, the others see their standard input end and drain.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import random
import signal
import socket
import sys
import time
from asyncio.subprocess import PIPE, Process
from contextlib import ExitStack, suppress
from dataclasses import fields

import structlog
import uvloop

from server import app
from server.cli.announcing import Announcement
from server.cli.base import CommandError
from server.config import Settings, SettingsError, environment_name
from server.identity import bootstrap
from server.identity.secrets import SecretBox
from server.store.database import Database

log = structlog.get_logger(__name__)

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
#: A process that served this long was fine; its end is no sign that the next one will fail.
_STEADY_S = 30.0
#: On top of the grace that calls get: streams, batches and connections have to end too.
_DRAIN_EXTRA_S = 15.0


def run_child(settings: Settings) -> None:
    """Serves as one of several, until told to stop or until the parent is gone."""

    def ready(serving: app.Serving) -> None:
        print(json.dumps([serving.grpc_port, serving.http_port]), flush=True)

    async def main() -> None:
        asyncio.get_running_loop().add_reader(0, _parent_is_gone)
        await app.serve(settings, reuse_port=True, ready=ready)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def _parent_is_gone() -> None:
    asyncio.get_running_loop().remove_reader(0)
    os.kill(os.getpid(), signal.SIGTERM)


async def supervise(settings: Settings, processes: int, announcement: Announcement) -> None:
    """Runs the processes until a signal, then drains them. CommandError when they cannot start."""
    db = await Database.open(settings.database_url, settings=settings)
    try:
        box = SecretBox.from_settings(settings)
        prepared = await bootstrap.prepare(db, None, settings, box)
    finally:
        await db.close()
    with ExitStack() as stack:
        settings = dataclasses.replace(
            settings,
            grpc_listen=_reserve(stack, settings.grpc_listen, "TCQUEUE_GRPC_LISTEN"),
            http_listen=_reserve(stack, settings.http_listen, "TCQUEUE_HTTP_LISTEN"),
        )
        parent = _Supervisor(settings, processes)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, parent.stop)
        keepers = [asyncio.create_task(parent.keep(number)) for number in range(1, processes + 1)]
        try:
            if await parent.all_ready():
                grpc_port, http_port = _port(settings.grpc_listen), _port(settings.http_listen)
                announcement.ready(grpc_port, http_port, prepared.root_access_token)
            await asyncio.gather(*keepers)
        finally:
            parent.stop()
            await asyncio.gather(*keepers, return_exceptions=True)


class _Supervisor:
    def __init__(self, settings: Settings, processes: int) -> None:
        self._settings = settings
        self._processes = processes
        self._environment = {**os.environ, **environment_of(settings)}
        self._stopping = asyncio.Event()
        self._all_ready = asyncio.Event()
        self._running: dict[int, Process] = {}
        self._ready: set[int] = set()

    def stop(self) -> None:
        """Has all processes drain."""
        self._stopping.set()
        for process in self._running.values():
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)

    async def all_ready(self) -> bool:
        """Waits until all serve; False when they have been told to stop before."""
        waits = [asyncio.create_task(event.wait()) for event in (self._all_ready, self._stopping)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        return not self._stopping.is_set()

    async def keep(self, number: int) -> None:
        """Keeps one process running until told to stop."""
        pause = _FIRST_PAUSE_S
        while not self._stopping.is_set():
            began = time.monotonic()
            code = await self._run(number)
            if self._stopping.is_set():
                log.info("process ended", process=number, code=code)
                return
            if number not in self._ready:
                self.stop()
                raise CommandError(f"process {number} could not start, it ended with code {code}")
            if time.monotonic() - began > _STEADY_S:
                pause = _FIRST_PAUSE_S
            wait_s = random.uniform(pause / 2, pause)
            log.error("process ended unasked; it is started again", process=number, code=code, wait_s=wait_s)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), wait_s)
            pause = min(pause * 2, _LONGEST_PAUSE_S)

    async def _run(self, number: int) -> int:
        """Runs the process to its end; its exit code, negative for a signal."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "server.cli", "serve", "--child", str(number)),
            stdin=PIPE,
            stdout=PIPE,
            env=self._environment,
            # Ctrl-C is for the parent, which asks the others.
            start_new_session=True,
        )
        self._running[number] = process
        try:
            if self._stopping.is_set():
                process.terminate()
            assert process.stdout is not None
            if await process.stdout.readline():
                self._ready.add(number)
                log.info("process serves", process=number, pid=process.pid)
                if len(self._ready) == self._processes:
                    self._all_ready.set()
            return await self._end_of(process)
        finally:
            del self._running[number]

    async def _end_of(self, process: Process) -> int:
        ended = asyncio.create_task(process.wait())
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait([ended, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                grace_s = self._settings.shutdown_grace_s + _DRAIN_EXTRA_S
                await asyncio.wait([ended], timeout=grace_s)
            if not ended.done():
                log.error("process does not end; it is killed", pid=process.pid)
                process.kill()
            return await ended
        finally:
            stopping.cancel()


def environment_of(settings: Settings) -> dict[str, str]:
    """The settings as the variables that make them."""
    texts = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        plain = isinstance(value, str | int | float) and not isinstance(value, bool)
        texts[environment_name(field.name)] = str(value) if plain else json.dumps(value)
    return texts


def _reserve(stack: ExitStack, listen: str, variable: str) -> str:
    """Holds the port without listening on it, so that a port of 0 is the same for all, and one that
    somebody else has is found now. Returns the address with the real port."""
    if not listen:
        return ""
    host, _, port = listen.rpartition(":")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]") or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        held = stack.enter_context(socket.socket(family, kind, protocol))
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(address)
    except (OSError, ValueError) as e:
        raise SettingsError(f"cannot listen on {listen} ({variable}): {e}") from None
    return f"{host}:{held.getsockname()[1]}"


def _port(address: str) -> int:
    return int(address.rpartition(":")[2]) if address else 0
