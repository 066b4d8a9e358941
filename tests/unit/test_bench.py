"""The benchmark's arithmetic, its playbooks and its choice of code. How fast anything is, is no test."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from triptych.embedded.config import StackConfig
from triptych.playbook.loader import load_playbook
from triptych.schemas import FixedPlan
from triptych_bench import figures as f
from triptych_bench.cases import FAN_OUT, FANS, NARROW, REVIEWS, STEPS_PER_RUN, WIDE, Case, Review
from triptych_bench.errors import RevisionError, WrongTreeError
from triptych_bench.report import Report, as_json, show
from triptych_bench.rounds import FULL, QUICK, Measured
from triptych_bench.stack import CONFIG
from triptych_bench.trees import ROOT, Tree, unpack, working_tree

in_a_repository = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="revisions are those of a repository")

EVERY_STEP, EXCEPTIONS, OVER_HTTP = REVIEWS
FLOOR = f.Floor(hop_ms=0.5, commit_ms=0.25, batch_rows_per_s=40_000, calls_ms=10)
SAMPLE = f.Sample(
    runs=100,
    steps_per_s=2_000,
    runs_per_s=400,
    messages_per_s=10_000,
    run_p50_ms=20,
    run_p99_ms=40,
    ms_a_step=4,
    cpu_ms_a_step={"executor": 0.25, "client": 5.0, "shop-api": 3.0},
    memory_mb={"executor": 100, "client": 60},
    wal_bytes_a_step=2_000,
    disk_bytes_a_step=900,
)
BRANCH = f.BranchCost(wall_ms=1.2, cpu_ms=1.1)
HTTP = f.HttpCost(bare_ms=1.0, adapter_ms=1.5)


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = [float(n) for n in range(100, 0, -1)]
    assert (f.percentile(values, 50), f.percentile(values, 99), f.percentile(values, 100)) == (50, 99, 100)
    assert f.percentile([7.0], 99) == f.percentile([7.0], 1) == 7


def test_a_sample_counts_what_arrived_in_its_window() -> None:
    window = f.Window(span_s=2.0, steps=20, latencies_ms=[10.0, 30.0, 20.0, 40.0])
    sample = f.sample(window, messages_per_run=14, cpu_ms_a_step={}, memory_mb={}, written=(2_000, 900))
    assert (sample.wal_bytes_a_step, sample.disk_bytes_a_step) == (2_000, 900)
    assert (sample.runs, sample.steps_per_s, sample.runs_per_s, sample.messages_per_s) == (4, 10, 2, 28)
    assert (sample.run_p50_ms, sample.run_p99_ms, sample.ms_a_step) == (20, 40, 20 / STEPS_PER_RUN)


def test_the_median_of_rounds_is_taken_figure_by_figure_and_process_by_process() -> None:
    rounds = [
        replace(SAMPLE, steps_per_s=speed, run_p99_ms=late, cpu_ms_a_step={"executor": cpu})
        for speed, late, cpu in ((1_000, 90, 0.3), (3_000, 10, 0.2), (2_000, 50, 0.1))
    ]
    median = f.median_sample(rounds)
    assert (median.steps_per_s, median.run_p99_ms, median.cpu_ms_a_step) == (2_000, 50, {"executor": 0.2})
    assert f.spread(rounds) == 1.0


def test_the_floor_of_a_step_is_its_hops_and_its_commits_one_after_the_other() -> None:
    assert FLOOR.step_ms(EXCEPTIONS) == 2 * 0.5 + 3 * 0.25
    assert FLOOR.step_ms(EVERY_STEP) == 4 * 0.5 + 6 * 0.25
    assert f.median_floor([FLOOR, replace(FLOOR, hop_ms=0.9), replace(FLOOR, hop_ms=0.7)]).hop_ms == 0.7


def test_ratios_do_not_change_when_machine_and_pipeline_are_twice_as_fast() -> None:
    case = Case(EVERY_STEP, 50)
    slow = f.ratios(case, SAMPLE, FLOOR)
    assert slow == f.Ratios(ms_over_floor=4 / 3.5, steps_over_floor=7, batch_rows_a_step=20)
    fast = replace(SAMPLE, ms_a_step=2, steps_per_s=4_000)
    assert f.ratios(case, fast, f.Floor(hop_ms=0.25, commit_ms=0.125, batch_rows_per_s=80_000, calls_ms=5)) == slow


def test_pairs_are_compared_round_by_round_and_client_and_upstream_are_not_part_of_the_pipeline() -> None:
    base = [SAMPLE, replace(SAMPLE, steps_per_s=1_000)]
    head = [replace(SAMPLE, steps_per_s=3_000), replace(SAMPLE, steps_per_s=500, cpu_ms_a_step={"executor": 0.5})]
    assert f.pair_ratios(base, head, "steps_per_s") == [1.5, 0.5]
    assert f.pair_ratios(base, head, "cpu_ms_a_step") == [1.0, 2.0]


def test_a_branch_is_compared_within_its_round_so_that_a_slow_round_is_slow_for_both() -> None:
    narrow = [f.BranchCost(1, 1), f.BranchCost(10, 1), f.BranchCost(2, 1)]
    wide = [f.BranchCost(1.2, 1), f.BranchCost(11, 1.1), f.BranchCost(2.6, 1.2)]
    ratio = f.branch_ratio(narrow, wide)
    assert (ratio.wall_ms, ratio.cpu_ms) == (1.2, 1.1)


def test_the_adapter_adds_what_its_calls_take_longer_than_those_of_a_bare_client() -> None:
    rounds = [f.HttpCost(1, 1.5), f.HttpCost(4, 4.25), f.HttpCost(1, 3)]
    assert f.median_added_ms(rounds) == 0.5


def test_calls_over_http_are_measured_with_up_to_200_runs_in_flight() -> None:
    counts = {review: [case.in_flight for case in FULL.cases if case.review is review] for review in REVIEWS}
    assert counts == {EVERY_STEP: [1, 50, 200, 1_000], EXCEPTIONS: [1, 50, 200, 1_000], OVER_HTTP: [1, 50, 200]}


def test_a_wide_fan_out_has_as_many_branches_under_way_as_narrow_ones_together() -> None:
    playbook = load_playbook(CONFIG.parent / "playbooks" / f"{FAN_OUT}.yaml")
    assert isinstance(playbook.plan, FixedPlan)
    (step,) = playbook.plan.steps
    assert step.max_items == playbook.budgets.tool_calls == WIDE.branches
    assert {fan.in_flight * min(fan.branches, playbook.parallel) for fan in FANS} == {100}


@pytest.mark.parametrize("review", REVIEWS, ids=lambda review: review.playbook)
def test_the_playbooks_are_what_the_cases_say(review: Review) -> None:
    playbook = load_playbook(CONFIG.parent / "playbooks" / f"{review.playbook}.yaml")
    assert isinstance(playbook.plan, FixedPlan)
    assert (playbook.name, playbook.review.value, len(playbook.plan.steps)) == (
        review.playbook,
        review.name,
        STEPS_PER_RUN,
    )
    assert {step.operation.partition(".")[0] for step in playbook.plan.steps} == {review.tool}


def test_the_stack_of_the_benchmark_is_one() -> None:
    table = StackConfig.load(CONFIG).table
    assert set(table.services) == {"executor", "planner", "critic"}
    assert set(table.tools) == {review.tool for review in REVIEWS}
    assert set(table.processes) == {f.UPSTREAM}


def a_report(*trees: Tree, wide: f.BranchCost = BRANCH, http: f.HttpCost = HTTP) -> Report:
    samples = [{case: [SAMPLE, SAMPLE] for case in FULL.cases} for _ in trees]
    fans = [{NARROW: [f.BranchCost(1, 1)] * 2, WIDE: [wide] * 2} for _ in trees]
    measured = Measured([FLOOR], {1: [http]}, samples, fans)
    return Report(
        results=Report.of(trees, measured, FULL, {}).results,
        floors=[FLOOR],
        http=measured.http,
        schedule=QUICK,
        machine={"cores": 2, "memory_mb": 4096, "python": "3.11", "load_before": 0.1},
        taken_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def a_tree(commit: str) -> Tree:
    return Tree(commit[:9], Path(), commit, changed=False)


def test_the_report_of_one_tree_has_every_case_and_no_pairs() -> None:
    written = json.loads(json.dumps(as_json(a_report(a_tree("a" * 40)))))
    (tree,) = written["trees"]
    assert [(case["tool"], case["review"], case["in_flight"]) for case in tree["cases"]] == [
        (case.review.tool, case.review.name, case.in_flight) for case in FULL.cases
    ]
    assert all(len(case["rounds"]) == 2 for case in tree["cases"])
    assert written["pairs"] == []
    assert tree["branch_ratio"] == {"wall_ms": 1.2, "cpu_ms": 1.1, "max": 1.3}
    assert [(fan["branches"], len(fan["rounds"])) for fan in tree["fan_out"]] == [(10, 2), (1_000, 2)]
    assert [(each["at_once"], each["added_ms"], each["max_ms"]) for each in written["http"]] == [(1, 0.5, 3.0)]


@pytest.mark.parametrize(
    ("wide", "http", "red"),
    [
        (f.BranchCost(1.3, 1.3), f.HttpCost(1, 3.9), []),
        (f.BranchCost(1.35, 1.2), f.HttpCost(1, 4.25), ["1.35", "3.25"]),
        (f.BranchCost(1.2, 1.4), f.HttpCost(1, 1.5), ["1.40"]),
    ],
)
def test_what_misses_its_target_is_red(wide: f.BranchCost, http: f.HttpCost, red: list[str]) -> None:
    shown = io.StringIO()
    show(a_report(a_tree("a" * 40), wide=wide, http=http), Console(file=shown, width=160, force_terminal=True))
    assert re.findall(r"\x1b\[31m([\d.]+)", shown.getvalue()) == red


def test_the_report_of_two_trees_pairs_them() -> None:
    report = a_report(a_tree("a" * 40), a_tree("b" * 40))
    assert {tuple(pair["ratios"]) for pair in as_json(report)["pairs"]} == {(1.0, 1.0)}
    shown = io.StringIO()
    show(report, Console(file=shown, width=160))
    assert "bbbbbbbbb by aaaaaaaaa" in shown.getvalue()


@in_a_repository
def test_a_revision_runs_its_own_code(tmp_path: Path) -> None:
    commit = working_tree().commit
    tree = unpack(commit, tmp_path)
    tree.check()
    assert (tree.commit, tree.changed, tree.root) == (commit, False, tmp_path.resolve())


def test_code_that_would_not_be_used_is_not_measured(tmp_path: Path) -> None:
    with pytest.raises(WrongTreeError):
        Tree("empty", tmp_path, "0" * 40, changed=False).check()


@in_a_repository
def test_a_revision_that_is_not_there_is_named() -> None:
    with pytest.raises(RevisionError, match="no-such-revision"):
        unpack("no-such-revision", Path())
