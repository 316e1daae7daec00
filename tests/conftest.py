from __future__ import annotations

pytest_plugins = [
    "tests.plugins.identity",
    "tests.plugins.postgres",
    "tests.plugins.server",
    "tests.plugins.services",
]
