"""What has become of the contracts of a tool, in lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from triptych.schemas import Contract
from triptych.schemas.compatibility import breaks


def differences(before: Sequence[Contract], after: Sequence[Contract]) -> Iterator[str]:
    """One line for each operation that is new, gone or changed, and one for each thing that broke in it."""
    old, new = ({contract.operation: contract for contract in contracts} for contracts in (before, after))
    for name in sorted(old.keys() | new.keys()):
        if name not in old:
            yield f"+ {name}"
        elif name not in new:
            yield f"- {name}: calls that were planned are refused"
        elif old[name].hash != new[name].hash:
            broken = list(_broken(old[name], new[name]))
            yield f"~ {name}: {'this breaks those who use it' if broken else 'compatible'}"
            yield from (f"    {each}" for each in broken)


def _broken(old: Contract, new: Contract) -> Iterator[str]:
    if old.effect is not new.effect:
        yield f"the effect was {old.effect.value} and is {new.effect.value}"
    for part, before, after in (("arguments", old.arguments, new.arguments), ("result", old.result, new.result)):
        try:
            found = [str(each) for each in breaks(before, after)] if before != after else []
        except (KeyError, TypeError, AttributeError):
            found = ["the schema has changed in a way that cannot be compared"]
        yield from (f"{part}: {each}" for each in found)
