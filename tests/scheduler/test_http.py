"""The HTTP door's side of it: monitoring, references, and the addresses of before 2019."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from server import app
from server.codec import writing
from server.references.documents import References
from tests.conformance.building import new_id
from tests.conformance.json_door import signature
from tests.plugins.server import Queue
from tests.scheduler.building import SCHEDULER, graph, state, submit

pytestmark = pytest.mark.doors("http")

SEED = Path(__file__).parents[2].parent / "shared/seeds/003_eea7597b7443dbc3.txt"

ROUTES = {
    "createTaskGraph": ("put", "/task-graph/<taskGraphId>", ["taskGraphId"], "task-graph"),
    "extendTaskGraph": (
        "post",
        "/task-graph/<taskGraphId>/extend",
        ["taskGraphId"],
        "extend-task-graph-request",
    ),
    "status": ("get", "/task-graph/<taskGraphId>/status", ["taskGraphId"], None),
    "info": ("get", "/task-graph/<taskGraphId>/info", ["taskGraphId"], None),
    "inspect": ("get", "/task-graph/<taskGraphId>/inspect", ["taskGraphId"], None),
    "inspectTask": (
        "get",
        "/task-graph/<taskGraphId>/inspect/<taskId>",
        ["taskGraphId", "taskId"],
        None,
    ),
    "ping": ("get", "/ping", [], None),
}
OUTPUTS = {
    "createTaskGraph": "task-graph-status-response",
    "extendTaskGraph": "task-graph-status-response",
    "status": "task-graph-status-response",
    "info": "task-graph-info-response",
    "inspect": "inspect-task-graph-response",
    "inspectTask": "inspect-task-graph-task-response",
}
WORDS = [
    "routingKeyKind",
    "taskId",
    "runId",
    "workerGroup",
    "workerId",
    "provisionerId",
    "workerType",
    "schedulerId",
    "taskGraphId",
    "reserved",
]


def client(queue: Queue) -> httpx.AsyncClient:
    """The door's own client."""
    door: Any = queue.door
    found: httpx.AsyncClient = door.client
    return found


@pytest.mark.elder("scheduler.ping")
async def test_monitoring(queue: Queue) -> None:
    """S-055: as every service has it."""
    base = "/api/scheduler/v1"
    answer = (await client(queue).get(f"{base}/ping")).json()
    assert set(answer) == {"alive", "uptime"} and answer["alive"] is True and answer["uptime"] >= 0
    for name in ("__lbheartbeat__", "__heartbeat__", "__version__"):
        assert (await client(queue).get(f"{base}/{name}")).status_code == 200


async def test_references(queue: Queue) -> None:
    """S-056: both references and every schema that they name are served and listed."""
    get = client(queue).get
    listed = (await get("/references/manifest.json")).json()["references"]
    folder = "/references/scheduler/v1"
    assert {f"{folder}/api.json", f"{folder}/exchanges.json"} <= set(listed)
    reference = (await get(f"{folder}/api.json")).json()
    assert (reference["serviceName"], reference["apiVersion"]) == ("scheduler", "v1")
    entries = {entry["name"]: entry for entry in reference["entries"]}
    for name, (method, route, arguments, body) in ROUTES.items():
        entry = entries[name]
        assert (entry["method"], entry["route"], entry["args"]) == (method, route, arguments)
        assert entry.get("input") == (f"v1/{body}.json#" if body else None)
        if name in OUTPUTS:
            assert entry["output"] == f"v1/{OUTPUTS[name]}.json#"
    assert entries["createTaskGraph"]["scopes"] == {
        "AllOf": [
            "scheduler:create-task-graph",
            {"for": "scope", "in": "scopes", "each": "<scope>"},
            {"for": "route", "in": "routes", "each": "scheduler:route:<route>"},
        ]
    }
    assert entries["extendTaskGraph"]["scopes"] == "scheduler:extend-task-graph:<taskGraphId>"
    assert [name for name, entry in entries.items() if "scopes" in entry] == [
        "createTaskGraph",
        "extendTaskGraph",
    ]
    exchanges = (await get(f"{folder}/exchanges.json")).json()
    assert exchanges["exchangePrefix"] == "scheduler/v1/"
    names = {entry["exchange"]: entry for entry in exchanges["entries"]}
    kinds = ("running", "extended", "blocked", "finished")
    assert list(names) == [f"task-graph-{kind}" for kind in kinds]
    for kind in kinds:
        entry = names[f"task-graph-{kind}"]
        assert entry["name"] == f"taskGraph{kind.capitalize()}"
        assert entry["schema"] == f"v1/task-graph-{kind}-message.json#"
        assert [word["name"] for word in entry["routingKey"]] == WORDS
        assert [word["name"] for word in entry["routingKey"] if word["required"]] == [
            "routingKeyKind",
            "schedulerId",
            "taskGraphId",
        ]
        assert entry["routingKey"][0]["constant"] == "primary"
        assert [word["multipleWords"] for word in entry["routingKey"]] == [False] * 9 + [True]
    schemas = {
        *("task-graph", "extend-task-graph-request", "task-graph-status", *OUTPUTS.values()),
        *(f"task-graph-{kind}-message" for kind in kinds),
    }
    for name in schemas:
        schema = (await get(f"/schemas/scheduler/v1/{name}.json")).json()
        assert schema["$id"] == f"/schemas/scheduler/v1/{name}.json#"
        assert schema["additionalProperties"] is False
    published = References(app.SERVICES).reference_paths()
    ours = {path.split("/")[-1] for path in published if path.startswith("/schemas/scheduler/")}
    assert {name.removesuffix(".json") for name in ours if "graph" in name} == schemas


