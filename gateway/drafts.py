"""A request of the HTTP door before it is judged: arguments, query and body become a message only once
its caller has been let in (queue.md 3, 8.5)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn
from urllib.parse import unquote_to_bytes

from google.protobuf.message import Message

from gateway import bodies
from gateway.routes import Route
from server.codec import reading
from server.errors import InputValidationError, InvalidRequestArguments, MalformedPayload, Violation
from server.methods import Method
from server.validation import RequestValidator
from tcqueue.v1 import options_pb2

#: Carries a signature, and is allowed on every route.
_BEWIT = "bewit"


class HttpDraft:
    """Implements pipeline.Draft, and knows what an error answer shows of the request."""

    __slots__ = (
        "_body",
        "_content_type",
        "_headers",
        "_query",
        "_route",
        "_schema_id",
        "_valid",
        "_value",
        "parameters",
    )

    def __init__(
        self,
        route: Route,
        values: Sequence[str],
        query: bytes,
        body: bytes,
        content_type: str | None,
        schema_id: str | None = None,
        headers: Mapping[bytes, bytes] | None = None,
    ) -> None:
        """`values` are the path's arguments, decoded; `body` is decoded, too. `schema_id` names the body's
        schema in error texts. Raises MalformedPayload for a JSON body that cannot be parsed: that is told
        before anything else."""
        self.parameters: Mapping[str, str] = dict(zip(route.arguments, values, strict=True))
        self._route = route
        self._query = query
        self._body = body
        self._content_type = content_type
        self._schema_id = schema_id
        self._headers = headers or {}
        self._valid = False
        self._value: object = {}
        if body and bodies.is_json(content_type):
            self._value = bodies.parse(body)

    @property
    def payload(self) -> object:
        """The body as error answers show it: with its defaults filled in once it was found valid."""
        rule = self._route.method.http
        if self._valid and rule is not None and rule.body and isinstance(self._value, dict):
            return reading.with_defaults(_body_class(self._route.method), self._value)
        return self._value

    def lists(self, names: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """Implements pipeline.Draft."""
        value = self._value if isinstance(self._value, dict) else {}
        return {name: _texts(value.get(name)) for name in names}

    def as_given(self, names: Sequence[str]) -> Mapping[str, object]:
        """Members of a valid body as they were sent."""
        assert isinstance(self._value, dict)
        return {name: self._value[name] for name in names}

    def read(self, method: Method, validator: RequestValidator) -> Message:
        """The message. Path arguments are judged first, then the query, then the body."""
        rule = method.http
        assert rule is not None
        message = method.request_class()
        wrong_path: list[Violation] = []
        for name, text in zip(self._route.fields, self.parameters.values(), strict=True):
            reading.fill_text(message, name, text, wrong_path)
        wrong_query = self._fill_query(message, method) if self._query else []
        for field, name in rule.headers:
            self._fill_header(message, field, self._headers.get(name.encode(), b""))
        refusal: MalformedPayload | None = None
        wrong_body: list[Violation] = []
        if rule.body:
            if bodies.is_json(self._content_type):
                target = message if rule.body == "*" else getattr(message, rule.body)
                if rule.body != "*":
                    target.SetInParent()
                self._fill_body(target, set(self._route.fields) | set(rule.query), wrong_body)
            else:
                got = "null" if self._content_type is None else self._content_type
                refusal = MalformedPayload(
                    f"Payload must be JSON with content-type: application/json got content-type: {got}"
                )
        elif rule.unchecked_body and isinstance(self._value, dict):
            self._fill_unchecked(message, rule.unchecked_body)
        broken = validator.violations(message)
        if wrong_path or wrong_query or refusal or wrong_body or broken:
            self._refuse(method, wrong_path, wrong_query, refusal, wrong_body, broken)
        self._valid = True
        return message

    @staticmethod
    def _fill_header(message: Message, field: str, value: bytes) -> None:
        """Fills a field from the header that carries it, if that says something."""
        if isinstance(getattr(message, field), str):
            if value:
                setattr(message, field, value.decode("latin-1"))
        elif value.lower() in (b"true", b"1"):
            setattr(message, field, True)

    def _fill_body(self, target: Message, elsewhere: set[str], found: list[Violation]) -> None:
        """Fills the message from the body; fields that the URL carries are unknown there."""
        value = self._value
        if isinstance(value, dict) and elsewhere:
            fields = target.DESCRIPTOR.fields_by_name
            for name in elsewhere:
                if name in fields and fields[name].camelcase_name in value:
                    value = dict(value)
                    del value[fields[name].camelcase_name]
                    found.append(
                        Violation(fields[name].camelcase_name, "is not part of the body: the URL carries it")
                    )
        reading.fill(target, value, self._body, found)

    def _fill_unchecked(self, message: Message, fields: Sequence[str]) -> None:
        """Fills what a body may say where none is asked for; whatever does not fit is passed over."""
        assert isinstance(self._value, dict)
        for field in fields:
            name = message.DESCRIPTOR.fields_by_name[field].camelcase_name
            if name in self._value:
                reading.fill(message, {name: self._value[name]}, b"{}", [])

    def _fill_query(self, message: Message, method: Method) -> list[str]:
        """Fills the message from the query string; returns what is wrong with it, a line each."""
        assert method.http is not None
        fields: Any = message.DESCRIPTOR.fields_by_name
        known = {fields[name].camelcase_name: name for name in method.http.query}
        lists = {fields[name].camelcase_name for name in method.http.query if fields[name].is_repeated}
        seen: set[str] = set()
        wrong: list[str] = []
        for part in self._query.split(b"&"):
            if not part:
                continue
            key, _, text = part.partition(b"=")
            try:
                name, value = _unquoted(key), _unquoted(text)
            except UnicodeError:
                wrong.append("Query-string holds bytes that are not UTF-8!")
                continue
            if name == _BEWIT:
                continue
            if name not in known:
                wrong.append(f"Query-string parameter: {name} is not supported!")
            elif name in lists:
                getattr(message, known[name]).append(value)
            elif name in seen:
                wrong.append(f"Query-string parameter: {name} is given more than once!")
            elif name == "continuationToken" and not value:
                wrong.append(f"Query-string parameter: {name} must not be empty!")
            else:
                found: list[Violation] = []
                reading.fill_text(message, known[name], value, found)
                wrong += [f"Query-string parameter: {name}={value!r} {v.description}!" for v in found]
            seen.add(name)
        return wrong

    def _refuse(
        self,
        method: Method,
        wrong_path: list[Violation],
        wrong_query: list[str],
        refusal: MalformedPayload | None,
        wrong_body: list[Violation],
        broken: list[Violation],
    ) -> NoReturn:
        assert method.http is not None
        in_path = {name: at for at, name in enumerate(self._route.fields)}
        wrong_path = wrong_path + [v for v in broken if v.field.partition(".")[0] in in_path]
        if wrong_path:
            names = dict(zip(self._route.fields, self._route.arguments, strict=True))
            lines = []
            for violation in wrong_path:
                name = names.get(violation.field.partition(".")[0], violation.field)
                value = self.parameters.get(name, "")
                lines.append(f"  * {name}: {value!r} {violation.description}")
            raise InvalidRequestArguments(
                "Invalid URL patterns:\n" + "\n".join(dict.fromkeys(lines)), wrong_path
            )
        in_query = [v for v in broken if v.field.partition(".")[0] in method.http.query]
        wrong_query += [f"Query-string parameter: {_json_name(v.field)} {v.description}!" for v in in_query]
        if wrong_query:
            raise InvalidRequestArguments("\n".join(dict.fromkeys(wrong_query)))
        if refusal is not None:
            raise refusal
        prefix = "" if method.http.body == "*" else f"{method.http.body}."
        body: Any = _body_class(method).DESCRIPTOR
        pointed = [Violation(_pointer(body, v.field.removeprefix(prefix)), v.description) for v in broken]
        told = {v.field for v in wrong_body}
        all_wrong = wrong_body + [v for v in pointed if v.field not in told]
        lines = [f"  * {'/'.join(filter(None, ('data', v.field)))} {v.description}" for v in all_wrong[:100]]
        schema = self._schema_id or method.reference_name
        text = "\n".join(f"  {line}" for line in lines)
        if method.http.legacy:
            refused = InputValidationError(
                f"Request payload must follow the schema: {schema}\n  Errors:\n{text}", all_wrong
            )
            refused.extra = {
                "error": [
                    {"message": f"{v.field or 'the body'} {v.description}", "error": {"path": v.field}}
                    for v in all_wrong[:100]
                ]
            }
            raise refused
        raise InputValidationError(
            f"\nSchema Validation Failed!\n  Rejecting Schema: {schema}\n  Errors:\n{text}", all_wrong
        )


_STEP = re.compile(r"\[([^\]]*)\]|([^.\[]+)")


def _pointer(message: Any, path: str) -> str:
    """`metadata.task_source[0]` as `metadata/taskSource/0`, without the names of fields that JSON does not
    show: those of messages that stand there as their one field's value."""
    parts: list[str] = []
    shown = True
    for item, name in _STEP.findall(path):
        if not name:
            parts.append(item)
            continue
        if shown:
            parts.append(_json_name(name))
        field = message.fields_by_name.get(name) if message is not None else None
        shown = field is None or not field.GetOptions().Extensions[options_pb2.field].unwrap
        message = None if field is None else field.message_type
    return "/".join(parts)


def _json_name(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(word.capitalize() for word in rest)


def _texts(value: object) -> list[str]:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    return []


def _unquoted(text: bytes) -> str:
    return unquote_to_bytes(text.replace(b"+", b" ")).decode()


def _body_class(method: Method) -> type[Message]:
    assert method.http is not None
    if method.http.body == "*":
        return method.request_class
    field: Any = getattr(method.request_class(), method.http.body)
    return type(field)
