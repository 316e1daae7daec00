"""The API over HTTP: every method of every service that has a route in the proto, through the pipeline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

from google.protobuf.message import Message

from gateway import bodies, failures, replies, signing
from gateway.drafts import HttpDraft
from gateway.protocol import Exchange
from gateway.routes import MalformedPath, Place, Route, RouteTable, decode, route_for, verbs
from server.codec import writing
from server.errors import AuthenticationFailed, InvalidRequestArguments, QueueError
from server.methods import HttpRule, Method
from server.pipeline import Pipeline, incident

Scope = MutableMapping[str, Any]
Headers = Mapping[bytes, bytes]

NOT_FOUND = b'{\n  "error": "Not found"\n}'

_WWW_AUTHENTICATE = ((b"www-authenticate", b"hawk"),)


class Api:
    """The ASGI application of `/api/...` and `/v1/...`."""

    def __init__(
        self,
        pipelines: Sequence[Pipeline],
        *,
        trust_proxy: bool,
        schema_id: Callable[[Method], str | None] = lambda _: None,
    ) -> None:
        """`schema_id` names the schema of a method's body, for the texts of validation errors."""
        self._routes = RouteTable(pipelines)
        self._trust_proxy = trust_proxy
        self._schema_id = schema_id

    async def __call__(self, scope: Scope, receive: bodies.Receive, _: object) -> None:
        """Answers one request, through the `exchange` in its scope."""
        headers: Headers = dict(scope["headers"])
        verb: str = scope["method"]
        exchange: Exchange = scope["exchange"]
        host, port = signing.host_and_port(
            headers, tls=scope["scheme"] == "https", trust_proxy=self._trust_proxy
        )
        places = self._routes.find(exchange.target.partition("?")[0], host)
        if verb == "OPTIONS" and places:
            await _answer_options(exchange, headers, places)
            return
        chosen = route_for(verb, places)
        if chosen is None:
            await replies.send(exchange, headers, verb, 404, NOT_FOUND)
            return
        route, texts = chosen
        call = _HttpCall(exchange, verb, receive, headers, host, port, route, self._schema_id(route.method))
        try:
            status, body, extra = await call.answer(texts)
        except bodies.ClientGone:
            return
        await replies.send(exchange, headers, verb, status, body, extra=extra)


class _HttpCall:
    """One call on its way through the pipeline and back."""

    def __init__(
        self,
        exchange: Exchange,
        verb: str,
        receive: bodies.Receive,
        headers: Headers,
        host: str,
        port: int,
        route: Route,
        schema_id: str | None,
    ) -> None:
        self._exchange = exchange
        self._verb = verb
        self._receive = receive
        self._headers = headers
        self._host = host
        self._port = port
        self._route = route
        self._schema_id = schema_id
        self._parameters: Mapping[str, str] = {}
        self._draft: HttpDraft | None = None

    async def answer(self, texts: Sequence[str]) -> tuple[int, bytes, Sequence[replies.Header]]:
        """Status, body and further headers. Raises ClientGone when nobody is left to be answered."""
        method = self._route.method
        try:
            response = await self._respond(texts)
            rule = method.http
            assert rule is not None
            if rule.success_status == 204:
                return 204, b"", ()
            value = _body(response, rule.response_body)
            extra = _headers(response, rule) if rule.redirect or rule.response_headers else ()
            return rule.success_status, writing.to_bytes(value, indent=True), extra
        except QueueError as e:
            return self._failed(e)
        except Exception as e:
            if isinstance(e, bodies.ClientGone):
                raise
            return self._failed(incident(method, e))

    async def _respond(self, texts: Sequence[str]) -> Message:
        route = self._route
        try:
            values = [decode(text) for text in texts]
        except MalformedPath as e:
            raise InvalidRequestArguments(f"Invalid URL patterns:\n  * {e}") from None
        self._parameters = dict(zip(route.arguments, values, strict=True))
        body = await bodies.read(self._receive, self._headers)
        content_type = self._headers.get(b"content-type")
        self._draft = HttpDraft(
            route,
            values,
            self._exchange.target.partition("?")[2].encode("latin-1"),
            body,
            None if content_type is None else content_type.decode("latin-1"),
            self._schema_id,
            self._headers,
        )
        credential = signing.hawk_request(
            self._verb, self._exchange.target, self._headers, body, self._host, self._port
        )
        exchange = self._exchange
        # A long poll whose client hangs up must claim nothing any more (compat.md 6).
        exchange.waiting = True
        try:
            return await route.pipeline.call(route.method, self._draft, credential)
        except asyncio.CancelledError:
            if exchange.abandoned:
                raise bodies.ClientGone from None
            raise
        finally:
            exchange.waiting = False

    def _failed(self, error: QueueError) -> tuple[int, bytes, Sequence[replies.Header]]:
        payload = {} if self._draft is None else self._draft.payload
        body: Any = error.body
        if body is None:
            body = failures.body_of(error, self._route.method.reference_name, self._parameters, payload)
        extra: Sequence[replies.Header] = [
            (name.encode(), value.encode("latin-1")) for name, value in error.headers.items()
        ]
        if isinstance(error, AuthenticationFailed):
            extra = _WWW_AUTHENTICATE
        return error.http_status, writing.to_bytes(body, indent=True), extra


def _headers(response: Message, rule: HttpRule) -> list[replies.Header]:
    """Where the answer leads, and what else its headers say."""
    found = []
    if rule.redirect:
        found.append((b"location", str(getattr(response, rule.redirect)).encode("ascii")))
    for name, field in rule.response_headers:
        found.append((name.encode(), str(writing.field_value(response, field)).encode("ascii")))
    return found


async def _answer_options(exchange: Exchange, headers: Headers, places: Sequence[Place]) -> None:
    allowed = ", ".join(verbs(places)).encode()
    await replies.send(
        exchange, headers, "OPTIONS", 200, allowed, content_type=replies.TEXT, extra=((b"allow", allowed),)
    )


def _body(response: Message, field: str) -> Any:
    if not field:
        return writing.to_value(response)
    return writing.field_value(response, field)
