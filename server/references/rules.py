"""The rules of buf.validate and our own options on fields, as the keywords of JSON schema."""

from __future__ import annotations

import re
from typing import Any

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor

from buf.validate import validate_pb2
from server.codec import words as codec_words
from tcqueue.v1 import options_pb2

Json = dict[str, Any]

_INTEGERS = frozenset(
    {
        FieldDescriptor.CPPTYPE_INT32,
        FieldDescriptor.CPPTYPE_INT64,
        FieldDescriptor.CPPTYPE_UINT32,
        FieldDescriptor.CPPTYPE_UINT64,
    }
)
_FLOATS = frozenset({FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT})


def own_rules(field: FieldDescriptor) -> options_pb2.FieldRules:
    """Our options on a field."""
    rules: options_pb2.FieldRules = field.GetOptions().Extensions[options_pb2.field]
    return rules


def validation(field: FieldDescriptor) -> Any:
    """The field's buf.validate.FieldRules."""
    return field.GetOptions().Extensions[validate_pb2.field]


def scalar(field: FieldDescriptor, rules: Any) -> Json:
    """The schema of one value of a scalar or enum field under `rules`, a buf.validate.FieldRules."""
    if field.enum_type is not None:
        return {"type": "string", "enum": words(field.enum_type, rules)}
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return {"type": "boolean", **({"enum": [rules.bool.const]} if rules.bool.HasField("const") else {})}
    if field.cpp_type in _INTEGERS:
        return {"type": "integer", **_limits(rules)}
    if field.cpp_type in _FLOATS:
        return {"type": "number", **_limits(rules)}
    return {"type": "string", **_text(rules.string)}


def words(enum: EnumDescriptor, rules: Any) -> list[str]:
    """The words of an enum that the rules leave, by number; values that are only taken are left out where
    the rules refuse them."""
    allowed = set(getattr(rules.enum, "in"))
    refused = set(rules.enum.not_in)
    return [
        word
        for word, number in codec_words.words(enum).items()
        if number not in refused and (not allowed or number in allowed)
    ]


def only_taken(enum: EnumDescriptor) -> frozenset[str]:
    """The words of an enum that no reply has."""
    return frozenset(
        word
        for word, number in codec_words.words(enum).items()
        if enum.values_by_number[number].GetOptions().Extensions[options_pb2.enum_value].input_only
    )


def items(rules: Any, distinct: bool) -> Json:
    """The keywords of a list besides `items`."""
    found: Json = {}
    if rules.repeated.HasField("min_items"):
        found["minItems"] = rules.repeated.min_items
    if rules.repeated.HasField("max_items"):
        found["maxItems"] = rules.repeated.max_items
    if rules.repeated.unique or distinct:
        found["uniqueItems"] = True
    return found


def refuses_absence(field: FieldDescriptor) -> bool:
    """Whether the rules demand a value: by `required`, or because the empty value breaks them."""
    rules = validation(field)
    if rules.required:
        return True
    if field.is_repeated:
        return bool(rules.repeated.min_items)
    if field.has_presence or rules.ignore == validate_pb2.IGNORE_IF_ZERO_VALUE:
        return False
    if field.enum_type is not None:
        allowed = getattr(rules.enum, "in")
        return bool(allowed) and 0 not in allowed
    text = rules.string
    return bool(
        text.min_len
        or text.uri
        or (text.HasField("pattern") and re.fullmatch(text.pattern, "") is None)
        or (getattr(text, "in") and "" not in getattr(text, "in"))
    )


def _limits(rules: Any) -> Json:
    kind = rules.WhichOneof("type")
    if kind is None:
        return {}
    limits = getattr(rules, kind)
    found: Json = {}
    if getattr(limits, "in"):
        found["enum"] = list(getattr(limits, "in"))
    for rule, keyword in (
        ("gte", "minimum"),
        ("gt", "exclusiveMinimum"),
        ("lte", "maximum"),
        ("lt", "exclusiveMaximum"),
    ):
        if limits.HasField(rule):
            found[keyword] = getattr(limits, rule)
    return found


def _text(text: Any) -> Json:
    found: Json = {}
    if text.HasField("const"):
        found["enum"] = [text.const]
    if getattr(text, "in"):
        found["enum"] = list(getattr(text, "in"))
    for rule, keyword in (("pattern", "pattern"), ("min_len", "minLength"), ("max_len", "maxLength")):
        if text.HasField(rule):
            found[keyword] = getattr(text, rule)
    for rule in ("uri", "hostname", "ipv4", "ipv6", "email"):
        if getattr(text, rule):
            found["format"] = rule
    if text.ip:
        found["oneOf"] = [{"format": "ipv4"}, {"format": "ipv6"}]
    return found
