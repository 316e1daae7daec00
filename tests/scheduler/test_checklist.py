"""Each item of scheduler.md section 8 is ticked by a test here."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ITEMS = range(1, 59)


def _ticked() -> set[int]:
    found: set[int] = set()
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef) and node.name.startswith("test_"):
                found.update(map(int, re.findall(r"\bS-(\d+)\b", ast.get_docstring(node) or "")))
    return found


def test_each_item_is_ticked() -> None:
    """Nothing of the checklist is forgotten, and nothing ticked that is not on it."""
    assert [f"S-{n:03}" for n in sorted({*ITEMS} ^ _ticked())] == []
