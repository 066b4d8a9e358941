"""The products that there are drivers for, and those that a command line names."""

from __future__ import annotations

from triptych_bench.beside.dbos import Dbos
from triptych_bench.beside.driver import Driver
from triptych_bench.beside.langgraph import LangGraph
from triptych_bench.beside.restate import Restate
from triptych_bench.beside.temporal import Temporal
from triptych_bench.errors import UnknownProductError

_KINDS: tuple[type[Driver], ...] = (Restate, LangGraph, Dbos, Temporal)
KNOWN = tuple(kind.card.name for kind in _KINDS)


def chosen(names: str) -> list[Driver]:
    """Return a driver for each name of a list with commas, each once. Raises UnknownProductError."""
    kinds = {kind.card.name: kind for kind in _KINDS}
    wanted = dict.fromkeys(name.strip() for name in names.split(","))
    for name in wanted:
        if name not in kinds:
            raise UnknownProductError(name, KNOWN)
    return [kinds[name]() for name in wanted]
