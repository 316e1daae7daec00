"""A connection to an AMQP 0-9-1 broker, as everything here that speaks to one uses it (queue.md 5.1)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any

import pika
import pika.exceptions
import structlog
from pika.adapters.asyncio_connection import AsyncioConnection

log = structlog.get_logger(__name__)
# It tells a lost connection in ten lines, with stacks; whoever uses this module tells it in one.
logging.getLogger("pika").setLevel(logging.CRITICAL)

_CONNECT_S = 15.0
_HEARTBEAT_S = 10


class BrokerLost(Exception):
    """The connection is of no use any more. `refused`: the broker closed the channel because of something it
    was sent; `text` is what it said."""

    def __init__(self, text: str, *, refused: bool = False) -> None:
        super().__init__(text)
        self.text = text
        self.refused = refused


def parameters(url: str) -> pika.URLParameters:
    """What a URL says, with heartbeats unless it says otherwise. Raises ValueError for one that cannot be
    read."""
    try:
        found = pika.URLParameters(url)
    except Exception as e:
        raise ValueError(f"the broker's URL cannot be read: {e}") from None
    if "heartbeat" not in url:
        found.heartbeat = _HEARTBEAT_S
    found.socket_timeout = _CONNECT_S
    found.stack_timeout = _CONNECT_S
    found.blocked_connection_timeout = None
    found.client_properties = {"connection_name": "tcqueue"}
    return found


class Channel:
    """One channel of a connection of its own. Made by `opened`."""

    def __init__(self, connection: AsyncioConnection, channel: Any) -> None:
        self._connection = connection
        self.raw = channel
        #: What ended the channel; None while it lives.
        self.lost: BrokerLost | None = None
        self._ended = asyncio.Event()
        channel.add_on_close_callback(self._on_channel_closed)
        connection.add_on_close_callback(self._on_connection_closed)

    @classmethod
    async def opened(cls, url: str) -> Channel:
        """Connects and opens a channel. Raises BrokerLost."""
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[tuple[AsyncioConnection, Any]] = loop.create_future()

        def fail(_: Any, error: Any) -> None:
            if not opened.done():
                opened.set_exception(BrokerLost(f"no connection: {_reason(error)}"))

        def on_channel(channel: Any) -> None:
            if not opened.done():
                opened.set_result((connection, channel))

        connection = AsyncioConnection(
            parameters(url),
            on_open_callback=lambda c: c.channel(on_open_callback=on_channel),
            on_open_error_callback=fail,
            on_close_callback=fail,
            custom_ioloop=loop,
        )
        try:
            async with asyncio.timeout(_CONNECT_S):
                return cls(*await opened)
        except TimeoutError:
            _abort(connection)
            raise BrokerLost("no connection: it took too long") from None
        except BaseException:
            _abort(connection)
            raise

    async def call(self, method: Callable[..., Any], **arguments: Any) -> Any:
        """The answer to a method with a callback, such as `channel.raw.exchange_declare`. Raises
        BrokerLost."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def answered(frame: Any) -> None:
            if not answer.done():
                answer.set_result(frame)

        method(**arguments, callback=answered)
        ended = asyncio.ensure_future(self._ended.wait())
        try:
            await asyncio.wait({answer, ended}, timeout=_CONNECT_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
        if answer.done():
            return answer.result()
        raise self.lost or BrokerLost("the broker does not answer")

    async def declare(self, exchanges: Iterable[str]) -> None:
        """Declares durable topic exchanges. Raises BrokerLost, also where one is of another kind."""
        for exchange in exchanges:
            await self.call(self.raw.exchange_declare, exchange=exchange, exchange_type="topic", durable=True)

    async def ended(self) -> None:
        """Returns when the channel has ended."""
        await self._ended.wait()

    async def close(self) -> None:
        """Closes the connection, politely if that is quick."""
        if self._connection.is_open:
            # It may live on when its channel does not.
            closed = asyncio.Event()
            self._connection.add_on_close_callback(lambda *_: closed.set())
            self._connection.close()
            try:
                async with asyncio.timeout(1.0):
                    await closed.wait()
            except TimeoutError:
                pass
        _abort(self._connection)

    def abort(self, why: BrokerLost) -> None:
        """Lets go at once."""
        self._lose(why)
        _abort(self._connection)

    def _on_channel_closed(self, _: Any, reason: Any) -> None:
        by_broker = isinstance(reason, pika.exceptions.ChannelClosedByBroker)
        self._lose(BrokerLost(_reason(reason), refused=by_broker))

    def _on_connection_closed(self, _: Any, reason: Any) -> None:
        self._lose(BrokerLost(_reason(reason)))

    def _lose(self, why: BrokerLost) -> None:
        if self.lost is None:
            self.lost = why
        self._ended.set()


def _abort(connection: AsyncioConnection) -> None:
    """Ends a connection without a word to a broker that may not listen."""
    transport = getattr(connection, "_transport", None)
    try:
        if transport is not None and connection.is_open:
            # Told why, it ends its heartbeats, too; else they would go on, into the void.
            connection._terminate_stream(pika.exceptions.StreamLostError("let go"))
        elif transport is not None:
            transport.abort()
        elif not connection.is_closed:
            connection.close()
    except pika.exceptions.AMQPError as e:
        log.debug("a connection to the broker did not end well", error=str(e))


def _reason(error: Any) -> str:
    text = str(error) or type(error).__name__
    return text if len(text) < 300 else text[:300]
