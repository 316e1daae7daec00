"""Which backend takes an object: the first that fits its name and project (object.md 5)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from server.config import SettingsError
from server.errors import NoMatchingBackend

_Fits = Callable[[str], bool]


class Backends:
    """The list, ready to be asked."""

    def __init__(self, configured: Sequence[Mapping[str, Any]]) -> None:
        """Raises SettingsError for a list that cannot be read."""
        self._rules = [self._rule(entry) for entry in configured]
        self.ids = frozenset(backend_id for backend_id, _, _ in self._rules)

    def choose(self, name: str, project_id: str) -> str:
        """The id of the backend for a new object. Raises NoMatchingBackend."""
        for backend_id, fits_name, fits_project in self._rules:
            if fits_name(name) and fits_project(project_id):
                return backend_id
        raise NoMatchingBackend("No backend matched the given name and projectId")

    def require(self, backend_id: str) -> None:
        """Raises NoMatchingBackend for a backend that is no longer in the list."""
        if backend_id not in self.ids:
            raise NoMatchingBackend("The backend for this object is no longer defined")

    @staticmethod
    def _rule(entry: Any) -> tuple[str, _Fits, _Fits]:
        if not isinstance(entry, dict) or not isinstance(entry.get("backendId"), str):
            raise _refused("every entry needs a backendId")
        when = entry.get("when", "all")
        if when == "all":
            return entry["backendId"], _anything, _anything
        if not isinstance(when, dict) or not when.keys() <= {"name", "projectId"}:
            raise _refused("`when` is `all`, or has name and projectId")
        return entry["backendId"], _pattern(when.get("name")), _pattern(when.get("projectId"))


def _pattern(pattern: Any) -> _Fits:
    if pattern is None:
        return _anything
    if isinstance(pattern, dict) and len(pattern) == 1:
        ((kind, text),) = pattern.items()
        if kind == "regexp" and isinstance(text, str):
            try:
                return lambda value, found=re.compile(text): found.search(value) is not None  # type: ignore[misc]
            except re.error as e:
                raise _refused(f"{text!r} is no regular expression: {e}") from e
        if kind == "is":
            pattern = text
    if not isinstance(pattern, str):
        raise _refused("a pattern is a text, or has `is` or `regexp`")
    return pattern.__eq__


def _anything(_: str) -> bool:
    return True


def _refused(why: str) -> SettingsError:
    return SettingsError(f"TCQUEUE_OBJECT_BACKENDS: {why}")
