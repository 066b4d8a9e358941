"""Structured logging to standard error or a file: one event a line, with the process and the run it is about.

Secrets never reach a log: values of fields with a telling name are masked, and so are passwords in DSNs.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections.abc import Mapping, MutableMapping, Sequence
from types import TracebackType
from typing import Any, Literal, TextIO, cast

import orjson
import structlog

from triptych.kernel.process.log_file import LogFile
from triptych.kernel.process.terminal_text import on_one_line, visible

Logger = structlog.typing.FilteringBoundLogger

_SECRET_FIELD = re.compile(r"(password|passwd|secret|token|api_?key|authorization|credential)s?$", re.IGNORECASE)
_DSN_PASSWORD = re.compile(r"(\b\w{1,40}://[^\s:/@]{1,200}:)[^\s@]{1,1000}@")
"""Bounded, since others choose what is in a text: an unbounded one takes minutes for a word a megabyte long."""
MASK = "***"
_ODD_CHARS = 10_000


def mask_secrets(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Mask secrets by field name and in DSNs. Runs last before rendering, so nothing comes after it."""
    for name, value in event.items():
        if _SECRET_FIELD.search(name) and value:
            event[name] = MASK
        elif isinstance(value, str) and "://" in value:
            event[name] = _DSN_PASSWORD.sub(rf"\1{MASK}@", value)
    return event


def show_controls(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Keep names that others chose from controlling the terminal, or from making lines of their own."""
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = visible(value) if name == "exception" else on_one_line(value)
    return event


def configure_logging(
    level: str, style: Literal["json", "console"], *, file: LogFile | None = None, **bound: str
) -> Logger:
    """Set up logging for this process and return its logger, bound to `bound` (service, instance).

    What libraries and asyncio have to say goes the same way: each line is one event. It goes to standard error, or
    to `file`.
    """
    stream = cast("TextIO", file or sys.stderr)
    shared: list[structlog.typing.Processor] = [
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        mask_secrets,
        *(
            [structlog.processors.JSONRenderer(serializer=_json)]
            if style == "json"
            else [show_controls, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
        ),
    ]
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, structlog.processors.add_log_level, *shared],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(file=stream),
        cache_logger_on_first_use=True,
    )
    _take_over_libraries(shared, bound, stream)
    logger: Logger = structlog.get_logger().bind(**bound)
    return logger


def _take_over_libraries(
    shared: Sequence[structlog.typing.Processor], bound: Mapping[str, str], stream: TextIO
) -> None:
    """Libraries log through the standard library; only what needs a person gets through."""

    def bind(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return {**bound, **event}

    handler = _Handler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_log_level, structlog.stdlib.add_logger_name, bind],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *shared],
            use_get_message=True,
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    # The pool retries on its own and prints a traceback each time; the loops log an outage once.
    logging.getLogger("asyncpg.pool").setLevel(logging.ERROR)


def log_what_python_says() -> None:
    """Write warnings and uncaught exceptions as lines of the log."""
    logging.captureWarnings(capture=True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    sys.unraisablehook = _log_unraisable


class _Handler(logging.StreamHandler[TextIO]):
    """Says of a line that a library got wrong that it was wrong, as a line; the standard library prints a traceback."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is the standard library's
        what = logging.LogRecord(
            record.name, logging.ERROR, record.pathname, record.lineno, "cannot be logged: %r", (record.msg,), None
        )
        self.stream.write(self.format(what) + self.terminator)


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger("python").critical("uncaught; the process ends", exc_info=(kind, error, trace))


def _log_uncaught_in_thread(hooked: threading.ExceptHookArgs) -> None:
    if hooked.exc_value is not None and not issubclass(hooked.exc_type, SystemExit):
        where = hooked.thread.name if hooked.thread is not None else "a thread"
        caught = (hooked.exc_type, hooked.exc_value, hooked.exc_traceback)
        logging.getLogger("python").error("uncaught in the thread %s", where, exc_info=caught)


def _log_unraisable(hooked: sys.UnraisableHookArgs) -> None:
    what = hooked.err_msg or "ignored"
    caught = None if hooked.exc_value is None else (hooked.exc_type, hooked.exc_value, hooked.exc_traceback)
    logging.getLogger("python").error("%s: %r", what, hooked.object, exc_info=caught)


def _json(event: Any, **options: Any) -> str:
    """Return an event as JSON. A line that cannot be written is replaced by another, in plain text."""
    try:
        return orjson.dumps(event, default=options.get("default")).decode()
    except (TypeError, ValueError):
        return orjson.dumps({ascii(name)[1:-1]: _plain(value) for name, value in event.items()}).decode()


def _plain(value: object) -> str:
    return value if isinstance(value, str) and value.isascii() else ascii(value)[:_ODD_CHARS]
