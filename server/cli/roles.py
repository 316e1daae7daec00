"""`tcqueue role`: roles, straight in the database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from server.cli.base import CONTEXT, Group, json_option, moment, print_fields, print_json, print_table
from server.cli.clients import WHERE, actor, changed_scopes
from server.cli.databases import with_identity
from server.cli.settings import read_settings
from server.domain.times import to_text
from server.identity.clients import Clients
from server.identity.roles import MAX_PAGE, Role, Roles


@click.group(
    cls=Group,
    context_settings=CONTEXT,
    epilog="""
\b
Examples:
  tcqueue role create 'project:web' --scope 'queue:create-task:lowest:ci/*' --scope 'queue:route:web.*'
  tcqueue role update anonymous --remove-scope 'queue:list-task-group:*'
  tcqueue role show anonymous

\b
A caller with the scope `assume:project:web` may do all that the role `project:web` lists.
Everybody has the role `anonymous`.
""",
)
def role() -> None:
    """Make and change roles, in the database."""


@role.command("list", epilog="\b\nExample:\n  tcqueue role list")
@WHERE
@json_option
def list_(as_json: bool, **overrides: Any) -> None:
    """List roles."""

    async def work(_: Clients, roles: Roles) -> list[Role]:
        found: list[Role] = []
        while True:
            page = await roles.page(after=found[-1].role_id if found else "")
            found += page
            if len(page) < MAX_PAGE:
                return found

    found = with_identity(read_settings(**overrides), work)
    if as_json:
        print_json([_json(entry) for entry in found])
        return
    print_table(
        ("role", "scopes", "changed", "description"),
        [(r.role_id, str(len(r.scopes)), moment(r.last_modified), r.description) for r in found],
        empty="no roles",
    )


@role.command(epilog="\b\nExample:\n  tcqueue role show anonymous")
@click.argument("role_id")
@WHERE
@json_option
def show(role_id: str, as_json: bool, **overrides: Any) -> None:
    """Show a role."""

    async def work(_: Clients, roles: Roles) -> Role:
        return await roles.get(role_id)

    _print(with_identity(read_settings(**overrides), work), as_json)


@role.command(epilog="\b\nExample:\n  tcqueue role create worker:linux --scope 'queue:claim-work:ci/linux'")
@click.argument("role_id")
@click.option("--description", default="", help="What it is for.")
@click.option("--scope", "scopes", multiple=True, help="What it allows; repeatable.")
@WHERE
@json_option
def create(role_id: str, description: str, scopes: Sequence[str], as_json: bool, **overrides: Any) -> None:
    """Make a role."""

    async def work(_: Clients, roles: Roles) -> Role:
        return await roles.create(role_id, description=description, scopes=scopes, actor=actor())

    _print(with_identity(read_settings(**overrides), work), as_json)


@role.command(epilog="\b\nExample:\n  tcqueue role update worker:linux --add-scope 'assume:ci'")
@click.argument("role_id")
@click.option("--description", help="New description.")
@click.option("--scope", "scopes", multiple=True, help="New scopes, instead of all there were; repeatable.")
@click.option("--add-scope", "added", multiple=True, help="One more scope; repeatable.")
@click.option("--remove-scope", "removed", multiple=True, help="A scope to take away; repeatable.")
@WHERE
@json_option
def update(
    role_id: str,
    description: str | None,
    scopes: Sequence[str],
    added: Sequence[str],
    removed: Sequence[str],
    as_json: bool,
    **overrides: Any,
) -> None:
    """Change a role; what no option names stays."""

    async def work(_: Clients, roles: Roles) -> Role:
        stored = await roles.get(role_id)
        return await roles.update(
            role_id,
            description=stored.description if description is None else description,
            scopes=changed_scopes(stored.scopes, scopes, added, removed),
            actor=actor(),
        )

    _print(with_identity(read_settings(**overrides), work), as_json)


@role.command(epilog="\b\nExample:\n  tcqueue role delete worker:linux --yes")
@click.argument("role_id")
@click.option("--yes", is_flag=True, help="Do not ask.")
@WHERE
def delete(role_id: str, yes: bool, **overrides: Any) -> None:
    """Delete a role; no error when there is none."""
    if not yes:
        click.confirm(f"delete the role {role_id}?", abort=True)

    async def work(_: Clients, roles: Roles) -> None:
        await roles.delete(role_id, actor=actor())

    with_identity(read_settings(**overrides), work)
    click.echo(f"there is no role {role_id} now")


def _json(entry: Role) -> dict[str, Any]:
    return {
        "roleId": entry.role_id,
        "description": entry.description,
        "scopes": list(entry.scopes),
        "created": to_text(entry.created),
        "lastModified": to_text(entry.last_modified),
    }


def _print(entry: Role, as_json: bool) -> None:
    if as_json:
        print_json(_json(entry))
        return
    print_fields(
        [
            ("role", entry.role_id),
            ("description", entry.description),
            ("scopes", "\n".join(entry.scopes) or "none"),
            ("created", moment(entry.created)),
            ("changed", moment(entry.last_modified)),
        ]
    )
