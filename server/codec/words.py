"""The API's words for enum values: REASON_RESOLVED_CLAIM_EXPIRED is `claim-expired`."""

from __future__ import annotations

from functools import cache

from google.protobuf.descriptor import EnumDescriptor


@cache
def words(enum: EnumDescriptor) -> dict[str, int]:
    """The number behind every word; the unspecified value has none."""
    prefix = enum.values[0].name.removesuffix("UNSPECIFIED")
    return {
        value.name.removeprefix(prefix).lower().replace("_", "-"): value.number
        for value in enum.values
        if value.number
    }


@cache
def numbers(enum: EnumDescriptor) -> dict[int, str]:
    """The word for every number."""
    return {number: word for word, number in words(enum).items()}


def word(enum: EnumDescriptor, number: int) -> str:
    """The word for a number; empty for the unspecified value and for unknown ones."""
    return numbers(enum).get(number, "")
