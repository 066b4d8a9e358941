"""Does a tool keep what its effect class promises? Its real code, in real processes, on a real effect ledger.

    report = await check(Subject("weather:tool", path=folder), Example("report", {"city": "Graz"}), postgres=dsn)
    assert report.passed, report

Each case is a call to which something happens: a repeat, a kill, an answer that comes too late or gets lost.
The effects are those of the tool: point it at a system where they do no harm.
"""

from triptych.tools.conformance.report import Case, CaseResult, CaseStatus, ConformanceReport
from triptych.tools.conformance.suite import Example, Subject, check

__all__ = ["Case", "CaseResult", "CaseStatus", "ConformanceReport", "Example", "Subject", "check"]
