"""A stretch of the log sent to the broker again, as it was the first time."""

from __future__ import annotations

from collections.abc import Callable

from server.errors import InputError
from server.events.amqp import Channel
from server.events.cursors import Position, decode
from server.events.feed import too_old
from server.events.publishing import NotPublishable, Publisher, exchange_names
from server.events.reader import LogReader
from server.events.relay import RelaySettings
from server.store.database import Database

_WINDOW = 4096
_SAY_EVERY = 10_000


async def replay(
    db: Database,
    settings: RelaySettings,
    first: str | None,
    until: str | None,
    say: Callable[[int], None],
) -> int:
    """Sends the events between two cursors; None stands for the oldest kept, and for what there is now. Tells
    now and then how many it is. Returns how many were sent, all of them confirmed; those that no message can
    be made of are passed over.

    Raises InputError, CursorTooOld, BrokerLost, Unavailable.
    """
    reader = LogReader(db, page_rows=512, page_bytes=1 << 20)
    state = await reader.state()
    begin = Position(state.horizon + 1) if first is None else decode(first, state.log_id)
    end = Position(state.drawn + 1) if until is None else decode(until, state.log_id)
    if begin.row <= state.horizon:
        raise too_old()
    if end < begin:
        raise InputError("the end lies before the beginning")
    channel = await Channel.opened(settings.amqp_url)
    try:
        publisher = await Publisher.on(
            channel, exchange_names(settings.amqp_exchange_prefix, settings.amqp_scheduler_prefix)
        )
        sent = 0
        at = begin
        while at < end:
            page = await reader.page(at, Position(end.row + 1), "")
            for row in page.rows:
                for event in row.events:
                    if begin <= (event.row, event.index) < end:
                        try:
                            publisher.publish(event)
                        except NotPublishable:
                            continue
                        sent += 1
                        if sent % _SAY_EVERY == 0:
                            say(sent)
                while publisher.unconfirmed >= _WINDOW:
                    await publisher.progress(settings.amqp_confirm_timeout_s)
            at = page.end
        while publisher.unconfirmed:
            await publisher.progress(settings.amqp_confirm_timeout_s)
        return sent
    finally:
        await channel.close()
