"""Our references and schemas are the published ones, but for a table of deliberate differences."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from server import app
from server.references.documents import References
from tests.references.comparing import differences, normalised, resolved
from tests.references.differences import DELIBERATE

PUBLISHED = Path(__file__).parents[2].parent / "shared/data/taskcluster-v106"

pytestmark = pytest.mark.skipif(
    not PUBLISHED.is_dir() and os.environ.get("CI") != "true",
    reason="the published references are not beside the checkout",
)

_TEXTS = ("title", "description", "summary")


@pytest.fixture(scope="module")
def ours() -> dict[str, Any]:
    """Our documents by path."""
    references = References(app.SERVICES)
    return {path: json.loads(references.documents[path].body) for path in references.reference_paths()}


def _theirs(path: str) -> Any:
    return json.loads((PUBLISHED / path[1:]).read_text(encoding="utf-8"))


def _entries(reference: Any) -> dict[str, Any]:
    """A reference's entries by name, texts dropped where they are allowed to differ, queries sorted."""
    found = {}
    for entry in reference["entries"]:
        entry = {key: value for key, value in entry.items() if key not in _TEXTS}
        if "query" in entry:
            entry["query"] = sorted(entry["query"])
        if "routingKey" in entry:
            entry["routingKey"] = [
                {key: value for key, value in word.items() if key not in _TEXTS}
                for word in entry["routingKey"]
            ]
        found[entry["name"]] = entry
    return found


def _compared_references(ours: dict[str, Any]) -> Iterator[str]:
    for path, reference in ours.items():
        if path.startswith("/references/") and "entries" in reference and (PUBLISHED / path[1:]).exists():
            yield from differences(_entries(_theirs(path)), _entries(reference), path)


def _schema(path: str, load: Any) -> Any:
    """A schema in one spelling; a default is part of what a request means, and of nothing else."""
    found = normalised(resolved(load(path), path, load))
    return found if path.endswith("-request.json") else _without_defaults(found)


def _without_defaults(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_without_defaults(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: _without_defaults(value) for key, value in schema.items() if key != "default"}


def _compared_schemas(ours: dict[str, Any]) -> Iterator[str]:
    services = {
        path.split("/")[2] for path in ours if path.startswith("/references/") and path.endswith("/api.json")
    }
    # Today's deployments have no scheduler; tests/scheduler compares it with its first reference.
    for service in sorted(services - {"scheduler"}):
        base = f"/schemas/{service}/v1/"
        here = {path for path in ours if path.startswith(base)}
        there = {base + path.name for path in (PUBLISHED / base[1:]).iterdir()}
        yield from (f"{path}: only theirs" for path in sorted(there - here))
        yield from (f"{path}: only ours" for path in sorted(here - there))
        for path in sorted(here & there):
            yield from differences(_schema(path, _theirs), _schema(path, ours.__getitem__), path)


def test_nothing_differs_but_what_is_listed(ours: dict[str, Any]) -> None:
    """Every entry, route, argument, query, schema, scope expression, stability and category; every schema's
    members, types, patterns, limits, defaults of requests, required lists and enums."""
    found = [*_compared_references(ours), *_compared_schemas(ours)]
    unlisted = [line for line in found if not any(fnmatchcase(_place(line), key) for key in DELIBERATE)]
    assert unlisted == []


def test_what_is_listed_still_differs(ours: dict[str, Any]) -> None:
    """The table holds nothing that is over, and a reason for everything."""
    places = [_place(line) for line in (*_compared_references(ours), *_compared_schemas(ours))]
    assert [key for key in DELIBERATE if not any(fnmatchcase(place, key) for place in places)] == []
    assert all(DELIBERATE.values())


def test_a_difference_is_seen(ours: dict[str, Any]) -> None:
    """The comparison finds a changed scope, limit and required list."""
    changed = json.loads(json.dumps(ours))
    entry = next(e for e in changed["/references/queue/v1/api.json"]["entries"] if e["name"] == "createTask")
    entry["scopes"]["AllOf"].pop()
    task = changed["/schemas/queue/v1/task.json"]
    task["properties"]["retries"]["maximum"] = 50
    task["required"].remove("routes")
    lines = [*_compared_references(changed), *_compared_schemas(changed)]
    places = {_place(line) for line in lines}
    assert "/references/queue/v1/api.json/createTask/scopes/AllOf" in places
    assert "/schemas/queue/v1/task.json/properties/retries/maximum" in places
    assert "/schemas/queue/v1/task.json/required" in places


def _place(line: str) -> str:
    return line.partition(": theirs" if ": theirs" in line else ": only")[0]
