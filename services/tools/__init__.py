"""Write a tool: a few async functions with type hints, run by `python -m triptych.tools MODULE:ATTRIBUTE`.

The runtime does the rest: contract, validation both ways, effect ledger, timeout, breaker, one attempt.
"""

from triptych.kernel.process.tracing import upstream_headers
from triptych.schemas.contract import Compensation, Cost, Effect
from triptych.schemas.result import ErrorCode
from triptych.tools.sdk.call import Accepted, Call, NotYet, Resources
from triptych.tools.sdk.failure import ToolFailure
from triptych.tools.sdk.guard import Guard, OperationGuard
from triptych.tools.sdk.operation import Operation
from triptych.tools.sdk.source import Options, Source
from triptych.tools.sdk.tool import Tool

__all__ = [
    "Accepted",
    "Call",
    "Compensation",
    "Cost",
    "Effect",
    "ErrorCode",
    "Guard",
    "NotYet",
    "Operation",
    "OperationGuard",
    "Options",
    "Resources",
    "Source",
    "Tool",
    "ToolFailure",
    "upstream_headers",
]
