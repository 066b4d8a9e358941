"""Write a tool: a few async functions with type hints, run by `python -m triptych.tools MODULE:ATTRIBUTE`.

The runtime does the rest: contract, validation both ways, effect ledger, timeout, breaker, one attempt.
"""

from triptych.kernel.tracing import upstream_headers
from triptych.schemas.contract import Compensation, Cost, Effect
from triptych.schemas.result import ErrorCode
from triptych.tools.call import Accepted, Call, NotYet, Resources
from triptych.tools.failure import ToolFailure
from triptych.tools.guard import Guard, OperationGuard
from triptych.tools.operation import Operation
from triptych.tools.source import Options, Source
from triptych.tools.tool import Tool

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
