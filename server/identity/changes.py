"""How a change to clients or roles is made and told to every process that remembers them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias, TypeVar

import orjson

from server.domain.scopes import is_scope, refuse_double_star
from server.errors import InputValidationError
from server.store import hub as hubs
from server.store.database import Database, Transaction
from server.store.hub import NotifyHub
from server.store.statements import load

CHANNEL = "identity"
MAX_DESCRIPTION = 10_240
MAX_ID = 1000
"""Longest clientId or roleId taken; what is much longer fits no index entry."""

CLIENT, ROLES = "client", "roles"
"""What a message on the channel may say: `client <clientId>`, or `roles`. Anything else: everything."""


class News:
    """What is to be told of a change: to the processes that remember clients and roles, and to the world.

    Exchanges are named without their prefix, which the service's declaration in the proto has.
    """

    def __init__(self) -> None:
        self.topics: set[str] = set()
        self.events: list[dict[str, object]] = []

    def of_client(self, client_id: str, exchange: str) -> None:
        """A client has changed, or might have: `exchange` is client-created, -updated or -deleted."""
        self.topics.add(about_client(client_id))
        self._publish(exchange, {"version": 1, "clientId": client_id})

    def of_role(self, role_id: str, exchange: str) -> None:
        """A role has changed, or might have: `exchange` is role-created, -updated or -deleted."""
        self.topics.add(ROLES)
        self._publish(exchange, {"version": 1, "roleId": role_id})

    def _publish(self, exchange: str, payload: dict[str, object]) -> None:
        self.events.append({"exchange": exchange, "key": "", "cc": [], "payload": payload})


T = TypeVar("T")
Change: TypeAlias = Callable[[Transaction, News], Awaitable[T]]
"""Works in a transaction and adds to the news what is to be told of it."""

Authorize: TypeAlias = Callable[[Sequence[str]], str]
"""Called with the scopes a change hands out, before anything is written: raises to forbid it, or returns the
clientId of whoever makes it. Not known before, since what is wrong with a request is told first."""

EVENTS = "events"
"""The channel on which watchers of the event log wait."""

_NOTIFY = load("hub")["notify"]
_INSERT_EVENTS = load("transitions")["insert_events"]


def about_client(client_id: str) -> str:
    """The message that something about a client has changed."""
    return f"{CLIENT} {client_id}"


class Changes:
    """Runs changes and tells of them; without a hub (commands) only other processes hear of it."""

    def __init__(self, db: Database, hub: NotifyHub | None) -> None:
        self._db = db
        self._hub = hub

    async def make(self, change: Change[T]) -> T:
        """Run a change in one transaction; once it is committed, it is known.

        In this process at once: whoever calls next meets the new state. Elsewhere within milliseconds,
        and for certain: the message is part of the transaction, so that a disabled client cannot stay
        welcome anywhere because its disabler died between the two. Raises what `change` raises.
        """

        async def run(tx: Transaction) -> tuple[T, News]:
            news = News()
            made = await change(tx, news)
            if news.events:
                await tx.run(_INSERT_EVENTS, [orjson.dumps(news.events).decode()])
            if news.topics:
                # From nobody in particular, so that this process, too, hears it when the outcome of
                # its COMMIT gets lost.
                texts = [hubs.message("", CHANNEL, text) for text in sorted(news.topics)]
                await tx.run(_NOTIFY, [texts])
            return made, news

        made, news = await self._db.in_transaction(run, hot=False)
        if self._hub is not None:
            for text in news.topics:
                self._hub.publish(CHANNEL, text)
            if news.events:
                self._hub.publish(EVENTS, "")
        return made


def settled(actor: str | Authorize, scopes: Sequence[str]) -> str:
    """Who makes a change that hands out these scopes. Raises what an `Authorize` does."""
    return actor if isinstance(actor, str) else actor(scopes)


def check_contents(description: str, scopes: Sequence[str]) -> None:
    """What clients and roles have in common: InputValidationError for an unusable description, for
    what is no scope and for a repeated one; InputError for a scope ending with two stars."""
    if len(description) > MAX_DESCRIPTION:
        raise InputValidationError(f"description must not be longer than {MAX_DESCRIPTION} characters")
    if "\0" in description:
        raise InputValidationError("description must not hold NUL characters")
    for scope in scopes:
        if not is_scope(scope):
            raise InputValidationError(f"scope {scope!r} must be printable ASCII")
    if len(set(scopes)) < len(scopes):
        raise InputValidationError("scopes must be unique")
    refuse_double_star(scopes)
