"""Set up the agent's own log: JSON lines in a cluster, colours on a terminal.

A command calls `configure` once, at its start. Libraries that log through the standard library have the same format.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from agent.settings import LoggingSettings

# Tracebacks do not show the variables of each frame, because the variables may hold tokens and secret values.
TRACEBACKS = structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False))


def put_common_keys_first(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Return the keys of a log line in the order time, level, event, then the others.

    With the same order in each line, people can read the log like a table.
    """
    return {key: event[key] for key in ("timestamp", "level", "event") if key in event} | dict(event)


def configure(settings: LoggingSettings) -> None:
    """Write every log line to standard error, with time, level and the bound ids of the session."""
    as_json = settings.format == "json" or (settings.format == "auto" and not sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="timestamp"),
        structlog.processors.StackInfoRenderer(),
    ]
    renderer: list[structlog.typing.Processor] = (
        [TRACEBACKS, put_common_keys_first, structlog.processors.JSONRenderer()]
        if as_json
        else [
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
        ]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
            foreign_pre_chain=shared,
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.level.upper())
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, settings.level.upper())),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
