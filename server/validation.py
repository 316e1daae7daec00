"""Checking requests against the rules declared in the proto (buf.validate), and against unknown fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import protovalidate
from google.protobuf.message import Message

from server.errors import InputValidationError, InvalidRequestArguments, Violation
from server.methods import Method

_PAGING = frozenset({"continuation_token", "limit", "quarantined"})


class RequestValidator:
    """Keeps the compiled rules; one for a process."""

    def __init__(self, methods: Sequence[Method]) -> None:
        """Compiles every request's rules at once, so that no call pays for it and no rule is broken."""
        self._validator = protovalidate.Validator()
        for method in methods:
            self._validator.collect_violations(method.request_class())

    def violations(self, message: Message) -> list[Violation]:
        """Every rule of the proto that the message breaks; fields in the proto's names, dots between."""
        return [_describe(v) for v in self._validator.collect_violations(message)]

    def check(self, method: Method, request: Message) -> None:
        """Raises InvalidRequestArguments if an id or paging field is wrong, else InputValidationError."""
        violations = self.violations(request)
        if violations:
            _refuse(method.path_fields, violations)
        size = request.ByteSize()
        request.DiscardUnknownFields()
        if request.ByteSize() != size:
            raise InputValidationError("the request has fields this version does not know")


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
