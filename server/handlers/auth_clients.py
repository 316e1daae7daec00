"""Clients over the API: who there is, and making, changing and deleting them (auth.md 7)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from server.call import Call
from server.definitions import moment
from server.domain import paging
from server.errors import InputError, InputValidationError, ResourceNotFound
from server.handlers.pages import gently
from server.identity import clients
from server.views import stamp
from tcqueue.v1.client_pb2 import (
    Client,
    ClientWithToken,
    CreateClientRequest,
    CreateClientResponse,
    DeleteClientRequest,
    DeleteClientResponse,
    DisableClientRequest,
    DisableClientResponse,
    EnableClientRequest,
    EnableClientResponse,
    GetClientCredentialsRequest,
    GetClientCredentialsResponse,
    GetClientRequest,
    GetClientResponse,
    InspectClientRequest,
    InspectClientResponse,
    ListClientsRequest,
    ListClientsResponse,
    ResetAccessTokenRequest,
    ResetAccessTokenResponse,
    UpdateClientRequest,
    UpdateClientResponse,
)


async def list_clients(call: Call, request: ListClientsRequest) -> ListClientsResponse:
    """A page of clients in the order of their ids."""
    after = page_after(request.continuation_token)
    most = paging.size(request.limit)
    found = await call.services.clients.page(prefix=request.prefix, after=after, limit=most + 1)
    page, more = paging.cut(found, most)
    expand = await call.services.authenticator.expander()
    response = ListClientsResponse(
        clients=await gently(_client(one, expand(list(one.scopes))) for one in page),
        continuation_token=paging.token(page[-1].client_id) if more else "",
    )
    return response


async def get_client(call: Call, request: GetClientRequest) -> GetClientResponse:
    """One client."""
    found = await call.services.clients.get(request.client_id)
    return GetClientResponse(client=await _shown(call, found))


async def create_client(call: Call, request: CreateClientRequest) -> CreateClientResponse:
    """Makes a client, or finds the one that an equal call has just made."""

    def authorize(scopes: Sequence[str]) -> str:
        call.authorize({"clientId": request.client_id, "scopes": scopes})
        return call.actor

    made, token = await call.services.clients.create(
        request.client_id,
        description=request.description,
        expires=_expires(request),
        scopes=list(request.scopes),
        delete_on_expiration=request.delete_on_expiration,
        actor=authorize,
    )
    return CreateClientResponse(client=await _with_token(call, made, token))


async def update_client(call: Call, request: UpdateClientRequest) -> UpdateClientResponse:
    """Replaces what a client says of itself, and its scopes when they are given."""

    def authorize(scopes: Sequence[str]) -> str:
        call.authorize({"clientId": request.client_id, "scopesAdded": scopes})
        return call.actor

    changed = await call.services.clients.update(
        request.client_id,
        description=request.description,
        expires=_expires(request),
        scopes=list(request.scopes.scopes) if request.HasField("scopes") else None,
        delete_on_expiration=request.delete_on_expiration,
        actor=authorize,
    )
    return UpdateClientResponse(client=await _shown(call, changed))


async def reset_access_token(call: Call, request: ResetAccessTokenRequest) -> ResetAccessTokenResponse:
    """Gives a client another access token."""
    changed, token = await call.services.clients.reset_access_token(request.client_id, actor=call.actor)
    return ResetAccessTokenResponse(client=await _with_token(call, changed, token))


async def enable_client(call: Call, request: EnableClientRequest) -> EnableClientResponse:
    """Lets a disabled client in again."""
    changed = await call.services.clients.enable(request.client_id, actor=call.actor)
    return EnableClientResponse(client=await _shown(call, changed))


async def disable_client(call: Call, request: DisableClientRequest) -> DisableClientResponse:
    """Shuts a client out."""
    changed = await call.services.clients.disable(request.client_id, actor=call.actor)
    return DisableClientResponse(client=await _shown(call, changed))


async def delete_client(call: Call, request: DeleteClientRequest) -> DeleteClientResponse:
    """Deletes a client that may be there."""
    await call.services.clients.delete(request.client_id, actor=call.actor)
    return DeleteClientResponse()


async def inspect_client(call: Call, request: InspectClientRequest) -> InspectClientResponse:
    """What a client may do, for the callers of 2014 (auth.md 7.1)."""
    found = await _shown(call, await call.services.clients.get(request.client_id))
    return InspectClientResponse(
        client_id=found.client_id, scopes=found.expanded_scopes, expires=found.expires
    )


async def get_client_credentials(
    call: Call, request: GetClientCredentialsRequest
) -> GetClientCredentialsResponse:
    """A client's access token, for callers who check signatures themselves (auth.md 7.1)."""
    if not call.services.settings.auth_serve_credentials:
        raise ResourceNotFound("this deployment gives out no credentials (setting auth_serve_credentials)")
    stored, token = await call.services.clients.credentials(request.client_id)
    found = await _shown(call, stored)
    return GetClientCredentialsResponse(
        client_id=found.client_id,
        access_token=token,
        scopes=found.expanded_scopes,
        expires=found.expires,
    )


def page_after(token: str) -> str:
    """The id behind which a page begins. Raises InputError for what is no token of these lists."""
    (after,) = paging.position(token, ("",), strict=True)
    if token and not after:
        raise InputError("the continuationToken is not one that this method gave out")
    return after


def _expires(request: CreateClientRequest | UpdateClientRequest) -> datetime:
    try:
        return moment(request.expires)
    except (OverflowError, ValueError, OSError) as e:
        raise InputValidationError("expires lies beyond the calendar") from e


async def _shown(call: Call, client: clients.Client) -> Client:
    expand = await call.services.authenticator.expander()
    return _client(client, expand(list(client.scopes)))


def _client(client: clients.Client, expanded: Sequence[str]) -> Client:
    return Client(
        client_id=client.client_id,
        expires=stamp(client.expires),
        description=client.description,
        created=stamp(client.created),
        last_modified=stamp(client.last_modified),
        last_date_used=stamp(client.last_date_used),
        last_rotated=stamp(client.last_rotated),
        scopes=client.scopes,
        expanded_scopes=expanded,
        disabled=client.disabled,
        delete_on_expiration=client.delete_on_expiration,
    )


async def _with_token(call: Call, client: clients.Client, token: str) -> ClientWithToken:
    # The fields are the same, and so are their numbers.
    shown = ClientWithToken.FromString((await _shown(call, client)).SerializeToString())
    shown.access_token = token
    return shown
