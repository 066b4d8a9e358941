"""Runs a graph of five nodes in a row on LangGraph, with every checkpoint in Postgres before the next node begins."""

from __future__ import annotations

import operator
import sys
from typing import Annotated, Any, TypedDict

import uvloop
from hold import STEPS, serve
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import END, START, StateGraph
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

_CONNECTIONS = 10


class _State(TypedDict):
    values: Annotated[list[int], operator.add]


async def _step(_state: _State) -> dict[str, list[int]]:
    return {"values": [1]}


def _graph() -> StateGraph[Any]:
    graph = StateGraph(_State)
    names = [f"step-{number}" for number in range(STEPS)]
    for name in names:
        graph.add_node(name, _step)
    for before, after in zip([START, *names], [*names, END], strict=True):
        graph.add_edge(before, after)
    return graph


async def _main(url: str) -> None:
    # As the documentation of the saver asks for.
    settings = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    async with AsyncConnectionPool(url, min_size=_CONNECTIONS, kwargs=settings) as pool:
        saver = AsyncPostgresSaver(pool)
        await saver.setup()
        graph = _graph().compile(checkpointer=saver)

        async def play(key: str) -> object:
            config = {"configurable": {"thread_id": key}}
            ended = await graph.ainvoke({"values": []}, config, durability="sync")
            return ended["values"]

        await serve(play)


if __name__ == "__main__":
    uvloop.run(_main(sys.argv[1]))
