"""The HTTP door, over a socket, signed by another implementation of Hawk than ours.

What a server answers is checked against the reference's own schemas before it is turned into a message.
"""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import quote, urlencode

import httpx
import mohawk
from google.protobuf.message import Message

from server.client.credentials import Credentials
from server.codec import reading, writing
from server.errors import Violation
from server.methods import HttpRule, Method
from tests.conformance import reference
from tests.conformance.door import METHODS, STRANGE_FIELD, Door, Refused

#: What stands in JSON for the field that `strange` makes.
_STRANGE_NAME = "noSuchField"


class HttpDoor:
    """Calls methods by their routes, and those without one through the door beside."""

    in_paths = True

    def __init__(self, port: int, beside: Door) -> None:
        self.beside = beside
        self.base = f"http://127.0.0.1:{port}"
        self.client = httpx.AsyncClient(base_url=self.base, timeout=60)

    async def call(self, method: str, request: Message, credentials: Credentials) -> Any:
        """See Door."""
        rules = METHODS[method]
        if rules.http is None:
            return await self.beside.call(method, request, credentials)
        url, content = _request_of(rules.http, request)
        headers = {"Content-Type": "application/json"} if rules.http.body or content else {}
        headers.update({name: "true" for field, name in rules.http.headers if getattr(request, field)})
        if not credentials.anonymous:
            headers["Authorization"] = signature(
                credentials, rules.http.verb, self.base + url, content, headers.get("Content-Type", "")
            )
        # The URL goes out as it was signed: httpx would decode and encode it anew.
        sent = self.client.build_request(rules.http.verb, self.base, content=content, headers=headers)
        sent.url = httpx.URL(self.base, raw_path=url.encode())
        answer = await self.client.send(sent)
        return _response_of(rules, answer)

    async def close(self) -> None:
        """See Door."""
        await self.client.aclose()


def signature(credentials: Credentials, verb: str, url: str, content: bytes, content_type: str) -> str:
    """The Authorization header of a request, with a payload hash."""
    ext: dict[str, Any] = {}
    if credentials.certificate:
        ext["certificate"] = json.loads(credentials.certificate)
    if credentials.authorized_scopes is not None:
        ext["authorizedScopes"] = list(credentials.authorized_scopes)
    sender = mohawk.Sender(
        {"id": credentials.client_id, "key": credentials.access_token, "algorithm": "sha256"},
        url,
        verb,
        content=content,
        content_type=content_type,
        ext=base64.urlsafe_b64encode(json.dumps(ext).encode()).decode() if ext else None,
    )
    return str(sender.request_header)


def _request_of(rule: HttpRule, request: Message) -> tuple[str, bytes]:
    """Path with query, and the body's JSON; free JSON stands in it as the message has it."""
    values: dict[str, Any] = writing.to_value(request)
    path = rule.template
    names = request.DESCRIPTOR.fields_by_name
    for segment in rule.template.split("/"):
        if segment.startswith("{"):
            field = segment[1:-1].partition("=")[0]
            values.pop(names[field].camelcase_name, None)
            path = path.replace(segment, quote(str(getattr(request, field)), safe=""))
    query = {}
    for field in rule.query:
        name = names[field].camelcase_name
        value = values.pop(name, None)
        if value is not None and (not names[field].has_presence or request.HasField(field)):
            query[name] = json.dumps(value) if isinstance(value, bool) else value
    if query:
        path += "?" + urlencode(query)
    said = {names[field].camelcase_name for field in rule.unchecked_body if request.HasField(field)}
    if said:
        return path, json.dumps({name: values[name] for name in said}).encode()
    if not rule.body:
        return path, b""
    body = values if rule.body == "*" else values.get(names[rule.body].camelcase_name, {})
    holder = request if rule.body == "*" else getattr(request, rule.body)
    if STRANGE_FIELD in holder.SerializeToString():
        body[_STRANGE_NAME] = 1
    return path, writing.to_bytes(body, indent=False)


def _response_of(rules: Method, answer: httpx.Response) -> Any:
    assert rules.http is not None
    for name in ("x-for-trace-id", "x-for-request-id", "access-control-allow-origin", "cache-control"):
        assert name in answer.headers, f"{rules.name} answered without {name}"
    if answer.status_code == 424:
        raise error_artifact_of(answer)
    if answer.status_code >= 400:
        raise refusal_of(rules, answer)
    if rules.http.redirect:
        assert answer.headers["location"] == answer.json()[rules.http.redirect]
    for header, filler in rules.http.response_headers:
        assert answer.headers[header] == answer.json()[_json_name(filler)]
    assert answer.status_code == rules.http.success_status
    message = rules.response_class()
    if answer.status_code == 204:
        assert not answer.content
        return message
    _check(rules, answer.json())
    text = answer.content
    if rules.http.response_body:
        field = message.DESCRIPTOR.fields_by_name[rules.http.response_body]
        text = b'{"%s": %s}' % (field.camelcase_name.encode(), text)
    found: list[Violation] = []
    reading.fill(message, reading.parse(text), text, found)
    assert not found, found
    return message


def error_artifact_of(answer: httpx.Response) -> Refused:
    """The answer for an artifact that could not be made, its form checked (Q-166)."""
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    assert answer.headers["x-taskcluster-artifact-storage-type"] == "error"
    body = answer.json()
    assert set(body) == {"reason", "message"}
    text = f"the artifact could not be made: {body['reason']}: {body['message']}"
    return Refused("ErrorArtifact", text, {"reason": body["reason"]})


def _json_name(field: str) -> str:
    first, *rest = field.split("_")
    return first + "".join(word.capitalize() for word in rest)


def refusal_of(rules: Method, answer: httpx.Response) -> Refused:
    """An error answer, its form checked (Q-206)."""
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    body = answer.json()
    faults = body.pop("error", []) if rules.service == "scheduler" else []
    assert set(body) == {"code", "message", "requestInfo"}
    info = body["requestInfo"]
    assert set(info) == {"method", "params", "payload", "time"}
    assert info["method"] == rules.reference_name
    text, _, trailer = body["message"].rpartition("\n\n---\n\n")
    assert trailer == (
        f"* method:     {info['method']}\n* errorCode:  {body['code']}\n"
        f"* statusCode: {answer.status_code}\n* time:       {info['time']}"
    )
    assert all(set(fault) == {"message", "error"} for fault in faults)
    return Refused(body["code"], text, faults=[fault["message"] for fault in faults])


def _check(rules: Method, value: object) -> None:
    """Raises jsonschema.ValidationError for an answer that the reference's schema refuses. It has forgotten
    the `actions` of provisioners, worker types and workers, which older clients look for."""
    output = reference.outputs().get((rules.service, rules.reference_name))
    validator = None if output is None else reference.validator(output)
    if validator is not None:
        validator.validate(_without_actions(value))


def _without_actions(value: Any) -> Any:
    """The answer without the lists of `actions`, which are empty, in itself and its items."""
    if not isinstance(value, dict):
        return value
    found = {name: [*map(_without_actions, v)] if isinstance(v, list) else v for name, v in value.items()}
    return {name: v for name, v in found.items() if (name, v) != ("actions", [])}
