"""Each item of queue.md section 10 is ticked by a test here, or stands on the list of later issues."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ITEMS = range(1, 243)

HTTP = "the JSON door: how requests and errors look in HTTP"
LEGACY = "the 2014 API, mounted beside the modern one"
ARTIFACTS = "artifacts"
BROKER = "the relay to a broker, and what comes from one"

#: What belongs to an issue of its own, and why it cannot be asked through gRPC now.
LATER: dict[int, str] = {
    23: f"{HTTP}: a map of strings holds nothing else in gRPC",
    147: f"{BROKER}: worker-manager's messages",
    **dict.fromkeys([154, *range(156, 187)], ARTIFACTS),
    198: f"{HTTP}: an encoded slash in a path",
    **dict.fromkeys(range(206, 217), HTTP),
    **dict.fromkeys(range(217, 225), LEGACY),
    235: f"{BROKER}: worker-manager's messages",
    240: f"{ARTIFACTS}: the object service",
    241: f"{ARTIFACTS}: credentials for the object service",
}


def ticked() -> dict[int, list[str]]:
    """The items that docstrings of tests in this folder name, and by which tests."""
    found: dict[int, list[str]] = {}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef) and node.name.startswith("test_"):
                for number in re.findall(r"\bQ-(\d{3})\b", ast.get_docstring(node) or ""):
                    found.setdefault(int(number), []).append(f"{path.name}::{node.name}")
    return found


def test_each_item_is_ticked_or_has_a_reason() -> None:
    """Nothing of the checklist is forgotten."""
    done = ticked()
    missing = [f"Q-{n:03}" for n in ITEMS if n not in done and n not in LATER]
    assert missing == []


def test_nothing_is_both_or_unknown() -> None:
    """An item that is ticked leaves the list, and there are no others."""
    done = ticked()
    assert [f"Q-{n:03}" for n in LATER if n in done] == []
    assert {*done, *LATER} <= set(ITEMS)
