"""An offer: the contract of an operation, with its schemas compiled. It knows neither Kafka nor a database."""

from __future__ import annotations

from dataclasses import dataclass

from triptych.kernel.json_schema import JsonSchema
from triptych.schemas import Contract


@dataclass(frozen=True, slots=True)
class Offer:
    """A contract, with everything that is derived from it once."""

    contract: Contract
    hash: str
    arguments: JsonSchema
    result: JsonSchema

    @classmethod
    def of(cls, contract: Contract) -> Offer:
        """Raises InvalidSchemaError when one of the contract's schemas cannot be used."""
        return cls(
            contract=contract,
            hash=contract.hash,
            arguments=JsonSchema.of(contract.arguments),
            result=JsonSchema.of(contract.result),
        )
