"""Structured logging to stderr: one event a line, with the process and whatever run it is about.

Secrets never reach a log: values of fields with a telling name are masked, and so are passwords in DSNs.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Literal

import orjson
import structlog

Logger = structlog.typing.FilteringBoundLogger

_SECRET_FIELD = re.compile(r"(password|passwd|secret|token|api_?key|authorization|credential)s?$", re.IGNORECASE)
_DSN_PASSWORD = re.compile(r"(\b\w{1,40}://[^\s:/@]{1,200}:)[^\s@]{1,1000}@")
"""Bounded, since others choose what is in a text: an unbounded one takes minutes for a word a megabyte long."""
MASK = "***"


def mask_secrets(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Mask secrets by field name and in DSNs. Runs last before rendering, so nothing comes after it."""
    for name, value in event.items():
        if _SECRET_FIELD.search(name) and value:
            event[name] = MASK
        elif isinstance(value, str) and "://" in value:
            event[name] = _DSN_PASSWORD.sub(rf"\1{MASK}@", value)
    return event


def configure_logging(level: str, style: Literal["json", "console"], **bound: str) -> Logger:
    """Set up logging for this process and return its logger, bound to `bound` (service, instance)."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer(
            serializer=lambda obj, **kw: orjson.dumps(obj, default=kw.get("default")).decode()
        )
        if style == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            mask_secrets,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    # Libraries log through the standard library; only what needs a person gets through.
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s", force=True
    )
    # The pool retries on its own and prints a traceback each time; the loops log an outage once.
    logging.getLogger("asyncpg.pool").setLevel(logging.ERROR)
    logger: Logger = structlog.get_logger().bind(**bound)
    return logger
