"""Keeps the tables of README.md equal to what they are about: settings to server/config.py, endpoints to
the proto.

`python -m tools.readme` rewrites it; `--check` fails if that would change anything.
"""

from __future__ import annotations

import json
import sys
from dataclasses import MISSING, fields
from pathlib import Path

from server.app import SERVICES
from server.config import Settings, environment_name
from server.references.api import api
from server.references.catalogue import Catalogue

README = Path(__file__).resolve().parent.parent / "README.md"


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


TABLES = {"settings": settings_table, "endpoints": endpoints_table}


def rewritten(text: str) -> str:
    """The README with fresh tables. Raises ValueError where the marks of one are missing."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        before, found, rest = text.partition(begin)
        _, found_end, after = rest.partition(end)
        if not found or not found_end:
            raise ValueError(f"README.md lacks {begin} or {end}")
        text = f"{before}{begin}\n{table()}\n{end}{after}"
    return text


def main() -> int:
    """Rewrites or checks."""
    text = README.read_text()
    wanted = rewritten(text)
    if "--check" in sys.argv:
        if text != wanted:
            print("README.md: a table is stale; run `make gen`", file=sys.stderr)
            return 1
        return 0
    README.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
