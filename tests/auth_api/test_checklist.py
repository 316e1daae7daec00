"""Each item of auth.md section 11 is named by a test."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ITEMS = range(1, 61)
TESTS = Path(__file__).parents[1]


def test_each_item_is_ticked() -> None:
    """A-001 to A-060, in docstrings of tests here, of Hawk's own, of the gateway and the clients."""
    found: set[int] = set()
    paths = [
        *TESTS.glob("auth_api/test_*.py"),
        *TESTS.glob("gateway/test_*.py"),
        *TESTS.glob("clients/test_*.py"),
        TESTS / "unit/test_hawk.py",
    ]
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef) and node.name.startswith("test_"):
                found.update(map(int, re.findall(r"\bA-(\d{3})\b", ast.get_docstring(node) or "")))
    assert [f"A-{n:03}" for n in ITEMS if n not in found] == []
