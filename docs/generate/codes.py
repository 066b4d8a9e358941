"""The reference of the codes: errors of calls, faults of models, reasons of runs, and exit codes of the command."""

from __future__ import annotations

from generate.markdown import member_texts, page, table
from triptych.client.reasons import REASONS
from triptych.commands.common.exit_codes import ExitCode
from triptych.executor.retries import MODEL_FAULTS, FailureAction, RetryRule, retry_rule
from triptych.schemas import Effect, ErrorCode, ToolError

ERRORS = """\
A call that fails has one of these codes. The executor alone decides what follows:
[retries.py](../../services/executor/retries.py) has the table. It retries within the limits of the step, with backoff.
Then it does what `then` says, and an escalation has the `reason`. [Tools](tools.md) says which answers of an upstream
get which code.\
"""
FAULTS = """\
A model answered, and its answer cannot be used. [Models](models.md#when-a-model-answers-badly) says what each means.\
"""
REASONS_OF_RUNS = """\
A run ends or escalates with a reason: one of these codes, and a sentence. A playbook may add codes of its own, as the
`unmet` of a step. [Operations](../how-to/operations.md#escalations) says what each escalation means and what helps.\
"""
EXITS = "Every command ends with one of these codes."


def render() -> str:
    """Return the page."""
    then = member_texts(FailureAction)
    return page(
        "Error and reason codes",
        "## Errors of calls",
        ERRORS,
        table(["code", "retry", "then", "reason"], [_row(code.value, _of(code)) for code in ErrorCode]),
        table(
            ["then", ""],
            [[f"`{member.value}`", then.get(member.name, "Hand the run to a person.")] for member in FailureAction],
        ),
        "## Faults of models",
        FAULTS,
        table(["fault", "retry", "then", "reason"], [_row(fault, what) for fault, what in MODEL_FAULTS.items()]),
        "## Reasons of runs",
        REASONS_OF_RUNS,
        "\n".join(f"- `{reason}`" for reason in sorted(REASONS)),
        "## Exit codes",
        EXITS,
        table(
            ["code", "name", ""],
            [[str(code.value), f"`{code.name}`", member_texts(ExitCode)[code.name]] for code in ExitCode],
        ),
    )


def _of(code: ErrorCode) -> RetryRule:
    return retry_rule(ToolError(code=code, message=""), Effect.ONCE)


def _row(name: str, what: RetryRule) -> list[str]:
    return [f"`{name}`", "yes" if what.retry else "no", f"`{what.then.value}`", f"`{what.reason}`"]
