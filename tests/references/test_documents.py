"""The documents themselves: valid by the published formats, by ours, and by what messages really are."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from jsonschema import Draft6Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from referencing import Registry
from referencing.jsonschema import DRAFT6

from server import app
from server.events import filters
from server.methods import read_service
from server.references.documents import References
from tests.references.test_comparison import PUBLISHED

_FORMATS = ("manifest-v3", "api-reference-v0", "exchanges-reference-v0", "metaschema", "metadata-metaschema")


@cache
def _references() -> References:
    return References(app.SERVICES)


@cache
def _documents() -> dict[str, Any]:
    found = _references()
    return {path: json.loads(found.documents[path].body) for path in found.reference_paths()}


def _registry(schemas: dict[str, Any]) -> Registry[Any]:
    """Draft 06 and these schemas, by path."""
    draft = DRAFT6.create_resource(Draft6Validator.META_SCHEMA)
    registry: Registry[Any] = Registry().with_resource("http://json-schema.org/draft-06/schema", draft)
    for path, schema in schemas.items():
        registry = registry.with_resource(path, DRAFT6.create_resource(schema))
    return registry


def _ours() -> dict[str, Any]:
    return {path: document for path, document in _documents().items() if path.startswith("/schemas/")}


def _theirs() -> dict[str, Any]:
    if not PUBLISHED.is_dir() and os.environ.get("CI") != "true":
        pytest.skip("the published references are not beside the checkout")
    return {
        f"/schemas/common/{name}.json": json.loads((PUBLISHED / f"schemas/common/{name}.json").read_text())
        for name in _FORMATS
    }


def _check(formats: dict[str, Any]) -> int:
    """Validates every document by the format that it names; how many there were."""
    registry = _registry(formats)
    checked = 0
    for path, document in _documents().items():
        named = document["$schema"].removesuffix("#")
        if path == "/references/manifest.json":
            # The published format does not list the `$schema` that the published manifest has.
            document = {"references": document["references"]}
        if named.startswith("/"):
            Draft6Validator({"$ref": named}, registry=registry).validate(document)
            checked += 1
        else:
            assert path == "/schemas/common/metaschema.json"
    return checked


def test_documents_have_the_published_formats() -> None:
    """References, manifest and schemas are valid by the formats that other deployments publish."""
    assert _check(_theirs()) == len(_documents()) - 1


def test_documents_have_our_formats() -> None:
    """They are valid by what we publish under /schemas/common, too."""
    assert _check(_ours()) == len(_documents()) - 1


@pytest.mark.parametrize("formats", [_ours, _theirs], ids=["ours", "theirs"])
@pytest.mark.parametrize(
    ("path", "damage"),
    [
        ("/references/queue/v1/api.json", lambda d: d["entries"][0].pop("stability")),
        ("/references/queue/v1/api.json", lambda d: d["entries"][0].update(method="GET")),
        ("/references/queue/v1/api.json", lambda d: d["entries"][4].update(scopes={"AllOf": [1]})),
        ("/references/queue/v1/exchanges.json", lambda d: d["entries"][0]["routingKey"][0].pop("summary")),
        ("/references/manifest.json", lambda d: d.pop("references")),
        ("/schemas/queue/v1/task.json", lambda d: d.update(type="thing")),
    ],
)
def test_formats_refuse_what_is_wrong(formats: Any, path: str, damage: Any) -> None:
    """Our formats refuse what the published ones refuse."""
    document = json.loads(json.dumps(_documents()[path]))
    damage(document)
    named = document["$schema"].removesuffix("#")
    with pytest.raises(jsonschema.ValidationError):
        Draft6Validator({"$ref": named}, registry=_registry(formats())).validate(document)


def test_manifest_names_every_reference() -> None:
    """The manifest lists what is there, sorted, and nothing else."""
    listed = _documents()["/references/manifest.json"]["references"]
    there = [path for path in _documents() if path.startswith("/references/") and "manifest" not in path]
    assert listed == sorted(there)


def test_every_schema_reference_leads_somewhere() -> None:
    """Inputs, outputs, messages and `$ref`s name documents that are published; `$id` is their address."""
    documents = _documents()
    for path, document in documents.items():
        if path.startswith("/references/"):
            for entry in document.get("entries", ()):
                for key in ("input", "output", "schema"):
                    if key in entry:
                        assert (
                            f"/schemas/{document['serviceName']}/{entry[key].removesuffix('#')}" in documents
                        )
        else:
            assert document["$id"] == f"{path}#"
            folder = path.rsplit("/", 1)[0]
            for name in re.findall(r'"\$ref": "([^"#:]+)#', json.dumps(document)):
                assert f"{folder}/{name}" in documents


def test_exchanges_are_those_that_watchers_may_name() -> None:
    """The references and the event feed know the same exchanges."""
    found = set()
    for service in ("queue", "auth", "scheduler"):
        entries = _documents()[f"/references/{service}/v1/exchanges.json"]["entries"]
        found |= {entry["exchange"] for entry in entries}
    assert found == filters.EXCHANGES
    assert {"task-pending", "client-created", "role-deleted", "task-graph-blocked"} < found


def test_everything_is_explained() -> None:
    """Every document, entry, routing key word and member has a text for people."""
    for path, document in _documents().items():
        assert document.get("title") or path.endswith("manifest.json")
        for entry in document.get("entries", ()):
            assert entry["title"] and entry["description"], entry["name"]
            assert all(word["summary"] for word in entry.get("routingKey", ()))
        for name, member in document.get("properties", {}).items():
            if "/common/" not in path:
                assert member.get("description"), f"{path} {name}"


def test_input_schema_id() -> None:
    """A method with a body has the address of its schema, another one has none."""
    methods = read_service(app.SERVICES[0])
    assert (
        _references().input_schema_id(methods["CreateTask"]) == "/schemas/queue/v1/create-task-request.json#"
    )
    assert _references().input_schema_id(methods["GetTask"]) is None


def test_openapi_is_valid_and_whole() -> None:
    """A validator accepts it, and it has every entry of the references under its name."""
    document = json.loads(_references().documents["/openapi.json"].body)
    OpenAPIV31SpecValidator(document).validate()
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    entries = [
        entry for path, d in _documents().items() if path.endswith("/api.json") for entry in d["entries"]
    ]
    assert len(operations) == len(entries)
    names = {operation["operationId"] for operation in operations}
    assert {entry["name"] for entry in entries if entry["category"] != "Monitoring"} <= names
    assert len(names) == len(operations)


def test_root_url_is_where_openapi_points() -> None:
    """With a root URL the server is named, without one it is where the document came from."""
    named = References(app.SERVICES, "https://queue.example.com/")
    assert json.loads(named.documents["/openapi.json"].body)["servers"] == [
        {"url": "https://queue.example.com"}
    ]
    assert json.loads(_references().documents["/openapi.json"].body)["servers"] == [{"url": "/"}]


def test_page_needs_nothing_from_elsewhere() -> None:
    """The page has every method, fetches nothing, and its policy allows its own style and script only."""
    document = _references().documents["/docs"]
    page, policy = document.body.decode(), document.content_security_policy
    assert policy is not None and "unsafe" not in policy
    for name in ("style", "script"):
        (source,) = re.findall(rf"<{name}>(.*?)</{name}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    assert re.findall(r'(?:src|href)="(?![/#])[^"]*"', page) == []
    assert not re.search(r'\s(?:style|on\w+)="', page)
    for path, reference in _documents().items():
        if path.endswith("/api.json"):
            for entry in reference["entries"]:
                assert html.escape(entry["route"]) in page
    anchors = re.findall(r'href="#([^"]+)"', page)
    assert set(anchors) <= set(re.findall(r'id="([^"]+)"', page))


def test_comments_are_shipped() -> None:
    """The wheel takes the folder that the comments are in."""
    settings = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert re.search(r'packages = \[[^]]*"gen/tcqueue"', settings)
    assert (Path(__file__).parents[2] / "gen/tcqueue/v1/comments.json").is_file()
