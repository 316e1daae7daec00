"""Presigned URLs of S3 (Signature Version 4) whose signature covers headers.

The SDK's own presigning covers the host and nothing else, and an upload must come with the MIME type that
it was announced with.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from urllib.parse import quote, urlsplit

_ALGORITHM = "AWS4-HMAC-SHA256"


def presign(
    verb: str,
    url: str,
    *,
    access_key: str,
    secret_key: str,
    region: str,
    now: datetime,
    lifetime_s: int,
    headers: Mapping[str, str],
    parameters: Mapping[str, str] | None = None,
) -> str:
    """The URL of an object or bucket, made good for one verb, for `lifetime_s` seconds from `now`, and only
    with exactly these headers. `parameters` are further ones of the query."""
    parts = urlsplit(url)
    moment = now.strftime("%Y%m%dT%H%M%SZ")
    scope = f"{moment[:8]}/{region}/s3/aws4_request"
    signed = {"host": parts.netloc, **{name.lower(): value.strip() for name, value in headers.items()}}
    names = ";".join(sorted(signed))
    query = "&".join(
        f"{name}={quote(value, safe='-_.~')}"
        for name, value in sorted(
            {
                **(parameters or {}),
                "X-Amz-Algorithm": _ALGORITHM,
                "X-Amz-Credential": f"{access_key}/{scope}",
                "X-Amz-Date": moment,
                "X-Amz-Expires": str(lifetime_s),
                "X-Amz-SignedHeaders": names,
            }.items()
        )
    )
    canonical = "\n".join(
        [
            verb,
            parts.path,
            query,
            *(f"{name}:{signed[name]}" for name in sorted(signed)),
            "",
            names,
            "UNSIGNED-PAYLOAD",
        ]
    )
    text = "\n".join([_ALGORITHM, moment, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    signature = hmac.new(_key(secret_key, moment[:8], region), text.encode(), "sha256").hexdigest()
    return f"{url}?{query}&X-Amz-Signature={signature}"


@lru_cache(maxsize=4)
def _key(secret_key: str, day: str, region: str) -> bytes:
    key = f"AWS4{secret_key}".encode()
    for part in (day, region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key
