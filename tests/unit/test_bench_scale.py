"""The table of processes and partitions, and the arguments that it is asked for with."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from rich.console import Console

from triptych_bench.scale import Cost, Row, Turn, as_json, by_kind, numbers, ratios, rows, show
from triptych_bench.trees import Tree

TREE = Tree("abc", Path(), "abc", changed=False)
ONE, TWO = Row(TREE, 8, 1), Row(TREE, 8, 2)


def turn(**cpu_ms: float) -> Turn:
    return Turn(20.0, {200: Cost(1_000.0, 5.0, {name.replace("_", "-"): spent for name, spent in cpu_ms.items()})})


MEASURED = {
    ONE: [turn(executor=0.2, echo=0.2, client=9.0), turn(executor=0.4, echo=0.4)],
    TWO: [turn(executor=0.1, executor_2=0.1, echo=0.24), turn(executor=0.2, executor_2=0.2, echo=0.6)],
}


def test_processes_of_one_service_are_added_up():
    found = by_kind({"executor": 1.0, "executor-2": 0.5, "executor-12": 0.5, "shop-api": 3.0})
    assert found == {"executor": 2.0, "shop-api": 3.0}


def test_ratios_are_taken_round_by_round_without_the_client():
    assert ratios(MEASURED, ONE, 200) == [1.0, 1.0]
    assert ratios(MEASURED, TWO, 200) == pytest.approx([1.1, 1.25])


def test_the_table_has_medians_the_ratio_and_its_range():
    console = Console(width=200, record=True)
    show(MEASURED, console)
    row = next(line.split() for line in console.export_text().splitlines() if line.split()[1:3] == ["8", "2"])
    assert row == [
        "abc",
        "8",
        "2",
        "1,000",
        "5.0",
        "0.72",
        "0.30",
        "0.42",
        *["0.00"] * 4,
        "1.17",
        *["1.10", "to", "1.25"],
        "20",
    ]


def test_the_json_has_every_round():
    found = as_json(MEASURED)["rows"]
    assert [(row["partitions"], row["processes"], len(row["rounds"])) for row in found] == [(8, 1, 2), (8, 2, 2)]
    assert found[1]["ratios"][200] == pytest.approx([1.1, 1.25])


def test_rows_in_which_a_process_would_have_no_partition_are_left_out():
    found = rows([TREE], [2, 8], [1, 4])
    assert [(row.partitions, row.processes) for row in found] == [(2, 1), (8, 1), (8, 4)]


@pytest.mark.parametrize("text", ["", "1,", "two", "0", "1,33", "-1"])
def test_a_list_that_is_wrong_is_refused(text: str):
    with pytest.raises(typer.BadParameter):
        numbers(text, 32)


def test_a_number_that_is_named_twice_is_measured_once():
    assert numbers("4,1,4", 32) == [4, 1]


def test_more_processes_than_partitions_anywhere_are_refused():
    with pytest.raises(typer.BadParameter, match="nothing to do"):
        rows([TREE], [2], [4])
