"""Which schemas a service publishes: what its methods take and answer, and what its exchanges carry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor, ServiceDescriptor

from server import methods
from server.references import schemas
from server.references.comments import comment
from tcqueue.v1 import event_payload_pb2, legacy_event_payload_pb2, options_pb2

Json = dict[str, Any]

# Loads the payloads, which no method mentions.
_PACKAGE = event_payload_pb2.DESCRIPTOR.package
assert legacy_event_payload_pb2.DESCRIPTOR.package == _PACKAGE


class Conflict(Exception):
    """Two messages claim one schema name and differ in shape: a mistake in the proto."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A method with a place on the HTTP door. `input` and `output` are schema names, None for no body
    or one that is not published."""

    descriptor: MethodDescriptor
    method: methods.Method
    rules: options_pb2.MethodRules
    input: str | None
    output: str | None

    @property
    def http(self) -> methods.HttpRule:
        """Its route."""
        assert self.method.http is not None
        return self.method.http


class Catalogue:
    """A service, its endpoints in the order of the proto, and its schemas by name."""

    def __init__(self, service: ServiceDescriptor, exchange_prefix: str = "") -> None:
        """`exchange_prefix` is what the settings say; empty: what the proto does."""
        self.service = service
        self.rules: options_pb2.ServiceRules = service.GetOptions().Extensions[options_pb2.service]
        self.exchange_prefix = exchange_prefix or self.rules.exchange_prefix
        self.schemas: dict[str, Json] = {}
        self.endpoints = list(self._endpoints())
        for exchange in self.rules.exchanges:
            self._reply(message_named(service, exchange.payload))

    @property
    def version(self) -> str:
        """For instance `v1`."""
        return self.rules.version

    def schema_path(self, name: str) -> str:
        """Where a schema is served, for instance `/schemas/queue/v1/task-status.json`."""
        return f"/schemas/{self.rules.name}/{self.version}/{name}.json"

    def _endpoints(self) -> Iterator[Endpoint]:
        known = methods.read_service(self.service)
        for descriptor in self.service.methods:
            method = known[descriptor.name]
            rules = descriptor.GetOptions().Extensions[options_pb2.method]
            if method.http is None or not rules.name:
                continue
            yield Endpoint(
                descriptor,
                method,
                rules,
                self._input(descriptor, method, method.http),
                self._output(descriptor, method.http),
            )

    def _input(
        self, descriptor: MethodDescriptor, method: methods.Method, http: methods.HttpRule
    ) -> str | None:
        if not http.body:
            return None
        message, without = descriptor.input_type, {*method.path_fields, *http.query}
        if http.body != "*":
            message, without = message_of(message.fields_by_name[http.body]), set()
        options = schemas.message_rules(message)
        name = options.request_schema or options.schema
        if name:
            writer = schemas.Writer(self._refer_request, request=True)
            title = options.request_title or options.title
            self._add(name, title, message, writer.body(message, without))
        return name or None

    def _output(self, descriptor: MethodDescriptor, http: methods.HttpRule) -> str | None:
        if http.success_status == 204:
            return None
        message = descriptor.output_type
        if http.response_body:
            field: FieldDescriptor = message.fields_by_name[http.response_body]
            if field.is_repeated:
                return self._list(message, field)
            message = message_of(field)
        return self._reply(message)

    def _list(self, message: Descriptor, field: FieldDescriptor) -> str | None:
        """The schema of a reply that is a bare list; its name stands on the reply's message."""
        options = schemas.message_rules(message)
        if options.schema:
            value = schemas.Writer(self._refer_reply, request=False).value(field, described=False)
            self._add(options.schema, options.title, message, value)
        return options.schema or None

    def _reply(self, message: Descriptor) -> str | None:
        options = schemas.message_rules(message)
        for name in (options.schema, *options.aliases):
            if name:
                body = schemas.Writer(self._refer_reply, request=False).body(message)
                self._add(name, options.title, message, body)
        return options.schema or None

    def _refer_reply(self, message: Descriptor) -> str | None:
        """What a reply refers to is published too."""
        name = schemas.message_rules(message).schema
        if name and name not in self.schemas:
            self._reply(message)
        return f"{name}.json#" if name else None

    def _refer_request(self, message: Descriptor) -> str | None:
        """Requests spell out what replies of the same message would promise more for."""
        options = schemas.message_rules(message)
        return None if options.request_schema else self._refer_reply(message)

    def _add(self, name: str, title: str, message: Descriptor, body: Mapping[str, Any]) -> None:
        """Publishes a schema. Raises Conflict when the name stands for another shape."""
        known = self.schemas.get(name)
        if known is None:
            self.schemas[name] = {
                "$schema": "/schemas/common/metaschema.json#",
                "$id": f"{self.schema_path(name)}#",
                "title": title,
                "description": comment(message.full_name),
                **body,
            }
        elif shape(known) != shape(body):
            raise Conflict(f"{message.full_name} is not what the schema {name} says already")


def message_of(field: FieldDescriptor) -> Descriptor:
    """The message that a field holds; bodies are never scalars."""
    assert field.message_type is not None
    return field.message_type


def message_named(service: ServiceDescriptor, name: str) -> Descriptor:
    """A message of the service's package. Raises KeyError when there is none."""
    found: Descriptor = service.file.pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")
    return found


def shape(schema: Any) -> Any:
    """A schema without its texts for people."""
    if isinstance(schema, list):
        return [shape(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        key: (
            {name: shape(item) for name, item in value.items()}
            if key in ("properties", "definitions")
            else shape(value)
        )
        for key, value in schema.items()
        if key not in ("$schema", "$id", "title", "description")
    }
