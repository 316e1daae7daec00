"""The API as a page to read: one file, nothing fetched, a search box as its only script."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from itertools import groupby
from typing import Any

from server.references import api
from server.references.catalogue import Catalogue, Endpoint
from server.references.comments import comment
from server.references.html import element, inline, markdown, table, text
from server.references.openapi import operation_id
from server.version import version_object

Json = dict[str, Any]

_LIMITS = {
    "pattern": "{}",
    "format": "{}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minimum": "at least {}",
    "maximum": "at most {}",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
}


def render(catalogues: Sequence[Catalogue]) -> tuple[str, str]:
    """The page, and the content security policy that allows its own style and script and nothing else."""
    style, script = (files(__package__).joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    head = element(
        "head",
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">',
        element("title", "tcqueue API"),
        element("style", style),
    )
    body = element("body", _contents(catalogues), _main(catalogues), element("script", script))
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n", policy


def _hash(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def _categories(catalogue: Catalogue) -> list[tuple[str, list[Endpoint]]]:
    ordered = sorted(catalogue.endpoints, key=lambda e: _order(catalogue).index(e.rules.category))
    return [(category, list(group)) for category, group in groupby(ordered, lambda e: e.rules.category)]


def _order(catalogue: Catalogue) -> list[str]:
    """Categories as they come up, those about the service's own health last."""
    found = list(dict.fromkeys(endpoint.rules.category for endpoint in catalogue.endpoints))
    return sorted(found, key=lambda category: category == "Monitoring")


def _contents(catalogues: Sequence[Catalogue]) -> str:
    parts = [
        element("a", "tcqueue API", href="#top", class_="brand"),
        '<input type="search" placeholder="Search (press /)" aria-label="Search methods" autocomplete="off">',
    ]
    for catalogue in catalogues:
        for category, endpoints in _categories(catalogue):
            links = [
                _listed(operation_id(catalogue, e), e.rules.name, _searchable(catalogue, e))
                for e in endpoints
            ]
            title = element("h2", text(f"{catalogue.rules.name}: {category}"))
            parts.append(element("section", title, element("ul", *links), data_group=""))
        if catalogue.rules.exchanges:
            links = [
                _listed(_exchange_id(catalogue, e.name), e.name, f"{e.name} {e.title}".lower())
                for e in catalogue.rules.exchanges
            ]
            title = element("h2", text(f"{catalogue.rules.name}: exchanges"))
            parts.append(element("section", title, element("ul", *links), data_group=""))
    return element("nav", *parts, aria_label="Contents")


def _listed(anchor: str, name: str, searchable: str) -> str:
    return element("li", element("a", text(name), href=f"#{anchor}"), data_text=searchable)


def _main(catalogues: Sequence[Catalogue]) -> str:
    places = ["/openapi.json", "/references/manifest.json"]
    links = ", ".join(element("a", text(place), href=place) for place in places)
    parts = [
        element("h1", "tcqueue API", id="top"),
        element("p", f"Version {text(version_object()['version'])}. For programs: {links}."),
        element("p", "Nothing found.", id="none", hidden="hidden"),
    ]
    for catalogue in catalogues:
        intro = markdown(comment(catalogue.service.full_name))
        parts.append(element("section", element("h2", text(catalogue.rules.title)), intro))
        for category, endpoints in _categories(catalogue):
            articles = [_endpoint(catalogue, endpoint) for endpoint in endpoints]
            parts.append(element("section", element("h2", text(category)), *articles, data_group=""))
        parts.append(_exchanges(catalogue))
    return element("main", *parts)


def _endpoint(catalogue: Catalogue, endpoint: Endpoint) -> str:
    stability, verb = api.stability(endpoint), endpoint.http.verb.lower()
    anchor = operation_id(catalogue, endpoint)
    header = element(
        "header",
        element("h3", element("a", text(endpoint.rules.title), href=f"#{anchor}")),
        element("span", text(endpoint.rules.name), class_="name path"),
        "" if stability == "stable" else element("span", stability, class_=f"badge {stability}"),
        class_="entry",
    )
    path = f"/api/{catalogue.rules.name}/{catalogue.version}{api.route(catalogue, endpoint)}"
    route = element("div", element("span", verb, class_=f"verb {verb}"), text(path), class_="route path")
    parts = [header, route, markdown(comment(endpoint.descriptor.full_name)), _query(endpoint)]
    if endpoint.method.scopes is not None:
        scopes = endpoint.method.scopes.to_json()
        shown = scopes if isinstance(scopes, str) else json.dumps(scopes, indent=2)
        parts += [element("h4", "Scopes"), element("pre", text(shown))]
    if endpoint.input:
        parts.append(_schema(catalogue, endpoint.input, "Request body"))
    if endpoint.output:
        status = endpoint.http.success_status
        parts.append(_schema(catalogue, endpoint.output, f"Answer, {status}"))
    return element("article", *parts, id=anchor, data_text=_searchable(catalogue, endpoint))


