"""`tcqueue check`: would `serve` work here, and does what runs here work?"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import grpc

from server.cli.base import CONTEXT, CommandError, colored, json_option, print_json, print_table, span
from server.cli.databases import database_url, quiet
from server.cli.settings import read_settings, settings_options
from server.config import Settings, SettingsError
from server.errors import QueueError
from server.identity.secrets import KEY_FILE, SecretBox, SecretError
from server.store import migrator
from server.store.database import Database
from server.store.statements import load

_SQL = load("checks")
_WHERE = settings_options(["database_url", "data_dir", "grpc_listen", "http_listen"])
#: Clients may be this far off before created dates and tokens are refused; a tenth is worth a word.
_CLOCK_NOTE_S, _CLOCK_FAIL_S = 30.0, 300.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the table: `state` is ok, note or fail."""

    what: str
    state: str
    text: str


@click.command(
    context_settings=CONTEXT,
    epilog="""
\b
Examples:
  tcqueue check
  DATABASE_URL=postgresql://tcqueue@db/tcqueue tcqueue check --json

It changes nothing. The exit code is 1 when something fails; notes are for you to judge.
""",
)
@_WHERE
@json_option
def check(as_json: bool, **overrides: Any) -> None:
    """Check settings, database, migrations, encryption key, clocks and ports."""
    findings = list(_settings(overrides))
    if findings[0].state == "ok":
        settings = read_settings(**overrides)
        quiet()
        findings += asyncio.run(_all(settings))
    if as_json:
        print_json([{"check": f.what, "state": f.state, "text": f.text} for f in findings])
    else:
        print_table(
            ("check", "state", ""), [(f.what, colored(f.state), " ".join(f.text.split())) for f in findings]
        )
    if any(finding.state == "fail" for finding in findings):
        sys.exit(1)


def _settings(overrides: dict[str, Any]) -> Iterator[Finding]:
    try:
        Settings.from_env(os.environ, **overrides)
    except SettingsError as e:
        yield Finding("settings", "fail", str(e))
        return
    given = sorted(n for n in os.environ if n.startswith("TCQUEUE_") or n == "DATABASE_URL")
    given = [name for name in given if not name.startswith("TCQUEUE_CLIENT_")]
    yield Finding("settings", "ok", f"{len(given)} given: {', '.join(given)}" if given else "all default")


async def _all(settings: Settings) -> list[Finding]:
    findings = [finding async for finding in _database(settings)]
    findings.append(await asyncio.to_thread(_tls, settings))
    for what, listen in (("grpc port", settings.grpc_listen), ("http port", settings.http_listen)):
        findings.append(await asyncio.to_thread(_door, what, listen))
    return findings


async def _database(settings: Settings) -> AsyncIterator[Finding]:
    fresh = not settings.database_url and not (Path(settings.data_dir) / "postgres").exists()
    if fresh:
        yield Finding("database", "note", f"none yet: `serve` makes one in {settings.data_dir}")
        return
    async with AsyncExitStack() as stack:
        try:
            dsn = await stack.enter_async_context(database_url(settings))
            migrations = await _migrations(dsn)
            db = await Database.open(dsn, settings=settings)
        except (CommandError, QueueError, RuntimeError) as e:
            yield Finding("database", "fail", str(e))
            return
        stack.push_async_callback(db.close)
        asked = time.time()
        rows = await db.fetch(_SQL["database"])
        answered = time.time()
        version, now, size, connections, most = rows[0]
        where = "embedded" if not settings.database_url else "DATABASE_URL"
        yield Finding("database", "ok", f"PostgreSQL {version}, {where}, {size}")
        yield _pool(settings, connections, most)
        yield _clock(now.timestamp() - (asked + answered) / 2)
        yield migrations
        if migrations.state == "ok":
            yield await _key(settings, db)


def _pool(settings: Settings, used: int, most: int) -> Finding:
    # Two more: the hub listens on one connection and sends on another.
    needed = settings.hot_pool_size + settings.cold_pool_size + 2
    text = f"{used} of {most} used; each process takes up to {needed}"
    return Finding("connections", "ok" if most - used >= needed else "note", text)


def _clock(ahead_s: float) -> Finding:
    distance = abs(ahead_s)
    state = "ok" if distance < _CLOCK_NOTE_S else "note" if distance < _CLOCK_FAIL_S else "fail"
    if distance < 1:
        return Finding("clock", state, "agrees with the database's to a second")
    direction = "ahead of" if ahead_s > 0 else "behind"
    return Finding("clock", state, f"the database's clock is {span(distance)} {direction} ours")


async def _migrations(dsn: str) -> Finding:
    try:
        status = await migrator.status(dsn)
    except migrator.MigrationError as e:
        return Finding("migrations", "fail", str(e))
    if status.pending:
        missing = ", ".join(map(str, status.pending))
        return Finding("migrations", "note", f"to be applied by `serve` or `migrate up`: {missing}")
    return Finding("migrations", "ok", f"{len(status.applied)} applied, up to {status.applied[-1]}")


async def _key(settings: Settings, db: Database) -> Finding:
    key_file = Path(settings.data_dir) / KEY_FILE
    if not settings.encryption_key and not settings.database_url and not key_file.exists():
        return Finding("encryption key", "note", f"none yet: `serve` makes {key_file}")
    try:
        box = SecretBox.from_settings(settings)
        rows = await db.fetch(_SQL["sealed_tokens"])
        for (sealed,) in rows:
            box.open(sealed)
    except (SettingsError, SecretError) as e:
        return Finding("encryption key", "fail", str(e))
    where = "TCQUEUE_ENCRYPTION_KEY" if settings.encryption_key else str(key_file)
    return Finding("encryption key", "ok", f"{where} opens the secrets of {len(rows)} clients")


def _tls(settings: Settings) -> Finding:
    from server.app import tls_credentials

    try:
        credentials = tls_credentials(settings)
    except SettingsError as e:
        return Finding("tls", "fail", str(e))
    return Finding("tls", "ok", "on" if credentials is not None else "off: plaintext, for loopback only")


def _door(what: str, listen: str) -> Finding:
    """Free, or held by a queue that answers: both are good."""
    if not listen:
        return Finding(what, "ok", "closed")
    host, _, port = listen.rpartition(":")
    try:
        address = socket.getaddrinfo(host.strip("[]") or None, int(port), type=socket.SOCK_STREAM)[0]
        with socket.socket(*address[:3]) as held:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind(address[4])
        return Finding(what, "ok", f"{listen} is free")
    except ValueError:
        return Finding(what, "fail", f"{listen} is no address")
    except OSError as e:
        if what == "grpc port" and _queue_answers(listen):
            return Finding(what, "ok", f"a queue serves on {listen}")
        if what == "http port" and _http_answers(host, int(port)):
            return Finding(what, "ok", f"a queue serves on {listen}")
        return Finding(what, "fail", f"{listen}: {e.strerror}")


def _queue_answers(address: str) -> bool:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(address) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service="tcqueue.v1.Queue"), timeout=3
            )
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _http_answers(host: str, port: int) -> bool:
    import http.client

    connection = http.client.HTTPConnection(host, port, timeout=3)
    try:
        connection.request("GET", "/__lbheartbeat__")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
