"""What a Hawk signature covers of a request, as this deployment's clients saw it (auth.md 1.3)."""

from __future__ import annotations

from collections.abc import Mapping

from server.identity.model import HawkRequest


def host_and_port(headers: Mapping[bytes, bytes], *, tls: bool, trust_proxy: bool) -> tuple[str, int]:
    """The host, lower-cased, and the port that a client signed.

    A proxy's X-Forwarded-Port and X-Forwarded-Proto count only where the settings trust it. A port that
    is no number becomes 0, for which no signature holds.
    """
    host, port = _split(headers.get(b"host", b"").decode("latin-1").strip().lower())
    if trust_proxy:
        forwarded = headers.get(b"x-forwarded-port")
        if forwarded is not None:
            return host, _number(forwarded.decode("latin-1").partition(",")[0].strip())
        proto = headers.get(b"x-forwarded-proto", b"").partition(b",")[0].strip().lower()
        if proto == b"https":
            return host, 443
    if port is not None:
        return host, _number(port)
    return host, 443 if tls else 80


def hawk_request(
    verb: str,
    target: str,
    headers: Mapping[bytes, bytes],
    body: bytes,
    host: str,
    port: int,
) -> HawkRequest:
    """The request as its signature sees it."""
    content_type = headers.get(b"content-type")
    authorization = headers.get(b"authorization")
    return HawkRequest(
        method=verb,
        resource=target,
        host=host,
        port=port,
        authorization=None if authorization is None else authorization.decode("latin-1"),
        payload=(None if content_type is None else content_type.decode("latin-1"), body),
    )


def _split(host: str) -> tuple[str, str | None]:
    """Host and port of a Host header; IPv6 keeps its brackets."""
    if host.startswith("["):
        name, bracket, rest = host.partition("]")
        return name + bracket, rest[1:] if rest.startswith(":") else None
    name, colon, port = host.partition(":")
    return name, port if colon and port else None


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0
