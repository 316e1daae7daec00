"""The HTTP door: the API and the pages as one ASGI application on uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import ssl
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import uvicorn

from gateway import pages
from gateway.api import Api, Scope
from gateway.blobs import BlobDoor
from gateway.job_queue import SERVICE as JOB_QUEUE
from gateway.job_queue import JobQueueDoor, is_job_queue
from gateway.protocol import Protocol
from server.blobs.disk import DiskStore
from server.blobs.signing import PATH
from server.config import Settings, SettingsError
from server.pipeline import Pipeline
from server.references.documents import References, exchange_prefixes
from server.services import Services

KEEP_ALIVE_S = 90
"""How long an idle connection stays open; more than proxies wait before they reuse one (compat.md 6)."""


_BLOBS = PATH.encode()


class Gateway:
    """The ASGI application: sends a request to an API or to the pages."""

    def __init__(self, services: Services, pipelines: Sequence[Pipeline]) -> None:
        settings = services.settings
        modern = [p for p in pipelines if p.service_name != JOB_QUEUE]
        served = tuple(p.service for p in modern)
        references = _references(served, settings.root_url, exchange_prefixes(served, settings))
        self._api = Api(modern, trust_proxy=settings.trust_proxy, schema_id=references.input_schema_id)
        self._pages = pages.application(services, references.documents)
        self._jobs = next((JobQueueDoor(p) for p in pipelines if p.service_name == JOB_QUEUE), None)
        if not settings.opens_job_queue:
            self._jobs = None
        self._blobs = BlobDoor(services, services.blobs) if isinstance(services.blobs, DiskStore) else None

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Answers one request."""
        if scope["raw_path"].startswith((b"/api/", b"/v1/")):
            await self._api(scope, receive, send)
        elif self._blobs is not None and scope["raw_path"].startswith(_BLOBS):
            await self._blobs(scope, receive, send)
        elif self._jobs is not None and is_job_queue(scope["raw_path"]):
            await self._jobs(scope, receive, send)
        else:
            await self._pages(scope, receive, send)


#: Tests open hundreds of doors in a process; what they publish is the same.
_references = cache(References)


class HttpDoor:
    """Serves the application until closed."""

    def __init__(self, services: Services, pipelines: Sequence[Pipeline], *, reuse_port: bool) -> None:
        settings = services.settings
        self._address = settings.http_listen
        self._services = services
        self._reuse_port = reuse_port
        self._half_tls = bool(settings.tls_cert_file) != bool(settings.tls_key_file)
        config = uvicorn.Config(
            Gateway(services, pipelines),
            http=Protocol,
            ws="none",
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=max(1, math.ceil(settings.shutdown_grace_s)),
            **_tls(settings),
        )
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None
        self._listener: socket.socket | None = None

    async def open(self) -> int:
        """Binds and starts; returns the port. Raises SettingsError when the address cannot be had, or the
        TLS files cannot be read."""
        try:
            if self._half_tls:
                raise OSError("one of the two is not set")
            self._server.config.load()
        except (OSError, ssl.SSLError) as e:
            raise SettingsError(f"TLS needs both a certificate and a key that can be read: {e}") from e
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
        found = int(listener.getsockname()[1])
        name = "localhost" if host in ("0.0.0.0", "[::]") else host or "127.0.0.1"
        scheme = "https" if self._server.config.is_ssl else "http"
        self._services.root_url.listening(f"{scheme}://{name}:{found}")
        return found

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


def _tls(settings: Settings) -> dict[str, Any]:
    if not settings.tls_cert_file or not settings.tls_key_file:
        return {}
    return {
        "ssl_certfile": settings.tls_cert_file,
        "ssl_keyfile": settings.tls_key_file,
        "ssl_ca_certs": settings.tls_client_ca_file or None,
        "ssl_cert_reqs": ssl.CERT_REQUIRED if settings.tls_client_ca_file else ssl.CERT_NONE,
    }
