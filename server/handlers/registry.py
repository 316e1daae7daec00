"""Which function handles which rpc: found by name in the handler modules."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

from server.handlers import (
    artifact_reading,
    artifact_streams,
    artifacts,
    auth_access,
    auth_audit,
    auth_clients,
    auth_roles,
    claims,
    events,
    jobs,
    legacy_artifacts,
    legacy_claims,
    legacy_tasks,
    monitoring,
    objects,
    provisioners,
    runs,
    task_graph_reading,
    task_graphs,
    task_group_reading,
    task_groups,
    task_queues,
    task_reading,
    tasks,
    workers,
)
from server.methods import Method

#: The handler modules of each service, by its full name.
MODULES: dict[str, tuple[ModuleType, ...]] = {
    "tcqueue.v1.Auth": (auth_access, auth_audit, auth_clients, auth_roles, monitoring),
    "tcqueue.v1.JobQueue": (jobs,),
    "tcqueue.v1.LegacyQueue": (legacy_artifacts, legacy_claims, legacy_tasks, monitoring),
    "tcqueue.v1.Object": (monitoring, objects),
    "tcqueue.v1.Queue": (
        artifact_reading,
        artifact_streams,
        artifacts,
        claims,
        events,
        monitoring,
        provisioners,
        runs,
        task_group_reading,
        task_groups,
        task_queues,
        task_reading,
        tasks,
        workers,
    ),
    "tcqueue.v1.Scheduler": (monitoring, task_graph_reading, task_graphs),
}

#: A coroutine function, or an async generator function for an rpc that answers with a stream.
Handler = Callable[..., Any]


def find(service: str, methods: Iterable[Method]) -> dict[str, Handler]:
    """The handlers of a service, by rpc name; an rpc that nobody handles yet is missing.

    Raises RuntimeError if two modules handle one rpc, or a handler is not the kind its rpc needs.
    """
    found: dict[str, Handler] = {}
    for method in methods:
        name = method.handler_name
        for module in MODULES[service]:
            handler = vars(module).get(name)
            if handler is None or handler.__module__ != module.__name__:
                continue
            if method.name in found:
                other = found[method.name].__module__
                raise RuntimeError(f"{method.name} is handled twice: in {other} and in {module.__name__}")
            streams = method.server_streaming and not method.client_streaming
            if not (inspect.isasyncgenfunction if streams else inspect.iscoroutinefunction)(handler):
                raise RuntimeError(f"{module.__name__}.{name} cannot handle {method.name}")
            found[method.name] = handler
    return found
