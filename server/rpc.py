"""The gRPC front door: bytes in, bytes out, everything between is the pipeline's (design 2)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc.aio import ServicerContext
from grpc_status import rpc_status

from server.errors import AuthenticationFailed, MalformedPayload, QueueError, Unavailable
from server.methods import Method
from server.pipeline import Pipeline

_DOMAIN = "tcqueue"
_REASON_LIMIT = 3000

# What a read returns at the end of a stream; the types of grpc do not have it.
_END: Any = getattr(grpc.aio, "EOF")  # noqa: B009


def generic_handler(pipeline: Pipeline) -> grpc.GenericRpcHandler[Any, Any]:
    """A handler for every method of the service, without interceptors: each costs a call dearly."""
    return grpc.method_handlers_generic_handler(
        pipeline.service_name,
        {method.name: _method_handler(method, pipeline) for method in pipeline.methods.values()},
    )


def _method_handler(method: Method, pipeline: Pipeline) -> grpc.RpcMethodHandler[Any, Any]:
    deserializer = _reader(method)
    serializer = _writer(method)
    if method.client_streaming and not method.server_streaming:
        return grpc.stream_unary_rpc_method_handler(_collection(method, pipeline), deserializer, serializer)
    if method.client_streaming:
        return grpc.stream_stream_rpc_method_handler(
            _conversation(method, pipeline), deserializer, serializer
        )
    if method.server_streaming:
        return grpc.unary_stream_rpc_method_handler(_stream(method, pipeline), deserializer, serializer)
    return grpc.unary_unary_rpc_method_handler(_unary(method, pipeline), deserializer, serializer)


class _Unreadable:
    """What stands for bytes that are no message of the method: gRPC itself would answer INTERNAL."""


_UNREADABLE = _Unreadable()


def _reader(method: Method) -> Callable[[bytes], Any]:
    parse = method.request_class.FromString

    def read(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            return _UNREADABLE

    return read


def _writer(method: Method) -> Callable[[Any], bytes]:
    serialize = method.response_class.SerializeToString

    def write(answer: Any) -> bytes:
        # What is put together from stored parts comes serialized.
        return answer if type(answer) is bytes else serialize(answer)

    return write


def _refuse_unreadable(method: Method, request: Any) -> None:
    if request is _UNREADABLE:
        raise MalformedPayload(f"the bytes sent are no {method.request_class.DESCRIPTOR.full_name}")


class _Requests:
    """The requests of a stream, read from its context: grpc's own iterator, and a generator around it to
    look at each, cost a message twice as much."""

    __slots__ = ("_method", "_read")

    def __init__(self, method: Method, context: ServicerContext[Any, Any]) -> None:
        self._method = method
        self._read = context.read

    def __aiter__(self) -> _Requests:
        return self

    async def __anext__(self) -> Any:
        request = await self._read()
        if request is _END:
            raise StopAsyncIteration
        if request is _UNREADABLE:
            _refuse_unreadable(self._method, request)
        return request


def _unary(method: Method, pipeline: Pipeline) -> Callable[[Any, Any], Awaitable[Any]]:
    call = pipeline.call

    async def handle(request: Message, context: ServicerContext[Any, Any]) -> Message | None:
        try:
            _refuse_unreadable(method, request)
            return await call(method, request, bearer_token(context))
        except QueueError as e:
            await _abort(context, e)
            return None

    return handle


def _stream(method: Method, pipeline: Pipeline) -> Callable[[Any, Any], AsyncIterator[Any]]:
    async def handle(request: Message, context: ServicerContext[Any, Any]) -> AsyncIterator[Message]:
        try:
            _refuse_unreadable(method, request)
            async for response in pipeline.stream(method, request, bearer_token(context)):
                yield response
        except QueueError as e:
            await _abort(context, e)

    return handle


def _collection(method: Method, pipeline: Pipeline) -> Callable[[Any, Any], Awaitable[Any]]:
    async def handle(_: AsyncIterator[Message], context: ServicerContext[Any, Any]) -> Message | None:
        try:
            return await pipeline.collect(method, _Requests(method, context), bearer_token(context))
        except QueueError as e:
            await _abort(context, e)
            return None

    return handle


def _conversation(method: Method, pipeline: Pipeline) -> Callable[[Any, Any], Awaitable[None]]:
    async def handle(_: AsyncIterator[Message], context: ServicerContext[Any, Any]) -> None:
        try:
            await pipeline.converse(method, _Requests(method, context), context.write, bearer_token(context))
        except QueueError as e:
            await _abort(context, e)

    return handle


def bearer_token(context: ServicerContext[Any, Any]) -> str | None:
    """The token of the `authorization` metadata; None without one.

    Raises AuthenticationFailed for another scheme.
    """
    for key, value in context.invocation_metadata() or ():
        if key == "authorization":
            text = value.decode("latin-1") if isinstance(value, bytes) else value
            scheme, _, token = text.partition(" ")
            if scheme.lower() != "bearer" or not token:
                raise AuthenticationFailed("the authorization metadata must be `Bearer <JWT>`")
            return token.strip()
    return None


async def _abort(context: Any, error: QueueError) -> None:
    await context.abort_with_status(rpc_status.to_status(status_of(error)))


def status_of(error: QueueError) -> status_pb2.Status:
    """The error with its machine-readable details: ErrorInfo always, BadRequest where fields are to
    blame, RetryInfo where a repeat may succeed."""
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=_upper_snake(error.code), domain=_DOMAIN, metadata=error.details)
    ]
    if error.violations:
        details.append(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(field=v.field, description=v.description)
                    for v in error.violations[:20]
                ]
            )
        )
    if isinstance(error, Unavailable):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(500)
        details.append(retry)
    code: Any = error.grpc_status.value[0]
    return status_pb2.Status(
        code=code,
        # Status text travels in a header, and headers have a limit of 8 KiB in most clients.
        message=_shortened(error.message),
        details=_packed(details),
    )


def _packed(details: Sequence[Message]) -> list[any_pb2.Any]:
    packed = []
    for detail in details:
        holder = any_pb2.Any()
        holder.Pack(detail)
        packed.append(holder)
    return packed


def _shortened(text: str) -> str:
    return text if len(text) <= _REASON_LIMIT else f"{text[:_REASON_LIMIT]} … ({len(text)} characters)"


def _upper_snake(code: str) -> str:
    return "".join(f"_{c}" if c.isupper() and i else c for i, c in enumerate(code)).upper()
