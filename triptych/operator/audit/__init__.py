"""The audit of a stack's database: whether the journals, and everything that is derived from them, agree.

It reads with the operator's role and changes nothing. It can run beside a stack that works: each batch is
read from one snapshot, and a commit of the executor is one statement.
"""

from triptych.operator.audit.auditor import Audit, AuditCounts, audit
from triptych.operator.audit.problem import Check, Problem

__all__ = ["Audit", "AuditCounts", "Check", "Problem", "audit"]
