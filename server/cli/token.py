"""`tcqueue token`: a bearer token for tools that make none themselves."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import click

from server.cli.base import CONTEXT, DURATION, CommandError, json_option, print_json
from server.client.credentials import LIFETIME_S, Credentials, CredentialsError

_LONGEST_S = 31 * 86400


@click.command(
    context_settings=CONTEXT,
    epilog="""
\b
Examples:
  grpcurl -plaintext -H "authorization: Bearer $(tcqueue token)" \\
      127.0.0.1:50051 tcqueue.v1.Queue/ListTaskQueues
  tcqueue token --lifetime 8h --scope 'queue:status:*'
""",
)
@click.option("--lifetime", type=DURATION, default=LIFETIME_S, help="How long it holds. [default: 15m]")
@click.option("--scope", "scopes", multiple=True, help="Only this of what the client may do; repeatable.")
@json_option
def token(lifetime: float, scopes: Sequence[str], as_json: bool) -> None:
    """Print a token (JWT) for TCQUEUE_CLIENT_ID, signed with TCQUEUE_CLIENT_ACCESS_TOKEN."""
    if not 0 < lifetime <= _LONGEST_S:
        raise CommandError("a token lasts up to 31 days")
    try:
        credentials = Credentials.from_env(os.environ)
        if credentials.anonymous:
            raise CommandError(
                "no credentials are set", "set TCQUEUE_CLIENT_ID and TCQUEUE_CLIENT_ACCESS_TOKEN"
            )
        credentials.authorized_scopes = list(scopes) or None
        text = credentials.token(lifetime)
    except CredentialsError as e:
        raise CommandError(str(e)) from None
    if as_json:
        expires = datetime.now(UTC) + timedelta(seconds=lifetime)
        print_json(
            {"token": text, "clientId": credentials.client_id, "expires": expires.isoformat("T", "seconds")}
        )
    else:
        click.echo(text)
