"""Keeps the tables of README.md and of docs/ equal to what they are about: settings to server/config.py,
endpoints to the proto, calls of older interfaces to the proto and the tests.

`python -m tools.readme` rewrites them; `--check` fails if that would change anything.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path

from server.app import SERVICES
from server.config import Settings, environment_name
from server.references.api import api
from server.references.catalogue import Catalogue
from tools.elders import calls_table

ROOT = Path(__file__).resolve().parent.parent


def settings_table() -> str:
    """All settings in Markdown."""
    lines = ["| variable | default | what it is |", "|---|---|---|"]
    for field in fields(Settings):
        default = field.default if field.default_factory is MISSING else json.dumps(field.default_factory())
        shown = f"`{str(default).lower() if isinstance(default, bool) else default}`" if default != "" else ""
        lines.append(f"| `{environment_name(field.name)}` | {shown} | {field.metadata['help']} |")
    return "\n".join(lines)


def endpoints_table() -> str:
    """All HTTP endpoints in Markdown, in the order of the references."""
    lines = ["| | path | name | |", "|---|---|---|---|"]
    for service in SERVICES:
        reference = api(Catalogue(service))
        base = f"/api/{reference['serviceName']}/{reference['apiVersion']}"
        for entry in reference["entries"]:
            note = "" if entry["stability"] == "stable" else entry["stability"]
            path = f"`{base}{entry['route']}`"
            lines.append(f"| {entry['method'].upper()} | {path} | {entry['name']} | {note} |")
    return "\n".join(lines)


#: The tables of each file, by the name in their marks.
TABLES: Mapping[Path, Mapping[str, Callable[[], str]]] = {
    ROOT / "README.md": {"settings": settings_table, "endpoints": endpoints_table},
    ROOT / "docs/elders.md": {"calls": calls_table},
}


def rewritten(path: Path) -> str:
    """The file with fresh tables. Raises ValueError where the marks of one are missing, or what it is about
    is not as it has to be."""
    text = path.read_text(encoding="utf-8")
    for name, table in TABLES[path].items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        before, found, rest = text.partition(begin)
        _, found_end, after = rest.partition(end)
        if not found or not found_end:
            raise ValueError(f"{path.name} lacks {begin} or {end}")
        text = f"{before}{begin}\n{table()}\n{end}{after}"
    return text


def main() -> int:
    """Rewrites or checks."""
    for path in TABLES:
        wanted = rewritten(path)
        if "--check" not in sys.argv:
            path.write_text(wanted, encoding="utf-8")
        elif path.read_text(encoding="utf-8") != wanted:
            print(f"{path.relative_to(ROOT)}: a table is stale; run `make gen`", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
