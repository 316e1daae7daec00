"""Checking requests against the rules declared in the proto (buf.validate), and against unknown fields."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import protovalidate
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from server import definitions
from server.codec import words
from server.errors import InputValidationError, InvalidRequestArguments, Violation
from server.methods import Method
from tcqueue.v1 import options_pb2
from tcqueue.v1.legacy_task_pb2 import LegacyTaskDefinition
from tcqueue.v1.task_pb2 import TaskDefinition

_PAGING = frozenset({"continuation_token", "limit", "quarantined"})
_TASKS = (TaskDefinition.DESCRIPTOR, LegacyTaskDefinition.DESCRIPTOR)


class RequestValidator:
    """Keeps the compiled rules; one for a process."""

    def __init__(self, methods: Sequence[Method]) -> None:
        """Compiles every request's rules at once, so that no call pays for it and no rule is broken."""
        self._validator = protovalidate.Validator()
        self._forms: dict[str, list[tuple[str, options_pb2.MessageRules]]] = {}
        self._known: dict[str, list[tuple[str, Mapping[str, re.Pattern[str]]]]] = {}
        self._definitions: dict[str, list[str]] = {}
        for method in methods:
            self._validator.collect_violations(method.request_class())
            descriptor = method.request_class.DESCRIPTOR
            forms = [(field.name, _rules(field)) for field in descriptor.fields if field.message_type]
            self._forms[descriptor.full_name] = [form for form in forms if form[1].discriminator]
            self._known[descriptor.full_name] = _known_keys(descriptor)
            self._definitions[descriptor.full_name] = [
                field.name for field in descriptor.fields if field.message_type in _TASKS
            ]

    def violations(self, message: Message) -> list[Violation]:
        """Every declared rule that the message breaks; fields in the proto's names, dots between."""
        found = [_describe(v) for v in self._validator.collect_violations(message)]
        for field, rules in self._forms.get(message.DESCRIPTOR.full_name, ()):
            found += _misshapen(field, getattr(message, field), rules)
        for field, known in self._known.get(message.DESCRIPTOR.full_name, ()):
            values = getattr(message, field)
            found += [
                Violation(f"{field}.{key}", f"must match pattern {pattern.pattern}")
                for key, pattern in known.items()
                if key in values and not pattern.fullmatch(values[key])
            ]
        for field in self._definitions.get(message.DESCRIPTOR.full_name, ()):
            found += [
                Violation(f"{field}.{broken.field}", broken.description)
                for broken in definitions.broken_rules(getattr(message, field))
            ]
        return found

    def check(self, method: Method, request: Message) -> None:
        """Raises InvalidRequestArguments if an id or paging field is wrong, else InputValidationError."""
        violations = self.violations(request)
        if violations:
            _refuse(method.path_fields, violations)
        refuse_unknown_fields(request)


def refuse_unknown_fields(request: Message) -> None:
    """Raises InputValidationError if there are any. It takes about 1 µs."""
    size = request.ByteSize()
    request.DiscardUnknownFields()
    if request.ByteSize() != size:
        raise InputValidationError("the request has fields this version does not know")


def _rules(field: Any) -> options_pb2.MessageRules:
    message: Descriptor = field.message_type
    rules: options_pb2.MessageRules = message.GetOptions().Extensions[options_pb2.message]
    return rules


def _known_keys(descriptor: Any) -> list[tuple[str, Mapping[str, re.Pattern[str]]]]:
    """The maps of a message some of whose keys have patterns."""
    found: list[tuple[str, Mapping[str, re.Pattern[str]]]] = []
    for field in descriptor.fields:
        known = field.GetOptions().Extensions[options_pb2.field].known_keys
        if known:
            found.append((field.name, {key: re.compile(known[key]) for key in sorted(known)}))
    return found


def _misshapen(field: str, value: Message, rules: options_pb2.MessageRules) -> list[Violation]:
    """What a message that has several forms lacks, or has too much, in the form that it says it has."""
    descriptor: Any = value.DESCRIPTOR
    chosen = descriptor.fields_by_name[rules.discriminator]
    word = words.numbers(chosen.enum_type).get(getattr(value, rules.discriminator))
    for variant in rules.variants:
        if variant.value != word:
            continue
        here = {found.name for found, _ in value.ListFields()}
        known = {rules.discriminator, *variant.required, *variant.optional}
        return [
            Violation(f"{field}.{name}", f"must be given with {chosen.camelcase_name} {word}")
            for name in variant.required
            if name not in here
        ] + [
            Violation(f"{field}.{name}", f"must not be given with {chosen.camelcase_name} {word}")
            for name in sorted(here - known)
        ]
    return []


def _refuse(path_fields: frozenset[str], found: list[Violation]) -> None:
    arguments = [v for v in found if v.field.split(".")[0] in path_fields | _PAGING]
    lines = "\n".join(f"  * {v.field}: {v.description}" for v in (arguments or found)[:100])
    if arguments:
        raise InvalidRequestArguments(f"Invalid arguments:\n{lines}", arguments)
    raise InputValidationError(f"Validation failed:\n{lines}", found)


def _describe(violation: Any) -> Violation:
    proto = violation.proto
    path = ""
    for element in proto.field.elements if proto.field is not None else ():
        path += f".{element.field_name}" if path else element.field_name
        if element.subscript is not None:
            path += f"[{element.subscript.value}]"
    return Violation(path or "request", proto.message or proto.rule_id)
