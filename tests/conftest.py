from __future__ import annotations

import os

# Read when grpc is imported: its fork handlers stall, for seconds, tests that start processes; and the
# server listens as it does for `tcqueue serve`.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
os.environ["GRPC_EXPERIMENTS"] = "-event_engine_listener"

pytest_plugins = [
    "tests.plugins.azurite",
    "tests.plugins.deployment",
    "tests.plugins.elders",
    "tests.plugins.event_log",
    "tests.plugins.identity",
    "tests.plugins.postgres",
    "tests.plugins.rabbitmq",
    "tests.plugins.s3",
    "tests.plugins.server",
    "tests.plugins.services",
]
