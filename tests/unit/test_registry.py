"""Handlers are found by name."""

from __future__ import annotations

from types import ModuleType

import pytest

from server.handlers import registry
from server.methods import read_service
from tcqueue.v1 import queue_service_pb2

SERVICE = queue_service_pb2.DESCRIPTOR.services_by_name["Queue"].full_name
METHODS = read_service(queue_service_pb2.DESCRIPTOR.services_by_name["Queue"])


def test_every_method_has_its_handler() -> None:
    """All but the artifacts, which come later."""
    missing = set(METHODS) - set(registry.find(SERVICE, METHODS.values()))
    assert all("Artifact" in name for name in missing), missing


def _module(name: str, source: str) -> ModuleType:
    module = ModuleType(name)
    exec(source, vars(module))
    return module


def test_two_handlers_for_one_method(monkeypatch: pytest.MonkeyPatch) -> None:
    source = "async def ping(call, request): ..."
    monkeypatch.setattr(registry, "MODULES", {SERVICE: (_module("one", source), _module("two", source))})
    with pytest.raises(RuntimeError, match="Ping is handled twice: in one and in two"):
        registry.find(SERVICE, METHODS.values())


def test_what_is_merely_imported_handles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    one = _module("one", "async def ping(call, request): ...")
    two = _module("two", "")
    vars(two)["ping"] = vars(one)["ping"]
    monkeypatch.setattr(registry, "MODULES", {SERVICE: (one, two)})
    assert registry.find(SERVICE, METHODS.values()) == {"Ping": vars(one)["ping"]}


@pytest.mark.parametrize("source", ["def ping(call, request): ...", "async def ping(call, request): yield 1"])
def test_handlers_of_the_wrong_kind(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.setattr(registry, "MODULES", {SERVICE: (_module("one", source),)})
    with pytest.raises(RuntimeError):
        registry.find(SERVICE, METHODS.values())
