"""The servers of the stream tests, for the fault tests."""

from __future__ import annotations

from tests.streams.conftest import cluster, root, server

__all__ = ["cluster", "root", "server"]
