"""A circuit breaker around awaited calls: pybreaker keeps the state, this module keeps asyncio out of it.

pybreaker knows no asyncio: a call is admitted first, awaited outside the breaker, and recorded after.
One probe at a time, and what was admitted before the last opening says nothing about now.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pybreaker

from triptych.schemas.result import ErrorCode
from triptych.schemas.task import BreakerMode
from triptych.tools.sdk.guard import BreakerPolicy

TRIPPING = frozenset({ErrorCode.UNAVAILABLE, ErrorCode.TIMEOUT, ErrorCode.INTERNAL})
"""What says something about the upstream. The rest are mistakes of the caller, or answers."""


HELD = -1
"""The opening of what was admitted because a person said so: nothing is learnt from it."""


@dataclass(frozen=True, slots=True)
class AdmittedCall:
    """A call that may be made."""

    opening: int
    is_probe: bool


class BreakerOpenError(Exception):
    """The upstream has failed too often; it is not called."""

    def __init__(self, retry_after_ms: int) -> None:
        self.retry_after_ms = retry_after_ms
        super().__init__(f"open for {retry_after_ms} ms")


class _Failed(Exception):
    """Tells pybreaker of a failure."""


class Breaker:
    """The breaker of one operation in one process."""

    def __init__(self, policy: BreakerPolicy) -> None:
        self._open_for = timedelta(milliseconds=policy.open_ms)
        self._storage = pybreaker.CircuitMemoryStorage(pybreaker.STATE_CLOSED)
        self._breaker = pybreaker.CircuitBreaker(
            fail_max=policy.failures,
            reset_timeout=policy.open_ms / 1000,
            state_storage=self._storage,
            throw_new_error_on_trip=False,
        )
        self._openings = 0
        self._probing = False
        self.mode, self.forced_by = BreakerMode.AUTO, ""

    @property
    def is_open(self) -> bool:
        return self._storage.state == pybreaker.STATE_OPEN

    @property
    def state(self) -> str:
        """`closed`, `open` or `half-open`, as it acts."""
        return str(self._storage.state) if self.mode is BreakerMode.AUTO else self.mode.value

    def force(self, mode: BreakerMode, by: str) -> None:
        """Hold it open or closed. `auto` lets it follow results again, from a fresh start."""
        if mode is BreakerMode.AUTO and self.mode is not BreakerMode.AUTO:
            self._breaker.close()
            self._openings += 1
            self._probing = False
        self.mode, self.forced_by = mode, "" if mode is BreakerMode.AUTO else by

    def admit(self, now: datetime | None = None) -> AdmittedCall:
        """Admit a call, or raise BreakerOpenError. What is admitted must be recorded or forgotten."""
        if self.mode is BreakerMode.CLOSED:
            return AdmittedCall(HELD, is_probe=False)
        if self.mode is BreakerMode.OPEN:
            raise BreakerOpenError(max(1, int(self._open_for / timedelta(milliseconds=1))))
        if self.is_open:
            left = (self._storage.opened_at or datetime.now(UTC)) + self._open_for - (now or datetime.now(UTC))
            # It cannot stay open longer than its policy says, unless the clock was set back meanwhile.
            if timedelta(0) < left <= self._open_for:
                raise BreakerOpenError(max(1, int(left / timedelta(milliseconds=1))))
            self._breaker.half_open()
        probing = self._storage.state == pybreaker.STATE_HALF_OPEN
        if probing:
            if self._probing:
                raise BreakerOpenError(max(1, int(self._open_for / timedelta(milliseconds=1))))
            self._probing = True
        return AdmittedCall(self._openings, probing)

    def record(self, admission: AdmittedCall, *, failed: bool) -> None:
        """Record whether an admitted call failed."""
        self.forget(admission)
        if admission.opening != self._openings:
            return
        if not failed and not admission.is_probe and not self._storage.counter:
            return  # nothing has failed lately, so pybreaker need not know of a success
        with suppress(_Failed):
            self._breaker.call(_fail if failed else _succeed)
        if self.is_open:
            self._openings += 1

    def forget(self, admission: AdmittedCall) -> None:
        """Take back an admitted call that was not made or was cancelled: it says nothing about the upstream."""
        if admission.is_probe and admission.opening == self._openings:
            self._probing = False


def _succeed() -> None:
    return None


def _fail() -> None:
    raise _Failed
