"""The same API as an OpenAPI 3.1 document."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.descriptor_pb2 import FieldDescriptorProto

from server.references import schemas
from server.references.api import arguments, camel_case, stability
from server.references.catalogue import Catalogue, Endpoint
from server.references.comments import comment
from server.version import version_object

Json = dict[str, Any]

_FIELD = re.compile(r"\{(\w+)(?:=([^}]*))?\}")
_WILDCARD = "Matches the rest of the path: slashes in it may be sent as they are or as `%2F`."
_RUN_ID_TEXT = "^[1-9]*[0-9]+$"
_ERRORS = {
    "400": "The request is malformed, breaks its schema or makes no sense.",
    "401": "Credentials were given and do not hold.",
    "403": "The caller lacks scopes; the message names them.",
    "404": "The named thing does not exist.",
    "409": "The named thing's state forbids the call.",
    "410": "The named thing's time is over.",
    "413": "The request is too large.",
    "424": "The artifact stands for an error of its task.",
    "500": "A mistake of the server; the message has an incident id.",
    "503": "Something the call needs is away for the moment; try again.",
}


def document(catalogues: Sequence[Catalogue], root_url: str) -> Json:
    """All services in one document; the server is `root_url`, or where the document came from."""
    paths: dict[str, Json] = {}
    components: dict[str, Json] = {"Error": _error(), "ArtifactError": _artifact_error()}
    for catalogue in catalogues:
        for endpoint in catalogue.endpoints:
            path = _FIELD.sub(lambda match: f"{{{camel_case(match[1])}}}", endpoint.http.template)
            paths.setdefault(path, {})[endpoint.http.verb.lower()] = _operation(catalogue, endpoint)
        for name, schema in catalogue.schemas.items():
            components[_component(catalogue, name)] = _translated(catalogue, schema)
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "tcqueue",
            "version": version_object()["version"],
            "description": "\n\n".join(comment(c.service.full_name) for c in catalogues),
            "license": {"name": "MPL-2.0", "identifier": "MPL-2.0"},
        },
        "servers": [{"url": root_url or "/"}],
        "tags": [
            {"name": f"{c.rules.name}: {category}"}
            for c in catalogues
            for category in dict.fromkeys(e.rules.category for e in c.endpoints)
        ],
        "paths": paths,
        "components": {
            "schemas": components,
            "responses": {
                code: _error_response(text, "ArtifactError" if code == "424" else "Error")
                for code, text in _ERRORS.items()
            },
            "securitySchemes": {
                "hawk": {
                    "type": "http",
                    "scheme": "hawk",
                    "description": "`Authorization: Hawk id=..., ts=..., nonce=..., mac=...`, HMAC-SHA256; "
                    "temporary credentials and narrower scopes go into `ext`.",
                },
                "bewit": {
                    "type": "apiKey",
                    "in": "query",
                    "name": "bewit",
                    "description": "A signed URL, for GET and HEAD.",
                },
            },
        },
    }


def _operation(catalogue: Catalogue, endpoint: Endpoint) -> Json:
    rules, http = endpoint.rules, endpoint.http
    text = comment(endpoint.descriptor.full_name)
    found: Json = {
        "operationId": operation_id(catalogue, endpoint),
        "summary": rules.title,
        "description": text,
        "tags": [f"{catalogue.rules.name}: {rules.category}"],
        "parameters": [*_path_parameters(endpoint), *_query_parameters(endpoint)],
        "responses": {str(http.success_status): _success(catalogue, endpoint), **_failures(endpoint)},
        "security": [{}],
        "x-stability": stability(endpoint),
    }
    if stability(endpoint) == "deprecated":
        found["deprecated"] = True
    if endpoint.input:
        reference = _reference(catalogue, endpoint.input)
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": reference}}}
    if endpoint.method.scopes is not None:
        found["x-scopes"] = endpoint.method.scopes.to_json()
        # Without credentials a caller has the scopes of role `anonymous`, which may be enough.
        found["security"] = [{"hawk": []}, *([{"bewit": []}] if http.verb == "GET" else []), {}]
    return found


#: Names that another service has, too, and had first.
_NAMED_ELSEWHERE = frozenset({("scheduler", "status"), ("scheduler", "inspect")})


def operation_id(catalogue: Catalogue, endpoint: Endpoint) -> str:
    """The reference's name; every service has those about its health, which get the service's name too."""
    service, name = catalogue.rules.name, endpoint.rules.name
    shared = endpoint.rules.category == "Monitoring" or (service, name) in _NAMED_ELSEWHERE
    return camel_case(f"{service}-{name}") if shared else name


def _path_parameters(endpoint: Endpoint) -> list[Json]:
    fields = endpoint.descriptor.input_type.fields_by_name
    wild = {name for name, pattern in _FIELD.findall(endpoint.http.template) if pattern}
    found = []
    for name, argument in zip(_field_names(endpoint), arguments(endpoint), strict=True):
        parameter = _parameter(fields[name], "path")
        parameter["name"], parameter["required"] = argument, True
        if name in wild:
            parameter["description"] = f"{parameter.get('description', '')} {_WILDCARD}".strip()
        found.append(parameter)
    return found


def _field_names(endpoint: Endpoint) -> list[str]:
    return [name for name, _ in _FIELD.findall(endpoint.http.template)]


def _query_parameters(endpoint: Endpoint) -> list[Json]:
    fields = endpoint.descriptor.input_type.fields_by_name
    return [_parameter(fields[name], "query") for name in endpoint.http.query]


def _parameter(field: FieldDescriptor, place: str) -> Json:
    schema = schemas.Writer(lambda _: None, request=True).value(field)
    description = schema.pop("description", "")
    found: Json = {"name": field.camelcase_name, "in": place, "schema": schema}
    if field.type in (FieldDescriptorProto.TYPE_INT32, FieldDescriptorProto.TYPE_INT64) and place == "path":
        # Leading zeros are legal in a path and no integer in JSON.
        found["schema"] = {"type": "string", "pattern": _RUN_ID_TEXT}
    if description:
        found["description"] = description
    return found


def _success(catalogue: Catalogue, endpoint: Endpoint) -> Json:
    status = endpoint.http.success_status
    found: Json = {"description": "Done." if status == 204 else "The answer."}
    if status == 303:
        found["description"] = "Where it is: in `Location`, and in the body for clients that do not follow."
        found["headers"] = {"Location": {"schema": {"type": "string", "format": "uri"}}}
    if status != 204:
        schema = _reference(catalogue, endpoint.output) if endpoint.output else {"type": "object"}
        found["content"] = {"application/json": {"schema": schema}}
    return found


def _failures(endpoint: Endpoint) -> Json:
    codes = set(_ERRORS) - {"424"}
    if endpoint.rules.category == "Monitoring":
        codes = {"500", "503"}
    if endpoint.http.success_status == 303:
        codes.add("424")
    return {code: {"$ref": f"#/components/responses/{code}"} for code in sorted(codes)}


def _error_response(text: str, schema: str) -> Json:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"description": text, "content": content}


def _error() -> Json:
    return {
        "type": "object",
        "description": "What went wrong, for programs and for people.",
        "properties": {
            "code": {"type": "string", "description": "For programs, for instance `InputError`."},
            "message": {"type": "string", "description": "For people, with the request at its end."},
            "requestInfo": {
                "type": "object",
                "description": "The request as it was understood.",
                "properties": {
                    "method": {"type": "string"},
                    "params": {"type": "object"},
                    "payload": {},
                    "time": {"type": "string", "format": "date-time"},
                },
                "required": ["method", "params", "payload", "time"],
            },
            "error": {
                "type": "array",
                "description": "Of the scheduler: each thing that is wrong, with its facts.",
                "items": {
                    "type": "object",
                    "properties": {"message": {"type": "string"}, "error": {"type": "object"}},
                    "required": ["message", "error"],
                    "additionalProperties": False,
                },
            },
        },
        "required": ["code", "message", "requestInfo"],
        "additionalProperties": False,
    }


def _artifact_error() -> Json:
    text = {"type": "string"}
    return {
        "type": "object",
        "description": "What a task said instead of making an artifact.",
        "properties": {"reason": text, "message": text},
        "required": ["reason", "message"],
        "additionalProperties": False,
    }


def _component(catalogue: Catalogue, name: str) -> str:
    return f"{catalogue.rules.name}.{catalogue.version}.{name}"


def _reference(catalogue: Catalogue, name: str) -> Json:
    return {"$ref": f"#/components/schemas/{_component(catalogue, name)}"}


def _translated(catalogue: Catalogue, schema: Any) -> Any:
    """A draft-06 schema of ours in OpenAPI's dialect: only addresses differ in what we use of it."""
    if isinstance(schema, list):
        return [_translated(catalogue, item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if isinstance(schema.get("$ref"), str):
        return _reference(catalogue, schema["$ref"].removesuffix(".json#"))
    return {k: _translated(catalogue, v) for k, v in schema.items() if k not in ("$schema", "$id")}
