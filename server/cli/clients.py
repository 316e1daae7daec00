"""`tcqueue client`: clients, straight in the database."""

from __future__ import annotations

import getpass
from collections.abc import Sequence
from typing import Any

import click

from server.cli.base import (
    CONTEXT,
    DURATION,
    Group,
    from_now,
    json_option,
    moment,
    print_fields,
    print_json,
    print_table,
)
from server.cli.databases import with_identity
from server.cli.settings import read_settings, settings_options
from server.domain.times import to_text
from server.identity.clients import MAX_PAGE, Client, Clients
from server.identity.roles import Roles

WHERE = settings_options(["database_url", "data_dir"])

_YEAR_S = 365 * 86400.0


def actor() -> str:
    """Who makes a change, for the audit trail: no client, since the database is asked directly."""
    return f"command-line/{getpass.getuser()}"


@click.group(
    cls=Group,
    context_settings=CONTEXT,
    epilog="""
\b
Examples:
  tcqueue client create ci/scheduler --scope 'queue:create-task:*' --scope 'queue:scheduler-id:ci'
  tcqueue client list --prefix ci/
  tcqueue client disable ci/scheduler

\b
These commands need no credentials but the database: DATABASE_URL with TCQUEUE_ENCRYPTION_KEY,
or the embedded one under --data-dir. Running servers know of a change within milliseconds.
""",
)
def client() -> None:
    """Make and change clients, in the database."""


@client.command("list", epilog="\b\nExample:\n  tcqueue client list --prefix ci/")
@click.option("--prefix", default="", help="Only ids that begin so.")
@WHERE
@json_option
def list_(prefix: str, as_json: bool, **overrides: Any) -> None:
    """List clients."""

    async def work(clients: Clients, _: Roles) -> list[Client]:
        found: list[Client] = []
        while True:
            page = await clients.page(prefix=prefix, after=found[-1].client_id if found else "")
            found += page
            if len(page) < MAX_PAGE:
                return found

    found = with_identity(read_settings(**overrides), work)
    if as_json:
        print_json([_json(entry) for entry in found])
        return
    print_table(
        ("client", "scopes", "last used", "expires", ""),
        [
            (
                entry.client_id,
                str(len(entry.scopes)),
                moment(entry.last_date_used),
                _end(entry),
                click.style("disabled", fg="red") if entry.disabled else "",
            )
            for entry in found
        ],
        empty="no clients",
    )


@client.command(epilog="\b\nExample:\n  tcqueue client show root")
@click.argument("client_id")
@WHERE
@json_option
def show(client_id: str, as_json: bool, **overrides: Any) -> None:
    """Show a client; its access token is shown by `create` and `reset` only."""

    async def work(clients: Clients, _: Roles) -> Client:
        return await clients.get(client_id)

    _print(with_identity(read_settings(**overrides), work), as_json)


@client.command(
    epilog="""
\b
Examples:
  tcqueue client create ci/worker --scope 'queue:claim-work:ci/*' --scope 'queue:worker-id:rack-1/*'
  tcqueue client create nightly --expires 30d --delete-on-expiration --json
"""
)
@click.argument("client_id")
@click.option("--description", default="", help="What it is for.")
@click.option("--scope", "scopes", multiple=True, help="What it may do; repeatable.")
@click.option("--expires", type=DURATION, default=_YEAR_S, help="How long it lives. [default: 365d]")
@click.option("--delete-on-expiration", is_flag=True, help="Delete it then, instead of keeping it useless.")
@WHERE
@json_option
def create(
    client_id: str,
    description: str,
    scopes: Sequence[str],
    expires: float,
    delete_on_expiration: bool,
    as_json: bool,
    **overrides: Any,
) -> None:
    """Make a client and print its access token, once."""

    async def work(clients: Clients, _: Roles) -> tuple[Client, str]:
        return await clients.create(
            client_id,
            description=description,
            expires=from_now(expires),
            scopes=scopes,
            delete_on_expiration=delete_on_expiration,
            actor=actor(),
        )

    _print(*_with_token(with_identity(read_settings(**overrides), work), as_json))


