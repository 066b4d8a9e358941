"""`triptych playbook check`: what is wrong with a playbook, with its line."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from triptych.commands.common.options import AsJson
from triptych.commands.common.output import err, out, print_json
from triptych.commands.common.playbook_versions import configured_tools
from triptych.schemas import Playbook

if TYPE_CHECKING:
    from triptych.playbook.diagnostic import Diagnostic
    from triptych.playbook.loader import LocatedDiagnostic


def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Playbooks.")],
    *,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The triptych.toml whose tools they may use; the one here, if there is one."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check playbooks without running them. Ends with code 1 when anything is wrong."""
    tools = configured_tools(config)
    # CEL takes a third of a second to import, and the other commands do not need it.
    from triptych.playbook.loader import PlaybookErrors, load_playbook  # noqa: PLC0415

    good: dict[Path, Playbook] = {}
    problems: list[LocatedDiagnostic] = []
    for file in files:
        try:
            good[file] = load_playbook(file, tools)
        except PlaybookErrors as error:
            problems.extend(error.problems)
    given = {playbook.name: playbook for playbook in good.values()}
    others = {file: beside(file, playbook) | given for file, playbook in good.items()}
    problems += _check_together(good, others)
    bad = {problem.file for problem in problems}
    good = {file: playbook for file, playbook in good.items() if file not in bad}
    warnings, unknown = _warnings(good, others), _unchecked(good, tools)
    if as_json:
        print_json(
            {
                "playbooks": [_shown(file, playbook) for file, playbook in good.items()],
                "warnings": [
                    {"file": str(file), "message": finding.message, "cure": finding.cure}
                    for file, findings in warnings.items()
                    for finding in findings
                ],
                "not_checked": [
                    {"file": str(file), "message": message} for file, said in unknown.items() for message in said
                ],
                "problems": problems_json(problems),
            }
        )
    else:
        for file, playbook in good.items():
            out.print(f"{file}: {playbook.name}@{playbook.version} is good", soft_wrap=True)
            for finding in warnings[file]:
                err.print(f"{file}: {finding.message}. {finding.cure}.", style="yellow", markup=False, soft_wrap=True)
            for message in unknown[file]:
                err.print(f"{file}: not checked: {message}.", style="dim", markup=False, soft_wrap=True)
        for problem in problems:
            err.print(str(problem), style="red", markup=False, soft_wrap=True)
    if problems:
        raise typer.Exit(1)


def beside(file: Path, playbook: Playbook) -> dict[str, Playbook]:
    """Load the playbooks in the folder of one that hands over. What is wrong with them is told of their own files."""
    from triptych.playbook.loader import PlaybookErrors, load_playbook  # noqa: PLC0415

    found: dict[str, Playbook] = {}
    for other in sorted(file.parent.glob("*.yaml")) if playbook.handoffs else ():
        with suppress(PlaybookErrors):
            loaded = load_playbook(other)
            found[loaded.name] = loaded
    return found


def _check_together(good: dict[Path, Playbook], others: dict[Path, dict[str, Playbook]]) -> list[LocatedDiagnostic]:
    """Check what these playbooks hand over to each other, and to those beside them."""
    from triptych.playbook.checker import check_playbook  # noqa: PLC0415
    from triptych.playbook.loader import locate  # noqa: PLC0415

    return [
        problem
        for file, playbook in good.items()
        if playbook.handoffs
        for problem in locate(check_playbook(playbook, others=others[file]), file)
    ]


def _warnings(good: dict[Path, Playbook], others: dict[Path, dict[str, Playbook]]) -> dict[Path, list[Diagnostic]]:
    from triptych.playbook.advice import advise  # noqa: PLC0415

    return {file: list(advise(playbook, others[file])) for file, playbook in good.items()}


def _unchecked(good: dict[Path, Playbook], tools: Collection[str] | None) -> dict[Path, list[str]]:
    from triptych.playbook.checker import unchecked  # noqa: PLC0415

    return {file: unchecked(playbook, tools) for file, playbook in good.items()}


def problems_json(problems: list[LocatedDiagnostic]) -> list[dict[str, Any]]:
    return [{**asdict(problem), "file": str(problem.file)} for problem in problems]


def _shown(file: Path, playbook: Playbook) -> dict[str, str]:
    return {"file": str(file), "name": playbook.name, "version": playbook.version}
