"""The contract of an operation with its schemas compiled. This module knows neither Kafka nor a database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from triptych.json_schema import InvalidSchemaError, JsonSchema
from triptych.schemas import Contract, OtherPlaybook, codec, handoff_contract


@dataclass(frozen=True, slots=True)
class CompiledContract:
    """A contract, with everything that is computed from it once."""

    contract: Contract
    hash: str
    arguments: JsonSchema
    result: JsonSchema

    @classmethod
    def of(cls, contract: Contract) -> CompiledContract:
        """Compile the schemas of a contract. Raises InvalidSchemaError when one of them cannot be used."""
        return cls(
            contract=contract,
            hash=contract.hash,
            arguments=JsonSchema.of(contract.arguments),
            result=JsonSchema.of(contract.result),
        )


def compiled_handoff_contract(playbooks: Sequence[str], others: Sequence[OtherPlaybook]) -> CompiledContract:
    """Return the contract of `playbook.run`; without the schemas of the inputs if they cannot be combined."""
    return _compiled_handoff_contract(tuple(playbooks), tuple(other.to_bytes() for other in others))


@lru_cache(maxsize=256)
def _compiled_handoff_contract(playbooks: tuple[str, ...], others: tuple[bytes, ...]) -> CompiledContract:
    stated = [codec.read(OtherPlaybook, other, limits=codec.STORED) for other in others]
    try:
        return CompiledContract.of(handoff_contract(playbooks, stated))
    except InvalidSchemaError:
        return CompiledContract.of(
            handoff_contract(playbooks, [other.model_copy(update={"input": {}}) for other in stated])
        )
