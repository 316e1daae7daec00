"""Which events a watcher wants."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from server.errors import InputError
from server.events.patterns import matcher
from server.events.rows import Event
from tcqueue.v1 import auth_service_pb2, options_pb2, queue_service_pb2, scheduler_service_pb2

#: The exchanges that the services declare, without their prefixes.
EXCHANGES = frozenset(
    exchange.name
    for service in (
        queue_service_pb2.DESCRIPTOR.services_by_name["Queue"],
        auth_service_pb2.DESCRIPTOR.services_by_name["Auth"],
        scheduler_service_pb2.DESCRIPTOR.services_by_name["Scheduler"],
    )
    for exchange in service.GetOptions().Extensions[options_pb2.service].exchanges
)


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Everything given must hold; nothing given: every event. Equal filters can share one answer.

    `exchanges`: any of them. `patterns`: any of them matches the routing key or one of the further
    keys. `task_group_id`: events of the group itself and of its tasks.
    """

    exchanges: frozenset[str] = frozenset()
    patterns: frozenset[str] = frozenset()
    task_id: str = ""
    task_group_id: str = ""
    task_queue_id: str = ""
    _match: Callable[[str], bool] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_match", matcher(self.patterns))

    @classmethod
    def build(
        cls, exchanges: Iterable[str], patterns: Iterable[str], task_id: str, group_id: str, queue_id: str
    ) -> EventFilter:
        """A caller's filter. Raises InputError for an exchange that does not exist: it would never match,
        and the caller would wait for ever."""
        wanted = frozenset(exchanges)
        unknown = sorted(wanted - EXCHANGES)
        if unknown:
            raise InputError(
                f"there is no exchange {unknown[0]!r}; there are: {', '.join(sorted(EXCHANGES))}"
            )
        return cls(wanted, frozenset(patterns), task_id, group_id, queue_id)

    @property
    def needle(self) -> str:
        """A text that stands in every row with a matching event; empty if there is none to tell."""
        return self.task_id or self.task_group_id

    def matches(self, event: Event) -> bool:
        """Whether the watcher wants the event."""
        if self.task_id and event.task_id != self.task_id:
            return False
        if self.task_group_id and event.task_group_id != self.task_group_id:
            return False
        if self.task_queue_id and event.task_queue_id != self.task_queue_id:
            return False
        if self.exchanges and event.exchange not in self.exchanges:
            return False
        return not self.patterns or self._match(event.key) or any(map(self._match, event.cc))
