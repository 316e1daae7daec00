"""One call's way: authenticate, authorise early, validate, handle (design 2; queue.md 3, 8.5).

Both front doors come through here, so there is one set of rules. Handlers are found by name: the
rpc CreateTask is handled by `create_task` in one of the handler modules.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, Protocol

import structlog
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message

from server import metrics
from server.call import Call
from server.domain.scopes import ScopeSet
from server.errors import AuthenticationFailed, InternalServerError, NotImplementedYet, QueueError
from server.handlers import registry
from server.identity.model import NOBODY, Credential, Identity
from server.methods import Method, read_service
from server.services import Services
from server.validation import RequestValidator

#: Whom a public method sees: it looks at no credentials.
_PUBLIC = Identity(NOBODY, ScopeSet(), float("inf"), "none")

log = structlog.get_logger(__name__)

Handler = Callable[[Call, Any], Awaitable[Any]]


class Draft(Protocol):
    """A request that has not been read yet: a front door whose bytes must not be judged before its
    caller has been (queue.md 3, class U) hands one in instead of a message."""

    @property
    def parameters(self) -> Mapping[str, str]:
        """The arguments in the path, as they were written, by their lowerCamelCase names."""
        ...

    def lists(self, names: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """These lists of texts in the body; empty where what stands there is none."""
        ...

    def read(self, method: Method, validator: RequestValidator) -> Message:
        """The message, valid. Raises a BadRequest for the first part of the request that is wrong."""
        ...


class Pipeline:
    """All methods of a service with their handlers, ready to be called."""

    def __init__(self, services: Services, service: ServiceDescriptor) -> None:
        self.services = services
        self.service = service
        self.service_name = service.full_name
        self.methods: Mapping[str, Method] = read_service(service)
        self._validator = RequestValidator(list(self.methods.values()))
        self._handlers: Mapping[str, Any] = registry.find(service.full_name, self.methods.values())

    async def call(self, method: Method, request: Message | Draft, credential: Credential) -> Message:
        """Handles a unary call. Raises QueueError only."""
        done = metrics.started(method.name)
        try:
            call, request = await self._admit(method, request, credential)
            handler: Handler = self._handler(method)
            response: Message = await handler(call, request)
            self._check_authorized(call)
        except QueueError as e:
            done(e.code)
            raise
        except Exception as e:
            done("InternalServerError")
            raise incident(method, e) from e
        except BaseException:
            done("Cancelled")
            raise
        done("OK")
        return response

    async def stream(
        self, method: Method, request: Message | Draft, credential: Credential
    ) -> AsyncIterator[Message]:
        """Handles a call with one request and a stream of responses. Raises QueueError only."""
        done = metrics.started(method.name)
        try:
            call, request = await self._admit(method, request, credential)
            async with aclosing(self._handler(method)(call, request)) as responses:
                async for response in responses:
                    self._check_authorized(call)
                    yield response
        except QueueError as e:
            done(e.code)
            raise
        except Exception as e:
            done("InternalServerError")
            raise incident(method, e) from e
        except BaseException:
            done("Cancelled")
            raise
        done("OK")

    async def collect(self, method: Method, requests: AsyncIterator[Any], credential: Credential) -> Message:
        """Handles a call with a stream of requests and one response: the handler reads requests and
        validates them by `call.check`. Raises QueueError only."""
        answers: list[Message] = []

        async def send(answer: Message) -> None:
            answers.append(answer)

        await self.converse(method, requests, send, credential)
        return answers[0]

    async def converse(
        self,
        method: Method,
        requests: AsyncIterator[Any],
        send: Callable[[Any], Awaitable[None]],
        credential: Credential,
    ) -> None:
        """Handles a call with streams both ways: the handler reads requests, validates them by
        `call.check`, and sends responses. Raises QueueError only."""
        done = metrics.started(method.name)
        try:
            call = Call(method, await self._identity(credential), self.services, credential)
            call.check = partial(self._validator.check, method)
            if method.server_streaming:
                await self._handler(method)(call, requests, send)
                self._check_authorized(call)
            else:
                response = await self._handler(method)(call, requests)
                self._check_authorized(call)
                await send(response)
        except QueueError as e:
            done(e.code)
            raise
        except Exception as e:
            done("InternalServerError")
            raise incident(method, e) from e
        except BaseException:
            done("Cancelled")
            raise
        done("OK")

    async def _admit(
        self, method: Method, request: Message | Draft, credential: Credential
    ) -> tuple[Call, Message]:
        """Everything before the handler, in the order that the method's class demands."""
        if method.early:
            call = Call(method, await self._identity(credential), self.services, credential)
            if isinstance(request, Message):
                call.authorize(method.read_parameters(request))
            else:
                call.authorize({**request.parameters, **request.lists(method.body_lists)})
            return call, self._valid(method, request)
        request = self._valid(method, request)
        identity = _PUBLIC if method.scopes is None else await self._identity(credential)
        return Call(method, identity, self.services, credential), request

    def _valid(self, method: Method, request: Message | Draft) -> Message:
        if not isinstance(request, Message):
            return request.read(method, self._validator)
        self._validator.check(method, request)
        return request

    async def _identity(self, credential: Credential) -> Identity | QueueError:
        authenticator = self.services.authenticator
        try:
            identity = authenticator.authenticate_now(credential)
            return await authenticator.authenticate(credential) if identity is None else identity
        except AuthenticationFailed as e:
            return e

    def handles(self, method: Method) -> bool:
        """Whether the method has a handler."""
        return method.name in self._handlers

    def _handler(self, method: Method) -> Any:
        try:
            return self._handlers[method.name]
        except KeyError:
            raise NotImplementedYet(f"{method.name} is not implemented yet") from None

    @staticmethod
    def _check_authorized(call: Call) -> None:
        if not call.authorized:
            raise RuntimeError(f"{call.method.name} answered without having authorised its caller")


def incident(method: Method, cause: Exception) -> InternalServerError:
    """Logs a cause that callers must not see, and returns the error that names the incident."""
    return incident_of(method.name, cause)


def incident_of(what: str, cause: Exception) -> InternalServerError:
    """The same for what is no method."""
    incident_id = str(uuid.uuid4())
    log.error("internal error", method=what, incident_id=incident_id, exc_info=cause)
    return InternalServerError(f"Internal Server Error, incidentId {incident_id}.", incidentId=incident_id)
