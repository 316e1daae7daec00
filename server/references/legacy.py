"""The references in the form of 2014, which clients of that time were made from (compat.md 2).

They lie where they lay then, below the hosts of that time: `/queue/v1/api.json`, `/queue/v1/exchanges.json`,
and the schemas beside them.
"""

from __future__ import annotations

from itertools import product
from typing import Any

from server.domain.scope_expressions import AllOf, AnyOf, Expression, ForEach, Scope
from server.references import rules
from server.references.api import Json, arguments, camel_case, path
from server.references.catalogue import Catalogue, Endpoint, message_named
from server.references.comments import comment
from tcqueue.v1 import options_pb2

VERSION = "0.2.0"
"""The form's own version."""

_SCHEMAS = "http://schemas.taskcluster.net"
_MAX_SIZE = 22
"""Longest word of a routing key in 2014, but for those below."""

_RUN_ID_SIZE = 3


def documents(catalogue: Catalogue) -> dict[str, Json]:
    """A service's documents of 2014 by path; none for one that is younger."""
    legacy = catalogue.rules.legacy
    if not legacy.base_url:
        return {}
    folder = f"/{catalogue.rules.name}/{catalogue.version}"
    found = {f"{folder}/api.json": _api(catalogue, folder)}
    if legacy.exchanges:
        found[f"{folder}/exchanges.json"] = _exchanges(catalogue, folder)
    for name, schema in catalogue.schemas.items():
        found[f"{folder}/{name}.json"] = {
            **schema,
            "$schema": "http://json-schema.org/draft-06/schema#",
            "$id": _schema(folder, name),
        }
    return found


def schema_id(catalogue: Catalogue, name: str) -> str:
    """What a schema was called."""
    return _schema(f"/{catalogue.rules.name}/{catalogue.version}", name)


def _schema(folder: str, name: str) -> str:
    return f"{_SCHEMAS}{folder}/{name}.json#"


def _api(catalogue: Catalogue, folder: str) -> Json:
    return {
        "version": VERSION,
        "title": catalogue.rules.title,
        "description": comment(catalogue.service.full_name),
        "baseUrl": catalogue.rules.legacy.base_url,
        "entries": [_entry(folder, endpoint) for endpoint in catalogue.endpoints if endpoint.rules.legacy],
    }


def _entry(folder: str, endpoint: Endpoint) -> Json:
    found: Json = {
        "type": "function",
        "method": endpoint.http.verb.lower(),
        "route": _route(folder, endpoint),
        "args": arguments(endpoint),
        "name": endpoint.rules.name,
        "title": endpoint.rules.title,
        "description": comment(endpoint.descriptor.full_name),
    }
    if endpoint.method.scopes is not None:
        found["scopes"] = alternatives(endpoint.method.scopes.expression)
    if endpoint.input:
        found["input"] = _schema(folder, endpoint.input)
    if endpoint.output:
        found["output"] = _schema(folder, endpoint.output)
    return found


def _route(folder: str, endpoint: Endpoint) -> str:
    """The route below the base URL of 2014."""
    return path(endpoint).removeprefix(f"/api{folder}").removeprefix("/v1")


def alternatives(expression: Expression) -> list[list[str]]:
    """An expression as a list of sets of scopes, one of which must be held whole. Scopes for each item of a
    list could not be said in that form; texts told of them."""
    return [list(dict.fromkeys(one)) for one in _alternatives(expression)]


def _alternatives(expression: Expression) -> list[list[str]]:
    match expression:
        case Scope(template):
            return [[template]]
        case AllOf(parts):
            chosen = product(*(_alternatives(part) for part in parts))
            return [[scope for part in one for scope in part] for one in chosen]
        case AnyOf(parts):
            return [one for part in parts for one in _alternatives(part)]
        case ForEach():
            return [[]]


def _exchanges(catalogue: Catalogue, folder: str) -> Json:
    return {
        "version": VERSION,
        "title": catalogue.rules.exchanges_title,
        "description": catalogue.rules.exchanges_description,
        "exchangePrefix": catalogue.exchange_prefix,
        "entries": [_exchange(catalogue, folder, exchange) for exchange in catalogue.rules.exchanges],
    }


def _exchange(catalogue: Catalogue, folder: str, exchange: options_pb2.Exchange) -> Json:
    payload = message_named(catalogue.service, exchange.payload)
    words = message_named(catalogue.service, exchange.routing_key).fields
    return {
        "type": "topic-exchange",
        "exchange": exchange.name,
        "name": camel_case(exchange.name),
        "title": exchange.title,
        "description": exchange.description,
        "routingKey": [_word(field, field.name in exchange.required_words) for field in words],
        "schema": _schema(folder, payload.GetOptions().Extensions[options_pb2.message].schema),
    }


def _word(field: Any, required: bool) -> Json:
    rule = rules.validation(field)
    several = rules.own_rules(field).multiple_words
    found: Json = {
        "name": field.camelcase_name,
        "summary": comment(field.full_name),
        "required": required or rule.required or rule.string.HasField("const"),
        "multipleWords": several,
        "maxSize": 1 if several else _RUN_ID_SIZE if field.name == "run_id" else _MAX_SIZE,
    }
    if rule.string.HasField("const"):
        found["constant"] = rule.string.const
        found["maxSize"] = len(rule.string.const)
    return found
