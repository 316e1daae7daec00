"""Which host and port a signature covers (auth.md 1.3)."""

from __future__ import annotations

import pytest

from gateway.signing import host_and_port

PLAIN = {"tls": False, "trust_proxy": False}
TLS = {"tls": True, "trust_proxy": False}
TRUSTING = {"tls": False, "trust_proxy": True}


@pytest.mark.parametrize(
    ("headers", "how", "expected"),
    [
        ({b"host": b"tc.example.com"}, PLAIN, ("tc.example.com", 80)),
        ({b"host": b"TC.Example.com"}, TLS, ("tc.example.com", 443)),
        ({b"host": b"tc.example.com:8080"}, PLAIN, ("tc.example.com", 8080)),
        ({b"host": b"tc.example.com:8443"}, TLS, ("tc.example.com", 8443)),
        ({b"host": b"[::1]:8080"}, PLAIN, ("[::1]", 8080)),
        ({b"host": b"[::1]"}, PLAIN, ("[::1]", 80)),
        ({b"host": b"tc.example.com:"}, PLAIN, ("tc.example.com", 80)),
        ({b"host": b"tc.example.com:x"}, PLAIN, ("tc.example.com", 0)),
        ({b"host": b"tc.example.com:999999"}, PLAIN, ("tc.example.com", 0)),
        ({}, PLAIN, ("", 80)),
        # A proxy's word counts only where it is trusted, and its port comes first.
        ({b"host": b"h", b"x-forwarded-port": b"443"}, PLAIN, ("h", 80)),
        ({b"host": b"h", b"x-forwarded-proto": b"https"}, PLAIN, ("h", 80)),
        ({b"host": b"h", b"x-forwarded-port": b"8443, 80"}, TRUSTING, ("h", 8443)),
        ({b"host": b"h:8443", b"x-forwarded-proto": b"https"}, TRUSTING, ("h", 443)),
        ({b"host": b"h:8080", b"x-forwarded-proto": b"http"}, TRUSTING, ("h", 8080)),
        (
            {b"host": b"h:1", b"x-forwarded-proto": b"https", b"x-forwarded-port": b"99"},
            TRUSTING,
            ("h", 99),
        ),
        ({b"host": b"h", b"x-forwarded-port": b"https"}, TRUSTING, ("h", 0)),
    ],
)
def test_host_and_port(headers: dict[bytes, bytes], how: dict[str, bool], expected: tuple[str, int]) -> None:
    assert host_and_port(headers, tls=how["tls"], trust_proxy=how["trust_proxy"]) == expected
