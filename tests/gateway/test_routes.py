"""Matching raw paths (compat.md 3)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gateway.routes import MalformedPath, RouteTable, decode, routes_for, verbs
from server.methods import read_service
from tcqueue.v1 import queue_service_pb2

SERVICE = queue_service_pb2.DESCRIPTOR.services_by_name["Queue"]
ID = "fN1SbArXTPSVFNUvaOlinQ"


@pytest.fixture(scope="module")
def table() -> RouteTable:
    pipeline: Any = SimpleNamespace(methods=read_service(SERVICE), handles=lambda method: True)
    return RouteTable([pipeline])


def _found(
    table: RouteTable, verb: str, path: str, host: str = "tc.example.com"
) -> tuple[str, list[str]] | None:
    choices = routes_for(verb, table.find(path, host))
    return (
        (choices[0][0].method.reference_name, [decode(text) for text in choices[0][1]]) if choices else None
    )


@pytest.mark.parametrize(
    ("verb", "path", "expected"),
    [
        ("GET", f"task/{ID}", ("task", [ID])),
        ("PUT", f"task/{ID}", ("createTask", [ID])),
        ("HEAD", f"task/{ID}", ("task", [ID])),
        ("GET", f"task/{ID}/", ("task", [ID])),
        ("GET", f"task/{ID}//", None),
        ("GET", "task/", None),
        ("GET", f"Task/{ID}", None),
        ("DELETE", f"task/{ID}", None),
        ("GET", "task/a%2Fb", ("task", ["a/b"])),
        ("GET", "task/a%252Fb", ("task", ["a%2Fb"])),
        # A wildcard takes the separator in both spellings.
        ("POST", "claim-work/p/w", ("claimWork", ["p/w"])),
        ("POST", "claim-work/p%2Fw", ("claimWork", ["p/w"])),
        ("POST", "claim-work/p/w/", ("claimWork", ["p/w/"])),
        ("POST", "claim-work/", ("claimWork", [""])),
        ("GET", "pending/p/w", ("pendingTasks", ["p/w"])),
        # What follows a wildcard comes before a wildcard without.
        ("GET", "task-queues/p/w/counts", ("taskQueueCounts", ["p/w"])),
        ("GET", "task-queues/p%2Fw/counts/", ("taskQueueCounts", ["p/w"])),
        ("GET", "task-queues/p%2Fw/pending", ("listPendingTasks", ["p/w"])),
        ("GET", "task-queues/p%2Fw/claimed", ("listClaimedTasks", ["p/w"])),
        ("GET", "task-queues/p%2Fw", ("getTaskQueue", ["p/w"])),
        ("GET", "task-queues/p/w", None),  # T-39
        ("GET", "task-queues/", ("listTaskQueues", [])),
        # Artifact names hold anything, slashes at the end and in a row included.
        ("GET", f"task/{ID}/runs/0/artifacts", ("listArtifacts", [ID, "0"])),
        ("GET", f"task/{ID}/runs/0/artifacts/", ("getArtifact", [ID, "0", ""])),
        ("GET", f"task/{ID}/runs/0/artifacts/a", ("getArtifact", [ID, "0", "a"])),
        ("GET", f"task/{ID}/runs/0/artifacts/a/", ("getArtifact", [ID, "0", "a/"])),
        ("GET", f"task/{ID}/artifacts/public//x%20y%25", ("getLatestArtifact", [ID, "public//x y%"])),
        # declareWorker has no literal `workers`, quarantineWorker has.
        ("PUT", "provisioners/p/worker-types/w/workers/g/i", ("quarantineWorker", ["p", "w", "g", "i"])),
        ("PUT", "provisioners/p/worker-types/w/g/i", ("declareWorker", ["p", "w", "g", "i"])),
        ("PUT", "provisioners/p/worker-types/w/workers/i", ("declareWorker", ["p", "w", "workers", "i"])),
        ("GET", "provisioners/p/worker-types/w/workers", ("listWorkers", ["p", "w"])),
        ("GET", "no-such-thing", None),
        ("GET", "", None),
    ],
)
def test_paths(table: RouteTable, verb: str, path: str, expected: tuple[str, list[str]] | None) -> None:
    assert _found(table, verb, f"/api/queue/v1/{path}") == expected


def test_a_path_without_a_version_is_unknown(table: RouteTable) -> None:
    assert _found(table, "GET", "/api/queue/v2/ping") is None
    assert _found(table, "GET", "/api/ping") is None


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("queue.example.com", ("ping", [])),
        ("tc.example.com", ("ping", [])),
        ("127.0.0.1", ("ping", [])),
        ("", ("ping", [])),
        ("auth.example.com", None),  # this table serves no auth
    ],
)
def test_the_alias_of_old(table: RouteTable, host: str, expected: tuple[str, list[str]] | None) -> None:
    assert _found(table, "GET", "/v1/ping", host) == expected


def test_verbs(table: RouteTable) -> None:
    assert verbs(table.find(f"/api/queue/v1/task/{ID}", "")) == ["GET", "HEAD", "PUT"]
    assert verbs(table.find("/api/queue/v1/nothing", "")) == []


@pytest.mark.parametrize("text", ["%", "%2", "%zz", "a%", "%ff", "%c3%28", "\xff"])
def test_text_that_is_none(text: str) -> None:
    with pytest.raises(MalformedPath):
        decode(text)


def test_raw_utf_8_is_text() -> None:
    assert decode("ü".encode().decode("latin-1")) == "ü" == decode("%C3%BC")
