"""Keeps the settings table of README.md equal to server/config.py.

`python -m tools.readme` rewrites it; `--check` fails if that would change anything.
"""

from __future__ import annotations

import sys
from dataclasses import MISSING, fields
from pathlib import Path

from server.config import Settings, environment_name

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- settings:begin -->", "<!-- settings:end -->"


def table() -> str:
    """The table in Markdown."""
    lines = ["| variable | default | what it is |", "|---|---|---|"]
    for field in fields(Settings):
        default = "[]" if field.default is MISSING else field.default
        shown = f"`{str(default).lower() if isinstance(default, bool) else default}`" if default != "" else ""
        lines.append(f"| `{environment_name(field.name)}` | {shown} | {field.metadata['help']} |")
    return "\n".join(lines)


def rewritten(text: str) -> str:
    """The README with a fresh table."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main() -> int:
    """Rewrites or checks."""
    text = README.read_text()
    wanted = rewritten(text)
    if "--check" in sys.argv:
        if text != wanted:
            print("README.md: the settings table is stale; run `make gen`", file=sys.stderr)
            return 1
        return 0
    README.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
