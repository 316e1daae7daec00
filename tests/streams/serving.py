"""A server in a process of its own, to kill and to freeze: `python -m tests.streams.serving` runs one."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from server.config import Settings, environment_name

_START_S = 30.0


class ServerProcess:
    """One `serve` on a database; keeps its port over restarts."""

    def __init__(self, settings: Settings, **overrides: object) -> None:
        given = {
            "database_url": settings.database_url,
            "encryption_key": settings.encryption_key,
            "root_access_token": settings.root_access_token,
            "grpc_listen": settings.grpc_listen,
            "http_listen": "",
            "log_level": "error",
            "hot_pool_size": 4,
            "cold_pool_size": 4,
            **overrides,
        }
        self._variables = {environment_name(name): str(value) for name, value in given.items()}
        self._process: asyncio.subprocess.Process | None = None
        self.address = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ServerProcess]:
        """Started on entry; killed on exit if it is still there."""
        await self.start()
        try:
            yield self
        finally:
            await self.kill()

    async def start(self) -> None:
        """Starts it; returns when it serves."""
        environment = {name: value for name, value in os.environ.items() if "TCQUEUE" not in name}
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.streams.serving",
            stdout=asyncio.subprocess.PIPE,
            env={**environment, **self._variables},
        )
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), _START_S)
        assert line, "the server did not start"
        self.address = f"127.0.0.1:{int(line)}"
        self._variables[environment_name("grpc_listen")] = self.address

    async def kill(self) -> None:
        """kill -9."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.communicate()

    def freeze(self) -> None:
        """SIGSTOP: nothing runs, sockets stay open."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    async def stop(self) -> int:
        """SIGTERM; the exit status once it has drained."""
        self._signal(signal.SIGTERM)
        assert self._process is not None
        await asyncio.wait_for(self._process.communicate(), _START_S)
        assert self._process.returncode is not None
        return self._process.returncode

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)


def _main() -> None:
    import uvloop

    from server import app

    settings = Settings.from_env(os.environ)
    uvloop.run(app.serve(settings, ready=lambda serving: print(serving.grpc_port, flush=True)))


if __name__ == "__main__":
    _main()
