"""One call over HTTP on its way through the pipeline and back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from google.protobuf.message import Message

from gateway import bodies, failures, replies, signing
from gateway.drafts import HttpDraft
from gateway.protocol import Exchange
from gateway.routes import Choice, MalformedPath, decode
from server.codec import writing
from server.errors import AuthenticationFailed, InvalidRequestArguments, MalformedPayload, QueueError
from server.identity.model import HawkRequest
from server.methods import HttpRule, Method
from server.pipeline import incident

Headers = Mapping[bytes, bytes]

_WWW_AUTHENTICATE = ((b"www-authenticate", b"hawk"),)


class HttpCall:
    """A request and what becomes of it."""

    def __init__(
        self,
        exchange: Exchange,
        verb: str,
        receive: bodies.Receive,
        headers: Headers,
        host: str,
        port: int,
        choices: Sequence[Choice],
        schema_id: Callable[[Method], str | None],
    ) -> None:
        """`choices` are the routes of this path and verb, the best first: an elder's may leave a request that
        is not meant for it to the next."""
        self.exchange = exchange
        self._verb = verb
        self._receive = receive
        self.headers = headers
        self._host = host
        self._port = port
        self._choices = choices
        self.route, self._texts = choices[0]
        self._schema_id = schema_id
        self._parameters: Mapping[str, str] = {}
        self._draft: HttpDraft | None = None

    async def answer(self) -> tuple[int, bytes, Sequence[replies.Header]]:
        """Status, body and further headers. Raises ClientGone when nobody is left to be answered."""
        try:
            response = await self._respond()
            rule = self.route.method.http
            assert rule is not None
            if rule.success_status == 204 or _nothing(response, rule.response_body):
                return 204, b"", ()
            extra = _headers(response, rule) if rule.redirect or rule.response_headers else ()
            if rule.empty_body:
                return rule.success_status, b"", extra
            value = _body(response, rule.response_body)
            if rule.echoed and self._draft is not None:
                value |= self._draft.as_given(rule.echoed)
            return rule.success_status, writing.to_bytes(value, indent=True), extra
        except QueueError as e:
            return self.failed(e)
        except Exception as e:
            if isinstance(e, bodies.ClientGone):
                raise
            return self.failed(incident(self.route.method, e))

    async def _respond(self) -> Message:
        draft, credential = await self.draft()
        exchange = self.exchange
        # A long poll whose client hangs up must claim nothing any more (compat.md 6).
        exchange.waiting = True
        try:
            return await self.route.pipeline.call(self.route.method, draft, credential)
        except asyncio.CancelledError:
            if exchange.abandoned:
                raise bodies.ClientGone from None
            raise
        finally:
            exchange.waiting = False

    async def draft(self) -> tuple[HttpDraft, HawkRequest | None]:
        """The request, to be judged by the pipeline, and who sent it. Raises QueueError, ClientGone."""
        values = self._values()
        body = await bodies.read(self._receive, self.headers)
        if len(self._choices) > 1 and self._yields(body):
            self.route, self._texts = self._choices[1]
            values = self._values()
        route = self.route
        content_type = self.headers.get(b"content-type")
        self._draft = HttpDraft(
            route,
            values,
            self.exchange.target.partition("?")[2].encode("latin-1"),
            body,
            None if content_type is None else content_type.decode("latin-1"),
            self._schema_id(route.method),
            self.headers,
        )
        credential = signing.hawk_request(
            self._verb, self.exchange.target, self.headers, body, self._host, self._port
        )
        return self._draft, credential

    def _values(self) -> list[str]:
        """The path's arguments, decoded. Raises InvalidRequestArguments."""
        try:
            values = [decode(text) for text in self._texts]
        except MalformedPath as e:
            raise InvalidRequestArguments(f"Invalid URL patterns:\n  * {e}") from None
        self._parameters = dict(zip(self.route.arguments, values, strict=True))
        return values

    def _yields(self, body: bytes) -> bool:
        """Whether a request is meant for today's method at the path of an elder's."""
        rule = self.route.method.http
        assert rule is not None
        if not body:
            return rule.yields_without_body
        if not rule.yields_with:
            return False
        try:
            value = bodies.parse(body)
        except MalformedPayload:
            return False
        return isinstance(value, dict) and not rule.yields_with.isdisjoint(value)

    def failed(self, error: QueueError) -> tuple[int, bytes, Sequence[replies.Header]]:
        """An error as an answer: status, body and further headers."""
        payload = {} if self._draft is None else self._draft.payload
        body: Any = error.body
        if body is None:
            method = self.route.method
            name = method.reference_name or method.name[0].lower() + method.name[1:]
            body = failures.body_of(error, name, self._parameters, payload)
        extra: Sequence[replies.Header] = [
            (name.encode(), value.encode("latin-1")) for name, value in error.headers.items()
        ]
        if isinstance(error, AuthenticationFailed):
            extra = _WWW_AUTHENTICATE
        return error.http_status, _told(body), extra


def _told(body: Any) -> bytes:
    """An error's body as JSON text, whatever the request that it repeats holds."""
    try:
        return writing.to_bytes(body, indent=True)
    except TypeError:
        # Half of a surrogate pair can be read, and written only as the escape that it came as.
        return json.dumps(body, indent=2).encode()


def _headers(response: Message, rule: HttpRule) -> list[replies.Header]:
    """Where the answer leads, and what else its headers say."""
    found = []
    if rule.redirect:
        found.append((b"location", str(getattr(response, rule.redirect)).encode("ascii")))
    for name, field in rule.response_headers:
        found.append((name.encode(), str(writing.field_value(response, field)).encode("ascii")))
    return found


def _nothing(response: Any, field: str) -> bool:
    """Whether the one thing that the answer could be is not there."""
    if not field:
        return False
    descriptor = response.DESCRIPTOR.fields_by_name[field]
    return bool(descriptor.has_presence) and not response.HasField(field)


def _body(response: Message, field: str) -> Any:
    if not field:
        return writing.to_value(response)
    return writing.field_value(response, field)
