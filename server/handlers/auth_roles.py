"""Roles over the API (auth.md 5.1, 7)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from server.call import Call
from server.domain import paging
from server.domain.roles import ASSUME
from server.handlers.auth_clients import page_after
from server.handlers.pages import gently
from server.identity import roles
from server.views import stamp
from tcqueue.v1.role_pb2 import (
    CreateRoleRequest,
    CreateRoleResponse,
    DeleteRoleRequest,
    DeleteRoleResponse,
    GetRoleRequest,
    GetRoleResponse,
    ListRoleIdsRequest,
    ListRoleIdsResponse,
    ListRolesPageRequest,
    ListRolesPageResponse,
    ListRolesRequest,
    ListRolesResponse,
    Role,
    UpdateRoleRequest,
    UpdateRoleResponse,
)

_Expand = Callable[[list[str]], list[str]]


async def list_roles(call: Call, _: ListRolesRequest) -> ListRolesResponse:
    """All roles in the order of their ids."""
    found: list[roles.Role] = []
    while True:
        page = await call.services.roles.page(after=found[-1].role_id if found else "")
        found += page
        if len(page) < roles.MAX_PAGE:
            break
    expand = await call.services.authenticator.expander()
    return ListRolesResponse(roles=await gently(_role(role, expand) for role in found))


async def list_roles_page(call: Call, request: ListRolesPageRequest) -> ListRolesPageResponse:
    """A page of roles in the order of their ids."""
    page, token = await _page(call, request.continuation_token, request.limit)
    expand = await call.services.authenticator.expander()
    return ListRolesPageResponse(
        roles=await gently(_role(role, expand) for role in page), continuation_token=token
    )


async def list_role_ids(call: Call, request: ListRoleIdsRequest) -> ListRoleIdsResponse:
    """A page of role ids in their order."""
    page, token = await _page(call, request.continuation_token, request.limit)
    return ListRoleIdsResponse(role_ids=[role.role_id for role in page], continuation_token=token)


async def get_role(call: Call, request: GetRoleRequest) -> GetRoleResponse:
    """One role."""
    return GetRoleResponse(role=await _shown(call, await call.services.roles.get(request.role_id)))


async def create_role(call: Call, request: CreateRoleRequest) -> CreateRoleResponse:
    """Makes a role, or finds the equal one that is there."""

    def authorize(scopes: Sequence[str]) -> str:
        call.authorize({"roleId": request.role_id, "scopes": scopes})
        return call.actor

    made = await call.services.roles.create(
        request.role_id,
        description=request.description,
        scopes=list(request.scopes.scopes),
        actor=authorize,
    )
    return CreateRoleResponse(role=await _shown(call, made))


async def update_role(call: Call, request: UpdateRoleRequest) -> UpdateRoleResponse:
    """Replaces a role's description and scopes."""

    def authorize(scopes: Sequence[str]) -> str:
        call.authorize({"roleId": request.role_id, "scopesAdded": scopes})
        return call.actor

    changed = await call.services.roles.update(
        request.role_id,
        description=request.description,
        scopes=list(request.scopes.scopes),
        actor=authorize,
    )
    return UpdateRoleResponse(role=await _shown(call, changed))


async def delete_role(call: Call, request: DeleteRoleRequest) -> DeleteRoleResponse:
    """Deletes a role that may be there."""
    await call.services.roles.delete(request.role_id, actor=call.actor)
    return DeleteRoleResponse()


async def _page(call: Call, token: str, limit: int) -> tuple[Sequence[roles.Role], str]:
    """The roles of a page, and the token of the next one."""
    most = paging.size(limit)
    found = await call.services.roles.page(after=page_after(token), limit=most + 1)
    page, more = paging.cut(found, most)
    return page, paging.token(page[-1].role_id) if more else ""


async def _shown(call: Call, role: roles.Role) -> Role:
    return _role(role, await call.services.authenticator.expander())


def _role(role: roles.Role, expand: _Expand) -> Role:
    return Role(
        role_id=role.role_id,
        scopes=role.scopes,
        description=role.description,
        created=stamp(role.created),
        last_modified=stamp(role.last_modified),
        expanded_scopes=expand([ASSUME + role.role_id]),
    )
