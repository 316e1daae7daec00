"""The comments of `proto/` as data: generated code has none, and references are made of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence

from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FileDescriptorProto

# Field numbers of descriptor.proto, of which the paths of SourceCodeInfo are made.
_MESSAGE, _ENUM, _SERVICE = 4, 5, 6
_FIELD, _NESTED, _NESTED_ENUM, _ONEOF = 2, 3, 4, 8
_VALUE, _METHOD = 2, 2

_Named = Iterator[tuple[tuple[int, ...], str]]


def comments(files: Iterable[FileDescriptorProto]) -> str:
    """A JSON object of the comment above each element of package tcqueue.v1, by full name, sorted."""
    found: dict[str, str] = {}
    for file in files:
        if file.package != "tcqueue.v1":
            continue
        names = dict(_elements(file))
        for location in file.source_code_info.location:
            name = names.get(tuple(location.path))
            if name and location.leading_comments:
                lines = location.leading_comments.splitlines()
                found[name] = "\n".join(line.removeprefix(" ").rstrip() for line in lines).strip()
    return json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _elements(file: FileDescriptorProto) -> _Named:
    yield from _messages((_MESSAGE,), file.message_type, file.package)
    yield from _enums((_ENUM,), file.enum_type, file.package)
    for i, service in enumerate(file.service):
        name = f"{file.package}.{service.name}"
        yield (_SERVICE, i), name
        for j, method in enumerate(service.method):
            yield (_SERVICE, i, _METHOD, j), f"{name}.{method.name}"


def _messages(path: tuple[int, ...], messages: Sequence[DescriptorProto], scope: str) -> _Named:
    for i, message in enumerate(messages):
        here, name = (*path, i), f"{scope}.{message.name}"
        yield here, name
        for j, field in enumerate(message.field):
            yield (*here, _FIELD, j), f"{name}.{field.name}"
        for j, oneof in enumerate(message.oneof_decl):
            yield (*here, _ONEOF, j), f"{name}.{oneof.name}"
        yield from _messages((*here, _NESTED), message.nested_type, name)
        yield from _enums((*here, _NESTED_ENUM), message.enum_type, name)


def _enums(path: tuple[int, ...], enums: Sequence[EnumDescriptorProto], scope: str) -> _Named:
    for i, enum in enumerate(enums):
        name = f"{scope}.{enum.name}"
        yield (*path, i), name
        for j, value in enumerate(enum.value):
            yield (*path, i, _VALUE, j), f"{name}.{value.name}"
