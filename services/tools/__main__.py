"""`python -m triptych.tools MODULE:ATTRIBUTE` runs one tool as a service."""

from __future__ import annotations

import sys

from triptych.kernel.errors import ConfigurationError
from triptych.kernel.process.service import Service, run
from triptych.kernel.process.settings import ServiceSettings, load_settings
from triptych.tools.runtime.callbacks import CallbackSettings
from triptych.tools.runtime.process import load_tool, serve

MISCONFIGURED = 2


def main() -> None:
    if len(sys.argv) != 2:  # noqa: PLR2004 - the program and its one argument
        sys.stderr.write("usage: python -m triptych.tools MODULE:ATTRIBUTE, e.g. triptych.tools.adapters.kb:tool\n")
        raise SystemExit(MISCONFIGURED)
    try:
        tool = load_tool(sys.argv[1])
    except ConfigurationError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(MISCONFIGURED) from None
    settings = load_settings(ServiceSettings)
    own_settings = load_settings(tool.settings) if tool.settings is not None else None

    callbacks = load_settings(CallbackSettings) if tool.is_called_back else None

    async def body(service: Service, settings: ServiceSettings) -> None:
        await serve(service, settings, tool, own_settings, callbacks)

    run(f"tool-{tool.name}", settings, body)


main()