@client.command(epilog="\b\nExample:\n  tcqueue client update ci/worker --add-scope 'queue:claim-work:ci/*'")
@click.argument("client_id")
@click.option("--description", help="New description.")
@click.option("--scope", "scopes", multiple=True, help="New scopes, instead of all there were; repeatable.")
@click.option("--add-scope", "added", multiple=True, help="One more scope; repeatable.")
@click.option("--remove-scope", "removed", multiple=True, help="A scope to take away; repeatable.")
@click.option("--expires", type=DURATION, help="How long it lives, from now.")
@click.option("--delete-on-expiration/--keep-on-expiration", default=None, help="What becomes of it then.")
@WHERE
@json_option
def update(
    client_id: str,
    description: str | None,
    scopes: Sequence[str],
    added: Sequence[str],
    removed: Sequence[str],
    expires: float | None,
    delete_on_expiration: bool | None,
    as_json: bool,
    **overrides: Any,
) -> None:
    """Change a client; what no option names stays."""

    async def work(clients: Clients, _: Roles) -> Client:
        stored = await clients.get(client_id)
        return await clients.update(
            client_id,
            description=stored.description if description is None else description,
            expires=stored.expires if expires is None else from_now(expires),
            scopes=changed_scopes(stored.scopes, scopes, added, removed),
            delete_on_expiration=(
                stored.delete_on_expiration if delete_on_expiration is None else delete_on_expiration
            ),
            actor=actor(),
        )

    _print(with_identity(read_settings(**overrides), work), as_json)


def changed_scopes(
    stored: Sequence[str], scopes: Sequence[str], added: Sequence[str], removed: Sequence[str]
) -> list[str]:
    """What options make of scopes."""
    wanted = dict.fromkeys([*(scopes or stored), *added])
    return [scope for scope in wanted if scope not in removed]


@client.command(epilog="\b\nExample:\n  tcqueue client reset root")
@click.argument("client_id")
@WHERE
@json_option
def reset(client_id: str, as_json: bool, **overrides: Any) -> None:
    """Give a client a new access token and print it, once. The old one ends at once."""

    async def work(clients: Clients, _: Roles) -> tuple[Client, str]:
        return await clients.reset_access_token(client_id, actor=actor())

    _print(*_with_token(with_identity(read_settings(**overrides), work), as_json))


@client.command(epilog="\b\nExample:\n  tcqueue client enable ci/scheduler")
@click.argument("client_id")
@WHERE
@json_option
def enable(client_id: str, as_json: bool, **overrides: Any) -> None:
    """Let a disabled client in again."""

    async def work(clients: Clients, _: Roles) -> Client:
        return await clients.enable(client_id, actor=actor())

    _print(with_identity(read_settings(**overrides), work), as_json)


@client.command(epilog="\b\nExample:\n  tcqueue client disable ci/scheduler")
@click.argument("client_id")
@WHERE
@json_option
def disable(client_id: str, as_json: bool, **overrides: Any) -> None:
    """Refuse a client from its next call on."""

    async def work(clients: Clients, _: Roles) -> Client:
        return await clients.disable(client_id, actor=actor())

    _print(with_identity(read_settings(**overrides), work), as_json)


@client.command(epilog="\b\nExample:\n  tcqueue client delete nightly --yes")
@click.argument("client_id")
@click.option("--yes", is_flag=True, help="Do not ask.")
@WHERE
def delete(client_id: str, yes: bool, **overrides: Any) -> None:
    """Delete a client; no error when there is none."""
    if not yes:
        click.confirm(f"delete the client {client_id}?", abort=True)

    async def work(clients: Clients, _: Roles) -> None:
        await clients.delete(client_id, actor=actor())

    with_identity(read_settings(**overrides), work)
    click.echo(f"there is no client {client_id} now")


def _with_token(made: tuple[Client, str], as_json: bool) -> tuple[Client, bool, str]:
    return made[0], as_json, made[1]


def _json(entry: Client, token: str = "") -> dict[str, Any]:
    return {
        "clientId": entry.client_id,
        **({"accessToken": token} if token else {}),
        "description": entry.description,
        "scopes": list(entry.scopes),
        "expires": to_text(entry.expires),
        "disabled": entry.disabled,
        "deleteOnExpiration": entry.delete_on_expiration,
        "created": to_text(entry.created),
        "lastModified": to_text(entry.last_modified),
        "lastRotated": to_text(entry.last_rotated),
        "lastDateUsed": to_text(entry.last_date_used),
    }


def _print(entry: Client, as_json: bool, token: str = "") -> None:
    if as_json:
        print_json(_json(entry, token))
        return
    print_fields(
        [
            ("client", entry.client_id),
            ("description", entry.description),
            ("state", "disabled" if entry.disabled else "enabled"),
            ("scopes", "\n".join(entry.scopes) or "none"),
            ("expires", _end(entry)),
            ("last used", moment(entry.last_date_used)),
            ("last rotated", moment(entry.last_rotated)),
        ]
    )
    if token:
        click.echo("\nIts access token, shown this once:")
        click.echo(f"  export TCQUEUE_CLIENT_ID={entry.client_id}")
        click.echo(f"  export TCQUEUE_CLIENT_ACCESS_TOKEN={token}")


def _end(entry: Client) -> str:
    return moment(entry.expires) if entry.expires.year < 2900 else "never"
