"""Each item of object.md section 6 is named by a test, or stands on the list with a reason."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ITEMS = range(1, 55)
TESTS = Path(__file__).parents[1]

#: What no test asks, and why.
LATER: dict[int, str] = {}


def ticked() -> set[int]:
    """The items that docstrings of tests name, wherever they are."""
    found: set[int] = set()
    for path in TESTS.glob("**/test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef) and node.name.startswith("test_"):
                found.update(map(int, re.findall(r"\bO-(\d{3})\b", ast.get_docstring(node) or "")))
    return found


def test_each_item_is_ticked_or_has_a_reason() -> None:
    """O-items 1 to 54; one that is ticked leaves the list, and there are no others."""
    done = ticked()
    assert [f"O-{n:03}" for n in ITEMS if n not in done and n not in LATER] == []
    assert done.intersection(LATER) == set()
    assert {*done, *LATER} <= set(ITEMS)
