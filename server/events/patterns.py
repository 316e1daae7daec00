"""Topic patterns as AMQP brokers read them: words between dots, `*` one word, `#` any number of them.

The empty text has no words at all, so `#` matches it and `*` does not; `a..b` has an empty word.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby

_ANY_WORDS = r"(?:\.[^.]*+)*"
_FEWEST_WORDS = r"(?:\.[^.]*+)*?"
_ONE_WORD = r"\.[^.]*+"


def matcher(patterns: Iterable[str]) -> Callable[[str], bool]:
    """A test whether a routing key matches any of the patterns; none match for no patterns."""
    expressions = [_expression(pattern) for pattern in sorted(set(patterns))]
    if not expressions:
        return lambda key: False
    match = re.compile("|".join(expressions), re.DOTALL).fullmatch
    # Every word gets a dot in front of it, so that all words, and none at all, look alike.
    return lambda key: match(f".{key}" if key else "") is not None


def _expression(pattern: str) -> str:
    """The pattern as a regular expression over dotted words.

    Between two `#` the leftmost place where the words fit is as good as any, so each such stretch is
    atomic; only the last `#` is tried at several places. That keeps the time proportional to key times
    pattern, whoever wrote the pattern: with plain backtracking, `#.a.#.a.#.a...` takes for ever.
    """
    first, *middle = _stretches(pattern)
    if not middle:
        return first
    *middle, last = middle
    return first + "".join(f"(?>{_FEWEST_WORDS}{part})" for part in middle) + _ANY_WORDS + last


def _stretches(pattern: str) -> Iterator[str]:
    """The expressions of what stands before, between and after the `#` words."""
    words = pattern.split(".") if pattern else []
    stretch = ""
    for word, repeats in groupby(words):
        if word == "#":
            yield stretch
            stretch = ""
        else:
            stretch += "".join(_word(word) for _ in repeats)
    yield stretch


def _word(word: str) -> str:
    # The look-ahead keeps `foo` from matching the beginning of `foobar`.
    return _ONE_WORD if word == "*" else rf"\.{re.escape(word)}(?![^.])"
