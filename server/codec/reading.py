"""JSON as messages. Every problem is collected with where it is, in JSON's names; none is raised."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NoReturn

import msgspec
import orjson
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from buf.validate import validate_pb2
from server.codec import dates
from server.codec.words import words
from server.errors import Violation
from tcqueue.v1 import options_pb2

Found = list[Violation]
#: Puts a value into a message. Takes the message, the value, its bytes (None where nothing in it is
#: free JSON), where it stands, and the list of problems.
Setter = Callable[[Any, Any, "bytes | None", str, Found], None]
Slices = Mapping[str, msgspec.Raw]

_TIMESTAMP = Timestamp.DESCRIPTOR.full_name
_INTEGERS: Mapping[int, tuple[int, int]] = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_FLOATS = (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT)
_DIGITS = re.compile(r"[0-9]+")
_slices = msgspec.json.Decoder(dict[str, msgspec.Raw])
_items = msgspec.json.Decoder(list[msgspec.Raw])


def parse(body: bytes) -> object:
    """JSON text as values. Raises ValueError with a text."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        # The standard library takes what JSON allows and orjson does not: half of a surrogate pair.
        try:
            return json.loads(body.decode(), parse_constant=_no_constant)
        except (ValueError, RecursionError):
            raise ValueError(str(error)) from None


def fill(message: Message, value: object, body: bytes, found: Found) -> None:
    """Fills an empty message from a parsed JSON object; `body` is its text. What is wrong with it is
    added to `found`."""
    _fill(message, value, body, "", found)


def fill_text(message: Message, field: str, text: str, found: Found) -> None:
    """Fills a field from a text of a path or query: whole numbers are digits only, and one beyond the
    field's range counts as the largest it takes. (Any digits are a run's number in a path: a run that
    no task can have is an unknown one, not a malformed one; queue.md 1.1.)"""
    descriptor: Any = message.DESCRIPTOR.fields_by_name[field]
    name = descriptor.camelcase_name
    if descriptor.cpp_type in _INTEGERS:
        if not _DIGITS.fullmatch(text):
            found.append(Violation(name, "must match ^[0-9]+$"))
            return
        most = _largest(descriptor)
        digits = text.lstrip("0")
        setattr(message, field, most if len(digits) > 20 else min(int(digits or "0"), most))
    elif descriptor.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        if text not in ("true", "false"):
            found.append(Violation(name, "must be true or false"))
            return
        setattr(message, field, text == "true")
    else:
        _setters(message.DESCRIPTOR)[0][name](message, text, None, name, found)


def _largest(field: FieldDescriptor) -> int:
    """The largest whole number that a field's type and rules take."""
    rules: Any = field.GetOptions().Extensions[validate_pb2.field]
    kind = rules.WhichOneof("type")
    limits = None if kind is None else getattr(rules, kind)
    most = _INTEGERS[field.cpp_type][1]
    return most if limits is None or not limits.HasField("lte") else int(limits.lte)


