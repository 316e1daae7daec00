"""Each item of queue.md section 10 is ticked by a test here, or stands on the list of later issues."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ITEMS = range(1, 243)
TRAPS = range(1, 63)

#: What belongs to an issue of its own, and why it cannot be asked through gRPC now.
LATER: dict[int, str] = {}

#: The same for the traps of section 9.
LATER_TRAPS: dict[int, str] = {}


def ticked(letter: str) -> set[int]:
    """The items (Q) or traps (T) that docstrings of tests name, here, of the HTTP door or of 2014."""
    found: set[int] = set()
    here = Path(__file__).parent
    elsewhere = ("gateway/test_*.py", "elders/test_*.py", "integration/test_removed_workers.py")
    for path in sorted([*here.glob("test_*.py"), *(p for each in elsewhere for p in here.parent.glob(each))]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef) and node.name.startswith("test_"):
                named = re.findall(rf"\b{letter}-(\d+)\b", ast.get_docstring(node) or "")
                found.update(map(int, named))
    return found


def test_each_item_is_ticked_or_has_a_reason() -> None:
    """Nothing of the checklist is forgotten."""
    done = ticked("Q")
    assert [f"Q-{n:03}" for n in ITEMS if n not in done and n not in LATER] == []
    done = ticked("T")
    assert [f"T-{n}" for n in TRAPS if n not in done and n not in LATER_TRAPS] == []


def test_nothing_is_both_or_unknown() -> None:
    """An item that is ticked leaves the list, and there are no others."""
    for letter, later, known in (("Q", LATER, ITEMS), ("T", LATER_TRAPS, TRAPS)):
        done = ticked(letter)
        assert done.intersection(later) == set()
        assert {*done, *later} <= set(known)
