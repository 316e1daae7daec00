"""Topic patterns against the broker's rules (queue.md 5.1, 5.2)."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.events.patterns import matcher

KEY = "primary.fN1SbArXTPSVFNUvaOlinQ.0.group.worker-1.prov.type.sched.YhrZ0cEGRQGvuRqoKzzmUQ._"


@pytest.mark.parametrize(
    ("pattern", "key", "matches"),
    [
        ("#", "", True),
        ("#", "a.b.c", True),
        ("*", "", False),
        ("", "", True),
        ("", "a", False),
        ("a", "", False),
        ("*", "a", True),
        ("*", "a.b", False),
        ("*.*", "a.b", True),
        ("*.*", ".", True),
        ("a.*.b", "a..b", True),
        ("a.#", "a", True),
        ("a.#", "a.b.c", True),
        ("a.#", "ab", False),
        ("#.a", "a", True),
        ("#.a", "ba", False),
        ("#.a", "b.a", True),
        ("#.a.#", "foo.ab.a.c", True),
        ("#.a.#", "foo.ab.c", False),
        ("#.#.a", "a", True),
        ("#.*", "", False),
        ("#.*.#", "a", True),
        ("#.a.*.#.b", "a.a.x.b", True),
        ("a.#.a", "a", False),
        ("route.index.v1.#", "route.index.v1.project.main", True),
        ("route.a+b.[c]", "route.a+b.[c]", True),
        ("route.a+b", "route.aab", False),
        ("a\nb.*", "a\nb.c\nd", True),
        ("primary.*.*.*.*.prov.type.#", KEY, True),
        (f"primary.fN1SbArXTPSVFNUvaOlinQ.{'*.' * 7}_", KEY, True),
        ("primary.*.*.*.*.prov.other.#", KEY, False),
    ],
)
def test_rules(pattern: str, key: str, matches: bool) -> None:
    assert matcher([pattern])(key) is matches


def test_several_patterns_mean_any_of_them() -> None:
    match = matcher(["a.*", "#.z"])
    assert match("a.b") and match("q.z") and match("z")
    assert not match("b.c")
    assert not matcher([])("")


_words = st.sampled_from(["a", "b", "ab", ""])


@given(
    st.lists(st.sampled_from(["a", "b", "ab", "*", "#", "#"]), max_size=7),
    st.lists(_words, max_size=7),
)
def test_agrees_with_the_definition(pattern: list[str], words: list[str]) -> None:
    if words == [""]:
        words = []  # one empty word cannot be told from none
    expected = _by_definition(pattern, words)
    assert matcher([".".join(pattern)])(".".join(words)) is expected


def _by_definition(pattern: list[str], words: list[str]) -> bool:
    if not pattern:
        return not words
    head, rest = pattern[0], pattern[1:]
    if head == "#":
        return any(_by_definition(rest, words[i:]) for i in range(len(words) + 1))
    return bool(words) and head in ("*", words[0]) and _by_definition(rest, words[1:])


@pytest.mark.parametrize(
    "pattern", ["#.a." * 63 + "b", "#.*." * 63 + "b", "#." * 127 + "b", "*." * 127 + "b"]
)
def test_hostile_patterns_take_no_time(pattern: str) -> None:
    match = matcher([pattern])
    started = time.perf_counter()
    assert not match("a." * 124 + "a")
    assert time.perf_counter() - started < 0.1  # with plain backtracking: hours
