"""Plans as the server's connections make them, and what they touched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from server.store.database import _HOT
from server.store.statements import load

Node = dict[str, Any]


class Guard:
    """One connection that plans as a pool of the server does: `hot` generic plans with the hot pool's
    settings, otherwise as in a reading transaction of `server.handlers.pages`."""

    def __init__(self, connection: psycopg.Connection, *, hot: bool) -> None:
        self._connection = connection
        if hot:
            for name, value in _HOT.items():
                connection.execute("SELECT set_config(%s, %s, false)", [name, value])
        else:
            settings = load("reading")["prefer_indexes"].replace("true)", "false)")
            connection.execute(settings.encode())

    def run(self, statement: LiteralString, *parameters: Any) -> list[Node]:
        """Prepares and runs a statement with parameters; the nodes of its plan, the top one first."""
        self.prepare(statement)
        return self.execute(statement, *parameters)

    def prepare(self, statement: LiteralString) -> None:
        """Prepares a statement, as a pool's connection does at its first use."""
        self._connection.execute(sql.SQL("PREPARE {} AS ").format(_name(statement)) + sql.SQL(statement))

    def execute(self, statement: LiteralString, *parameters: Any) -> list[Node]:
        """Runs a prepared statement; the nodes of its plan, the top one first."""
        given = sql.SQL("({})").format(sql.SQL(", ").join(map(sql.Literal, parameters)))
        row = self._connection.execute(
            sql.SQL("EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) EXECUTE {}").format(_name(statement))
            + (given if parameters else sql.SQL(""))
        ).fetchone()
        assert row is not None
        return list(_nodes(row[0][0]["Plan"]))


def _name(statement: LiteralString) -> sql.Identifier:
    return sql.Identifier(f"guarded_{abs(hash(statement))}")


def scans(nodes: Sequence[Node], table: str) -> list[Node]:
    """The nodes that read a table."""
    return [node for node in nodes if node.get("Relation Name") == table and "Scan" in node["Node Type"]]


def touched(nodes: Sequence[Node], table: str) -> int:
    """Rows of a table that a statement read, those that a filter dropped included."""
    return sum(
        round((node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"])
        for node in scans(nodes, table)
    )


def assert_by_index(nodes: Sequence[Node], table: str, *indexes: str) -> None:
    """Every read of a table went along one of these indexes, in its order."""
    found = scans(nodes, table)
    assert found, f"{table} was not read at all"
    for node in found:
        assert node["Node Type"] in ("Index Scan", "Index Only Scan"), f"{node['Node Type']} on {table}"
        assert node["Index Name"] in indexes, f"{table} was read by {node['Index Name']}"


def _nodes(plan: Node) -> Iterator[Node]:
    yield plan
    for child in plan.get("Plans", []):
        yield from _nodes(child)
