"""The loop commands (`claim-reaper` and so on): background loops in processes of their own.

`serve` runs all of them by itself; with TCQUEUE_LOOPS=false it leaves them to these.
"""

from __future__ import annotations

import asyncio
import dataclasses
import signal
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import click

from server import app
from server.cli import logs
from server.cli.base import CONTEXT, CommandError, json_option, print_json
from server.cli.databases import database_url, unreachable, with_keys
from server.cli.settings import read_settings, settings_options
from server.config import Settings, SettingsError
from server.errors import Unavailable
from server.identity.secrets import SecretError
from server.loops import base as loop_base
from server.store import migrator

_WHERE = settings_options(["database_url", "data_dir", "log_level", "log_format"])


def _command(name: str, summary: str, loops: Iterable[str], example: str) -> click.Command:
    """A command for the loops of these names."""
    chosen = frozenset(loops)

    @click.command(
        name, context_settings=CONTEXT, help=summary, epilog=f"\b\nExamples:\n  tcqueue {name}\n  {example}"
    )
    @click.option("--once", is_flag=True, help="Do what there is to do now, and end.")
    @json_option
    @_WHERE
    def command(once: bool, as_json: bool, **overrides: Any) -> None:
        settings = read_settings(**overrides)
        try:
            logs.configure(settings, command=name)
            handled = asyncio.run(_run(settings, chosen, once))
        except (SettingsError, SecretError, migrator.MigrationError) as e:
            raise CommandError(str(e)) from None
        except Unavailable as e:
            raise (CommandError(e.message) if "artifact store" in e.message else unreachable(e)) from None
        if as_json and once:
            print_json(handled)
        elif once:
            for loop, count in handled.items():
                click.echo(f"{loop}: {count}")

    return command


async def _run(settings: Settings, chosen: frozenset[str], once: bool) -> dict[str, int]:
    async with database_url(settings) as dsn:
        status = await migrator.status(dsn)
        if status.pending:
            raise CommandError(
                f"the database lacks {len(status.pending)} migrations", "run `tcqueue migrate up`"
            )
        process = await app.start(dataclasses.replace(with_keys(settings, dsn), database_url=dsn))
        try:
            loops = [loop for loop in app.loops(process.services) if loop.name in chosen]
            if {loop.name for loop in loops} != chosen:
                raise RuntimeError(f"the loops {sorted(chosen)} are not all there")
            if once:
                return {loop.name: await _until_idle(loop) for loop in loops}
            await for_ever([process.heartbeat.run, *(_driven(loop) for loop in loops)])
            return {}
        finally:
            await process.close()


async def _until_idle(loop: loop_base.Loop) -> int:
    """Rounds until one was not full; how many things were handled."""
    total = 0
    while True:
        handled = await loop.run_once()
        total += handled
        if handled < loop.full:
            return total


Driven = Callable[[asyncio.Event], Coroutine[Any, Any, None]]


def _driven(loop: loop_base.Loop) -> Driven:
    return lambda stop: loop_base.run(loop, stop)


async def for_ever(work: Iterable[Driven]) -> None:
    """Until a signal, or until one of them gives up, which ends the command with its error."""
    stop = asyncio.Event()
    event_loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        event_loop.add_signal_handler(number, stop.set)
    tasks = [asyncio.create_task(driven(stop)) for driven in work]
    for task in tasks:
        task.add_done_callback(lambda _: stop.set())
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, loop_base.LoopFailed):
            raise CommandError(str(result))
        if isinstance(result, BaseException):
            raise result


claim_reaper = _command(
    "claim-reaper",
    "Retry runs whose claim, or whose stream's grace, has run out.",
    ["claim-expiry"],
    "tcqueue claim-reaper --once --json",
)
deadline_reaper = _command(
    "deadline-reaper",
    "End tasks whose deadline has passed.",
    ["deadlines"],
    "tcqueue deadline-reaper --once",
)
dependency_resolver = _command(
    "dependency-resolver",
    "Start the dependents of tasks that thousands wait for, page by page.",
    ["dependencies"],
    "tcqueue dependency-resolver --once",
)
expire_artifacts = _command(
    "expire-artifacts",
    "Delete expired artifacts and objects, their bytes first, and what broken uploads left behind.",
    ["expire-artifacts", "expire-objects", "expire-uploads", "tidy-uploads"],
    "tcqueue expire-artifacts --once --json",
)
retire_tasks = _command(
    "retire-tasks",
    "Delete tasks, jobs, groups, graphs, dependencies, queues, workers and events that have expired.",
    [
        "expire-tasks",
        "expire-jobs",
        "expire-task-groups",
        "expire-task-graphs",
        "expire-task-dependencies",
        "expire-task-queues",
        "expire-workers",
        "expire-events",
    ],
    "tcqueue retire-tasks --once",
)