def with_defaults(cls: type[Message], value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with the declared defaults of the members it lacks."""
    return {**{name: orjson.loads(text) for name, text in _defaults(cls.DESCRIPTOR)}, **value}


@cache
def _defaults(descriptor: Descriptor) -> list[tuple[str, str]]:
    fields: Any = descriptor.fields
    texts = [(f.camelcase_name, f.GetOptions().Extensions[options_pb2.field].default_json) for f in fields]
    return [(name, text) for name, text in texts if text]


def _fill(message: Any, value: object, body: bytes | None, path: str, found: Found) -> None:
    if type(value) is not dict:
        found.append(Violation(path, "must be an object"))
        return
    setters, raw, is_open = _setters(message.DESCRIPTOR)
    slices: Slices = {}
    if raw and body is not None:
        try:
            slices = _slices.decode(body)
        except msgspec.DecodeError:
            found.append(Violation(path, "must be Unicode: it holds half of a surrogate pair"))
            return
        except RecursionError:
            found.append(Violation(path, "is nested too deeply"))
            return
    for key, item in value.items():
        setter = setters.get(key)
        where = f"{path}/{key}" if path else key
        if setter is None:
            if is_open:
                continue
            found.append(Violation(path, f'must not have the property "{key}"'))
        elif raw and key in slices:
            setter(message, item, bytes(slices[key]), where, found)
        else:
            setter(message, item, None, where, found)


@cache
def _setters(descriptor: Descriptor) -> tuple[dict[str, Setter], bool, bool]:
    """Setters by JSON name, whether any of them needs to see its value's own text, and whether members
    without a setter are passed over."""
    fields: Any = descriptor.fields
    rules: options_pb2.MessageRules = descriptor.GetOptions().Extensions[options_pb2.message]
    return {field.camelcase_name: _setter(field) for field in fields}, _has_raw(descriptor), rules.open


@cache
def _has_raw(descriptor: Descriptor, _seen: frozenset[str] = frozenset()) -> bool:
    if descriptor.full_name in _seen:
        return False
    fields: Any = descriptor.fields
    seen = _seen | {descriptor.full_name}
    return any(
        _is_raw(field) or (field.message_type is not None and _has_raw(field.message_type, seen))
        for field in fields
    )


def _is_raw(field: FieldDescriptor) -> bool:
    return bool(field.GetOptions().Extensions[options_pb2.field].raw_json)


def _is_unwrapped(field: FieldDescriptor) -> bool:
    return bool(field.GetOptions().Extensions[options_pb2.field].unwrap)


def _setter(field: FieldDescriptor) -> Setter:
    entry: Descriptor | None = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        return _map_setter(field.name, _checked(entry.fields_by_name["value"]))
    if field.is_repeated:
        return _message_list_setter(field) if entry is not None else _list_setter(field.name, _checked(field))
    if entry is not None:
        if entry.full_name == _TIMESTAMP:
            return _date_setter(field.name)
        return _unwrapped_setter(field) if _is_unwrapped(field) else _message_setter(field.name)
    if _is_raw(field):
        return _raw_setter(field.name)
    return _scalar_setter(field.name, _checked(field))


class _Wrong(Exception):
    """A value does not fit; the text says what would."""


def _checked(field: FieldDescriptor) -> Callable[[Any], Any]:
    """A function that gives the field's value for a JSON value, or raises _Wrong."""
    if field.enum_type is not None:
        known = words(field.enum_type)
        allowed = ", ".join(known)

        def enum(value: Any) -> Any:
            if type(value) is str and value in known:
                return known[value]
            raise _Wrong(f"must be one of {allowed}")

        return enum
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return _text
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return _flag
    if field.cpp_type in _FLOATS:
        return _number
    low, high = _INTEGERS[field.cpp_type]

    def integer(value: Any) -> Any:
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is not int:
            raise _Wrong("must be a whole number")
        if not low <= value <= high:
            raise _Wrong(f"must be between {low} and {high}")
        return value

    return integer


def _text(value: Any) -> Any:
    if type(value) is not str:
        raise _Wrong("must be a text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _Wrong("must be Unicode: it holds half of a surrogate pair") from None
    return value


def _flag(value: Any) -> Any:
    if type(value) is not bool:
        raise _Wrong("must be true or false")
    return value


def _number(value: Any) -> Any:
    if type(value) not in (int, float):
        raise _Wrong("must be a number")
    return float(value)


def _scalar_setter(name: str, check: Callable[[Any], Any]) -> Setter:
    def put(message: Any, value: Any, _: bytes | None, path: str, found: Found) -> None:
        try:
            setattr(message, name, check(value))
        except _Wrong as e:
            found.append(Violation(path, str(e)))

    return put


def _list_setter(name: str, check: Callable[[Any], Any]) -> Setter:
    def put(message: Any, value: Any, _: bytes | None, path: str, found: Found) -> None:
        if type(value) is not list:
            found.append(Violation(path, "must be a list"))
            return
        append = getattr(message, name).append
        for at, item in enumerate(value):
            try:
                append(check(item))
            except _Wrong as e:
                found.append(Violation(f"{path}/{at}", str(e)))

    return put


def _map_setter(name: str, check: Callable[[Any], Any]) -> Setter:
    def put(message: Any, value: Any, _: bytes | None, path: str, found: Found) -> None:
        if type(value) is not dict:
            found.append(Violation(path, "must be an object"))
            return
        target = getattr(message, name)
        for key, item in value.items():
            try:
                target[_text(key)] = check(item)
            except _Wrong as e:
                found.append(Violation(f"{path}/{key}", str(e)))

    return put


def _date_setter(name: str) -> Setter:
    def put(message: Any, value: Any, _: bytes | None, path: str, found: Found) -> None:
        if type(value) is not str or not dates.fill(getattr(message, name), value):
            found.append(Violation(path, "must be a date such as 2030-01-31T12:00:00.000Z"))

    return put


def _message_setter(name: str) -> Setter:
    def put(message: Any, value: Any, body: bytes | None, path: str, found: Found) -> None:
        inner = getattr(message, name)
        inner.SetInParent()
        _fill(inner, value, body, path, found)

    return put


def _unwrapped_setter(field: FieldDescriptor) -> Setter:
    holder_type: Any = field.message_type
    name, inner = field.name, _setter(holder_type.fields[0])

    def put(message: Any, value: Any, body: bytes | None, path: str, found: Found) -> None:
        holder = getattr(message, name)
        holder.SetInParent()
        inner(holder, value, body, path, found)

    return put


def _message_list_setter(field: FieldDescriptor) -> Setter:
    name, raw = field.name, _has_raw(field.message_type)

    def put(message: Any, value: Any, body: bytes | None, path: str, found: Found) -> None:
        if type(value) is not list:
            found.append(Violation(path, "must be a list"))
            return
        bodies = _items.decode(body) if raw and body is not None else ()
        add = getattr(message, name).add
        for at, item in enumerate(value):
            _fill(add(), item, bytes(bodies[at]) if bodies else None, f"{path}/{at}", found)

    return put


def _raw_setter(name: str) -> Setter:
    """Whatever JSON it is; those who handle the field know what they want of it."""

    def put(message: Any, value: Any, body: bytes | None, path: str, found: Found) -> None:
        setattr(message, name, (orjson.dumps(value) if body is None else body).decode())

    return put


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
