"""The schemas of the references themselves, under `/schemas/common`: what readers may rely on.

Written from the format (compat.md 2), in the words of JSON schema draft 06.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]

_DRAFT = "http://json-schema.org/draft-06/schema#"
_STRING: Json = {"type": "string"}
_BOOLEAN: Json = {"type": "boolean"}
_VERBS = (
    "get post put head delete options trace copy lock mkcol move purge propfind proppatch unlock report "
    "mkactivity checkout merge m-search notify subscribe unsubscribe patch search"
).split()
_PARAMETER: Json = {"type": "string", "pattern": "^[a-zA-Z][a-zA-Z0-9_]*$"}
_TEMPLATE: Json = {"type": "string", "pattern": "^[\\x20-\\x7e]*$"}


def _object(needed: str, more: Mapping[str, Json] | None = None, /, **properties: Json) -> Json:
    """A closed object; `needed` names the members that must be there, apart by spaces."""
    return {
        "type": "object",
        "properties": {**properties, **(more or {})},
        "required": needed.split(),
        "additionalProperties": False,
    }


def _list(items: Json) -> Json:
    return {"type": "array", "items": items, "uniqueItems": True}


def _head() -> dict[str, Json]:
    """What both references begin with."""
    return {
        "$schema": {"type": "string", "description": "The format of this document."},
        "serviceName": {
            "type": "string",
            "pattern": "^[a-z][a-z0-9_-]*$",
            "minLength": 1,
            "maxLength": 22,
            "description": "The service, as paths name it.",
        },
        "apiVersion": {
            "type": "string",
            "pattern": "^v[0-9]+$",
            "description": "Version of the service's API.",
        },
        "title": {"type": "string", "description": "One line for people."},
        "description": {"type": "string", "description": "What it is for, markdown."},
    }


def _api() -> Json:
    template = {"$ref": "#/definitions/template"}
    some = {"$ref": "#/definitions/condition"}
    entry = _object(
        "type method route args name stability title description category",
        type={"enum": ["function"], "type": "string"},
        method={"enum": _VERBS, "type": "string", "description": "HTTP verb, lower case."},
        route={"type": "string", "description": "Path below the service's base; arguments in `<>`."},
        args={**_list(_STRING), "description": "Arguments of the route, in its order."},
        query={**_list(_STRING), "description": "Query parameters; none is ever required."},
        name={"type": "string", "description": "Name of the method in client libraries."},
        stability={"enum": ["stable", "experimental", "deprecated"], "type": "string"},
        title=_STRING,
        description={"type": "string", "description": "What the method does, markdown."},
        category={"type": "string", "description": "Heading under which to list it."},
        input={"type": "string", "description": "Schema of the body, below `/schemas/<serviceName>/`."},
        output={"type": "string", "description": "Schema of the reply, or `blob`."},
        scopes={
            "description": "What the caller must hold; absent for public methods.",
            "anyOf": [_TEMPLATE, some],
        },
    )
    return {
        **_object(
            "$schema title description serviceName apiVersion entries",
            _head(),
            entries={**_list(entry), "description": "The methods."},
        ),
        "definitions": {
            "template": {
                "title": "A scope, or what stands for several",
                "anyOf": [
                    _TEMPLATE,
                    some,
                    _object("for in each", {"for": _PARAMETER, "in": _PARAMETER, "each": _TEMPLATE}),
                ],
            },
            "condition": {
                "title": "All of, any of, one or the other",
                "oneOf": [
                    _object("AllOf", AllOf=_list(template)),
                    _object("AnyOf", AnyOf=_list(template)),
                    _object("if then", {"if": _PARAMETER, "then": template, "else": template}),
                ],
            },
        },
    }


def _exchanges() -> Json:
    word = _object(
        "name summary multipleWords required",
        name=_STRING,
        summary={"type": "string", "description": "What the word says, markdown."},
        constant={"type": "string", "description": "The one value it has."},
        multipleWords={**_BOOLEAN, "description": "It may hold several words with dots between."},
        required={**_BOOLEAN, "description": "It always has a value; else `_` may stand for none."},
    )
    entry = _object(
        "type exchange name title description routingKey schema",
        type={"enum": ["topic-exchange"], "type": "string"},
        exchange={"type": "string", "description": "Name on the broker, after `exchangePrefix`."},
        name={"type": "string", "description": "Name in client libraries."},
        title=_STRING,
        description={"type": "string", "description": "When a message is published, markdown."},
        routingKey={**_list(word), "description": "Words of the routing key, in order."},
        schema={"type": "string", "description": "Schema of the messages, below `/schemas/<serviceName>/`."},
    )
    return _object(
        "$schema title description serviceName apiVersion exchangePrefix entries",
        _head(),
        exchangePrefix={"type": "string", "description": "What the exchanges' names begin with."},
        entries={**_list(entry), "description": "The exchanges."},
    )


def _named(name: str, title: str, schema: Json, format_name: str, version: int) -> Json:
    return {
        "$schema": "/schemas/common/metadata-metaschema.json#",
        "$id": f"/schemas/common/{name}.json#",
        "title": title,
        "metadata": {"name": format_name, "version": version},
        **schema,
    }


def common() -> dict[str, Json]:
    """Every schema under `/schemas/common`, by name."""
    manifest = _object(
        "references",
        {"$schema": _STRING},
        references={**_list(_STRING), "description": "Where the references are, relative or absolute."},
    )
    metadata = _object("name version", name=_STRING, version={"type": "integer"})
    return {
        "metaschema": {
            "$schema": _DRAFT,
            "$id": "/schemas/common/metaschema.json#",
            "title": "Format of schemas: JSON schema, draft 06",
            "$ref": _DRAFT,
        },
        "metadata-metaschema": {
            "$schema": "/schemas/common/metaschema.json#",
            "$id": "/schemas/common/metadata-metaschema.json#",
            "title": "Format of schemas of references: draft 06 with name and version",
            "allOf": [
                {"$ref": "metaschema.json#"},
                {"type": "object", "properties": {"metadata": metadata}, "required": ["metadata"]},
            ],
        },
        "manifest-v3": _named("manifest-v3", "List of references", manifest, "manifest", 3),
        "api-reference-v0": _named("api-reference-v0", "Methods of a service", _api(), "api", 0),
        "exchanges-reference-v0": _named(
            "exchanges-reference-v0", "Exchanges of a service", _exchanges(), "exchanges", 0
        ),
    }
