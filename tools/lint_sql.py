"""SQL stands only in `server/store/sql/` and `migrations/`, and each named statement is used.

python -m tools.lint_sql       exit 1, naming file and line, when that does not hold
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping

from server.store.statements import StatementError, parse
from tools.protos import ROOT

SHIPPED = ("server", "gateway")
SQL_FOLDER = ROOT / "server" / "store" / "sql"

# How a statement opens. What follows the verb tells SQL from English, and so does the verb's case.
OPENING = re.compile(
    r"""^\s*(?:
        select\s+(?:\*|\d|\$|'|\(|distinct\b|\w+\s*\(|[\w.,\s"]+\sfrom\s)
      | insert\s+into\s+\w
      | update\s+(?:only\s+)?[\w.]+(?:\s+\w+)?\s+set\s
      | delete\s+from\s+\w+(?:\s+\w+)?\s*(?:$|;|where|using|returning)
      | with\s+(?:recursive\s+)?\w+\s*(?:\([^)]*\)\s*)?as\s+(?:not\s+)?(?:materialized\s*)?\(
      | (?:create|alter|drop)\s+(?:or\s+replace\s+)?(?:unique\s+|temp(?:orary)?\s+|unlogged\s+)?
        (?:table|index|database|schema|sequence|function|trigger|view|type|extension|role|system)\s+
        (?:if\s|\w+\s*(?:$|;|\(|as\b|add\b|on\b|set\b|template\b|with\b|owner\b))
      | truncate\s+(?:table\s+)?\w+\s*(?:$|;|,|restart|cascade)
      | (?:listen|unlisten|notify)\s+[\w*"]+\s*(?:$|;|,\s*')
      | lock\s+table\s
      | set\s+(?:local\s+|session\s+)?\w+\s*(?:=|\bto\b)\s
      | explain\s*(?:\(|analyze|select)
    )""",
    re.IGNORECASE | re.VERBOSE,
)


def is_sql(text: str) -> bool:
    """Whether the text opens like a statement; "Delete from the list" with its capital is English."""
    return OPENING.match(text) is not None and not text.split(None, 1)[0].istitle()


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Each shipped module: its path below the repository, and its syntax tree."""
    for package in SHIPPED:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The string constants of a module with their lines, bare strings such as docstrings left out."""
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare:
            yield node.lineno, node.value


def loaded(tree: ast.Module) -> dict[str, str]:
    """Module variables that hold `load("file")`: variable to file."""
    found: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            match node.value:
                case ast.Call(func=ast.Name(id="load"), args=[ast.Constant(value=str(file))]):
                    found[node.targets[0].id] = file
    return found


def look_ups(tree: ast.Module, variables: Mapping[str, str]) -> Iterator[tuple[int, str, str]]:
    """Each `VARIABLE["name"]`: line, file, statement name."""
    for node in ast.walk(tree):
        match node:
            case ast.Subscript(value=ast.Name(id=variable), slice=ast.Constant(value=str(name))):
                if variable in variables:
                    yield node.lineno, variables[variable], name


def complaints() -> Iterator[str]:
    """One line for each fault."""
    statements: dict[str, set[str]] = {}
    for file in sorted(SQL_FOLDER.glob("*.sql")):
        try:
            statements[file.stem] = set(parse(file.read_text(encoding="utf-8"), file.name))
        except StatementError as error:
            yield f"server/store/sql/{error}"
    trees = dict(modules())
    variables = {path: loaded(tree) for path, tree in trees.items()}
    for path, tree in trees.items():
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and node.module:
                origin = variables.get(node.module.replace(".", "/") + ".py", {})
                for alias in node.names:
                    if alias.name in origin:
                        variables[path][alias.asname or alias.name] = origin[alias.name]
    mentioned: set[str] = set()
    for path, tree in trees.items():
        for line, text in texts(tree):
            mentioned.add(text)
            if is_sql(text):
                start = " ".join(text.split())[:60]
                yield f"{path}:{line}: SQL in Python; it belongs into server/store/sql/: {start!r}"
        for line, noun, name in look_ups(tree, variables[path]):
            if name not in statements.get(noun, set()):
                yield f"{path}:{line}: {noun}.sql has no statement {name}"
    for noun, names in statements.items():
        for name in sorted(names - mentioned):
            yield f"server/store/sql/{noun}.sql: nothing uses the statement {name}"


def main() -> int:
    found = list(complaints())
    print(*found, sep="\n", file=sys.stderr, end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
