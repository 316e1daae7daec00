"""What the proto files say of each method, read once from the descriptors: scopes, class, paths.

The rest of the server asks here; no method's rules are written down anywhere else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from google.api import annotations_pb2
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from server.domain import scope_expressions
from tcqueue.v1 import options_pb2

_PATH_FIELD = re.compile(r"\{(\w+)(?:=[^}]*)?\}")
_WORD = re.compile(r"(?<!^)(?=[A-Z])")


@dataclass(frozen=True, slots=True)
class HttpRule:
    """A method's place on the HTTP door, from google.api.http and our own options.

    `template` is the whole path with `{field}` or `{field=**}` in it; `body` the request field that the
    JSON body fills, `*` for the message itself, empty for none; `query` the fields that the query string
    fills; `response_body` the response field that is the JSON answer, empty for the message itself;
    `unchecked_body` names fields that a body may carry although the method asks for none; `headers` are
    the request fields that headers fill. `redirect` is the response field that the answer leads to, empty
    for none, and `response_headers` are further headers of the answer with the fields that fill them; an
    answer with `empty_body` has nothing else. Requests whose body has one of `yields_with`, or with
    `yields_without_body` none at all, are for the next method of the same path. `legacy` says that clients
    of 2014 know it. `echoed` are members of the body that the answer repeats as they were sent.
    `more_places` are further verbs and templates under which the same is served, with the same fields.
    """

    verb: str
    template: str
    body: str
    query: tuple[str, ...]
    response_body: str
    success_status: int
    unchecked_body: tuple[str, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    redirect: str = ""
    response_headers: tuple[tuple[str, str], ...] = ()
    more_places: tuple[tuple[str, str], ...] = ()
    event_stream: options_pb2.EventStreamRules | None = None
    empty_body: bool = False
    yields_with: frozenset[str] = frozenset()
    yields_without_body: bool = False
    legacy: bool = False
    echoed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Method:
    """One rpc. `scopes` is None for a public method; `early` is class U of queue.md 3: its scopes need
    nothing but request fields that a URL path carries, and the `body_lists`, so they are checked before
    anything else. `body_lists` are the JSON names of the lists of texts in the body that they need then."""

    name: str
    full_name: str
    service: str
    reference_name: str
    handler_name: str
    request_class: type[Message]
    response_class: type[Message]
    client_streaming: bool
    server_streaming: bool
    scopes: scope_expressions.CompiledExpression | None
    early: bool
    body_lists: tuple[str, ...]
    path_fields: frozenset[str]
    http: HttpRule | None
    read_parameters: Callable[[Any], Mapping[str, Any]]

    @property
    def streaming(self) -> bool:
        """Whether either side is a stream."""
        return self.client_streaming or self.server_streaming


def read_service(service: ServiceDescriptor) -> dict[str, Method]:
    """The methods of a service by name."""
    return {method.name: _read(method) for method in service.methods}


def _read(descriptor: MethodDescriptor) -> Method:
    options = descriptor.GetOptions()
    rules = options.Extensions[options_pb2.method]
    http = options.Extensions[annotations_pb2.http]
    pattern = http.WhichOneof("pattern")
    path_fields = frozenset(_PATH_FIELD.findall(getattr(http, pattern))) if pattern else frozenset()
    scopes = scope_expressions.compile(_expression(rules.scopes)) if rules.HasField("scopes") else None
    scalars = {
        field.camelcase_name: field
        for field in descriptor.input_type.fields
        if field.message_type is None and not field.is_repeated
    }
    lists = {
        field.camelcase_name: field
        for field in descriptor.input_type.fields
        if rules.scopes_first and field.is_repeated and field.cpp_type == FieldDescriptor.CPPTYPE_STRING
    }
    parameters = sorted(scopes.parameters) if scopes else []
    known = [scalars[p].name for p in parameters if p in scalars]
    body_lists = tuple(p for p in parameters if p in lists)
    early = (
        scopes is not None
        and not rules.deferred
        and not descriptor.client_streaming
        and len(known) + len(body_lists) == len(parameters)
        and (not pattern or path_fields.issuperset(known))
    )
    fields = {**scalars, **lists}
    return Method(
        name=descriptor.name,
        full_name=f"/{descriptor.containing_service.full_name}/{descriptor.name}",
        service=descriptor.containing_service.GetOptions().Extensions[options_pb2.service].name,
        reference_name=rules.name,
        handler_name=_WORD.sub("_", descriptor.name).lower(),
        request_class=GetMessageClass(descriptor.input_type),
        response_class=GetMessageClass(descriptor.output_type),
        client_streaming=descriptor.client_streaming,
        server_streaming=descriptor.server_streaming,
        scopes=scopes,
        early=early,
        body_lists=body_lists,
        path_fields=path_fields or frozenset(known if early else ()),
        http=_http_rule(descriptor, http, rules, path_fields) if pattern else None,
        read_parameters=_reader([(p, fields[p]) for p in parameters]) if early else _no_parameters,
    )


def _http_rule(
    descriptor: MethodDescriptor, http: Any, rules: options_pb2.MethodRules, path_fields: frozenset[str]
) -> HttpRule:
    verb = http.WhichOneof("pattern")
    headers = {
        field.name: field.GetOptions().Extensions[options_pb2.field].header
        for field in descriptor.input_type.fields
        if field.GetOptions().Extensions[options_pb2.field].header
    }
    texts = {
        field.name
        for field in descriptor.input_type.fields
        if field.cpp_type == FieldDescriptor.CPPTYPE_STRING
    }
    elsewhere = path_fields | set(rules.unchecked_body) | (headers.keys() - texts)
    names = [field.name for field in descriptor.input_type.fields if field.name not in elsewhere]
    if http.body == "*":
        query = [name for name in names if name in rules.query]
    elif http.body:
        query = [name for name in names if name != http.body]
    else:
        query = names
    return HttpRule(
        verb=verb.upper(),
        template=getattr(http, verb),
        body=http.body,
        query=tuple(query),
        response_body=http.response_body,
        success_status=rules.success_status or 200,
        unchecked_body=tuple(rules.unchecked_body),
        headers=tuple(sorted(headers.items())),
        redirect=rules.redirect,
        response_headers=tuple(sorted(rules.response_headers.items())),
        more_places=tuple(map(_place, http.additional_bindings)),
        event_stream=rules.event_stream if rules.HasField("event_stream") else None,
        empty_body=rules.empty_body,
        echoed=tuple(descriptor.input_type.fields_by_name[name].camelcase_name for name in rules.echoed),
        yields_with=frozenset(rules.yields_with),
        yields_without_body=rules.yields_without_body,
        legacy=rules.legacy,
    )


def _place(http: Any) -> tuple[str, str]:
    verb = http.WhichOneof("pattern")
    return verb.upper(), getattr(http, verb)


def _no_parameters(_: Any) -> Mapping[str, Any]:
    return {}


def _reader(fields: Iterable[tuple[str, FieldDescriptor]]) -> Callable[[Any], Mapping[str, Any]]:
    names = [(parameter, field.name) for parameter, field in fields]

    def read(request: Any) -> Mapping[str, Any]:
        return {parameter: getattr(request, name) for parameter, name in names}

    return read


def _expression(proto: options_pb2.ScopeExpression) -> scope_expressions.Expression:
    form = proto.WhichOneof("form")
    if form == "scope":
        return scope_expressions.Scope(proto.scope)
    if form == "all_of":
        return scope_expressions.AllOf(tuple(_expression(part) for part in proto.all_of.of))
    if form == "any_of":
        return scope_expressions.AnyOf(tuple(_expression(part) for part in proto.any_of.of))
    each = proto.for_each
    return scope_expressions.ForEach(each.variable, getattr(each, "in"), each.each)
