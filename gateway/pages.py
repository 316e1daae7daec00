"""What the HTTP door serves besides the API: a first page, metrics, heartbeats, the version."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from server.errors import QueueError
from server.services import Services
from server.store.statements import load
from server.version import version_object

_PROBE = load("database")["probe"]

_PAGE = """tcqueue {version}

gRPC    the queue itself; try: grpcurl -plaintext <host>:50051 list
/api/queue/v1/ping  the REST API
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
            await services.db.fetch(_PROBE)
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
