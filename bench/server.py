"""The server under test: `python -m bench.server DIR` serves a fresh embedded instance, as `tcqueue serve`
does, says where it is on one JSON line, and ends with its input."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")  # as the command line does

import uvloop

from bench.wire import ROOT_TOKEN
from server import app
from server.cli import logs
from server.config import Settings
from server.identity.secrets import new_key
from server.store import embedded, migrator


def main() -> None:
    """Serves until standard input ends."""
    data_dir = Path(sys.argv[1])
    postgres = embedded.start(data_dir / "postgres")
    try:
        asyncio.run(migrator.migrate(postgres.dsn))
        settings = replace(
            Settings.from_env(os.environ),
            database_url=postgres.dsn,
            data_dir=str(data_dir),
            encryption_key=new_key(),
            root_access_token=ROOT_TOKEN,
            grpc_listen="127.0.0.1:0",
            http_listen="127.0.0.1:0",
            shutdown_grace_s=1.0,
            log_level="warning",
        )
        logs.configure(settings)

        def ready(serving: app.Serving) -> None:
            print(
                json.dumps(
                    {
                        "port": serving.grpc_port,
                        "http_port": serving.http_port,
                        "dsn": postgres.dsn,
                        "postgres": postgres.pid,
                        "server": os.getpid(),
                    }
                ),
                flush=True,
            )

        def wait() -> None:
            sys.stdin.read()
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=wait, daemon=True).start()
        uvloop.run(app.serve(settings, ready=ready))
    finally:
        postgres.stop()


if __name__ == "__main__":
    main()
