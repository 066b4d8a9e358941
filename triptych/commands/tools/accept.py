"""`triptych tools accept`: accept what a tool's source offers now."""

from __future__ import annotations

import asyncio

from triptych.commands.common.options import DEFAULT_CONFIG, AsJson, ConfigFile
from triptych.commands.common.output import out
from triptych.commands.common.tool_drift import Name, compared, report
from triptych.embedded.config import StackConfig

REQUEST = "request:"
"""The beginning of a difference in where a call goes."""


def accept(name: Name, *, config: ConfigFile = DEFAULT_CONFIG, as_json: AsJson = False) -> None:
    """Accept what a tool's source offers now. A running tool takes it over when it compares next (`tools test`)."""
    origin, raw, found = asyncio.run(compared(StackConfig.load(config), name))
    draft = origin.file.with_name(f"{origin.file.name}.new")
    draft.write_bytes(raw)
    draft.replace(origin.file)
    report(found, as_json=as_json)
    if not as_json:
        if any(detail.startswith(REQUEST) for each in found for detail in each.details):
            out.print(
                f"the credential goes only to tools.{name}.options.hosts: add a new host there if it may have it",
                style="yellow",
                markup=False,
                soft_wrap=True,
            )
        out.print(f"accepted in {origin.file}; `triptych tools test {name}` lets a running tool take it over now")
