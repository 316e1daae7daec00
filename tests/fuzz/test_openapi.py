"""Every operation of the OpenAPI document, with whatever Schemathesis makes of its parameters and bodies:
nothing is a fault of the server's, nothing hangs, and every answer is what the document says it is."""

from __future__ import annotations

import base64
import json
from typing import Any

import mohawk
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import response_schema_conformance

from server import app
from server.references.documents import References
from tests.fuzz.cases import cases
from tests.plugins.deployment import TOKEN

DOCUMENT = json.loads(References(app.SERVICES).documents["/openapi.json"].body)
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
OPERATIONS: list[Any] = [found.ok() for found in SCHEMA.get_all_operations() if isinstance(found, Ok)]


class Hawk(requests.auth.AuthBase):
    """Signs what is about to be sent, as root."""

    def __init__(self, scopes: list[str] | None) -> None:
        self._ext = "" if scopes is None else json.dumps({"authorizedScopes": scopes})

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        body: Any = request.body or b""
        content_type: Any = request.headers.get("Content-Type", "")
        if isinstance(content_type, bytes):
            content_type = content_type.decode("latin-1")
        request.headers["Authorization"] = mohawk.Sender(
            {"id": "root", "key": TOKEN, "algorithm": "sha256"},
            request.url,
            request.method,
            content=body if isinstance(body, bytes) else body.encode(),
            content_type=content_type,
            ext=base64.b64encode(self._ext.encode()).decode() if self._ext else None,
        ).request_header
        return request


def test_there_is_much_to_try() -> None:
    """The operations of all services."""
    assert len(OPERATIONS) > 80


@settings(
    max_examples=cases(),
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=False,
    database=None,
)
@given(data=st.data(), signed=st.sampled_from([True, True, True, False]))
def test_every_operation(root_url: str, data: st.DataObject, signed: bool) -> None:
    """No 5xx, no hang, no answer that its schema refuses."""
    operation = data.draw(st.sampled_from(OPERATIONS))
    case = data.draw(operation.as_strategy())
    with requests.Session() as session:
        session.trust_env = False
        try:
            answer = case.call(
                base_url=root_url,
                session=session,
                timeout=10,
                allow_redirects=False,
                auth=Hawk(None) if signed else None,
            )
        except requests.exceptions.InvalidHeader:
            return  # nothing that could be sent
    # The test endpoints know another client than root.
    assert answer.status_code != 401 or "test-authenticate" in str(answer.request.url), answer.text
    case.validate_response(answer, checks=[not_a_server_error, response_schema_conformance])
