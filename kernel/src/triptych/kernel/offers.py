"""An offer: the contract of an operation, with its schemas compiled. It knows neither Kafka nor a database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jsonschema_rs

from triptych.schemas import Contract


def _refuse_reference(uri: str) -> Any:
    raise ValueError(f"the schema refers to {uri}; schemas of contracts must stand on their own")


@dataclass(frozen=True, slots=True)
class Offer:
    """A contract, with everything that is derived from it once."""

    contract: Contract
    hash: str
    arguments: jsonschema_rs.Draft202012Validator
    result: jsonschema_rs.Draft202012Validator

    @classmethod
    def of(cls, contract: Contract) -> Offer:
        """Raises ValueError when one of the contract's schemas is not a JSON Schema."""
        return cls(
            contract=contract,
            hash=contract.hash,
            arguments=jsonschema_rs.Draft202012Validator(contract.arguments, retriever=_refuse_reference),
            result=jsonschema_rs.Draft202012Validator(contract.result, retriever=_refuse_reference),
        )