def _searchable(catalogue: Catalogue, endpoint: Endpoint) -> str:
    scopes = "" if endpoint.method.scopes is None else json.dumps(endpoint.method.scopes.to_json())
    rules = endpoint.rules
    route = api.route(catalogue, endpoint)
    return (
        f"{rules.name} {rules.title} {endpoint.http.verb} {route} {api.stability(endpoint)} {scopes}".lower()
    )


def _query(endpoint: Endpoint) -> str:
    fields = endpoint.descriptor.input_type.fields_by_name
    rows = [
        [
            element("code", text(fields[name].camelcase_name)),
            inline(comment(f"{endpoint.descriptor.input_type.full_name}.{name}")),
        ]
        for name in endpoint.http.query
    ]
    return element("h4", "Query") + table(["name", "meaning"], rows) if rows else ""


def _schema(catalogue: Catalogue, name: str, title: str) -> str:
    schema = catalogue.schemas[name]
    link = element("a", text(f"{name}.json"), href=catalogue.schema_path(name))
    forms = schema.get("oneOf", [schema])
    tables = [_members(catalogue, form) for form in forms]
    return element(
        "details", element("summary", f"{text(title)}: {text(schema['title'])}"), element("p", link), *tables
    )


def _members(catalogue: Catalogue, schema: Json) -> str:
    if "properties" not in schema:
        return element("p", f"{_kind(catalogue, schema)}.")
    required = schema.get("required", [])
    rows = []
    for name, member in schema["properties"].items():
        star = ' <span class="required" title="required">*</span>' if name in required else ""
        rows.append(
            [
                element("code", text(name)) + star,
                _kind(catalogue, member),
                inline(member.get("description", "")),
            ]
        )
    return table(["member", "type", "meaning"], rows)


def _kind(catalogue: Catalogue, schema: Json) -> str:
    """A type in words, with its limits."""
    if "$ref" in schema:
        name = schema["$ref"].removesuffix(".json#")
        return element("a", text(name), href=catalogue.schema_path(name))
    if schema.get("type") == "array":
        return f"list of {_kind(catalogue, schema['items'])}{_limits(schema)}"
    if "enum" in schema:
        return " or ".join(element("code", text(value)) for value in schema["enum"])
    if "properties" in schema:
        return "object with " + ", ".join(element("code", text(name)) for name in schema["properties"])
    return text(schema.get("type", "anything")) + _limits(schema)


def _limits(schema: Json) -> str:
    limits = [
        element("code", text(schema[key])) if form == "{}" else text(form.format(schema[key]))
        for key, form in _LIMITS.items()
        if key in schema
    ]
    if "default" in schema:
        limits.append("default " + element("code", text(json.dumps(schema["default"]))))
    return f", {', '.join(limits)}" if limits else ""


def _exchange_id(catalogue: Catalogue, name: str) -> str:
    return f"exchange-{catalogue.rules.name}-{name}"


def _exchanges(catalogue: Catalogue) -> str:
    reference = api.exchanges(catalogue)
    if reference is None:
        return ""
    articles = []
    for entry in reference["entries"]:
        schema = entry["schema"].split("/")[-1].removesuffix(".json#")
        words = ".".join(
            word.get("constant") or (word["name"] if word["required"] else f"[{word['name']}]")
            for word in entry["routingKey"]
        )
        title = element("header", element("h3", text(entry["title"])), class_="entry")
        name = element("div", text(reference["exchangePrefix"] + entry["exchange"]), class_="route path")
        key = element("h4", "Routing key") + element("pre", text(words))
        articles.append(
            element(
                "article",
                title,
                name,
                markdown(entry["description"]),
                key,
                _schema(catalogue, schema, "Message"),
                id=_exchange_id(catalogue, entry["exchange"]),
                data_text=f"{entry['exchange']} {entry['title']}".lower(),
            )
        )
    intro = markdown(reference["description"])
    return element("section", element("h2", text(reference["title"])), intro, *articles, data_group="")
