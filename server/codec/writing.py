"""Messages as JSON. What was not set is left out, but numbers, flags and lists are always there, as a
run's index of 0 is no missing one; nothing is ever null."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import orjson
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from server.codec.dates import to_text
from server.codec.words import numbers
from tcqueue.v1 import options_pb2

Value = Callable[[Any], Any]

_TIMESTAMP = Timestamp.DESCRIPTOR.full_name


def to_value(message: Message) -> dict[str, Any]:
    """The message as values that `to_bytes` takes; free JSON stands in them as it was given."""
    return _writer(message.DESCRIPTOR)(message)


def field_value(message: Message, field: str) -> Any:
    """One field of the message as such a value, for answers that are only a part of it."""
    descriptor: Any = message.DESCRIPTOR.fields_by_name[field]
    return _field_value(descriptor)(getattr(message, field))


def to_bytes(value: Any, *, indent: bool) -> bytes:
    """JSON text; `indent` by two spaces."""
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 if indent else 0)


@cache
def _writer(descriptor: Descriptor) -> Callable[[Any], dict[str, Any]]:
    """A function that writes messages of a type."""
    always: list[tuple[str, str, Value]] = []
    filled: list[tuple[str, str, Value]] = []
    present: list[tuple[str, str, Value]] = []
    order: list[str] = []
    fields: Any = descriptor.fields
    for field in fields:
        entry = (field.name, field.camelcase_name, _field_value(field))
        order.append(field.camelcase_name)
        if field.has_presence:
            present.append(entry)
        elif _left_out_when_empty(field):
            filled.append(entry)
        else:
            always.append(entry)

    def write(message: Any) -> dict[str, Any]:
        out = {}
        for name, key, value_of in always:
            out[key] = value_of(getattr(message, name))
        for name, key, value_of in filled:
            value = getattr(message, name)
            if value:
                out[key] = value_of(value)
        has = message.HasField
        for name, key, value_of in present:
            if has(name):
                out[key] = value_of(getattr(message, name))
        return out

    return write


def _left_out_when_empty(field: FieldDescriptor) -> bool:
    rules = field.GetOptions().Extensions[options_pb2.field]
    if field.is_repeated:
        return bool(rules.omit_empty)
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return True
    return field.cpp_type == FieldDescriptor.CPPTYPE_STRING and not rules.sent


def _field_value(field: FieldDescriptor) -> Value:
    entry: Descriptor | None = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        one = _single_value(entry.fields_by_name["value"])
        return lambda items: {key: one(value) for key, value in items.items()}
    one = _single_value(field)
    if field.is_repeated:
        if one is _as_it_is:
            return list
        return lambda items: [one(item) for item in items]
    return one


def _single_value(field: FieldDescriptor) -> Value:
    if field.message_type is not None:
        if field.message_type.full_name == _TIMESTAMP:
            return lambda stamp: to_text(stamp.seconds, stamp.nanos)
        if field.GetOptions().Extensions[options_pb2.field].unwrap:
            (inner,) = field.message_type.fields
            unwrapped = _field_value(inner)
            return lambda holder: unwrapped(getattr(holder, inner.name))
        return _later(field.message_type)
    if field.enum_type is not None:
        known = numbers(field.enum_type)
        # A number from the future stays one; it is better seen than lost.
        return lambda number: known.get(number, number)
    if field.GetOptions().Extensions[options_pb2.field].raw_json:
        return lambda text: orjson.Fragment(text)
    return _as_it_is


def _later(descriptor: Descriptor) -> Value:
    """A type's writer, looked up when it is needed: messages may hold their own kind."""
    writer: Value | None = None

    def write(message: Any) -> Any:
        nonlocal writer
        if writer is None:
            writer = _writer(descriptor)
        return writer(message)

    return write


def _as_it_is(value: Any) -> Any:
    return value
