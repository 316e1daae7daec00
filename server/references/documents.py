"""Everything that is published, by path: made once, at start."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor

from server.config import Settings
from server.methods import Method
from server.references import api, formats, legacy, openapi, page
from server.references.catalogue import Catalogue
from tcqueue.v1 import options_pb2

JSON = "application/json"
HTML = "text/html; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Document:
    """One document. `content_security_policy` is what its page needs of a browser; None for data."""

    content_type: str
    body: bytes
    content_security_policy: str | None = None


def exchange_prefixes(
    services: Sequence[ServiceDescriptor], settings: Settings
) -> tuple[tuple[str, str], ...]:
    """What the names of each service's exchanges begin with at the broker of these settings, by the service's
    full name."""

    def prefix(rules: options_pb2.ServiceRules) -> str:
        if rules.unlisted:
            return settings.amqp_legacy_exchange_prefix
        if rules.name == "scheduler":
            return settings.amqp_scheduler_prefix
        return settings.amqp_exchange_prefix.replace("{service}", rules.name)

    return tuple(
        (service.full_name, prefix(service.GetOptions().Extensions[options_pb2.service]))
        for service in services
    )


class References:
    """What a deployment with these services publishes.

    `root_url` is the deployment's address, without a slash at its end: with it the manifest and the
    OpenAPI document name absolute addresses, without it relative ones. `prefixes` are as
    `exchange_prefixes` gives them; a service without one has that of its proto.
    """

    def __init__(
        self,
        services: Sequence[ServiceDescriptor],
        root_url: str = "",
        prefixes: Sequence[tuple[str, str]] = (),
    ) -> None:
        known = dict(prefixes)
        self._every = [Catalogue(service, known.get(service.full_name, "")) for service in services]
        #: Those of today.
        self._catalogues = [catalogue for catalogue in self._every if not catalogue.rules.unlisted]
        self._inputs = {
            endpoint.method.full_name: _schema_id(catalogue, endpoint.input)
            for catalogue in self._every
            for endpoint in catalogue.endpoints
            if endpoint.input
        }
        self.documents: Mapping[str, Document] = self._documents(root_url.rstrip("/"))

    def input_schema_id(self, method: Method) -> str | None:
        """The `$id` of the schema of a method's body; None for a method without one."""
        return self._inputs.get(method.full_name)

    def reference_paths(self) -> list[str]:
        """Paths of what is published for programs: references and schemas."""
        return [path for path in self.documents if path.startswith(("/references/", "/schemas/"))]

    def _documents(self, root_url: str) -> dict[str, Document]:
        references: dict[str, Any] = {}
        schemas: dict[str, Any] = {
            f"/schemas/common/{name}.json": schema for name, schema in formats.common().items()
        }
        for catalogue in self._catalogues:
            folder = f"/references/{catalogue.rules.name}/{catalogue.version}"
            references[f"{folder}/api.json"] = api.api(catalogue)
            if (exchanges := api.exchanges(catalogue)) is not None:
                references[f"{folder}/exchanges.json"] = exchanges
            for name, schema in catalogue.schemas.items():
                schemas[catalogue.schema_path(name)] = schema
        manifest = {
            "$schema": "/schemas/common/manifest-v3.json#",
            "references": [f"{root_url}{path}" for path in sorted(references)],
        }
        found = {
            path: Document(JSON, _dump(value))
            for path, value in {"/references/manifest.json": manifest, **references, **schemas}.items()
        }
        found["/openapi.json"] = Document(JSON, _dump(openapi.document(self._catalogues, root_url)))
        for catalogue in self._every:
            found.update(
                {path: Document(JSON, _dump(value)) for path, value in legacy.documents(catalogue).items()}
            )
        html, policy = page.render(self._catalogues)
        found["/docs"] = Document(HTML, html.encode(), policy)
        return found


def _schema_id(catalogue: Catalogue, name: str) -> str:
    if catalogue.rules.unlisted:
        return legacy.schema_id(catalogue, name)
    return f"{catalogue.schema_path(name)}#"


def _dump(value: Any) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"
