"""The command line: one file for each group of commands; the top of the import order.

Only what a command needs is imported, and only when it runs: `tcqueue --help` is here whole.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import click

from server.cli.base import CONTEXT, Group


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where a command lives and the line that `--help` shows for it."""

    target: str
    help: str
    section: str


_ENTRIES = {
    "serve": _Entry("serve:serve", "Run the queue: database, gRPC and HTTP doors, loops.", "Run"),
    "worker": _Entry("worker:worker", "Run a worker that executes tasks' commands.", "Run"),
    "demo": _Entry("demo:demo", "Watch the whole thing work, on this repository's own build.", "Run"),
    "task": _Entry("task:task", "Create, look at and change tasks.", "Use"),
    "group": _Entry("group:group", "Create, look at and change task groups.", "Use"),
    "events": _Entry("events:events", "Watch events, or send them again.", "Use"),
    "queue": _Entry("queue:queue", "Look at task queues and their workers.", "Use"),
    "token": _Entry("token:token", "Print a token for grpcurl and other gRPC tools.", "Use"),
    "client": _Entry("clients:client", "Make and change clients, in the database.", "Administer"),
    "role": _Entry("roles:role", "Make and change roles, in the database.", "Administer"),
    "migrate": _Entry("migrate:migrate", "Bring the database's schema up to date.", "Administer"),
    "publish-references": _Entry(
        "publish:publish_references", "Publish references and schemas to S3 or a folder.", "Administer"
    ),
    "storage": _Entry("storage:storage", "Set up and check where artifacts lie.", "Administer"),
    "check": _Entry("check:check", "Check settings, database and ports.", "Administer"),
    "relay": _Entry("relay:relay", "Bring events to a message broker.", "Loops"),
    "claim-reaper": _Entry("loops:claim_reaper", "Retry runs whose worker is gone.", "Loops"),
    "deadline-reaper": _Entry("loops:deadline_reaper", "End tasks whose deadline has passed.", "Loops"),
    "dependency-resolver": _Entry(
        "loops:dependency_resolver", "Start the dependents of tasks with very many.", "Loops"
    ),
    "expire-artifacts": _Entry("loops:expire_artifacts", "Delete expired artifacts.", "Loops"),
    "retire-tasks": _Entry("loops:retire_tasks", "Delete what has expired.", "Loops"),
}

_EPILOG = """
\b
Start here:
  tcqueue serve                                    the queue, on its own embedded database
  tcqueue task create -q demo/linux -c 'echo hi'   a task
  tcqueue worker demo/linux                        a worker that runs it

Commands that call the queue read TCQUEUE_CLIENT_ADDRESS (default 127.0.0.1:50051),
TCQUEUE_CLIENT_ID and TCQUEUE_CLIENT_ACCESS_TOKEN; for TLS an address with https:// and
TCQUEUE_CLIENT_CA_FILE, _CERT_FILE and _KEY_FILE. `tcqueue COMMAND --help` says more.
"""


class _Root(Group):
    """Finds commands by name and imports the one that is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_ENTRIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = _ENTRIES.get(cmd_name)
        if entry is None:
            return None
        module, _, name = entry.target.partition(":")
        command: click.Command = getattr(importlib.import_module(f"server.cli.{module}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section in dict.fromkeys(entry.section for entry in _ENTRIES.values()):
            rows = [(name, entry.help) for name, entry in _ENTRIES.items() if entry.section == section]
            with formatter.section(section):
                formatter.write_dl(rows)


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from server.version import version_object

        click.echo(f"tcqueue {version_object()['version']}")
        ctx.exit()


@click.group(cls=_Root, context_settings=CONTEXT, epilog=_EPILOG)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Show the version."
)
def cli() -> None:
    """The central task queue of a CI-scale cluster: tasks in, streamed claims out."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits: 0 done, 1 failed, 2 wrong usage."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # All are read when gRPC is imported. Its fork handlers stall a process that starts others, and what
    # clients need to know of a broken connection they are told by their calls.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR" if given[:1] == ["serve"] else "NONE")
    # The thread that waits for events also reads the sockets, as before 1.80: the event engine's pool has
    # a message go through two threads more, which costs a stream's messages a tenth.
    os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")
    cli.main(args=given, prog_name="tcqueue")
