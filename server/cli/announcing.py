"""What `tcqueue serve` says when it is ready."""

from __future__ import annotations

import sys

import click

from server.app import Serving
from server.cli.base import print_json_line
from server.client.channel import DEFAULT_ADDRESS
from server.config import Settings
from server.identity.bootstrap import ROOT_CLIENT


class Announcement:
    """Says where the doors are, the root credentials if they are new, and what to try."""

    def __init__(self, settings: Settings, processes: int, *, as_json: bool) -> None:
        self._settings = settings
        self._processes = processes
        self._as_json = as_json
        self._embedded = not settings.database_url

    def progress(self, text: str) -> None:
        """Says what is being done."""
        if not self._as_json:
            click.echo(click.style(text, dim=True), err=True)

    def serving(self, serving: Serving) -> None:
        """A single process is ready."""
        self.ready(serving.grpc_port, serving.http_port, serving.prepared.root_access_token)

    def ready(self, grpc_port: int, http_port: int, root_token: str | None) -> None:
        """All processes are ready; the token is there only at the very first start."""
        grpc = _address(self._settings.grpc_listen, grpc_port)
        http = _address(self._settings.http_listen, http_port)
        if self._as_json:
            credentials = {"clientId": ROOT_CLIENT, "accessToken": root_token} if root_token else {}
            print_json_line({"grpc": grpc, "http": http, **credentials})
            return
        database = f"embedded, in {self._settings.data_dir}" if self._embedded else "of DATABASE_URL"
        several = f", {self._processes} processes" if self._processes > 1 else ""
        lines = [
            "",
            click.style("tcqueue is serving", fg="green", bold=True) + several,
            f"  gRPC      {grpc or 'closed'}",
            f"  HTTP      {f'http://{http}/' if http else 'closed'}",
            f"  database  {database}",
            "",
        ]
        if root_token:
            lines += [
                "The root client was made. Its access token is shown this once:",
                f"  export TCQUEUE_CLIENT_ID={ROOT_CLIENT}",
                f"  export TCQUEUE_CLIENT_ACCESS_TOKEN={root_token}",
                "",
            ]
            if grpc and grpc != DEFAULT_ADDRESS:
                lines.insert(-1, f"  export TCQUEUE_CLIENT_ADDRESS={grpc}")
        elif self._settings.root_access_token:
            lines += ["The root client has the access token of TCQUEUE_ROOT_ACCESS_TOKEN.", ""]
        else:
            lines += ["The root client's access token was shown at the first start; a new one:"]
            folder = self._settings.data_dir
            where = f" --data-dir {folder}" if self._embedded and folder != "data" else ""
            lines += [f"  tcqueue client reset {ROOT_CLIENT}{where}", ""]
        plaintext = "" if self._settings.tls_cert_file else "-plaintext "
        lines += [
            "Try, in another terminal:",
            "  tcqueue task create -q demo/linux -c 'echo hello from $TASK_ID'",
            "  tcqueue worker demo/linux --show-logs",
            f'  grpcurl {plaintext}-H "authorization: Bearer $(tcqueue token)" {grpc} list',
            "",
        ]
        click.echo("\n".join(lines))
        sys.stdout.flush()


def _address(listen: str, port: int) -> str:
    """The address as callers use it."""
    if not listen:
        return ""
    host = listen.rsplit(":", 1)[0]
    return f"{'127.0.0.1' if host in ('0.0.0.0', '[::]', '') else host}:{port}"
