"""Messages as JSON schemas, draft 06 (compat.md 2, queue.md 1)."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from server.references import rules
from server.references.comments import comment
from tcqueue.v1 import options_pb2

Json = dict[str, Any]
Refer = Callable[[Descriptor], str | None]
"""Where the schema of a message is published, as `$ref` names it; None spells it out in place."""

_TIMESTAMP = "google.protobuf.Timestamp"


def message_rules(message: Descriptor) -> options_pb2.MessageRules:
    """Our options on a message."""
    found: options_pb2.MessageRules = message.GetOptions().Extensions[options_pb2.message]
    return found


class Writer:
    """Writes schemas of one direction.

    A request may leave out what has a default; a reply has every number, flag and list, and all that the
    proto says is sent. The two differ in `required` and in values that are only taken.
    """

    def __init__(self, refer: Refer, *, request: bool) -> None:
        self._refer = refer
        self._request = request

    def body(self, message: Descriptor, without: Collection[str] = ()) -> Json:
        """The schema of a message's JSON; the fields named `without` travel elsewhere."""
        options = message_rules(message)
        if options.discriminator:
            return {"oneOf": [self._variant(message, options.discriminator, v) for v in options.variants]}
        fields = [field for field in message.fields if field.name not in without]
        required = [field for field in fields if self._required(field)]
        return self._object(fields, required, further=options.open)

    def value(self, field: FieldDescriptor, *, described: bool = True) -> Json:
        """The schema of a field's JSON."""
        found = self._plain(field)
        if described and (text := comment(field.full_name)):
            found["description"] = text
        default = rules.own_rules(field).default_json
        if default and self._request:
            found["default"] = json.loads(default)
        return found

    def _object(
        self, fields: list[FieldDescriptor], required: list[FieldDescriptor], *, further: bool = False
    ) -> Json:
        return {
            "type": "object",
            "properties": {field.camelcase_name: self.value(field) for field in fields},
            "required": [field.camelcase_name for field in required],
            "additionalProperties": further,
        }

    def _variant(self, message: Descriptor, discriminator: str, variant: options_pb2.Variant) -> Json:
        by_name = message.fields_by_name
        required = [by_name[name] for name in (discriminator, *variant.required)]
        found = self._object([*required, *(by_name[name] for name in variant.optional)], required)
        for name, word in {discriminator: variant.value, **variant.fixed}.items():
            found["properties"][by_name[name].camelcase_name]["enum"] = [word]
        return found

    def _plain(self, field: FieldDescriptor) -> Json:
        rule = rules.validation(field)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            value = field.message_type.fields_by_name["value"]
            free = self._one(value, rule.map.values)
            known = rules.own_rules(field).known_keys
            if not known:
                return {"type": "object", "additionalProperties": free}
            properties = {key: {**free, "pattern": known[key]} for key in sorted(known)}
            return {"type": "object", "properties": properties, "additionalProperties": free}
        if field.is_repeated:
            limits = rules.items(rule, rules.own_rules(field).distinct)
            return {"type": "array", "items": self._one(field, rule.repeated.items), **limits}
        return self._one(field, rule)

    def _one(self, field: FieldDescriptor, rule: Any) -> Json:
        own = rules.own_rules(field)
        if own.raw_json:
            return {"type": "object"}
        message = field.message_type
        if own.unwrap and message is not None:
            return self._plain(message.fields[0])
        if message is None:
            found = rules.scalar(field, rule)
            if field.enum_type is not None and not self._request:
                taken = rules.only_taken(field.enum_type)
                found["enum"] = [word for word in found["enum"] if word not in taken]
            return found
        if message.full_name == _TIMESTAMP:
            return {"type": "string", "format": "date-time"}
        if reference := self._refer(message):
            return {"$ref": reference}
        return self.body(message)

    def _required(self, field: FieldDescriptor) -> bool:
        if rules.refuses_absence(field):
            return True
        if self._request:
            return False
        own = rules.own_rules(field)
        if own.sent or field.is_repeated:
            return not own.omit_empty
        number = field.message_type is None and field.enum_type is None
        number = number and field.type != FieldDescriptor.TYPE_STRING
        return number and not field.has_presence
