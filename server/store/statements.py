"""Named SQL statements, read from `store/sql/<noun>.sql`.

A file is a list of statements, each opened by `-- name: some_name` at the start of a line and
running to the next such line. The comment lines right under the name say what the statement
guarantees; they stay in this file and are not sent to the server.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import LiteralString

_TITLE = re.compile(r"^-- name: *(\S+) *$", re.MULTILINE)
_NAME = re.compile(r"^[a-z][a-z0-9_]*$")
_COMMENT_LINE = re.compile(r"^\s*--.*\n?", re.MULTILINE)


class StatementError(ValueError):
    """A statements file is malformed; the message names file and statement."""


@cache
def load(name: str) -> Mapping[str, LiteralString]:
    """The statements of `store/sql/<name>.sql` by their names, in file order.

    The texts count as LiteralString because they come from the package, never from input.
    Raises FileNotFoundError for an unknown file and StatementError for a malformed one.
    """
    text = (resources.files(__package__) / "sql" / f"{name}.sql").read_text(encoding="utf-8")
    return parse(text, f"{name}.sql")


def parse(text: str, source: str) -> Mapping[str, LiteralString]:
    """The statements in `text`; `source` is what error messages call it."""
    titles = list(_TITLE.finditer(text))
    head = text[: titles[0].start()] if titles else text
    if _COMMENT_LINE.sub("", head).strip():
        raise StatementError(f"{source}: there is SQL above the first `-- name:` line")
    found: dict[str, LiteralString] = {}
    for title, following in zip(titles, [*titles[1:], None], strict=True):
        name = title[1]
        if not _NAME.match(name):
            raise StatementError(f"{source}: {name!r} is not a lower_snake_case name")
        if name in found:
            raise StatementError(f"{source}: {name} is there twice")
        body = text[title.end() : following.start() if following else len(text)]
        sql = _COMMENT_LINE.sub("", body).strip().removesuffix(";").rstrip()
        if not sql:
            raise StatementError(f"{source}: {name} is empty")
        if ";" in _without_literals(sql):
            raise StatementError(f"{source}: {name} holds more than one statement")
        found[name] = sql
    return MappingProxyType(found)


def _without_literals(sql: str) -> str:
    return re.sub(r"'(?:[^']|'')*'|\$\$.*?\$\$|--[^\n]*", "", sql, flags=re.DOTALL)
