"""Messages as the API's JSON and back: lowerCamelCase, words for enums, dates as text, free JSON in place.

For what people write into files and scripts read from commands. Unknown names are refused with
their path, so that a misspelt one is not lost.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from tcqueue.v1 import options_pb2

_TIMESTAMP = Timestamp.DESCRIPTOR.full_name
_INTEGERS = frozenset(
    {FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT32}
)
_ALWAYS = _INTEGERS | {FieldDescriptor.CPPTYPE_BOOL}


class JsonFormError(ValueError):
    """JSON that does not fit the message; the text names the path."""


def to_json(message: Message) -> dict[str, Any]:
    """The message as JSON values. What was not set is left out, but numbers, flags and lists are always
    there: a run's index of 0 is no missing one."""
    values = {}
    fields: Iterable[Any] = message.DESCRIPTOR.fields
    for field in fields:
        value = getattr(message, field.name)
        if field.has_presence:
            if not message.HasField(field.name):
                continue
        elif not (value or field.is_repeated or field.cpp_type in _ALWAYS):
            continue
        values[field.camelcase_name] = _value_out(field, value)
    return values


def word(enum: EnumDescriptor, number: int) -> str:
    """The API's word for an enum's value: REASON_RESOLVED_CLAIM_EXPIRED is `claim-expired`; empty for 0."""
    value = enum.values_by_number.get(number)
    if number == 0 or value is None:
        return ""
    return value.name.removeprefix(_prefix(enum)).lower().replace("_", "-")


def words(enum: EnumDescriptor) -> dict[str, int]:
    """All words of an enum."""
    return {word(enum, value.number): value.number for value in enum.values if value.number}


def date_text(stamp: Timestamp) -> str:
    """`YYYY-MM-DDTHH:MM:SS.mmmZ`."""
    return f"{stamp.ToDatetime().isoformat(timespec='milliseconds')}Z"


def parse_into(message: Message, value: Any, path: str = "") -> None:
    """Fills an empty message from JSON values; JsonFormError."""
    if not isinstance(value, Mapping):
        raise JsonFormError(f"{path or 'the document'} must be an object")
    fields: dict[str, Any] = {field.camelcase_name: field for field in message.DESCRIPTOR.fields}
    for name, item in value.items():
        where = f"{path}.{name}" if path else str(name)
        if name not in fields:
            raise JsonFormError(f"{where} is not known here; there are {', '.join(sorted(fields))}")
        if item is not None:
            _set(message, fields[name], item, where)


def _set(message: Message, field: FieldDescriptor, value: Any, path: str) -> None:
    if _is_map(field):
        if not isinstance(value, Mapping) or not all(isinstance(v, str) for v in value.values()):
            raise JsonFormError(f"{path} must be an object of texts")
        getattr(message, field.name).update(value)
    elif field.is_repeated:
        if not isinstance(value, list):
            raise JsonFormError(f"{path} must be a list")
        target = getattr(message, field.name)
        for number, item in enumerate(value):
            if field.message_type is not None:
                parse_into(target.add(), item, f"{path}[{number}]")
            else:
                target.append(_scalar_in(field, item, f"{path}[{number}]"))
    elif field.message_type is None:
        setattr(message, field.name, _scalar_in(field, value, path))
    elif field.message_type.full_name == _TIMESTAMP:
        getattr(message, field.name).FromDatetime(_date_in(value, path))
    else:
        inner = getattr(message, field.name)
        inner.SetInParent()
        parse_into(inner, value, path)


def _scalar_in(field: FieldDescriptor, value: Any, path: str) -> Any:
    if field.GetOptions().Extensions[options_pb2.field].raw_json:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    if field.enum_type is not None:
        known = words(field.enum_type)
        if value not in known:
            raise JsonFormError(f"{path} must be one of {', '.join(known)}")
        return known[value]
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        if not isinstance(value, str):
            raise JsonFormError(f"{path} must be a text")
    elif field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        if not isinstance(value, bool):
            raise JsonFormError(f"{path} must be true or false")
    elif field.cpp_type in _INTEGERS and (not isinstance(value, int) or isinstance(value, bool)):
        raise JsonFormError(f"{path} must be a whole number")
    return value


def _date_in(value: Any, path: str) -> datetime:
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise JsonFormError(f"{path} must be a date such as 2030-01-31T12:00:00.000Z") from None
    return moment.astimezone(UTC)


def _value_out(field: FieldDescriptor, value: Any) -> Any:
    if _is_map(field):
        return dict(value)
    if field.is_repeated:
        return [_single_out(field, item) for item in value]
    return _single_out(field, value)


def _single_out(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None:
        return date_text(value) if field.message_type.full_name == _TIMESTAMP else to_json(value)
    if field.enum_type is not None:
        return word(field.enum_type, value)
    if field.GetOptions().Extensions[options_pb2.field].raw_json:
        return json.loads(value)
    return value


def _is_map(field: FieldDescriptor) -> bool:
    entry: Descriptor | None = field.message_type
    return entry is not None and entry.GetOptions().map_entry


def _prefix(enum: EnumDescriptor) -> str:
    return enum.values[0].name.removesuffix("UNSPECIFIED")
