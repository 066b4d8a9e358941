"""What a plan is checked against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from triptych.contracts.compiled_contract import CompiledContract
from triptych.schemas import Limits, OtherPlaybook, RetryPolicy, StepRecord

ENDED = frozenset({"succeeded", "skipped"})
"""The statuses of steps that the executor keeps: they are not run again."""


@dataclass(frozen=True, slots=True)
class PlanContext:
    """The operations, the limits and the earlier steps of a plan."""

    offers: Mapping[str, CompiledContract]
    """The operations that the playbook allows and some tool offers, by name."""
    max_steps: int
    retry: RetryPolicy
    """For steps that have no policy of their own."""
    revision: int = 1
    known: tuple[StepRecord, ...] = ()
    """Steps of earlier revisions that something is known of."""
    others: tuple[OtherPlaybook, ...] = ()
    """The playbooks that steps may hand over to, as far as they are known."""
    limits: Limits = field(default_factory=Limits)
    """How often a run may make the same write."""
    without_contract: frozenset[str] = frozenset()
    """Operations that the playbook allows and no contract is known of here. Rules that need it are left out."""

    @property
    def ended(self) -> dict[str, StepRecord]:
        """Steps that are over and stay as they are."""
        return {record.id: record for record in self.known if record.status in ENDED}
