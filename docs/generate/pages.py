"""The pages of the reference that are generated, and the function that renders each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from generate import codes, command_line, configuration, events, messages, python_api, run_states

REFERENCE = Path(__file__).resolve().parents[1] / "reference"

PAGES: dict[str, Callable[[], str]] = {
    "codes.md": codes.render,
    "command-line.md": command_line.render,
    "configuration.md": configuration.render,
    "events.md": events.render,
    "messages.md": messages.render,
    "python-api.md": python_api.render,
    "run-states.md": run_states.render,
}
