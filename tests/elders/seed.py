"""The reference of 2014 as far as the user's document has it: it breaks off in its last part."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

SEED = Path(__file__).parents[2].parent / "shared/seeds/003_eea7597b7443dbc3.txt"

Json = dict[str, Any]


@cache
def parts() -> Mapping[str, Json]:
    """Each part's reference by the part's name, such as `Queue` and `QueueEvents`."""
    text = SEED.read_text(encoding="utf-8")
    text = text[text.index("module.exports") :]
    return {
        match[1]: _reference(text, match.end())
        for match in re.finditer(r'^"(\w+)": \{\n"referenceUrl"', text, re.M)
    }


def _reference(text: str, at: int) -> Json:
    start = text.index('"reference": ', at) + len('"reference": ')
    head, _, rest = text[start:].partition('"entries": [')
    return {**json.loads(head.rstrip().rstrip(",") + "}"), "entries": list(_entries(rest))}


def _entries(text: str) -> Iterator[Json]:
    """The entries of a list that begins here, up to its end or to the one that is cut off."""
    decoder = json.JSONDecoder()
    while (text := text.lstrip(", \n")) and text[0] == "{":
        try:
            entry, end = decoder.raw_decode(text)
        except json.JSONDecodeError:
            return
        yield entry
        text = text[end:]
