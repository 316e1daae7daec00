"""`python -m server.cli`: the same as `tcqueue`, for processes that start others of their kind."""

from __future__ import annotations

from server.cli import main

main()
