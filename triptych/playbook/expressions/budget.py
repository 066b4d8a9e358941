"""What all expressions of one message may cost together.

Quick ones are counted by their estimate. Others run in a process that can be killed, and are counted by their time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import wraps
from typing import Any, Final, NamedTuple, ParamSpec, TypeVar

from triptych.kernel import killable
from triptych.playbook.expressions.error import ExpressionError
from triptych.schemas import Json

QUICK_MAX_US: Final = 20_000.0
"""The largest estimate of an expression that runs in this process."""
QUICK_MAX_S: Final = 0.08
"""Of all quick expressions of a message, by the processor's time."""
KILLABLE_MAX_S: Final = 0.12
"""Of all other expressions of a message."""
_COUNTED_MAX_VALUES: Final = int(QUICK_MAX_US)
"""What is larger is not quick, however large it is."""
_REMEMBERED: Final = 256
_SMALL_VALUES: Final = 32
_MEASURED_FROM_US: Final = 500.0
_TOO_HIGH: Final = 4
"""An estimate is at least so many times what it usually takes."""

ParamsT = ParamSpec("ParamsT")
ResultT = TypeVar("ResultT")


class Size(NamedTuple):
    """How large a value is."""

    values: int
    chars: int
    longest: int
    """Elements of the longest list or map in it."""


class Budget:
    """What is left for one message, and the sizes that were measured for it."""

    def __init__(self) -> None:
        self._quick_left_s, self._left_s = QUICK_MAX_S, KILLABLE_MAX_S
        self._sizes: dict[int, tuple[Json, Size]] = {}

    def is_quick(self, estimated_us: float) -> bool:
        """Tell whether an expression may run in this process. Then it runs within `counted`."""
        return estimated_us <= QUICK_MAX_US and self._quick_left_s > 0

    def counted(self, run: Callable[[], ResultT], estimated_us: float) -> ResultT:
        """Run a quick expression. Its time is measured where that is little beside it."""
        if estimated_us <= _MEASURED_FROM_US:
            self._quick_left_s -= estimated_us / 1e6 / _TOO_HIGH
            return run()
        began_s = time.thread_time()
        try:
            return run()
        finally:
            self._quick_left_s -= time.thread_time() - began_s

    def size_of(self, value: Json) -> Size:
        """Return the size of a value, measured once."""
        if not isinstance(value, dict | list):
            return _size(value)
        known = self._sizes.get(id(value))
        if known is None:
            size = _size(value)
            if size.values <= _SMALL_VALUES or len(self._sizes) >= _REMEMBERED:
                return size
            known = self._sizes[id(value)] = value, size
        return known[1]

    def evaluate(self, expression: str, source: str, variables: Mapping[str, Json]) -> Any:
        """Evaluate what may take long.

        Raises:
            ExpressionError: it did.
            killable.WorkFailed: the expression has no value.
        """
        if self._left_s <= 0:
            raise ExpressionError(expression, _too_costly("the expressions before it"))
        began = time.monotonic()
        try:
            return killable.evaluate(source, variables, self._left_s)
        except killable.OverrunError as error:
            raise ExpressionError(expression, _too_costly(f"more than {error.limit}")) from None
        finally:
            self._left_s -= time.monotonic() - began


_current: ContextVar[Budget | None] = ContextVar("budget", default=None)


def metered(function: Callable[ParamsT, ResultT]) -> Callable[ParamsT, ResultT]:
    """Count each call of a function as one message. Inside of another, it is a part of that one."""

    @wraps(function)
    def counted(*args: ParamsT.args, **kwargs: ParamsT.kwargs) -> ResultT:
        if _current.get() is not None:
            return function(*args, **kwargs)
        token = _current.set(Budget())
        try:
            return function(*args, **kwargs)
        finally:
            _current.reset(token)

    return counted


def current() -> Budget:
    """Return what is left for this message. Outside of any message, it is what one expression may take."""
    return _current.get() or Budget()


def _too_costly(what: str) -> str:
    return (
        f"too costly: all expressions of a message may take {KILLABLE_MAX_S * 1_000:.0f} ms and 128 MiB together, and "
        f"were stopped after {what}; use fewer macros, or a step that returns less"
    )


def _size(value: Json) -> Size:
    values = chars = longest = 0
    pending = [value]
    while pending and values < _COUNTED_MAX_VALUES:
        item = pending.pop()
        values += 1
        if isinstance(item, str):
            chars += len(item)
        elif isinstance(item, Mapping):
            longest = max(longest, len(item))
            chars += sum(map(len, item))
            pending.extend(item.values())
        elif isinstance(item, list | tuple):
            longest = max(longest, len(item))
            pending.extend(item)
    return Size(values, chars, longest)
