"""Is it alive, and which version is it? (queue.md 3.9)"""

from __future__ import annotations

import time

from server.call import Call
from server.store.statements import load
from server.version import version_object
from tcqueue.v1.monitoring_pb2 import (
    HeartbeatRequest,
    HeartbeatResponse,
    LbHeartbeatRequest,
    LbHeartbeatResponse,
    PingRequest,
    PingResponse,
    VersionRequest,
    VersionResponse,
)

_SQL = load("database")


async def ping(call: Call, _: PingRequest) -> PingResponse:
    """Answers, and looks at nothing."""
    return PingResponse(alive=True, uptime=time.monotonic() - call.services.started)


async def lb_heartbeat(_: Call, __: LbHeartbeatRequest) -> LbHeartbeatResponse:
    """Says that this process takes calls."""
    return LbHeartbeatResponse()


async def heartbeat(call: Call, _: HeartbeatRequest) -> HeartbeatResponse:
    """Asks the database something. Raises Unavailable when it does not answer."""
    await call.services.db.fetch(_SQL["probe"])
    return HeartbeatResponse()


async def version(_: Call, __: VersionRequest) -> VersionResponse:
    """Says which release runs, and what is known of its build."""
    return VersionResponse(**version_object())