async def test_the_schema_of_a_graph(queue: Queue) -> None:
    """S-056 S-012: what is required, what has a default, and that nodes may have more."""
    schema = (await client(queue).get("/schemas/scheduler/v1/task-graph.json")).json()
    assert schema["required"] == ["tasks", "metadata"]
    assert set(schema["properties"]) == {"scopes", "routes", "tasks", "metadata", "tags"}
    node = schema["properties"]["tasks"]["items"]
    assert node["additionalProperties"] is True
    assert node["required"] == ["taskId", "task"]
    assert node["properties"]["task"]["additionalProperties"] is False
    assert node["properties"]["reruns"] | {"description": ""} == {
        "type": "integer",
        "minimum": 0,
        "maximum": 100,
        "default": 0,
        "description": "",
    }
    metadata = schema["properties"]["metadata"]
    assert metadata["additionalProperties"] is False
    assert metadata["required"] == ["name", "description", "owner", "source"]
    assert metadata["properties"]["owner"]["format"] == "email"


@pytest.mark.settings(
    amqp_scheduler_prefix="dummy-test-scheduler/",
    amqp_exchange_prefix="here/{service}/",
    amqp_legacy_exchange_prefix="queue-of-2014/",
)
async def test_other_names_of_exchanges(queue: Queue) -> None:
    """S-056: references say what exchanges are called here, or what is made from them would hear nothing."""
    for path, prefix in (
        ("/references/scheduler/v1", "dummy-test-scheduler/"),
        ("/references/queue/v1", "here/queue/"),
        ("/references/auth/v1", "here/auth/"),
        ("/scheduler/v1", "dummy-test-scheduler/"),
        ("/queue/v1", "queue-of-2014/"),
    ):
        assert (await client(queue).get(f"{path}/exchanges.json")).json()["exchangePrefix"] == prefix


@pytest.mark.skipif(
    not SEED.is_file() and os.environ.get("CI") != "true",
    reason="the reference of the first release is not beside the checkout",
)
async def test_the_reference_of_the_first_release(queue: Queue) -> None:
    """S-056: every entry of it is there, with its route, arguments, scopes and schemas."""
    text = SEED.read_text(encoding="utf-8")
    start = text.index('"Scheduler": {') + len('"Scheduler": ')
    seed, end = json.JSONDecoder(strict=False).raw_decode(text, start)
    ours = (await client(queue).get("/references/scheduler/v1/api.json")).json()
    entries = {entry["name"]: entry for entry in ours["entries"]}
    theirs = seed["reference"]["entries"]
    assert [entry["name"] for entry in theirs] == [name for name in ROUTES if name != "inspectTask"]
    prefix = "http://schemas.taskcluster.net/scheduler/"
    for entry in theirs:
        mine = entries[entry["name"]]
        for key in ("type", "method", "route", "args"):
            assert mine[key] == entry[key]
        for key in ("input", "output"):
            if key in entry:
                assert mine[key].rstrip("#") == entry[key].removeprefix(prefix).rstrip("#")
        ((scope,),) = entry.get("scopes", [[None]])
        assert scope is None or scope in json.dumps(mine.get("scopes"))
        assert ("scopes" in mine) == ("scopes" in entry)
    # Its list of exchanges is cut off; what is left of it must agree.
    rest = text[end:]
    exchanges = (await client(queue).get("/references/scheduler/v1/exchanges.json")).json()
    assert f'"exchangePrefix": "{exchanges["exchangePrefix"]}"' in rest
    first = exchanges["entries"][0]
    assert f'"exchange": "{first["exchange"]}"' in rest and f'"name": "{first["name"]}"' in rest
    at = -1
    for word in WORDS[:7]:
        found = rest.find(f'"name": "{word}"', at + 1)
        assert found > at
        at = found


@pytest.mark.elder("scheduler.createTaskGraph")
async def test_the_address_of_before(queue: Queue) -> None:
    """S-057: `/v1/...` at a host named scheduler; the signature covers the path and the host that the client
    used."""
    request = graph({new_id(): []})
    value = writing.to_value(request)
    graph_id = value.pop("taskGraphId")
    content = writing.to_bytes(value, indent=False)
    door: Any = queue.door
    port = door.base.rpartition(":")[2]
    host = f"scheduler.example.net:{port}"
    path = f"/v1/task-graph/{graph_id}"
    kind = "application/json"

    async def send(signed_path: str, signed_host: str) -> httpx.Response:
        header = signature(queue.credentials, "PUT", f"http://{signed_host}{signed_path}", content, kind)
        headers = {"Content-Type": kind, "Authorization": header, "Host": host}
        return await client(queue).put(path, content=content, headers=headers)

    assert (await send(f"/api/scheduler{path}", host)).status_code == 401
    assert (await send(path, f"127.0.0.1:{port}")).status_code == 401
    answer = await send(path, host)
    assert answer.status_code == 200
    status = {"taskGraphId": graph_id, "schedulerId": SCHEDULER, "state": "running"}
    assert answer.json() == {"status": status}
    for name in ("status", "info", "inspect"):
        shown = await client(queue).get(f"{path}/{name}", headers={"Host": host})
        assert shown.json()["status"] == status
    assert (await client(queue).get("/v1/ping", headers={"Host": host})).json()["alive"] is True
    assert await state(queue, graph_id) == "running"


async def test_who_is_told_what(queue: Queue) -> None:
    """S-016: an answer without the right to it says nothing of the graph."""
    graph_id = await submit(queue, graph({new_id(): []}))
    answer = await client(queue).post(f"/api/scheduler/v1/task-graph/{graph_id}/extend", json={"tasks": []})
    assert answer.status_code == 403
    assert f"scheduler:extend-task-graph:{graph_id}" in answer.json()["message"]
