"""Streams of answers as server-sent events, for browsers and curl, as the proto's `event_stream` says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, cast

from google.protobuf.message import Message

from gateway import bodies, replies
from gateway.calls import HttpCall
from server.codec import writing
from server.errors import QueueError
from server.methods import Method
from server.pipeline import incident
from tcqueue.v1 import options_pb2

_HEAD = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    # Proxies that gather answers before they pass them on would never pass this one on.
    (b"x-accel-buffering", b"no"),
)
_RETRY = b"retry: 2000\n\n"


async def answer(call: HttpCall, send: Any, verb: str) -> None:
    """Answers a call with its stream, until the client hangs up. What is refused is refused as any call is;
    what breaks later ends the stream with an event `error`, and clients come back by themselves."""
    method = call.route.method
    begun = False
    call.exchange.waiting = True
    try:
        draft, credential = await call.draft()
        stream = cast("AsyncGenerator[Message, None]", call.route.pipeline.stream(method, draft, credential))
        async with aclosing(stream) as responses:
            async for response in responses:
                if not begun:
                    begun = True
                    head = [*replies.ALWAYS, *replies.traces(call.headers), *_HEAD]
                    await send({"type": "http.response.start", "status": 200, "headers": head})
                    if verb == "HEAD":
                        break
                    await _piece(send, _RETRY)
                await _piece(send, rendered(method, response))
        await send({"type": "http.response.body", "body": b""})
    except bodies.ClientGone:
        return
    except asyncio.CancelledError:
        if not call.exchange.abandoned:
            raise
    except Exception as e:
        error = e if isinstance(e, QueueError) else incident(method, e)
        if begun:
            text = writing.to_bytes({"code": error.code, "message": error.message}, indent=False)
            await send({"type": "http.response.body", "body": b"event: error\ndata: %s\n\n" % text})
        else:
            status, body, extra = call.failed(error)
            await replies.send(call.exchange, call.headers, verb, status, body, extra=extra)
    finally:
        call.exchange.waiting = False


async def _piece(send: Any, text: bytes) -> None:
    await send({"type": "http.response.body", "body": text, "more_body": True})


def rendered(method: Method, response: Message) -> bytes:
    """An answer as events; one without any is a comment that moves the id along."""
    assert method.http is not None
    rules = method.http.event_stream or options_pb2.EventStreamRules()
    items = list(getattr(response, rules.items)) if rules.items else [response]
    last = b"id: %s\n" % getattr(response, rules.id).encode() if rules.id else b""
    if not items:
        return b": nothing new\n%s\n" % last
    pieces = []
    for number, item in enumerate(items, 1):
        kind = b"event: %s\n" % getattr(item, rules.type).encode() if rules.type else b""
        data = writing.to_bytes(writing.to_value(item), indent=False)
        # Only the last one's id is safe to come back with: the answer ends there.
        pieces.append(b"%s%sdata: %s\n\n" % (last if number == len(items) else b"", kind, data))
    return b"".join(pieces)
