"""`tcqueue events`: the event log, watched by people and sent to the broker again."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC
from typing import Any

import click

from server.cli.base import CONTEXT, CommandError, Group, json_option, print_json_line
from server.cli.calls import Queue, with_queue
from server.cli.databases import database_url, quiet, require_schema, unreachable
from server.cli.settings import read_settings, settings_options
from server.client.json_form import to_json
from server.config import Settings
from server.errors import QueueError, Unavailable
from tcqueue.v1.event_pb2 import Event, WatchEventsRequest, WatchEventsResponse


@click.group(
    cls=Group,
    context_settings=CONTEXT,
    epilog="""
\b
Examples:
  tcqueue events tail --exchange task-completed --exchange task-failed
  tcqueue events replay --from oldest --to amqp
""",
)
def events() -> None:
    """Watch the event log, or send a part of it to the broker again."""


@events.command(
    epilog="""
\b
Examples:
  tcqueue events tail
  tcqueue events tail --queue demo/linux --json | jq .payload.status.state
  tcqueue events tail --pattern 'route.index.#' --from-start

\b
Ends with Ctrl-C, and says with which cursor it can be gone on with.
"""
)
@click.option("--exchange", "exchanges", multiple=True, help="Only these, such as task-pending.")
@click.option("--pattern", "patterns", multiple=True, help="Only keys that match, as in AMQP: `*` and `#`.")
@click.option("--task", "task_id", default="", help="Only this task.")
@click.option("--group", "task_group_id", default="", help="Only this group and its tasks.")
@click.option("--queue", "task_queue_id", default="", help="Only this queue's tasks.")
@click.option("--cursor", help="Go on from here.")
@click.option("--from-start", is_flag=True, help="Begin with the oldest event that is kept.")
@json_option
@with_queue
def tail(queue: Queue, cursor: str | None, as_json: bool, **wanted: Any) -> None:
    """Print events as they happen."""
    request = WatchEventsRequest(
        exchanges=wanted["exchanges"],
        routing_keys=wanted["patterns"],
        task_id=wanted["task_id"],
        task_group_id=wanted["task_group_id"],
        task_queue_id=wanted["task_queue_id"],
        from_start=wanted["from_start"],
    )
    if cursor is not None:
        request.cursor = cursor
    last = cursor or ""

    def note(answer: WatchEventsResponse) -> None:
        request.cursor = answer.cursor

    try:
        for answer in queue.follow(queue.stub.WatchEvents, request, note=note):
            for event in answer.events:
                if as_json:
                    print_json_line(to_json(event))
                else:
                    click.echo(_line(event))
            sys.stdout.flush()
            last = answer.cursor
    except KeyboardInterrupt:
        click.echo(f"go on with --cursor {last}", err=True)


def _line(event: Event) -> str:

    words = event.routing_key.split(".")
    if len(words) != 10:
        subject = words[1]
    else:
        # Of a task, its id and run; of a task graph, its id alone.
        subject = "/".join(words[1:3]) if words[1] != "_" else words[8]
    routes = f"  {' '.join(event.cc)}" if event.cc else ""
    exchange = click.style(f"{event.exchange:<22}", fg="cyan")
    return f"{event.time.ToDatetime(UTC):%Y-%m-%d %H:%M:%SZ}  {exchange}  {subject}{routes}"


@events.command(
    epilog="""
\b
Examples:
  tcqueue events replay --from oldest --to amqp
  tcqueue events replay --from AQAAAAAAAAAqAAAAAJ8x --until AQAAAAAAAAB7AAAAAE0c --to amqp

\b
The events have the ids that they had the first time, so consumers that drop repeats will.
The relay goes on beside it. Needs TCQUEUE_AMQP_URL.
"""
)
@click.option("--from", "first", required=True, metavar="CURSOR", help="Where to begin; or `oldest`.")
@click.option("--until", metavar="CURSOR", help="Where to end. [default: with what there is now]")
@click.option("--to", "target", type=click.Choice(["amqp"]), required=True, help="Where to send them.")
@settings_options(["database_url", "data_dir", "amqp_url", "amqp_exchange_prefix", "amqp_scheduler_prefix"])
def replay(first: str, until: str | None, target: str, **overrides: Any) -> None:
    """Send events of the log again."""
    del target
    settings = read_settings(**overrides)
    if not settings.amqp_url:
        raise CommandError("TCQUEUE_AMQP_URL is not set", "say where the broker is, or give --amqp-url")
    quiet()
    try:
        count = asyncio.run(_replay(settings, first, until))
    except Unavailable as e:
        raise unreachable(e) from None
    except QueueError as e:
        raise CommandError(e.message) from None
    click.echo(f"{count} events sent, and confirmed by the broker")


async def _replay(settings: Settings, first: str, until: str | None) -> int:
    from server.events import replaying
    from server.events.amqp import BrokerLost
    from server.store.database import Database

    async with database_url(settings) as dsn:
        await require_schema(dsn)
        db = await Database.open(dsn, settings=settings)
        try:
            return await replaying.replay(
                db,
                settings,
                None if first == "oldest" else first,
                until,
                lambda done: click.echo(f"{done} so far", err=True),
            )
        except BrokerLost as e:
            raise CommandError(f"the broker is lost: {e.text}", "what was sent may be sent again") from None
        finally:
            await db.close()
