"""The benchmark beside other products: how runs are counted, compared and reported, and what a failure costs."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from triptych_bench.__main__ import bench
from triptych_bench.beside import installs, processes
from triptych_bench.beside.driver import Hold, Way
from triptych_bench.beside.processes import Program, Server, free_ports, hold_all, together
from triptych_bench.beside.products import KNOWN, chosen
from triptych_bench.beside.programs.hold import RESULT, Lanes, WrongResultError
from triptych_bench.beside.report import BesideReport, as_json, show
from triptych_bench.beside.rounds import Compared, Keep, take_rounds
from triptych_bench.beside.speeds import US, Row, Speed, best, ratios
from triptych_bench.errors import InstallError, ProductFailedError, UnknownProductError
from triptych_bench.figures import Floor, Window
from triptych_bench.rounds import Schedule
from triptych_bench.trees import Tree

FLOOR = Floor(hop_ms=0.5, commit_ms=0.25, batch_rows_per_s=40_000, calls_ms=10)
OURS = Row(US, "Triptych, exceptions", Way.OTHER_PROCESS)
FAR = Row("restate", "Restate 1", Way.OTHER_PROCESS)
NEAR = Row("restate", "Restate 1", Way.IN_PROCESS)
LIBRARY = Row("langgraph", "LangGraph 1", Way.IN_PROCESS)
SCHEDULE = Schedule(
    rounds=2, generations=1, warm_up_s=0, settle_s=0, window_s=1, floor_s=0, http_s=0, fans=0, in_flight=(1, 50)
)
WINDOW = Window(span_s=1.0, steps=100, latencies_ms=[50.0])
HOLD = Hold(in_flight=3, settle_s=0.0, window_s=0.0, generations=2)
ECHO = """
import json, sys
print('{"ready": true}', flush=True)
for line in sys.stdin:
    print(json.dumps({"span_s": 2.0, "steps": 5 * json.loads(line)["in_flight"], "latencies_ms": [1.0]}), flush=True)
