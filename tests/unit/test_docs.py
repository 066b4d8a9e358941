"""The documentation, held to what it speaks of: files, commands, fields, tests and snippets."""

from __future__ import annotations

import asyncio
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.core import TyperGroup

from triptych.commands.main import app
from triptych.embedded.config import StackTable
from triptych.executor.retries import MODEL_FAULTS, retry_rule
from triptych.models import AnswerFault
from triptych.playbook.loader import parse_playbook
from triptych.schemas import (
    Budgets,
    Effect,
    ErrorCode,
    Fallback,
    FixedPlan,
    Judge,
    ManagerPlan,
    ModelPlan,
    Playbook,
    ReactPlan,
    Result,
    RetryPolicy,
    Review,
    StepSpec,
    ToolError,
    Unmet,
)
from triptych.tools import Tool
from triptych.tools.testing import call

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    ROOT / "changes/README.md",
    ROOT / "examples/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
LINES_OF_A_TOOL = 30
QUESTIONS_OF_NEWCOMERS = 16


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def text_of(page: str) -> str:
    return (ROOT / page).read_text("utf-8")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def snippet(page: str, language: str, beginning: str) -> str:
    """The one block of a page that contains `beginning`."""
    (found,) = [block for block in blocks(ROOT / page, language) if beginning in block]
    return found


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page: Path) -> None:
    prose = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        path, _, anchor = target.partition("#")
        if re.match(r"https?://", path):
            continue
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{name(page)} links to {target}"
        assert ROOT in (linked, *linked.parents), f"{name(page)} links out of the repository: {target}"
        assert not anchor or anchor in anchors(linked), f"{name(page)} links to {target}"


