"""Logs of long-running commands: one line an event on the error output, as JSON or for people."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any

import structlog
from structlog.typing import Processor

from server.config import Settings, SettingsError

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def configure(settings: Settings, **always: Any) -> None:
    """Sets up structlog, and the standard library's logging behind the same format.

    `always` is added to every line. Raises SettingsError for an unknown level or format.
    """
    level = _LEVELS.get(settings.log_level.lower())
    if level is None:
        raise SettingsError(f"TCQUEUE_LOG_LEVEL takes {', '.join(_LEVELS)}, not {settings.log_level!r}")
    if settings.log_format not in ("auto", "json", "console"):
        raise SettingsError(f"TCQUEUE_LOG_FORMAT takes auto, json or console, not {settings.log_format!r}")
    terminal = sys.stderr.isatty()
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not terminal)
    shared: Sequence[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        _added(always),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    last: list[Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if as_json
        else [
            # The pretty traceback shows local variables, and some of those are tokens.
            structlog.dev.ConsoleRenderer(colors=terminal, exception_formatter=structlog.dev.plain_traceback)
        ]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    # What it says at info about its start and end, the serve command says itself.
    logging.getLogger("uvicorn").setLevel(max(level, logging.WARNING))


def _added(always: dict[str, Any]) -> Processor:
    def add(_: Any, __: str, event: Any) -> Any:
        event.update(always)
        return event

    return add
