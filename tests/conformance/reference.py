"""The reference's own schemas and API descriptions, in a folder beside the checkout; empty without it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT7

ROOT = Path(__file__).parents[2].parent / "shared/data/taskcluster-v106"

_DRAFT7_ID = "http://json-schema.org/draft-07/schema#"


@cache
def validator(name: str) -> jsonschema.Draft7Validator | None:
    """The validator of a schema such as `queue/v1/task-status.json`; None where it is not at hand."""
    if not (ROOT / "schemas" / name).is_file():
        return None
    return jsonschema.Draft7Validator(
        {"$ref": f"/schemas/{name}#"}, registry=_registry(), format_checker=jsonschema.FormatChecker()
    )


@cache
def outputs() -> Mapping[tuple[str, str], str]:
    """The schema of each method's answer, by service and method name."""
    found = {}
    for path in sorted(ROOT.glob("references/*/v1/api.json")):
        service = path.parts[-3]
        for entry in json.loads(path.read_text(encoding="utf-8"))["entries"]:
            if str(entry.get("output", "")).startswith("v1/"):
                found[service, entry["name"]] = f"{service}/{entry['output'].removesuffix('#')}"
    return found


@cache
def _registry() -> Registry[Any]:
    registry: Registry[Any] = Registry()
    for path in ROOT.glob("schemas/*/v1/*.json"):
        schema = json.loads(path.read_text(encoding="utf-8"))
        resource = Resource.from_contents({**schema, "$schema": _DRAFT7_ID}, default_specification=DRAFT7)
        registry = registry.with_resource(schema["$id"].removesuffix("#"), resource)
    return registry
