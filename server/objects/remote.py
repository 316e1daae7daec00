"""The object service of another deployment, asked with the queue's own credentials (queue.md 6.1)."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from urllib.parse import quote

import httpx
import orjson

from server.clock import Clock
from server.domain.times import to_text
from server.errors import RequestConflict, ResourceNotFound, Unavailable
from server.identity import hawk
from server.identity.certificates import TemporaryCredentials
from server.identity.task_credentials import TaskCredentialIssuer

_TIMEOUT = httpx.Timeout(10.0, connect=3.0)


class RemoteObjects:
    """Implements ObjectKeeper. Every call may be repeated, so none is lost when a reply is."""

    def __init__(self, root_url: str, issuer: TaskCredentialIssuer, clock: Clock) -> None:
        """`issuer` holds the client that both signs our requests and issues credentials."""
        self._client = httpx.AsyncClient(timeout=_TIMEOUT, trust_env=False)
        self._base = f"{root_url.rstrip('/')}/api/object/v1"
        self._clock = clock
        self._issuer = issuer

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    async def lock_in(self, name: str, project_id: str, upload_id: str, expires: datetime) -> None:
        """See ObjectKeeper."""
        status, answer = await self._call(
            "PUT",
            "upload",
            name,
            {
                "projectId": project_id,
                "uploadId": upload_id,
                "expires": to_text(expires),
                "proposedUploadMethods": {},
            },
            [f"object:upload:{project_id}:{name}"],
        )
        if status == 409:
            raise RequestConflict(f"the object {name} exists already")
        _expect(status, answer)

    async def is_finished(self, name: str) -> bool:
        """See ObjectKeeper."""
        status, answer = await self._call("GET", "metadata", name, None, [f"object:download:{name}"])
        if status == 404:
            return False
        _expect(status, answer)
        return True

    async def simple_url(self, name: str) -> str:
        """See ObjectKeeper."""
        asked = {"acceptDownloadMethods": {"simple": True}}
        status, answer = await self._call("PUT", "start-download", name, asked, [f"object:download:{name}"])
        if status in (404, 406):
            raise ResourceNotFound("Object does not exist.")
        _expect(status, answer)
        url = answer.get("url")
        if not isinstance(url, str):
            raise _nonsense()
        return url

    def credentials(
        self, client_id: str, scope: str, start: datetime, expiry: datetime
    ) -> TemporaryCredentials:
        """See ObjectKeeper."""
        return self._issuer.issue_one(client_id, scope, start, expiry)

    async def _call(
        self, verb: str, method: str, name: str, body: Any, scopes: list[str]
    ) -> tuple[int, dict[str, Any]]:
        """Status and JSON of an answer; the request may do no more than `scopes`."""
        url = f"{self._base}/{method}/{quote(name, safe='')}"
        content = None if body is None else orjson.dumps(body)
        headers = {
            "authorization": hawk.header(
                verb,
                url,
                self._issuer.client_id,
                self._issuer.access_token,
                now=self._clock.now().timestamp(),
                ext={"authorizedScopes": scopes},
                payload=None if content is None else ("application/json", content),
            )
        }
        if content is not None:
            headers["content-type"] = "application/json"
        try:
            answer = await self._client.request(verb, url, content=content, headers=headers)
            value = orjson.loads(answer.content or b"{}")
        except (httpx.HTTPError, ValueError) as e:
            raise Unavailable(f"the object service does not answer: {type(e).__name__}") from e
        if not isinstance(value, dict):
            raise _nonsense()
        return answer.status_code, value


def _expect(status: int, answer: dict[str, Any]) -> None:
    if status != 200:
        text = str(answer.get("message", "")).partition("\n")[0]
        raise Unavailable(f"the object service answers {status}: {text}")


def _nonsense() -> Unavailable:
    return Unavailable("the object service answers what nobody documented")
