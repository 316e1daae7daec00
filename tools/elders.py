"""The calls of the older interfaces, and the tests that are about each: the table of docs/elders.md.

Calls come from the proto, tests from their marks (`@pytest.mark.elder("queue.createTask")`). A call without a
test, or a mark that names no call, is an error.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.descriptor import ServiceDescriptor

from server.app import ELDERS, JOB_QUEUE, SERVICES
from server.methods import read_service
from server.references.api import camel_case, path
from server.references.catalogue import Catalogue

ROOT = Path(__file__).resolve().parent.parent

SEEDS = {
    "auth": "API reference of 2014, Auth",
    "queue": "API reference of 2014, Queue",
    "scheduler": "API reference of 2014, Scheduler",
    "jobqueue": "job queue's README of January 2014",
}
"""What describes each interface."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call of an older interface."""

    service: str
    name: str
    verb: str
    route: str

    @property
    def key(self) -> str:
        """What marks call it."""
        return f"{self.service}.{self.name}"


def calls() -> Iterator[Call]:
    """All of them."""
    for service in (*SERVICES, *ELDERS):
        yield from _jobs(service) if service == JOB_QUEUE else _calls(service)


def _jobs(service: ServiceDescriptor) -> Iterator[Call]:
    """Those of the job queue, which has no reference."""
    for method in read_service(service).values():
        rule = method.http
        assert rule is not None
        for verb, template in ((rule.verb, rule.template), *rule.more_places):
            route = template.replace("{job_id}", "<uuid>")
            yield Call("jobqueue", method.name[0].lower() + method.name[1:], verb, route)


def _calls(service: ServiceDescriptor) -> Iterator[Call]:
    catalogue = Catalogue(service)
    name, version = catalogue.rules.name, catalogue.version
    for endpoint in catalogue.endpoints:
        if endpoint.rules.legacy:
            route = path(endpoint).removeprefix(f"/api/{name}/{version}").removeprefix("/v1")
            yield Call(name, endpoint.rules.name, endpoint.http.verb, f"/v1{route}")
    if catalogue.rules.legacy.exchanges:
        for exchange in catalogue.rules.exchanges:
            yield Call(
                name, camel_case(exchange.name), "exchange", catalogue.rules.exchange_prefix + exchange.name
            )


def tests() -> dict[str, list[str]]:
    """The tests by the calls that they are marked with, as `<file>::<name>`."""
    found: dict[str, list[str]] = defaultdict(list)
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for decorator in node.decorator_list:
                    for key in _marked(decorator):
                        found[key].append(f"{file.relative_to(ROOT / 'tests')}::{node.name}")
    return found


def _marked(decorator: ast.expr) -> Iterator[str]:
    if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.elder":
        for node in ast.walk(decorator):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def calls_table() -> str:
    """The table. Raises ValueError for a call without a test, and for a mark without a call."""
    marked = tests()
    known = list(calls())
    untested = [call.key for call in known if call.key not in marked]
    strange = sorted(marked.keys() - {call.key for call in known})
    if untested or strange:
        raise ValueError(f"calls without tests: {untested}; marks that name no call: {strange}")
    lines = ["| seed | call | route | tests |", "|---|---|---|---|"]
    for call in known:
        shown = "<br>".join(f"`{test}`" for test in marked[call.key])
        lines.append(f"| {SEEDS[call.service]} | {call.name} | `{call.verb} {call.route}` | {shown} |")
    return "\n".join(lines)
