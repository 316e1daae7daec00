"""One call as its handler sees it: who calls, what they may do, and the parts to work with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from server.domain.scope_expressions import forbidden_message
from server.errors import InsufficientScopes, QueueError
from server.identity.model import Credential, Identity
from server.methods import Method

if TYPE_CHECKING:
    from server.services import Services


class Call:
    """Made by the pipeline for each call. A caller whose credentials do not hold is told so at the
    first use of `identity` or `authorize`, which is where the check belongs for methods whose scopes
    depend on stored state (queue.md 3, class D)."""

    __slots__ = ("_identity", "authorized", "check", "credential", "method", "services")

    def __init__(
        self,
        method: Method,
        identity: Identity | QueueError,
        services: Services,
        credential: Credential = None,
    ) -> None:
        self.method = method
        self._identity = identity
        self.services = services
        #: What the caller brought, unverified; for the methods that test credentials.
        self.credential = credential
        self.authorized = method.scopes is None
        #: For methods whose requests are a stream: validates one message against its declared rules.
        self.check: Callable[[Any], None] = _nothing

    @property
    def identity(self) -> Identity:
        """Who calls. Raises AuthenticationFailed if the credentials given do not hold."""
        if isinstance(self._identity, QueueError):
            raise self._identity
        return self._identity

    def authenticate(self) -> None:
        """Raises AuthenticationFailed if the credentials given do not hold."""
        if isinstance(self._identity, QueueError):
            raise self._identity

    @property
    def actor(self) -> str:
        """The clientId that a change is noted under. Raises AuthenticationFailed."""
        return self.identity.client_id

    def authorize(self, parameters: Mapping[str, Any]) -> None:
        """Checks the method's scope expression with these parameters (lowerCamelCase names).

        Raises InsufficientScopes with the texts of auth.md 6, or AuthenticationFailed.
        """
        identity = self.identity
        expression = self.method.scopes
        if expression is not None and not expression.satisfied(parameters, identity.scopes):
            client_id = None if identity.scheme == "none" else identity.client_id
            raise InsufficientScopes(
                forbidden_message(client_id, expression.render(parameters), identity.scopes)
            )
        self.authorized = True


def _nothing(_: Any) -> None:
    """A request that came alone has been validated before its handler was called."""
