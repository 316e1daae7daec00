"""The HTTP door: Starlette on uvicorn, for people, probes and Prometheus."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator, Sequence

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from server.config import SettingsError
from server.errors import QueueError
from server.pipeline import Pipeline
from server.services import Services
from server.store.statements import load
from server.version import version_object

PROBE = load("database")["probe"]

_PAGE = """tcqueue {version}

gRPC    the queue itself; try: grpcurl -plaintext <host>:50051 list
/metrics  Prometheus
/__heartbeat__  /__lbheartbeat__  /__version__
"""


def application(services: Services) -> Starlette:
    """The ASGI application."""

    async def page(_: Request) -> Response:
        return PlainTextResponse(_PAGE.format(version=version_object()["version"]))

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    async def heartbeat(_: Request) -> Response:
        try:
            await services.db.fetch(PROBE)
        except QueueError as e:
            return JSONResponse({"code": e.code, "message": e.message}, status_code=503)
        return JSONResponse({})

    async def lbheartbeat(_: Request) -> Response:
        return JSONResponse({})

    async def version(_: Request) -> Response:
        return JSONResponse(version_object())

    async def robots(_: Request) -> Response:
        return PlainTextResponse("User-Agent: *\nDisallow: /\n")

    async def not_found(_: Request, __: Exception) -> Response:
        return JSONResponse({"error": "Not found"}, status_code=404)

    return Starlette(
        routes=[
            Route("/", page),
            Route("/metrics", metrics),
            Route("/__heartbeat__", heartbeat),
            Route("/__lbheartbeat__", lbheartbeat),
            Route("/__version__", version),
            Route("/robots.txt", robots),
        ],
        exception_handlers={404: not_found, 405: not_found},
    )


class HttpDoor:
    """Serves the application until closed."""

    def __init__(self, services: Services, pipelines: Sequence[Pipeline], *, reuse_port: bool) -> None:
        self._address = services.settings.http_listen
        self._reuse_port = reuse_port
        config = uvicorn.Config(
            application(services),
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=5,
        )
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None
        self._listener: socket.socket | None = None

    async def open(self) -> int:
        """Binds and starts; returns the port. Raises SettingsError when the address cannot be had."""
        host, _, port = self._address.rpartition(":")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self._reuse_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            listener.bind((host.strip("[]") or "127.0.0.1", int(port)))
            # From here on connections wait in the backlog instead of being refused.
            listener.listen(2048)
        except (OSError, ValueError) as e:
            listener.close()
            raise SettingsError(f"cannot listen on {self._address} (TCQUEUE_HTTP_LISTEN): {e}") from e
        self._listener = listener
        self._task = asyncio.create_task(self._server.serve([listener]))
        return int(listener.getsockname()[1])

    async def close(self) -> None:
        """Finishes what is under way and ends."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task
        if self._listener is not None:
            self._listener.close()


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: signals are the application's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Captures none."""
        yield
