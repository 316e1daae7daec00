"""Which method a request is for: routes from the proto's annotations, matched on the raw path (compat.md 3).

Paths are split on the literal `/` before anything is decoded, so that `%2F` inside an argument is no
separator, and each segment is decoded once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias
from urllib.parse import unquote_to_bytes

from server.methods import Method
from server.pipeline import Pipeline

_FIELD = re.compile(r"\{(\w+)(=\*\*)?\}")
_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")

#: What `/v1` stands for in URLs of before 2019, by the first label of the Host header (compat.md 1):
#: prefixes of templates, the best first. The queue of 2014 has templates that begin with `/v1` themselves.
_QUEUE = (("v1",), ("api", "queue", "v1"))
_AUTH = (("api", "auth", "v1"),)
_SCHEDULER = (("api", "scheduler", "v1"),)
_HOST_SERVICES = {"queue": _QUEUE, "auth": _AUTH, "scheduler": _SCHEDULER}
#: On any other host it is the queue, and what the queue does not know may be another's.
_BARE = (*_QUEUE, *_SCHEDULER, *_AUTH)


class MalformedPath(ValueError):
    """A path argument's percent-encoding says no text."""


@dataclass(frozen=True, slots=True)
class Route:
    """One verb of one path. `arguments` are the names of the path's arguments in their order, in
    lowerCamelCase; `fields` the request fields they fill."""

    method: Method
    pipeline: Pipeline
    fields: tuple[str, ...]
    arguments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """What a path leads to: a route for each verb, and the path's arguments, still encoded."""

    routes: Mapping[str, Route]
    texts: tuple[str, ...]


Choice: TypeAlias = tuple[Route, tuple[str, ...]]
"""A route with its path's arguments, still encoded."""


@dataclass(slots=True)
class _Node:
    """A place in the tree of segments. `rest` holds what follows an argument that spans segments: the
    literal segments behind it, and the routes."""

    literals: dict[str, _Node] = field(default_factory=dict)
    argument: _Node | None = None
    routes: dict[str, Route] = field(default_factory=dict)
    rest: list[tuple[tuple[str, ...], dict[str, Route]]] = field(default_factory=list)


class RouteTable:
    """All routes of all services."""

    def __init__(self, pipelines: Iterable[Pipeline]) -> None:
        """Raises ValueError when two methods have one place."""
        self._root = _Node()
        for pipeline in pipelines:
            for method in pipeline.methods.values():
                # What nobody handles yet is no route: clients would take a 501 for a fault that passes.
                if method.http is not None and pipeline.handles(method):
                    rule = method.http
                    for verb, template in ((rule.verb, rule.template), *rule.more_places):
                        self._add(method, pipeline, verb, template)

    def find(self, raw_path: str, host: str) -> Sequence[Place]:
        """The places a path leads to, the best first; most lead to one, unknown ones to none.

        `host` decides what `/v1/...` means: the service its first label names, else the queue and, for what
        the queue does not know, the scheduler and auth.
        """
        segments = raw_path.split("/")[1:]
        if segments[:1] != ["v1"]:
            return self._places(segments)
        prefixes = _HOST_SERVICES.get(host.partition(".")[0], _BARE)
        return [place for prefix in prefixes for place in self._places([*prefix, *segments[1:]])]

    def _places(self, segments: Sequence[str]) -> list[Place]:
        found: list[Place] = []
        _walk(self._root, segments, 0, (), found)
        if not found and len(segments) > 1 and segments[-1] == "":
            # A trailing slash is optional, except behind an argument that may hold slashes itself.
            _walk(self._root, segments[:-1], 0, (), found)
        return found

    def _add(self, method: Method, pipeline: Pipeline, verb: str, template: str) -> None:
        node, fields = self._root, []
        # One slash at the end is optional to us, whether the template has it or not.
        segments = template.rstrip("/").split("/")[1:]
        routes: dict[str, Route] | None = None
        for at, segment in enumerate(segments):
            matched = _FIELD.fullmatch(segment)
            if matched is None:
                node = node.literals.setdefault(segment, _Node())
                continue
            fields.append(matched[1])
            if matched[2]:
                routes = _rest_of(node, tuple(segments[at + 1 :]))
                break
            if node.argument is None:
                node.argument = _Node()
            node = node.argument
        if routes is None:
            routes = node.routes
        if verb in routes:
            raise ValueError(f"{method.full_name} and {routes[verb].method.full_name} have one route")
        names = method.request_class.DESCRIPTOR.fields_by_name
        arguments = tuple(names[name].camelcase_name for name in fields)
        routes[verb] = Route(method, pipeline, tuple(fields), arguments)


def routes_for(verb: str, places: Sequence[Place]) -> list[Choice]:
    """The routes for a verb, the best first; GET serves HEAD."""
    wanted = "GET" if verb == "HEAD" else verb
    return [(place.routes[wanted], place.texts) for place in places if wanted in place.routes]


def verbs(places: Iterable[Place]) -> list[str]:
    """The verbs that are served here, HEAD included, in alphabetical order."""
    served = {verb for place in places for verb in place.routes}
    return sorted(served | {"HEAD"} if "GET" in served else served)


def decode(text: str) -> str:
    """A path segment's or wildcard's text with its percent-encoding undone, once. Raises MalformedPath."""
    if "%" not in text and text.isascii():
        return text
    if _BROKEN_ESCAPE.search(text):
        raise MalformedPath("a % stands without two hexadecimal digits behind it")
    try:
        return unquote_to_bytes(text.encode("latin-1")).decode()
    except UnicodeError:
        raise MalformedPath("percent-encoded bytes are not UTF-8") from None


def _rest_of(node: _Node, suffix: tuple[str, ...]) -> dict[str, Route]:
    for known, routes in node.rest:
        if known == suffix:
            return routes
    routes = {}
    node.rest.append((suffix, routes))
    # The longest suffix first: `{queue=**}/counts` before `{queue=**}`.
    node.rest.sort(key=lambda entry: -len(entry[0]))
    return routes


def _walk(node: _Node, segments: Sequence[str], at: int, texts: tuple[str, ...], found: list[Place]) -> None:
    """Adds every place the segments lead to; literal segments come before arguments."""
    if at == len(segments):
        if node.routes:
            found.append(Place(node.routes, texts))
        return
    segment = segments[at]
    literal = node.literals.get(segment)
    if literal is not None:
        _walk(literal, segments, at + 1, texts, found)
    if node.argument is not None and segment:
        _walk(node.argument, segments, at + 1, (*texts, segment), found)
    for suffix, routes in node.rest:
        end = len(segments) - len(suffix)
        if end > at and tuple(segments[end:]) == suffix:
            found.append(Place(routes, (*texts, "/".join(segments[at:end]))))
