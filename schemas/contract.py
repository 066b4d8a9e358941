"""The contract of an operation: what a tool promises, and what the runtime holds it to."""

from __future__ import annotations

import hashlib
import re
from enum import StrEnum
from typing import Annotated, assert_never

from pydantic import Field, StringConstraints, model_validator

from triptych.schemas import codec
from triptych.schemas.base import Authored, Json, Message, OperationName, Slug, ToolCalls, newer


class Effect(StrEnum):
    """What a repeated call does to the world; it decides what may be done after a crash."""

    READ = "read"
    """Changes nothing. Repeat freely."""
    IDEMPOTENT = "idempotent"
    """Changes something once for each idempotency key. Repeat under the same key."""
    ONCE = "once"
    """Changes something each time. Never repeated unless a lookup shows that it did not happen."""

    @property
    def writes(self) -> bool:
        """Whether a call changes something."""
        match self:
            case Effect.READ:
                return False
            case Effect.IDEMPOTENT | Effect.ONCE:
                return True
            case _:
                assert_never(self)

    @property
    def may_be_repeated(self) -> bool:
        """Whether the same call may be made again under its key when its outcome is unknown."""
        match self:
            case Effect.READ | Effect.IDEMPOTENT:
                return True
            case Effect.ONCE:
                return False
            case _:
                assert_never(self)

    @property
    def must_be_reconciled(self) -> bool:
        """Whether the tool has to find out the outcome of a call before the call is made again."""
        match self:
            case Effect.READ | Effect.IDEMPOTENT:
                return False
            case Effect.ONCE:
                return True
            case _:
                assert_never(self)


class Reading(StrEnum):
    """How a result that does not fit its schema is handled."""

    STRICT = "strict"
    """The call fails as `contract_violation`."""
    LENIENT = "lenient"
    """It is data with warnings. What a playbook uses of it must still be there and have its type."""


TIMEOUT_MAX_MS = 7 * 24 * 3_600_000
"""A week: what is completed by a callback may wait for a person somewhere."""


class Cost(Message):
    """The most that one attempt can cost. This is what the executor reserves before the call."""

    tokens: Annotated[int, Field(ge=0)] = 0
    """Tokens of a model, in and out together."""
    usd_micros: Annotated[int, Field(ge=0)] = 0
    """Millionths of a US dollar."""
    tool_calls: ToolCalls = 0


class Compensation(Message):
    """How a write is undone: another operation, with arguments made from those of the write and from its result."""

    operation: OperationName
    """The operation that undoes the write, as `tool.operation`."""
    arguments: Annotated[
        dict[str, Json], Field(description="May refer to `${{ arguments.NAME }}` and `${{ data.NAME }}` of the write.")
    ] = {}


class OnRepeat(StrEnum):
    """What a second write gets whose business key is taken."""

    CONFLICT = "conflict"
    """It is not made, and its step fails with `conflict`."""
    RECEIPT = "receipt"
    """It is not made, and its step gets the answer of the first."""


_UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
KEY_FOR_MAX_MS = 400 * _UNITS_MS["d"]


class BusinessKey(Authored):
    """What makes two writes the same to the business, for example `refund:${{ arguments.invoice }}`.

    In a tenant, for a time, only one write under a key takes effect, in all runs and steps together.
    """

    value: Annotated[
        str, Field(min_length=1, max_length=500, description="May refer to `${{ arguments.NAME }}` of the write.")
    ]
    for_ms: Annotated[
        int, Field(ge=1_000, le=KEY_FOR_MAX_MS, description="So long it is taken; may be written as `for: 30d`.")
    ] = 30 * _UNITS_MS["d"]
    on_repeat: Annotated[OnRepeat, Field(strict=False)] = OnRepeat.CONFLICT

    @model_validator(mode="before")
    @classmethod
    def _as_written(cls, written: object) -> object:
        """Read the written form: a text is the key; `for` is a number and a unit (s, m, h, d)."""
        if isinstance(written, str):
            return {"value": written}
        if not isinstance(written, dict) or "for" not in written:
            return written
        stated = re.fullmatch(r"([1-9][0-9]{0,5})([smhd])", str(written["for"]))
        if stated is None or "for_ms" in written:
            raise ValueError("`for` is a number and a unit (s, m, h, d), for example 30d, and stands without `for_ms`")
        rest = {name: value for name, value in written.items() if name != "for"}
        return {**rest, "for_ms": int(stated[1]) * _UNITS_MS[stated[2]]}


class Contract(Message):
    """One operation of a tool, with JSON Schemas (2020-12) of its arguments and its result."""

    operation: OperationName
    version: Annotated[str, Field(description="The tool author's version of this contract.")] = "1"
    description: str
    arguments: Annotated[dict[str, Json], Field(description="JSON Schema of the arguments object.")]
    result: Annotated[dict[str, Json], Field(description="JSON Schema of the data of an `ok` result.")]
    effect: Effect
    timeout_ms: Annotated[int, Field(gt=0, le=TIMEOUT_MAX_MS)] = 10_000
    reading: Annotated[
        Reading, Field(exclude_if=newer(Reading.STRICT), description="How a result that does not fit is handled.")
    ] = Reading.STRICT
    cost: Cost = Cost()
    compensate: Annotated[
        Compensation | None, Field(exclude_if=newer(None), description="What undoes it, if anything does.")
    ] = None
    business_key: Annotated[
        BusinessKey | None, Field(exclude_if=newer(None), description="What makes two of its writes the same.")
    ] = None

    @property
    def tool(self) -> str:
        return self.operation.partition(".")[0]

    @property
    def hash(self) -> str:
        """A short content hash; a plan pins it, and an adapter refuses a call that pins another."""
        canonical = codec.encode(self.model_dump(mode="json"), sort_keys=True, limits=codec.STORED)
        return hashlib.sha256(canonical).hexdigest()[:16]


class ToolContracts(Message):
    """What a tool adapter announces on `<prefix>.contracts` when it starts (key: the tool's name)."""

    tool: Slug
    contracts: tuple[Contract, ...]


ContractHash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]


class Undo(Message):
    """How a step can be undone: its compensation, with the contract of the other operation pinned."""

    operation: OperationName
    arguments: dict[str, Json] = {}
    contract_hash: ContractHash
    effect: Effect
    timeout_ms: Annotated[int, Field(gt=0)]


class Pin(Message):
    """What a plan remembers of a contract, so that later changes upstream are noticed."""

    contract_hash: ContractHash
    effect: Effect
    timeout_ms: Annotated[int, Field(gt=0)]
    cost: Cost = Cost()
    undo: Annotated[
        Undo | None,
        Field(exclude_if=newer(None), description="Absent where no operation undoes it, or where none is allowed to."),
    ] = None
    business_key: Annotated[
        BusinessKey | None, Field(exclude_if=newer(None), description="The step's own, or the contract's.")
    ] = None
