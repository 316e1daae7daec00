"""Each item of jobqueue.md section 7 is named by a test of this folder."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ITEMS = set(range(1, 46))


def ticked() -> set[int]:
    """The items that docstrings of tests here name."""
    found: set[int] = set()
    for path in Path(__file__).parent.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef) and node.name.startswith("test_"):
                found.update(map(int, re.findall(r"\bJ-(\d{3})\b", ast.get_docstring(node) or "")))
    return found


def test_each_item_is_ticked() -> None:
    """Nothing of the checklist is forgotten, and nothing is made up."""
    assert ticked() == ITEMS
