"""Compares our references and schemas with those of another deployment, by meaning rather than by letter.

A difference is one line of text: where it is, what it is. Texts for people are not compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Json = Any
Load = Callable[[str], Json]
"""Reads the schema of a path such as `/schemas/queue/v1/task.json`."""

_IGNORED = frozenset({"$schema", "$id", "title", "description"})
_UNORDERED = frozenset({"required", "enum"})
_STARRED = re.compile(r"\^\(?(\[[^]]*\])\*\)?\$")


def resolved(schema: Json, path: str, load: Load) -> Json:
    """The schema with every reference replaced by what it names, and members beside a reference added."""
    if isinstance(schema, list):
        return [resolved(item, path, load) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    if isinstance(reference := schema.get("$ref"), str):
        name, _, pointer = reference.partition("#")
        target = path.rsplit("/", 1)[0] + "/" + name.removeprefix("./") if name else path
        value = load(target)
        for part in filter(None, pointer.split("/")):
            value = value[part]
        beside = {key: value for key, value in schema.items() if key != "$ref"}
        return {**resolved(value, target, load), **resolved(beside, path, load)}
    return {key: resolved(value, path, load) for key, value in schema.items()}


def normalised(schema: Json) -> Json:
    """The schema in one spelling: what means the same looks the same."""
    if isinstance(schema, list):
        return [normalised(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    found = {key: value for key, value in schema.items() if key not in _IGNORED or isinstance(value, Mapping)}
    for key in ("properties", "definitions"):
        if key in found:
            found[key] = {name: normalised(value) for name, value in found[key].items()}
    for key in ("items", "additionalProperties", "oneOf", "anyOf", "allOf"):
        if key in found:
            found[key] = normalised(found[key])
    if "const" in found:
        found["enum"] = [found.pop("const")]
        found.setdefault("type", "string")
    if found.get("uniqueItems") is False:
        del found["uniqueItems"]
    if found.get("minLength") == 0:
        del found["minLength"]
    for key in _UNORDERED & found.keys():
        found[key] = sorted(found[key], key=str)
    if found.get("required") == []:
        del found["required"]
    if "pattern" in found:
        _one_pattern(found)
    if "oneOf" in found:
        found["oneOf"] = {_variant(value): value for value in found["oneOf"]}
    return found


def _one_pattern(schema: dict[str, Json]) -> None:
    """One spelling of a text's language, lengths inside the pattern where it is one class repeated."""
    pattern = schema["pattern"].replace("0-9-_", "0-9_-").replace("[ -~]", r"[\x20-\x7e]").replace(r"\/", "/")
    starred = _STARRED.fullmatch(pattern)
    if starred and "minLength" in schema and "maxLength" in schema:
        pattern = f"^{starred[1]}{{{schema.pop('minLength')},{schema.pop('maxLength')}}}$"
    schema["pattern"] = pattern


def _variant(schema: Mapping[str, Json]) -> str:
    """A name for one form of a choice: the constants in it."""
    constants = {
        name: value["enum"]
        for name, value in schema.get("properties", {}).items()
        if len(value.get("enum", ())) == 1
    }
    return json.dumps(constants or schema, sort_keys=True)


def differences(theirs: Json, ours: Json, where: str) -> Iterator[str]:
    """What is not equal in two JSON values."""
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        for key in sorted(theirs.keys() | ours.keys()):
            here = f"{where}/{key}"
            if key not in ours:
                yield f"{here}: only theirs: {_shown(theirs[key])}"
            elif key not in theirs:
                yield f"{here}: only ours: {_shown(ours[key])}"
            else:
                yield from differences(theirs[key], ours[key], here)
    elif theirs != ours:
        yield f"{where}: theirs {_shown(theirs)}, ours {_shown(ours)}"


def _shown(value: Json) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 160 else f"{text[:157]}..."
