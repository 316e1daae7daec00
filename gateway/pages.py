"""What the HTTP door serves besides the API: a first page, metrics, heartbeats, the version."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from gateway import replies
from server.codec import writing
from server.errors import QueueError
from server.references.documents import Document
from server.services import Services
from server.store.statements import load
from server.version import version_object

_PROBE = load("database")["probe"]

_PAGE = """tcqueue {version}

gRPC    the queue itself; try: grpcurl -plaintext <host>:50051 list
/docs   the REST API (/openapi.json, /references/manifest.json, /schemas); that of 2014: /queue/v1/api.json
/metrics  Prometheus
/__heartbeat__  /__lbheartbeat__  /__version__
"""


def application(services: Services, documents: Mapping[str, Document]) -> Starlette:
    """The ASGI application. `documents` are the references and schemas, by path."""

    def published(document: Document) -> Callable[[Request], Awaitable[Response]]:
        headers = {"access-control-allow-origin": "*", "x-content-type-options": "nosniff"}
        if document.content_security_policy is not None:
            headers["content-security-policy"] = document.content_security_policy

        async def answer(_: Request) -> Response:
            return Response(document.body, media_type=document.content_type, headers=headers)

        return answer

    async def page(_: Request) -> Response:
        return PlainTextResponse(_PAGE.format(version=version_object()["version"]))

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    async def heartbeat(request: Request) -> Response:
        try:
            await services.db.fetch(_PROBE)
        except QueueError as e:
            return _like_the_api(request, {"code": e.code, "message": e.message}, 503)
        return _like_the_api(request, {})

    async def lbheartbeat(request: Request) -> Response:
        return _like_the_api(request, {})

    async def version(request: Request) -> Response:
        return _like_the_api(request, version_object())

    async def robots(_: Request) -> Response:
        return PlainTextResponse("User-Agent: *\nDisallow: /\n")

    async def not_found(request: Request, _: Exception) -> Response:
        return _like_the_api(request, {"error": "Not found"}, 404)

    monitoring = {
        "/__heartbeat__": heartbeat,
        "/__lbheartbeat__": lbheartbeat,
        "/__version__": version,
        "/robots.txt": robots,
    }
    return Starlette(
        routes=[
            Route("/", page),
            Route("/metrics", metrics),
            # Services have these, too, and there a slash at the end is optional.
            *(Route(path + end, answer) for path, answer in monitoring.items() for end in ("", "/")),
            *(Route(path, published(document)) for path, document in documents.items()),
        ],
        middleware=[Middleware(GZipMiddleware, minimum_size=1024)],
        exception_handlers={404: not_found, 405: not_found},
    )


def _like_the_api(request: Request, value: Any, status: int = 200) -> Response:
    """An answer with the headers that those of the API have: who asks for what is nowhere, or whether this
    lives, takes it for one (compat.md 7)."""
    body = writing.to_bytes(value, indent=True)
    response = Response(body, status, media_type=replies.JSON.decode())
    etag = (b"etag", replies.etag_of(body))
    for name, text in (*replies.ALWAYS, etag, *replies.traces(dict(request.scope["headers"]))):
        response.headers[name.decode()] = text.decode("latin-1")
    return response