"""


def speeds(*steps_per_s: float, ms: float = 10.0) -> list[Speed]:
    return [Speed(each, ms) for each in steps_per_s]


async def test_a_window_begins_when_each_lane_has_ended_a_run_and_ends_after_its_generations() -> None:
    under_way = most = played = 0

    async def play(_key: str) -> object:
        nonlocal under_way, most, played
        under_way, played = under_way + 1, played + 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        return RESULT

    window = await Lanes(play, in_flight=4, settle_s=0.0, window_s=0.0, generations=3).hold()
    assert (most, len(window["latencies_ms"]), window["steps"]) == (4, 12, 60)
    assert under_way == 0, "all runs were seen out"
    assert played >= 16, "the runs before the window are not counted"


async def test_a_run_counts_only_with_the_results_of_all_its_steps() -> None:
    async def play(_key: str) -> object:
        return RESULT[:-1]

    with pytest.raises(WrongResultError, match=r"\[1, 1, 1, 1\]"):
        await Lanes(play, in_flight=1, settle_s=0.0, window_s=0.0, generations=1).hold()


def test_programs_that_share_the_runs_add_their_speeds() -> None:
    window = together([Window(1.0, 100, [1.0]), Window(2.0, 100, [2.0, 3.0])])
    assert window.steps / window.span_s == pytest.approx(150)
    assert window.latencies_ms == [1.0, 2.0, 3.0]


def talking(tmp_path: Path, script: str) -> Program:
    return Program("parrot", "client", [sys.executable, "-c", script], tmp_path / "logs")


def test_programs_share_the_runs_in_flight_and_none_is_asked_for_nothing(tmp_path: Path) -> None:
    programs = [talking(tmp_path, ECHO).wait_until_ready() for _ in range(2)]
    try:
        assert hold_all(programs, HOLD).steps == 15
        assert hold_all(programs, Hold(1, 0.0, 0.0, 1)).steps == 5
    finally:
        for program in programs:
            program.stop()


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("print('{}', flush=True)\ninput()\nprint('{\"error\": \"no\"}', flush=True)\ninput()", "failed: no"),
        ("print('{}', flush=True)\ninput()\nprint('Traceback', file=__import__('sys').stderr)", "ended"),
    ],
)
def test_a_program_that_has_no_answer_names_its_log(tmp_path: Path, script: str, told: str) -> None:
    program = talking(tmp_path, script).wait_until_ready()
    try:
        with pytest.raises(ProductFailedError, match=f"parrot: client {told}") as failure:
            hold_all([program], HOLD)
    finally:
        program.stop()
    assert failure.value.log is not None
    assert failure.value.log.exists()


def serving(tmp_path: Path, script: str) -> Server:
    return Server("parrot", "server", [sys.executable, "-c", script], tmp_path / "logs")


def test_a_server_that_ends_before_it_listens_has_failed(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with pytest.raises(ProductFailedError, match=f"parrot: server did not listen on port {port}"):
        serving(tmp_path, "raise SystemExit(0)").wait_for_port(port)


def test_a_command_of_a_product_that_fails_has_failed(tmp_path: Path) -> None:
    serving(tmp_path, "print('done')").wait_for_end()
    with pytest.raises(ProductFailedError, match="parrot: server ended with code 3"):
        serving(tmp_path, "raise SystemExit(3)").wait_for_end()


def test_a_server_that_does_not_heed_a_signal_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_STOP_S", 0.1)
    (port,) = free_ports(1)
    script = (
        "import signal, socket, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        f"listener = socket.create_server(('127.0.0.1', {port})); time.sleep(600)"
    )
    server = serving(tmp_path, script)
    server.wait_for_port(port)
    server.stop()
    with pytest.raises(ProductFailedError, match="did not listen"):
        server.wait_for_port(port)


def test_ours_is_divided_round_by_round_by_the_fastest_of_the_others_that_works_in_the_same_way() -> None:
    rounds = {
        OURS: {50: speeds(1_000, 3_000, ms=20)},
        FAR: {50: speeds(500, 1_000, ms=10)},
        NEAR: {50: speeds(600, 1_200)},
        LIBRARY: {50: speeds(700, 900)},
    }
    assert best(rounds, 50, [Way.OTHER_PROCESS]) == FAR
    assert best(rounds, 50, list(Way)) == NEAR
    (ratio,) = ratios(rounds, [Way.OTHER_PROCESS])
    assert (ratio.ours, ratio.other, ratio.steps, ratio.ms) == (OURS, FAR, [2.0, 3.0], [2.0, 2.0])
    assert ratios({OURS: rounds[OURS], LIBRARY: rounds[LIBRARY]}, [Way.OTHER_PROCESS]) == []


def keeping(turns: list[tuple[str, int]], name: str, *, fails_at: int = -1) -> Keep:
    async def keep(hold: Hold) -> Window:
        turns.append((name, hold.in_flight))
        if hold.in_flight == fails_at:
            raise ProductFailedError("restate", "server ended", None)
        return WINDOW

    return keep


async def floor() -> Floor:
    return FLOOR


async def test_rounds_take_turns_and_go_back_the_way_they_came() -> None:
    turns: list[tuple[str, int]] = []
    entrants = {OURS: keeping(turns, "ours"), LIBRARY: keeping(turns, "library")}
    compared = await take_rounds(entrants, floor, SCHEDULE, lambda _text: None)
    there = [("ours", 1), ("library", 1), ("ours", 50), ("library", 50)]
    assert turns[2:] == [*there, *there[::-1]], "the first two warm up"
    assert compared.rounds[OURS] == {1: [Speed.of(WINDOW)] * 2, 50: [Speed.of(WINDOW)] * 2}
    assert compared.floors == [FLOOR, FLOOR]


async def test_a_product_that_fails_loses_all_its_figures_and_the_others_go_on() -> None:
    turns: list[tuple[str, int]] = []
    entrants = {
        OURS: keeping(turns, "ours"),
        FAR: keeping(turns, "far", fails_at=1),
        NEAR: keeping(turns, "near"),
        LIBRARY: keeping(turns, "library"),
    }
    compared = await take_rounds(entrants, floor, SCHEDULE, lambda _text: None)
    assert list(compared.rounds) == [OURS, LIBRARY]
    assert [len(rounds) for rounds in compared.rounds[LIBRARY].values()] == [2, 2]
    assert [str(each) for each in compared.failures] == ["restate: server ended."]
    assert turns.count(("near", 50)) == 1, "only its warm-up"


def a_report() -> BesideReport:
    rounds = {
        OURS: {1: speeds(100, 120, ms=8), 50: speeds(2_000, 2_200)},
        FAR: {1: speeds(200, 200, ms=4), 50: speeds(400, 400)},
        LIBRARY: {1: speeds(400, 400, ms=2), 50: speeds(500, 500)},
    }
    failures = [InstallError("temporal", "`go` is not on this machine", "Install go")]
    drivers = chosen("restate,langgraph,temporal")
    return BesideReport(
        tree=Tree("a" * 9, Path(), "a" * 40, changed=False),
        cards=[driver.card for driver in drivers],
        versions={driver.card.name: driver.version for driver in drivers},
        compared=Compared(rounds, [FLOOR], failures),
        schedule=SCHEDULE,
        machine={"cores": 2, "memory_mb": 4096, "python": "3.11", "load_before": 0.1},
        taken_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def test_the_figures_have_every_round_the_ratios_the_promises_and_what_failed() -> None:
    written = json.loads(json.dumps(as_json(a_report())))
    rows = {(row["title"], row["in_flight"]): row for row in written["rows"]}
    assert rows["Triptych, exceptions", 50]["median"] == {"steps_per_s": 2_100, "ms_a_step": 10}
    assert len(rows["LangGraph 1", 1]["rounds"]) == 2
    found = [(each["other"], each["in_flight"], each["steps_per_s"]["median"]) for each in written["ratios"]]
    assert found[:2] == [("Restate 1", 1, 0.55), ("Restate 1", 50, 5.25)]
    assert [other for other, _, _ in found[2:]] == ["LangGraph 1", "LangGraph 1"]
    assert [each["product"] for each in written["promises"]] == ["restate", "langgraph"]
    assert [each["product"] for each in written["failures"]] == ["temporal"]


def test_a_person_reads_speeds_ratios_with_their_range_promises_and_failures() -> None:
    shown = io.StringIO()
    show(a_report(), Console(file=shown, width=200))
    text = shown.getvalue()
    assert "5.25 (5.00 to 5.50)" in text
    assert "Triptych by the best with the step in another process" in text
    assert "https://docs.restate.dev" in text
    assert "temporal could not be installed: `go` is not on this machine. Install go, or leave it out" in text


def test_a_list_of_names_is_one_driver_each() -> None:
    assert [driver.card.name for driver in chosen("dbos, langgraph,dbos")] == ["dbos", "langgraph"]
    with pytest.raises(UnknownProductError, match=r"'airflow'.*restate, langgraph, dbos, temporal"):
        chosen("restate,airflow")


@pytest.mark.parametrize("name", KNOWN)
def test_a_product_is_pinned_and_says_what_it_promises_and_where_that_stands(name: str) -> None:
    (driver,) = chosen(name)
    lock = (installs.LOCKS / f"{name}.lock").read_text("utf-8")
    assert driver.version[0].isdigit()
    assert lock.count("==") <= lock.count("--hash=sha256:")
    assert driver.card.ways
    assert driver.card.source.startswith("https://")
    assert driver.card.promises.endswith(".")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--beside", "airflow"], "There is no driver for 'airflow'"),
        (["--beside", ""], "There is no driver for ''"),
        (["--beside", "dbos", "--compare", "main"], "are two measurements"),
    ],
)
def test_a_wrong_request_is_answered_before_anything_is_started(
    arguments: list[str], told: str, tmp_path: Path
) -> None:
    app = typer.Typer()
    app.command()(bench)
    out = tmp_path / "out"
    result = CliRunner().invoke(app, [*arguments, "--out", str(out)], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert result.exit_code == 2
    assert told in result.stderr
    assert not out.exists()


def test_a_tool_that_is_not_on_the_machine_is_named_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InstallError, match=r"`go` is not on this machine\. Install go, or leave it out of `--beside`"):
        installs.run("temporal", "go", ["install"])


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (["npm error code ECONNREFUSED", "npm error A complete log is in a file"], "npm error code ECONNREFUSED"),
        (
            ["error: Failed to fetch: it", "  cause: Connection refused", "", "hint: Try again."],
            "error: Failed to fetch: it",
        ),
        (["go: downloading it", "go: it: module lookup disabled."], "go: it: module lookup disabled"),
    ],
)
def test_an_installation_that_fails_says_why_in_one_line(said: list[str], why: str) -> None:
    script = f"import sys; print({chr(10).join(said)!r}, file=sys.stderr); raise SystemExit(1)"
    with pytest.raises(InstallError) as failure:
        installs.run("dbos", sys.executable, ["-c", script])
    assert f"dbos could not be installed: `{sys.executable} -c` failed: {why}. Make the registry" in str(failure.value)


def test_what_is_installed_is_kept_until_its_lock_changes_and_halves_are_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path))
    homes: list[Path] = []

    def install(home: Path) -> None:
        home.mkdir()
        homes.append(home)
        if len(homes) == 1:
            raise InstallError("dbos", "the network is away", "Come again")

    with pytest.raises(InstallError):
        installs.once("dbos", b"lock", install)
    assert installs.once("dbos", b"lock", install) == installs.once("dbos", b"lock", install) == homes[0]
    assert installs.once("dbos", b"another lock", install) != homes[0]
    assert len(homes) == 3
