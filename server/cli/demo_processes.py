"""The demo's processes: a server and workers, as anybody would start them, each with its log."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from server.cli.base import CommandError

_START_S = 120.0
_STOP_S = 30.0


class DemoProcess:
    """A `tcqueue` command in a process of its own."""

    def __init__(self, name: str, process: Process, log: Path) -> None:
        self.name = name
        self.log = log
        self._process = process

    @classmethod
    async def start(
        cls,
        name: str,
        arguments: list[str],
        folder: Path,
        environment: Mapping[str, str],
        *,
        piped: bool = False,
    ) -> DemoProcess:
        """Starts it in a folder. What it prints goes to `<name>.log` there; if piped, `line` gives what is
        no error output."""
        log = folder / f"{name}.log"
        with log.open("wb") as out:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "server.cli", *arguments),
                stdin=DEVNULL,
                stdout=PIPE if piped else out,
                stderr=out,
                cwd=folder,
                env=environment,
                # Ctrl-C is for the demo, which then stops the others in order.
                start_new_session=True,
            )
        return cls(name, process, log)

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.returncode is None

    async def line(self) -> bytes:
        """The next line of its standard output; empty at the end."""
        assert self._process.stdout is not None
        return await self._process.stdout.readline()

    async def ended(self) -> int:
        """Returns when it has ended, with its exit code."""
        return await self._process.wait()

    def kill(self) -> None:
        """SIGKILL, as when a machine loses power."""
        with suppress(ProcessLookupError):
            self._process.kill()

    async def stop(self) -> None:
        """Asks it to end; kills it if it does not."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(_STOP_S):
                await self._process.wait()
        except TimeoutError:
            self.kill()
            await self._process.wait()

    def tail(self, lines: int = 20) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Deployment:
    """A fresh queue in a folder: where it is, and who may do everything there."""

    def __init__(self, server: DemoProcess, address: str, client_id: str, access_token: str) -> None:
        self.server = server
        self.address = address
        self.client_id = client_id
        self.access_token = access_token

    @classmethod
    async def start(cls, folder: Path) -> Deployment:
        """Starts a server on a free port and waits until it serves; CommandError."""
        environment = {
            **plain_environment(),
            # So short that the retry is seen within the demo; a real worker gets 45 s to come back.
            "TCQUEUE_STREAM_GRACE_S": "2",
            "TCQUEUE_CLAIM_POLL_DELAY_S": "0.5",
        }
        arguments = ["serve", "--data-dir", str(folder / "data"), "--grpc-listen", "127.0.0.1:0"]
        arguments += ["--http-listen", "", "--log-format", "console", "--json"]
        server = await DemoProcess.start("server", arguments, folder, environment, piped=True)
        try:
            async with asyncio.timeout(_START_S):
                said = json.loads(await server.line())
        except (TimeoutError, ValueError):
            await server.stop()
            raise CommandError(f"the server did not start:\n{server.tail()}") from None
        except BaseException:
            await server.stop()
            raise
        return cls(server, said["grpc"], said["clientId"], said["accessToken"])


def plain_environment() -> dict[str, str]:
    """Ours, without what would lead elsewhere."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("TCQUEUE_", "TASKCLUSTER_")) and name != "DATABASE_URL"
    }
