"""The references of 2014, held against the user's own copy of them (compat.md 1, 2)."""

from __future__ import annotations

import json
import os
from typing import Any

import httpx
import pytest

from server.app import ELDERS, SERVICES
from server.references.documents import References
from tests.conformance.json_door import HttpDoor
from tests.elders.seed import SEED, parts
from tests.plugins.server import Queue

needs_seed = pytest.mark.skipif(
    not SEED.is_file() and os.environ.get("CI") != "true",
    reason="the user's copy of the references is not beside the checkout",
)

#: Parts of the seed and where ours are.
PATHS = {
    "Auth": "/auth/v1/api.json",
    "Queue": "/queue/v1/api.json",
    "QueueEvents": "/queue/v1/exchanges.json",
    "Scheduler": "/scheduler/v1/api.json",
    "SchedulerEvents": "/scheduler/v1/exchanges.json",
}

#: Words are everybody's own.
_TEXTS = ("title", "description", "summary")


def _ours() -> dict[str, Any]:
    documents = References([*SERVICES, *ELDERS]).documents
    return {path: json.loads(documents[path].body) for path in PATHS.values() if path in documents}


def _bare(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry without texts; of schemas the copy names some with `#` at their end and some without."""
    found = {key: value for key, value in entry.items() if key not in _TEXTS}
    for key in ("input", "output", "schema"):
        if key in found:
            found[key] = found[key].removesuffix("#")
    if "routingKey" in found:
        found["routingKey"] = [
            {key: value for key, value in word.items() if key not in _TEXTS} for word in found["routingKey"]
        ]
    return found


@needs_seed
@pytest.mark.parametrize("part", ["Auth", "Queue", "QueueEvents", "Scheduler"])
def test_entry_by_entry(part: str) -> None:
    """Type, verb, route, arguments, scopes, schemas, exchanges, words of routing keys and their sizes are
    those of 2014; and so are version, base URL and prefix."""
    ours, theirs = _ours()[PATHS[part]], parts()[part]
    for entry in theirs["entries"]:
        (same,) = (other for other in ours["entries"] if other["name"] == entry["name"])
        assert _bare(same) == _bare(entry)
    assert len(ours["entries"]) == len(theirs["entries"])
    for member in ("version", "baseUrl", "exchangePrefix"):
        assert ours.get(member) == theirs.get(member)
    assert set(ours) == set(theirs)


@needs_seed
def test_the_copy_is_read() -> None:
    """The comparison has something to compare: eighteen calls of the queue, six of the scheduler, two of
    auth, six exchanges."""
    counts = {part: len(reference["entries"]) for part, reference in parts().items()}
    assert counts == {"Auth": 2, "Queue": 18, "QueueEvents": 6, "Scheduler": 6, "SchedulerEvents": 0}


def test_every_schema_named_is_there() -> None:
    """An entry's input, output and payload can be fetched, at the path of its URL."""
    documents = References([*SERVICES, *ELDERS]).documents
    named = {
        entry[key]
        for reference in _ours().values()
        for entry in reference["entries"]
        for key in ("input", "output", "schema")
        if key in entry
    }
    assert len(named) > 15
    for url in named:
        path = url.removeprefix("http://schemas.taskcluster.net").removesuffix("#")
        assert json.loads(documents[path].body)["$id"] == url


@pytest.mark.doors("http")
async def test_they_are_served(queue: Queue) -> None:
    """Below any host; today's references know nothing of 2014's queue."""
    assert isinstance(queue.door, HttpDoor)
    async with httpx.AsyncClient(base_url=queue.door.base) as http:
        for path in _ours():
            answer = await http.get(path, headers={"Host": "references.example.com"})
            assert (answer.status_code, answer.json()["version"]) == (200, "0.2.0")
        schema = await http.get("/queue/v1/create-task-request.json")
        assert schema.json()["$id"] == "http://schemas.taskcluster.net/queue/v1/create-task-request.json#"
        manifest = (await http.get("/references/manifest.json")).json()["references"]
        assert len(manifest) == len(set(manifest))
        today = (await http.get("/references/queue/v1/api.json")).json()["entries"]
        assert "defineTask" not in {entry["name"] for entry in today}
