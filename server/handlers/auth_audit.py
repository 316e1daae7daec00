"""The trail of changes to clients and roles (auth.md 7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from server.call import Call
from server.domain import paging
from server.domain.roles import is_role_id
from server.errors import InputError
from server.store.statements import load
from server.views import stamp
from tcqueue.v1.access_pb2 import (
    AuditEntry,
    GetEntityHistoryRequest,
    GetEntityHistoryResponse,
    ListAuditHistoryRequest,
    ListAuditHistoryResponse,
)

_SQL = load("identity")


async def get_entity_history(call: Call, request: GetEntityHistoryRequest) -> GetEntityHistoryResponse:
    """What was done to a client or role, oldest first; empty for one that never was."""
    if not is_role_id(request.entity_id):
        # Nor can a client be called so; not every text is one that the database takes.
        return GetEntityHistoryResponse()
    entries, token = await _page(
        call,
        "audit_of_entity",
        [request.entity_type, request.entity_id],
        request.continuation_token,
        request.limit,
    )
    return GetEntityHistoryResponse(audit_history=entries, continuation_token=token)


async def list_audit_history(call: Call, request: ListAuditHistoryRequest) -> ListAuditHistoryResponse:
    """What a client has done to clients and roles, oldest first."""
    entries, token = await _page(
        call, "audit_of_client", [request.client_id], request.continuation_token, request.limit
    )
    return ListAuditHistoryResponse(audit_history=entries, continuation_token=token)


async def _page(
    call: Call, statement: str, about: list[Any], token: str, limit: int
) -> tuple[Sequence[AuditEntry], str]:
    (after,) = paging.position(token, (0,), strict=True)
    if token and not after:
        raise InputError("the continuationToken is not one that this method gave out")
    most = paging.size(limit)
    rows = await call.services.db.fetch(_SQL[statement], [*about, after, most + 1])
    page, more = paging.cut(rows, most)
    entries = [
        AuditEntry(
            client_id=client_id,
            action_type=action,
            created=stamp(created),
            entity_id=entity_id,
            entity_type=entity_type,
        )
        for _, client_id, action, created, entity_id, entity_type in page
    ]
    return entries, paging.token(page[-1][0]) if more else ""
