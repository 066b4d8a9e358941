"""Argument origins: refuse an argument, such as a plausible id, that does not come from where it has to. Pure.

A value must have been in the result of a step, in that of an operation, or in the run's input. The plan may write it
out instead of referring to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from triptych.executor.state import Run
from triptych.schemas import Json, Reason, ResultStatus

CODE = "invented_argument"
SHOWN_MAX = 5
INPUT = "input"
STEPS = "steps."


def invented_argument(run: Run, origins: Mapping[str, tuple[str, ...]], arguments: Json) -> Reason | None:
    """Return why these arguments must not be sent, or None when everything comes from where it has to.

    `origins` is by dotted path: `input`, `steps.ID`, or an operation.
    """
    for path, sources in origins.items():
        known = [value for source in sources for value in _values(run, source)]
        for value in _at(arguments, path.split(".")):
            if not any(value == each and type(value) is type(each) for _, each in known):
                return _reason(path, value, sources, known)
    return None


def _reason(path: str, value: Json, sources: tuple[str, ...], known: list[tuple[str, Json]]) -> Reason:
    name = path.rpartition(".")[2]
    near = [each for key, each in known if key == name] or [each for key, each in known if key == "id"]
    shown = ", ".join(repr(each) for each in dict.fromkeys(near[:SHOWN_MAX]))
    there = f"; there it is one of {shown}" if shown else "; nothing of that kind has been found there yet"
    message = f"argument {path} is {value!r}, which does not come from {' or '.join(sources)}, as it has to{there}"
    return Reason(code=CODE, message=message)


def _values(run: Run, source: str) -> Iterator[tuple[str, Json]]:
    """Yield every text and number that a source has given, with the name it has there."""
    if source == INPUT:
        yield from _leaves("", run.input)
        return
    for state in (*run.steps.values(), *run.branches.values()):
        is_meant = source in {f"{STEPS}{state.step.id}", state.step.operation}
        if is_meant and state.result is not None and state.result.status is ResultStatus.OK:
            yield from _leaves("", state.result.data)


def _leaves(name: str, value: Json) -> Iterator[tuple[str, Json]]:
    match value:
        case dict():
            for key, item in value.items():
                yield from _leaves(key, item)
        case list():
            for item in value:
                yield from _leaves(name, item)
        case None | bool():
            pass
        case _:
            yield name, value


def _at(value: Json, path: list[str]) -> Iterator[Json]:
    """Yield the values at a path, through lists all of them. An argument that is missing cannot be invented."""
    match value:
        case list():
            for item in value:
                yield from _at(item, path)
        case dict() if path:
            yield from _at(value.get(path[0]), path[1:])
        case None | bool() | dict():
            pass
        case _ if not path:
            yield value
