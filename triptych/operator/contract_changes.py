"""Says in lines for people how the contracts of a tool have changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from triptych.schemas import Contract
from triptych.tools.sdk.contract_diff import breaking_changes


def differences(before: Sequence[Contract], after: Sequence[Contract]) -> Iterator[str]:
    """Give one line for each operation that is new, gone or changed, and one for each thing that broke in it."""
    old, new = ({contract.operation: contract for contract in contracts} for contracts in (before, after))
    for name in sorted(old.keys() | new.keys()):
        if name not in old:
            yield f"+ {name}"
        elif name not in new:
            yield f"- {name}: calls that were planned are refused"
        elif old[name].hash != new[name].hash:
            broken = breaking_changes(old[name], new[name])
            yield f"~ {name}: {'this breaks those who use it' if broken else 'compatible'}"
            yield from (f"    {each}" for each in broken)
