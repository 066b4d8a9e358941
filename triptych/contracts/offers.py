"""An offer: the contract of an operation, with its schemas compiled. It knows neither Kafka nor a database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from triptych.json_schema import InvalidSchemaError, JsonSchema
from triptych.schemas import Contract, OtherPlaybook, codec, handoff_contract


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


def handoff_offer(playbooks: Sequence[str], others: Sequence[OtherPlaybook]) -> Offer:
    """The offer of `playbook.run`; without the schemas of the inputs where they cannot be held together."""
    return _handoff_offer(tuple(playbooks), tuple(other.to_bytes() for other in others))


@lru_cache(maxsize=256)
def _handoff_offer(playbooks: tuple[str, ...], others: tuple[bytes, ...]) -> Offer:
    told = [codec.read(OtherPlaybook, other, limits=codec.STORED) for other in others]
    try:
        return Offer.of(handoff_contract(playbooks, told))
    except InvalidSchemaError:
        return Offer.of(handoff_contract(playbooks, [other.model_copy(update={"input": {}}) for other in told]))
