"""`triptych dev`: starts the embedded stack, watches what it is made of, and restarts just what has changed.

What is wrong is named. A file that cannot be used changes nothing, and the stack goes on as it was.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from watchfiles import Change, DefaultFilter, watch

from triptych.commands.common.change_impact import ChangeImpact, WatchedFiles
from triptych.commands.common.options import (
    DEFAULT_CONFIG,
    DEFAULT_DATA,
    DEFAULT_PREFIX,
    ConfigFile,
    DataDir,
    ExistingKafka,
    ExistingPostgres,
    TopicPrefix,
)
from triptych.commands.common.output import err, out
from triptych.commands.common.stack import follow, roll, start, stop
from triptych.commands.common.tool_offers import Offered, offers
from triptych.embedded.config import StackConfig
from triptych.embedded.control import ask
from triptych.embedded.errors import NoAnswerError, NotRunningError, StackError
from triptych.embedded.layout import Layout
from triptych.embedded.options import StackOptions
from triptych.kernel.errors import TriptychError
from triptych.operator.contract_changes import differences
from triptych.schemas import Playbook

LOOK_EVERY_MS = 1_000
_FILTER = DefaultFilter()
"""So often it is asked whether the stack still runs: `triptych down` may have been called elsewhere."""


def dev(
    *,
    data: DataDir = DEFAULT_DATA,
    prefix: TopicPrefix = DEFAULT_PREFIX,
    kafka: ExistingKafka = None,
    postgres: ExistingPostgres = None,
    config: ConfigFile = DEFAULT_CONFIG,
) -> None:
    """Run the embedded stack until Ctrl-C, and restart what changes: a tool, the playbooks, the configuration."""
    # A shell that starts it in the background has it ignore Ctrl-C. One that is sent to it is meant nevertheless.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    layout = Layout.at(data)
    stack = start(
        layout,
        StackOptions(data=layout.root, topic_prefix=prefix, config=config.resolve(), kafka=kafka, postgres=postgres),
    )
    err.print(f"Kafka [bold]{stack['kafka']}[/], data {layout.root}")
    try:
        _Watcher(layout, config.resolve()).run()
    except KeyboardInterrupt:
        pass
    finally:
        err.print(stop(layout.root) or "stopped")


class _Watcher:
    def __init__(self, layout: Layout, file: Path) -> None:
        self._layout, self._file = layout, file
        self._config = StackConfig.load(file)
        self._watched = WatchedFiles.of(self._config)
        self._times = _times(self._watched.folders())
        self._contracts = self._offered()

    def run(self) -> None:
        """Watch until Ctrl-C, or until the stack is stopped."""
        while self._is_running():
            folders, tools = self._watched.folders(), self._watched.tools
            err.print(f"watching {self._file.name}, {self._watched.playbooks.name} and {len(tools)} tools", style="dim")
            is_first_look = True
            for reported in watch(
                *folders,
                recursive=False,
                watch_filter=_FILTER,
                raise_interrupt=True,
                rust_timeout=LOOK_EVERY_MS,
                yield_on_timeout=True,
            ):
                if not self._is_running():
                    break
                # A file may have changed after the start of the stack and before its folder was watched.
                if (reported or is_first_look) and (impact := self._watched.impact(self._changed(folders))):
                    self._take_over(impact)
                is_first_look = False
                self._watched = WatchedFiles.of(self._config)
                if self._watched.folders() != folders:
                    self._times = _times(self._watched.folders()) | self._times
                    break
        err.print("somebody else has stopped the stack")

    def _changed(self, folders: Iterable[Path]) -> set[Path]:
        """Return the files that have changed since the last look."""
        before, self._times = self._times, _times(folders)
        return {file for file in before.keys() | self._times.keys() if before.get(file) != self._times.get(file)}

    def _is_running(self) -> bool:
        try:
            ask(self._layout, {"do": "status"})
        except NotRunningError:
            return False
        except NoAnswerError as error:
            err.print(error.what, style="yellow")
        return True

    def _take_over(self, impact: ChangeImpact) -> None:
        """Take over each part by itself, so that an error in one does not keep out the others."""
        started: set[str] = set()
        if impact.config:
            with _printing_errors():
                started = self._configure()
        if impact.playbooks:
            with _printing_errors():
                self._playbooks(impact.playbooks)
        for name in sorted((set(impact.tools) - started) & self._config.table.tools.keys()):
            with _printing_errors():
                self._restart(name)

    def _configure(self) -> set[str]:
        """Take over the configuration. Return the tools that were started or restarted by that."""
        self._config = StackConfig.load(self._file)
        answer = ask(self._layout, {"do": "configure"})
        for verb, told in (("added", "added"), ("removed", "removed"), ("changed", "restarted")):
            for name in answer[verb]:
                out.print(f"{name}: {told}")
        roll(self._layout, answer["changed"])
        for file in sorted(WatchedFiles.of(self._config).playbooks.glob("*.yaml")):
            with _printing_errors():
                self._check(file)
        started = {*answer["added"], *answer["changed"]}
        self._ready(set(answer["added"]))
        for name in sorted(started | set(answer["removed"])):
            self._print_differences(name)
        return started

    def _check(self, file: Path) -> Playbook:
        from triptych.playbook.loader import load_playbook  # noqa: PLC0415 - CEL is slow to import

        return load_playbook(file, self._config.table.tools)

    def _playbooks(self, changed: tuple[Path, ...]) -> None:
        """Check them. The executor looks at their folder by itself."""
        for file in changed:
            if file.exists():
                playbook = self._check(file)
                out.print(f"{file.name}: new tasks get {playbook.name}@{playbook.version}")
            else:
                out.print(f"{file.name}: gone")

    def _restart(self, service: str) -> None:
        out.print(f"{service}: restarting")
        roll(self._layout, ask(self._layout, {"do": "processes", "service": service})["processes"])
        self._print_differences(service)

    def _ready(self, services: set[str]) -> None:
        if services:
            follow(lambda: ask(self._layout, {"do": "status"}), frozenset(services))

    def _print_differences(self, tool: str) -> None:
        after = self._offered()
        before, self._contracts = self._contracts, after
        none = Offered(tool)
        for line in differences(before.get(tool, none).contracts, after.get(tool, none).contracts):
            out.print(line, markup=False, soft_wrap=True)

    def _offered(self) -> dict[str, Offered]:
        known = self._config.table.tools
        return {each.tool: each for each in offers(self._layout.root, None, None, None) if each.tool in known}


def _times(folders: Iterable[Path]) -> dict[Path, tuple[int, int]]:
    """Return when each file of these folders was changed last, in nanoseconds, and its size in bytes."""
    times: dict[Path, tuple[int, int]] = {}
    for folder in folders:
        with suppress(OSError):  # a folder or a file may go away meanwhile
            files = [file for file in folder.iterdir() if _FILTER(Change.modified, str(file)) and file.is_file()]
            times |= {file: (stat.st_mtime_ns, stat.st_size) for file in files for stat in [file.stat()]}
    return times


@contextmanager
def _printing_errors() -> Iterator[None]:
    """Report what is wrong, and go on watching."""
    try:
        yield
    except (StackError, TriptychError) as error:
        err.print(str(error), style="red", markup=False, soft_wrap=True)
