"""End a process that makes no progress: a supervisor starts it again, and nothing is lost.

It sees three kinds. A thread sees a loop that is silent although the event loop runs, and an event loop that is
blocked; it says so and ends the process. Code that holds the interpreter holds that thread too. Then a timer of the
kernel, which the thread did not wind up again, ends the process.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import traceback
from types import FrameType

from triptych.kernel.process.health import Health
from triptych.kernel.process.log import Logger

EXIT_CODE = 3
"""What a process ends with when it was stuck."""

LOOK_EVERY_S = 1.0
EVENT_LOOP = "event loop"
_LAST_WORDS_S = 2.0
_STACK_FRAMES = 30
_TIMER_FACTOR = 2
_STARTING_FACTOR = 4
"""Who has not begun its work loads models and documents, on a machine that may be busy."""


class Watchdog:
    """Watches one process, from `start` to `stop`."""

    def __init__(self, health: Health, log: Logger, limit_s: float) -> None:
        """End the process when a loop is stuck for `limit_s` seconds, or four times that at the start; 0: never."""
        self._health, self._log, self._limit_s = health, log, limit_s
        self._stopped = threading.Event()
        self._answered = True
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin, in the thread of the event loop that is watched."""
        if self._limit_s:
            self._loop, self._watched = asyncio.get_running_loop(), threading.get_ident()
            self._thread.start()

    def stop(self) -> None:
        """Let the process take the time it wants."""
        self._stopped.set()
        _wind_up(0)

    def _watch(self) -> None:
        stuck_for_s = 0.0
        every_s = min(LOOK_EVERY_S, self._limit_s / 4)
        while not self._stopped.wait(every_s):
            _wind_up(_TIMER_FACTOR * self._limit_s)
            # A process that was stopped or suspended finds many seconds gone. Looks are counted, and not seconds.
            stuck = self._stuck()
            stuck_for_s = stuck_for_s + every_s if stuck else 0.0
            patience = 1 if self._health.is_started else _STARTING_FACTOR
            if stuck_for_s >= patience * self._limit_s:
                self._end(stuck, stuck_for_s)

    def _stuck(self) -> dict[str, float]:
        stuck = self._health.stuck()
        if not self._answered:
            stuck[EVENT_LOOP] = 0.0
        self._answered = False
        try:
            self._loop.call_soon_threadsafe(self._answer)
        except RuntimeError:  # the loop is closed: the process is about to end
            return {}
        return stuck

    def _answer(self) -> None:
        self._answered = True

    def _end(self, stuck: dict[str, float], for_s: float) -> None:
        """End the process, and say why if that can be said in a moment: the log may be what it is stuck in."""
        frame = sys._current_frames().get(self._watched)  # noqa: SLF001 - the only way to another thread's frame
        telling = threading.Thread(target=self._log_stuck, args=(sorted(stuck), for_s, frame), daemon=True)
        telling.start()
        telling.join(_LAST_WORDS_S)
        os._exit(EXIT_CODE)

    def _log_stuck(self, stuck: list[str], for_s: float, frame: FrameType | None) -> None:
        self._log.critical(
            "stuck; the process ends itself, to be started again",
            loops=stuck,
            for_s=round(for_s, 1),
            stack="".join(traceback.format_stack(frame, _STACK_FRAMES)) if frame is not None else None,
        )


def _wind_up(seconds: float) -> None:
    """Let the kernel end the process when it has used so many seconds of processor time from now on; 0: never."""
    if signal.getsignal(signal.SIGPROF) is signal.SIG_DFL:
        signal.setitimer(signal.ITIMER_PROF, seconds)
