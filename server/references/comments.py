"""The comments of the proto by full name; `tools.gen` keeps them beside the generated code."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

# What gRPC's codes are called over HTTP; longer names first.
_STATUS = {
    "FAILED_PRECONDITION": "409",
    "PERMISSION_DENIED": "403",
    "ALREADY_EXISTS": "409",
    "UNAVAILABLE": "503",
    "NOT_FOUND": "404",
}
_CODE = re.compile(rf"\b({'|'.join(_STATUS)})\b")
_CHAPTER = re.compile(r"\s*\((?:[a-z]+\.md) [\d., ]+\)")
_SAME_PARAGRAPH = re.compile(r"(?<!\n)\n(?![\n*-])")


@cache
def _all() -> Mapping[str, str]:
    text = files("tcqueue.v1").joinpath("comments.json").read_text(encoding="utf-8")
    found: dict[str, str] = json.loads(text)
    return found


def comment(full_name: str) -> str:
    """The comment above an element, markdown, a line for each paragraph; empty if there is none.

    Pointers to chapters of the specification are left out: readers of the references do not have it. Codes
    of gRPC become those of HTTP, which is what references are about.
    """
    text = _CHAPTER.sub("", _all().get(full_name, ""))
    return _SAME_PARAGRAPH.sub(" ", _CODE.sub(lambda match: _STATUS[match[1]], text))
