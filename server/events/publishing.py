"""Events as messages of a broker, and a window of those that are not confirmed yet."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping

import pika
import pika.exceptions
from google.protobuf.descriptor import ServiceDescriptor

from server.events.amqp import BrokerLost, Channel
from server.events.rows import Event
from tcqueue.v1 import auth_service_pb2, options_pb2, queue_service_pb2, scheduler_service_pb2

_INDEX_BITS = 20
_UNSENDABLE = (pika.exceptions.ShortStringTooLong, pika.exceptions.UnsupportedAMQPFieldException)

SERVICES = (
    queue_service_pb2.DESCRIPTOR.services_by_name["Queue"],
    auth_service_pb2.DESCRIPTOR.services_by_name["Auth"],
)
SCHEDULER = scheduler_service_pb2.DESCRIPTOR.services_by_name["Scheduler"]


class NotPublishable(Exception):
    """An event that cannot be made a message of."""


def exchange_names(template: str, scheduler_prefix: str = "scheduler/v1/") -> Mapping[str, str]:
    """The broker's name of every exchange, by ours. In the template `{service}` stands for queue or auth;
    the scheduler's names never had the others' form."""
    found = {}
    for service in SERVICES:
        rules = _rules(service)
        prefix = template.replace("{service}", rules.name)
        found.update({exchange.name: prefix + exchange.name for exchange in rules.exchanges})
    found.update(
        {exchange.name: scheduler_prefix + exchange.name for exchange in _rules(SCHEDULER).exchanges}
    )
    return found


def _rules(service: ServiceDescriptor) -> options_pb2.ServiceRules:
    rules: options_pb2.ServiceRules = service.GetOptions().Extensions[options_pb2.service]
    return rules


def sequence(event: Event) -> int:
    """A number that goes up from event to event, and is the same whenever the event is sent."""
    return event.row << _INDEX_BITS | event.index


class Publisher:
    """Publishes on a channel in confirm mode. Events are confirmed in whatever order the broker likes;
    `confirmed` says up to where all of them are."""

    def __init__(self, channel: Channel, exchanges: Mapping[str, str]) -> None:
        self._channel = channel
        self._exchanges = exchanges
        self._tag = 0
        #: Delivery tags under way, in their order, and those of them that were confirmed out of order.
        self._waiting: deque[int] = deque()
        self._early: set[int] = set()
        self._progress = asyncio.Event()

    @classmethod
    async def on(cls, channel: Channel, exchanges: Mapping[str, str]) -> Publisher:
        """Makes the exchanges, and turns confirms on. Raises BrokerLost."""
        await channel.declare(sorted(exchanges.values()))
        publisher = cls(channel, exchanges)
        channel.raw.add_on_return_callback(publisher._returned)
        await channel.call(channel.raw.confirm_delivery, ack_nack_callback=publisher._answered)
        return publisher

    @property
    def unconfirmed(self) -> int:
        """How many are under way."""
        return len(self._waiting)

    @property
    def first_unconfirmed(self) -> int:
        """The tag below which everything is confirmed."""
        return self._waiting[0] if self._waiting else self._tag + 1

    def publish(self, event: Event) -> int:
        """Sends an event; its tag. Raises NotPublishable, and BrokerLost on a channel that has ended."""
        if self._channel.lost is not None:
            raise self._channel.lost
        exchange = self._exchanges.get(event.exchange)
        if exchange is None:
            raise NotPublishable(f"there is no exchange {event.exchange}")
        headers: dict[str, object] = {"x-event-id": event.id, "x-sequence": sequence(event)}
        if event.cc:
            headers["CC"] = list(event.cc)
        properties = pika.BasicProperties(
            content_type="application/json",
            content_encoding="utf-8",
            delivery_mode=2,
            message_id=event.id,
            headers=headers,
        )
        try:
            self._channel.raw.basic_publish(exchange, event.key, event.payload.encode(), properties)
        except pika.exceptions.ChannelWrongStateError as e:
            raise self._channel.lost or BrokerLost(str(e)) from e
        except (
            pika.exceptions.ShortStringTooLong,
            pika.exceptions.UnsupportedAMQPFieldException,
            ValueError,
        ) as e:
            raise NotPublishable(f"{type(e).__name__}: {e}"[:300]) from e
        self._tag += 1
        self._waiting.append(self._tag)
        return self._tag

    async def progress(self, timeout_s: float) -> None:
        """Returns when the broker has answered something. Raises BrokerLost when it has ended, or owes an
        answer for so long."""
        self._progress.clear()
        if self._channel.lost is None:
            ended = asyncio.ensure_future(self._channel.ended())
            moved = asyncio.ensure_future(self._progress.wait())
            try:
                await asyncio.wait({ended, moved}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
                silent = not moved.done() and not ended.done()
            finally:
                ended.cancel()
                moved.cancel()
            if silent and self._waiting:
                self._channel.abort(BrokerLost(f"the broker has confirmed nothing for {timeout_s:g} s"))
        if self._channel.lost is not None:
            raise self._channel.lost

    def _answered(self, frame: object) -> None:
        method = frame.method  # type: ignore[attr-defined]
        if isinstance(method, pika.spec.Basic.Nack):
            # What comes behind it is under way: only from the start of it all does the order hold.
            self._channel.abort(BrokerLost("the broker would not take a message"))
        elif method.multiple:
            while self._waiting and self._waiting[0] <= method.delivery_tag:
                self._early.discard(self._waiting.popleft())
        else:
            self._early.add(method.delivery_tag)
        while self._waiting and self._waiting[0] in self._early:
            self._early.remove(self._waiting.popleft())
        self._progress.set()

    def _returned(self, *_: object) -> None:
        """Nothing is sent as mandatory: an event that nobody waits for may go."""
