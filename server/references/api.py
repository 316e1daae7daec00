"""The references proper: a service's methods and exchanges as documents (compat.md 2)."""

from __future__ import annotations

import re
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from server.references import rules
from server.references.catalogue import Catalogue, Endpoint, message_named
from server.references.comments import comment
from tcqueue.v1 import options_pb2

Json = dict[str, Any]

_FIELD = re.compile(r"\{(\w+)(?:=[^}]*)?\}")


def camel_case(name: str) -> str:
    """`task_id` and `task-pending` as `taskId` and `taskPending`."""
    first, *rest = re.split("[_-]", name)
    return first + "".join(word.capitalize() for word in rest)


def stability(endpoint: Endpoint) -> str:
    """`stable`, `experimental` or `deprecated`."""
    return options_pb2.Stability.Name(endpoint.rules.stability).removeprefix("STABILITY_").lower()


def arguments(endpoint: Endpoint) -> list[str]:
    """The parameters of the route, in its order."""
    return [camel_case(name) for name in _FIELD.findall(endpoint.http.template)]


def route(catalogue: Catalogue, endpoint: Endpoint) -> str:
    """The route below the service's base, for instance `/task/<taskId>`."""
    base = f"/api/{catalogue.rules.name}/{catalogue.version}"
    return path(endpoint).removeprefix(base)


def path(endpoint: Endpoint) -> str:
    """The whole path, for instance `/api/queue/v1/task/<taskId>`."""
    return _FIELD.sub(lambda match: f"<{camel_case(match[1])}>", endpoint.http.template)


def api(catalogue: Catalogue) -> Json:
    """The reference of a service's methods."""
    return {
        "$schema": "/schemas/common/api-reference-v0.json#",
        "title": catalogue.rules.title,
        "description": comment(catalogue.service.full_name),
        "serviceName": catalogue.rules.name,
        "apiVersion": catalogue.version,
        "entries": [_entry(catalogue, endpoint) for endpoint in catalogue.endpoints],
    }


def exchanges(catalogue: Catalogue) -> Json | None:
    """The reference of a service's exchanges; None if it has none."""
    if not catalogue.rules.exchanges:
        return None
    return {
        "$schema": "/schemas/common/exchanges-reference-v0.json#",
        "title": catalogue.rules.exchanges_title,
        "description": catalogue.rules.exchanges_description,
        "serviceName": catalogue.rules.name,
        "apiVersion": catalogue.version,
        "exchangePrefix": catalogue.exchange_prefix,
        "entries": [_exchange(catalogue, exchange) for exchange in catalogue.rules.exchanges],
    }


def _entry(catalogue: Catalogue, endpoint: Endpoint) -> Json:
    found: Json = {
        "type": "function",
        "method": endpoint.http.verb.lower(),
        "route": route(catalogue, endpoint),
        "args": arguments(endpoint),
        "query": [camel_case(name) for name in endpoint.http.query],
        "name": endpoint.rules.name,
        "stability": stability(endpoint),
        "title": endpoint.rules.title,
        "description": comment(endpoint.descriptor.full_name),
        "category": endpoint.rules.category,
    }
    if endpoint.input:
        found["input"] = f"{catalogue.version}/{endpoint.input}.json#"
    if endpoint.output:
        found["output"] = f"{catalogue.version}/{endpoint.output}.json#"
    if endpoint.method.scopes is not None:
        found["scopes"] = endpoint.method.scopes.to_json()
    return found


def _exchange(catalogue: Catalogue, exchange: options_pb2.Exchange) -> Json:
    payload = message_named(catalogue.service, exchange.payload)
    schema = payload.GetOptions().Extensions[options_pb2.message].schema
    words = message_named(catalogue.service, exchange.routing_key).fields
    return {
        "type": "topic-exchange",
        "exchange": exchange.name,
        "name": camel_case(exchange.name),
        "title": exchange.title,
        "description": exchange.description,
        "routingKey": [_word(field, field.name in exchange.required_words) for field in words],
        "schema": f"{catalogue.version}/{schema}.json#",
    }


def _word(field: FieldDescriptor, required: bool) -> Json:
    rule = rules.validation(field)
    found: Json = {
        "name": field.camelcase_name,
        "summary": comment(field.full_name),
        "multipleWords": rules.own_rules(field).multiple_words,
        "required": required or rule.required or rule.string.HasField("const"),
    }
    if rule.string.HasField("const"):
        found["constant"] = rule.string.const
    return found
