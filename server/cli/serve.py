"""`tcqueue serve`: the queue itself."""

from __future__ import annotations

import asyncio
import faulthandler
import signal
import sys
from typing import Any

import click
import structlog
import uvloop

from server import app
from server.cli import logs, supervisor
from server.cli.announcing import Announcement
from server.cli.base import CONTEXT, CommandError
from server.cli.databases import start_embedded, unreachable, with_keys
from server.cli.settings import read_settings, settings_options, settings_table
from server.config import Settings, SettingsError
from server.errors import Unavailable
from server.identity.secrets import SecretError
from server.store import migrator

log = structlog.get_logger(__name__)

_OPTIONS = [
    "grpc_listen",
    "http_listen",
    "database_url",
    "data_dir",
    "tls_cert_file",
    "tls_key_file",
    "tls_client_ca_file",
    "allow_plaintext",
    "loops",
    "log_level",
    "log_format",
]


@click.command(
    context_settings=CONTEXT,
    epilog=f"""
\b
Examples:
  tcqueue serve
  tcqueue serve --processes 4 --log-format json
  DATABASE_URL=postgresql://tcqueue@db/tcqueue TCQUEUE_ENCRYPTION_KEY=... tcqueue serve

\b
Every setting, as an environment variable with its default:
{settings_table()}
""",
)
@click.option(
    "--processes",
    type=click.IntRange(1, 128),
    default=1,
    show_default=True,
    help="Serve from so many processes that share the ports.",
)
@settings_options(_OPTIONS)
@click.option("--json", "as_json", is_flag=True, help="When ready, print addresses and credentials as JSON.")
@click.option("--child", type=int, hidden=True)
def serve(processes: int, as_json: bool, child: int | None, **overrides: Any) -> None:
    """Run the queue: database, gRPC and HTTP doors, background loops.

    Without a database URL it starts its own PostgreSQL in the data folder. The schema is brought up to
    date, the first start makes a root client and prints its access token. SIGTERM or Ctrl-C drains:
    running calls get a grace period, workers go elsewhere or come back later.
    """
    settings = read_settings(**overrides)
    # For the question "what is it doing?": every thread's stack goes to the error output.
    faulthandler.register(signal.SIGUSR1, file=sys.__stderr__ or sys.stderr)
    try:
        logs.configure(settings, **({} if child is None else {"process": child}))
        if child is not None:
            supervisor.run_child(settings)
        else:
            _serve(settings, processes, as_json)
    except (SettingsError, SecretError, migrator.MigrationError) as e:
        raise CommandError(str(e)) from None
    except Unavailable as e:
        raise unreachable(e) from None


def _serve(settings: Settings, processes: int, as_json: bool) -> None:
    # Before the event loop has its own handlers, a signal must still stop the embedded database.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupted)
    embedded = None
    try:
        announcement = Announcement(settings, processes, as_json=as_json)
        if not settings.database_url:
            announcement.progress(f"starting PostgreSQL in {settings.data_dir}")
            embedded = start_embedded(settings)
            settings = with_keys(settings, embedded.dsn)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            applied = runner.run(migrator.migrate(settings.database_url))
            if applied:
                announcement.progress(f"applied {len(applied)} migrations, up to {applied[-1]}")
            if processes == 1:
                runner.run(app.serve(settings, ready=announcement.serving))
            else:
                runner.run(supervisor.supervise(settings, processes, announcement))
    except _Interrupted:
        pass
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        if embedded is not None:
            embedded.stop()


class _Interrupted(BaseException):
    """A signal came before anything was served."""


def _interrupted(number: int, frame: object) -> None:
    raise _Interrupted
