"""The API over HTTP: every method of every service that has a route in the proto, through the pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

from gateway import bodies, event_streams, replies, signing
from gateway.calls import HttpCall
from gateway.protocol import Exchange
from gateway.routes import Place, RouteTable, routes_for, verbs
from server.methods import Method
from server.pipeline import Pipeline

Scope = MutableMapping[str, Any]
Headers = Mapping[bytes, bytes]

NOT_FOUND = b'{\n  "error": "Not found"\n}'


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
        self.routes = RouteTable(pipelines)
        self._trust_proxy = trust_proxy
        self._schema_id = schema_id

    async def __call__(self, scope: Scope, receive: bodies.Receive, send: Any) -> None:
        """Answers one request, through the `exchange` in its scope."""
        headers: Headers = dict(scope["headers"])
        verb: str = scope["method"]
        exchange: Exchange = scope["exchange"]
        host, port = signing.host_and_port(
            headers, tls=scope["scheme"] == "https", trust_proxy=self._trust_proxy
        )
        places = self.routes.find(exchange.target.partition("?")[0], host)
        if verb == "OPTIONS" and places:
            await _answer_options(exchange, headers, places)
            return
        choices = routes_for(verb, places)
        if not choices:
            await replies.send(exchange, headers, verb, 404, NOT_FOUND)
            return
        call = HttpCall(exchange, verb, receive, headers, host, port, choices, self._schema_id)
        if call.route.method.server_streaming:
            await event_streams.answer(call, send, verb)
            return
        try:
            status, body, extra = await call.answer()
        except bodies.ClientGone:
            return
        await replies.send(exchange, headers, verb, status, body, extra=extra)


async def _answer_options(exchange: Exchange, headers: Headers, places: Sequence[Place]) -> None:
    allowed = ", ".join(verbs(places)).encode()
    await replies.send(
        exchange, headers, "OPTIONS", 200, allowed, content_type=replies.TEXT, extra=((b"allow", allowed),)
    )