def test_the_navigation_of_the_site_has_every_page_once() -> None:
    listed = re.findall(r"[\w/-]+\.md", text_of("mkdocs.yml"))
    assert sorted(listed) == sorted(str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md"))


def test_every_row_of_where_to_change_names_the_file_where_to_begin_and_what_holds_it() -> None:
    table = [row.split("|") for row in text_of("docs/where-to-change.md").splitlines() if row.startswith("|")]
    rows = [[cell.strip() for cell in row[1:-1]] for row in table[2:]]
    assert len(rows) >= QUESTIONS_OF_NEWCOMERS
    assert all("](../" in begin and held_by for _what, begin, _then, held_by in rows)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_page_speaks_of_somebodys_machine(page: Path) -> None:
    assert not re.search(r"/(home|work|root|Users)/|/tmp/", page.read_text("utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_target_of_make_is_one(page: Path) -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", text_of("Makefile"), re.MULTILINE))
    named = re.findall(r"(?:`|^)make ([a-z][\w-]*)", page.read_text("utf-8"), re.MULTILINE)
    assert set(named) <= targets


def spoken_commands(page: Path) -> Iterator[list[str]]:
    """Every `triptych ...` of a page: inline, in a console block, or after `$`."""
    text = page.read_text("utf-8")
    for line in re.findall(r"(?:`|^|; |&& )triptych ([^`\n;#]+)", text, re.MULTILINE):
        yield line.split()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_and_option_exists(page: Path) -> None:
    for words in spoken_commands(page):
        command: Any = typer.main.get_command(app)
        for word in words:
            if isinstance(command, TyperGroup):
                command = command.get_command(None, word)
                assert command is not None, f"{name(page)}: triptych {' '.join(words)}"
            elif word.startswith("--") and word != "--":
                known = {option for parameter in command.params for option in parameter.opts}
                assert word in known, f"{name(page)}: triptych {' '.join(words)}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_snippets_compile(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block, name(page), "exec")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_what_is_to_be_added_to_the_configuration_is_valid(page: Path) -> None:
    for block in blocks(page, "toml"):
        StackTable.model_validate(tomllib.loads(block))


def test_the_playbook_of_the_readme_is_good() -> None:
    playbook = parse_playbook(snippet("README.md", "yaml", "plan:"), Path("README.md"))
    assert playbook.allows("shop.find_order")


def tool_of(page: str, beginning: str) -> Tool:
    names: dict[str, Any] = {"__name__": "snippet"}
    exec(snippet(page, "python", beginning), names)  # noqa: S102 - our own page
    tool = names["tool"]
    assert isinstance(tool, Tool)
    return tool


def test_the_tool_of_the_readme_works_and_is_short() -> None:
    assert len(snippet("README.md", "python", "Tool(").splitlines()) <= LINES_OF_A_TOOL
    tool = tool_of("README.md", "Tool(")

    def result(operation: str, order_id: str) -> Result:
        return asyncio.run(call(tool, operation, {"order_id": order_id}))

    assert result("find_order", "A-1") == Result.ok({"order_id": "A-1", "state": "packed"})
    assert result("find_order", "A-9") == Result.empty()
    assert result("cancel_order", "A-1") == Result.ok({"order_id": "A-1", "state": "cancelled"})
    refused = result("cancel_order", "A-2").error
    assert refused is not None
    assert refused.code is ErrorCode.CONFLICT


def test_a_no_of_a_person_is_an_answer_of_the_tool_that_asks_and_the_run_goes_on_without_the_write() -> None:
    page = "docs/how-to/ask-a-person.md"
    operation = tool_of(page, 'Tool("people")').operations["people.ask"]
    said = {"approved": False, "by": "ana", "note": ""}
    assert asyncio.run(operation.read_callback(said)) == Result.ok(said)
    playbook = parse_playbook(snippet(page, "yaml", "plan:"), Path(page))
    assert playbook.budgets.wall_ms > operation.contract.timeout_ms
    assert isinstance(playbook.plan, FixedPlan)
    ask, refund = playbook.plan.steps
    assert (ask.operation, refund.when) == ("people.ask", "steps.ask.data.approved")


def test_the_tools_of_the_guide_work() -> None:
    weather = tool_of("docs/how-to/write-a-tool.md", 'Tool("weather")')
    assert asyncio.run(call(weather, "forecast", {"city": "Atlantis"})) == Result.empty()
    payments = tool_of("docs/reference/tools.md", 'Tool("payments")')
    refunded = asyncio.run(call(payments, "refund", {"charge": "ch-1", "cents": 500}, idempotency_key="k-1"))
    assert refunded == Result.ok({"charge": "ch-1", "reference": "k-1"})


def test_the_table_of_errors_is_that_of_the_executor() -> None:
    (table,) = re.findall(
        r"<!-- retry rules -->\n(.*?)<!-- /retry rules -->", text_of("docs/reference/tools.md"), re.DOTALL
    )
    what = {code: retry_rule(ToolError(code=code, message=""), Effect.ONCE) for code in ErrorCode}
    rows = {
        f"| `{code.value}` | {'yes' if one.retry else 'no'} | {one.then.value} | `{one.reason}` |"
        for code, one in what.items()
    }
    assert set(table.splitlines()[2:]) == rows


def test_the_table_of_what_models_do_wrong_is_that_of_the_executor() -> None:
    (table,) = re.findall(
        r"<!-- model faults -->\n(.*?)<!-- /model faults -->", text_of("docs/reference/models.md"), re.DOTALL
    )
    rows = [[cell.strip().strip("`") for cell in row.split("|")[1:-1]] for row in table.splitlines()[2:]]
    told = {fault: (again, reason) for fault, _what, _code, again, reason in rows}
    assert told == {fault: ("yes" if one.retry else "no", one.reason) for fault, one in MODEL_FAULTS.items()}
    assert set(told) == set(AnswerFault)


def test_every_fault_of_an_upstream_in_the_table_has_a_run_and_the_other_way_round() -> None:
    _, section = text_of("docs/reference/faults.md").split("## The upstream")
    told = set(re.findall(r"^\| ([^|]+) \|", section.split("\n## ")[0], re.MULTILINE)) - {"fault"}
    played = set(
        re.findall(r"^    Row\(\s*\"([^\"]+)\"", text_of("tests/integration/test_upstream_faults.py"), re.MULTILINE)
    )
    assert told == played


@pytest.mark.parametrize(
    "model",
    [Playbook, FixedPlan, ModelPlan, ReactPlan, ManagerPlan, StepSpec, Fallback, Unmet, Judge, RetryPolicy, Budgets],
)
def test_every_field_of_a_playbook_has_a_line(model: type[Any]) -> None:
    page = text_of("docs/reference/playbooks.md")
    tables = re.split(r"^##+ ", page, flags=re.MULTILINE)
    fields = set(model.model_fields)
    described = [set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) for table in tables]
    assert fields in described, f"no table has exactly the fields of {model.__name__}: {sorted(fields)}"


def test_every_review_mode_has_a_line() -> None:
    assert all(f"| `{review.value}` |" in text_of("docs/reference/playbooks.md") for review in Review)


def test_every_test_that_the_guarantees_name_is_there() -> None:
    written = {
        found
        for file in (ROOT / "tests").rglob("test_*.py")
        for found in re.findall(r"^(?:async )?def (test_\w+)", file.read_text("utf-8"), re.MULTILINE)
    }
    named = set(re.findall(r"`(test_\w+)`", text_of("docs/reference/guarantees.md")))
    assert named
    assert named <= written


def test_every_counter_that_operators_are_told_of_is_counted_and_told() -> None:
    counted = {
        found
        for folder in ("kernel", "services")
        for file in (ROOT / folder).rglob("*.py")
        for found in re.findall(r'health\.count\("(\w+)"', file.read_text("utf-8"))
    }
    page = text_of("docs/how-to/operations.md")
    assert {counter for counter in counted if f"`{counter}`" not in page} == set()
