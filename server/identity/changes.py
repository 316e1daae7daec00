"""How a change to clients or roles is made and told to every process that remembers them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum
from typing import TypeAlias, TypeVar

from server.domain.scopes import is_scope, refuse_double_star
from server.errors import InputValidationError
from server.store.database import Database, Transaction
from server.store.hub import NotifyHub

CHANNEL = "identity"
MAX_DESCRIPTION = 10_240

Authorize: TypeAlias = Callable[[Sequence[str]], None]
"""Called with the scopes a change hands out, before anything is written; raises to forbid it."""

T = TypeVar("T")


class Topic(StrEnum):
    """What a message on the channel is about; its payload is `<topic> <id>`."""

    CLIENT = "client"
    ROLE = "role"


class Changes:
    """Runs changes and tells of them.

    Processes without a hub of their own (commands) tell through the transaction itself.
    """

    def __init__(self, db: Database, hub: NotifyHub | None) -> None:
        self._db = db
        self._hub = hub

    async def make(self, topic: Topic, name: str, change: Callable[[Transaction], Awaitable[T]]) -> T:
        """Run a change in one transaction; when it is committed, so it is known.

        In this process at once: whoever calls next meets the new state. Elsewhere within milliseconds.
        """
        made = await self._db.in_transaction(change, hot=False)
        self.tell(topic, name)
        return made

    def tell(self, topic: Topic, name: str) -> None:
        """Tell of a change that is committed."""
        if self._hub is not None:
            self._hub.publish(CHANNEL, f"{topic} {name}")


def check_contents(description: str, scopes: Sequence[str]) -> None:
    """What clients and roles have in common: InputValidationError for an overlong description, for
    what is no scope and for a repeated one; InputError for a scope ending with two stars."""
    if len(description) > MAX_DESCRIPTION:
        raise InputValidationError(f"description must not be longer than {MAX_DESCRIPTION} characters")
    for scope in scopes:
        if not is_scope(scope):
            raise InputValidationError(f"scope {scope!r} must be printable ASCII")
    if len(set(scopes)) < len(scopes):
        raise InputValidationError("scopes must be unique")
    refuse_double_star(scopes)
