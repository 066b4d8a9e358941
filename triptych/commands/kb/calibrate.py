"""`triptych kb calibrate`: fit the scores of the knowledge base to questions."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from triptych.commands.common.knowledge_tool import Postgres, Tenant, Tool, opened
from triptych.commands.common.options import DEFAULT_DATA, AsJson, DataDir, tool_role
from triptych.commands.common.output import err, out, print_json
from triptych.kernel.errors import TriptychError
from triptych.schemas import codec


class QuestionsError(TriptychError):
    """The questions cannot be used for a calibration."""

    def __init__(self, file: Path, problem: str) -> None:
        self.file = file
        super().__init__(
            f'{file}: {problem}. Each line is {{"question": "...", "article": "the id that answers it"}} or null'
        )


def calibrate(
    questions: Annotated[Path, typer.Argument(help="A JSON line for each question: what answers it, or null.")],
    *,
    tenant: Tenant = "*",
    collection: Annotated[list[str] | None, typer.Option(help="Ask these alone.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how good the threshold is, and change nothing.")
    ] = False,
    tool: Tool = "kb",
    data: DataDir = DEFAULT_DATA,
    postgres: Postgres = None,
    as_json: AsJson = False,
) -> None:
    """Fit the scores to questions whose answers you know, and keep the fit."""
    from triptych.tools.adapters.kb.calibration import fit, quality  # noqa: PLC0415

    asked = _questions(questions)

    async def measure() -> dict[str, Any]:
        async with opened(tool_role(data, postgres, tool)) as knowledge:
            judged = [
                await knowledge.judge(tenant, question, answered=answered, collections=collection or [])
                for question, answered in asked
            ]
            before = quality(judged, knowledge.calibration)
            try:
                fitted = fit(judged)
            except ValueError as error:
                raise QuestionsError(questions, str(error)) from error
            if not dry_run:
                await knowledge.calibrate(fitted, len(judged))
            after = quality(judged, fitted)
            return {"questions": len(judged), "before": asdict(before), "after": asdict(after), **asdict(fitted)}

    told = asyncio.run(measure())
    if as_json:
        print_json(told)
        return
    for when in ("before", "after"):
        precision, recall = told[when]["precision"], told[when]["recall"]
        out.print(f"{when:>6}: {precision:.0%} of what scores above the threshold is answered")
        out.print(f"        {recall:.0%} of what is answered scores above the threshold")
    err.print("Nothing was changed." if dry_run else "Kept. Start the tool again, so that it goes by it.")


def _questions(file: Path) -> list[tuple[str, bool]]:
    try:
        lines = [codec.decode(line) for line in file.read_bytes().splitlines() if line.strip()]
        return [(str(line["question"]), line["article"] is not None) for line in lines]
    except OSError as error:
        raise QuestionsError(file, f"it cannot be read: {error.strerror}") from error
    except (codec.InvalidJson, KeyError, TypeError) as error:
        raise QuestionsError(file, f"{type(error).__name__}: {error}") from error
