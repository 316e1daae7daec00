"""What scopes come to, and whether signatures hold (auth.md 7)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from google.protobuf.timestamp_pb2 import Timestamp

from server.call import Call
from server.domain.scope_expressions import AllOf, Scope, compile, forbidden_message
from server.domain.scopes import ScopeSet
from server.errors import AuthenticationFailed, InsufficientScopes
from server.identity import testers
from server.identity.model import NOBODY, HawkRequest
from server.views import stamp
from tcqueue.v1.access_pb2 import (
    AuthenticateHawkRequest,
    AuthenticateHawkResponse,
    AuthenticationScheme,
    AuthenticationStatus,
    CurrentScopesRequest,
    CurrentScopesResponse,
    ExpandScopesRequest,
    ExpandScopesResponse,
    TestAuthenticateGetRequest,
    TestAuthenticateGetResponse,
    TestAuthenticateRequest,
    TestAuthenticateResponse,
)

_NO_AUTH_LASTS = timedelta(minutes=15)
_GET_SCOPES = ("test:*", "auth:create-client:test:*")
_GET_NEEDS = ("test:authenticate-get",)


async def expand_scopes(call: Call, request: ExpandScopesRequest) -> ExpandScopesResponse:
    """Scopes with all that roles add to them."""
    expand = await call.services.authenticator.expander()
    return ExpandScopesResponse(scopes=expand(list(request.scopes.scopes)))


async def current_scopes(call: Call, _: CurrentScopesRequest) -> CurrentScopesResponse:
    """The caller's own, everyone's included."""
    return CurrentScopesResponse(scopes=call.identity.scopes.scopes)


async def authenticate_hawk(call: Call, request: AuthenticateHawkRequest) -> AuthenticateHawkResponse:
    """Whether a request that another service received is signed rightly."""
    received = HawkRequest(
        method=request.method.upper(),
        resource=request.resource,
        host=request.host.lower(),
        port=request.port,
        authorization=request.authorization if request.HasField("authorization") else None,
    )
    try:
        identity, payload_hash = await call.services.authenticator.hawk(received)
    except AuthenticationFailed as e:
        return AuthenticateHawkResponse(
            status=AuthenticationStatus.AUTHENTICATION_STATUS_AUTH_FAILED, message=e.message
        )
    if identity.scheme == "none":
        return AuthenticateHawkResponse(
            status=AuthenticationStatus.AUTHENTICATION_STATUS_NO_AUTH,
            scheme=AuthenticationScheme.AUTHENTICATION_SCHEME_NONE,
            scopes=identity.scopes.scopes,
            expires=stamp(call.services.clock.now() + _NO_AUTH_LASTS),
        )
    expires = Timestamp()
    # Rounded: of each thousand instants some six are, in seconds, a hair less than what they stand for.
    expires.FromMilliseconds(round(identity.expires * 1000))
    return AuthenticateHawkResponse(
        status=AuthenticationStatus.AUTHENTICATION_STATUS_AUTH_SUCCESS,
        scheme=AuthenticationScheme.AUTHENTICATION_SCHEME_HAWK,
        client_id=identity.client_id,
        scopes=identity.scopes.scopes,
        expires=expires,
        hash=payload_hash or None,
    )


async def test_authenticate(call: Call, request: TestAuthenticateRequest) -> TestAuthenticateResponse:
    """Who the caller is, as the fixed client with the scopes asked for."""
    client_id, scopes = _tested(call, request.client_scopes.scopes, request.required_scopes.scopes)
    return TestAuthenticateResponse(client_id=client_id, scopes=scopes)


async def test_authenticate_get(call: Call, _: TestAuthenticateGetRequest) -> TestAuthenticateGetResponse:
    """The same with scopes that stand firm."""
    client_id, scopes = _tested(call, _GET_SCOPES, _GET_NEEDS)
    return TestAuthenticateGetResponse(client_id=client_id, scopes=scopes)


def _tested(call: Call, client_scopes: Sequence[str], required: Sequence[str]) -> tuple[str, list[str]]:
    now = call.services.clock.now().timestamp()
    client_id, scopes = testers.authenticate(call.credential, client_scopes, now)
    held = ScopeSet(scopes)
    if not held.satisfies_all(required):
        needed = compile(AllOf(tuple(Scope(scope) for scope in required))).render({})
        raise InsufficientScopes(forbidden_message(None if client_id == NOBODY else client_id, needed, held))
    return client_id, scopes
