"""Withdrawals: the run of a request is over, so what has not begun is answered here and never done.

They come on a topic of their own, so that none waits behind the requests that it calls off. The job table decides
between a withdrawal and the start of its job: one of both statements finds that the other was first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic

from aiokafka import ConsumerRecord
from pydantic import ValidationError

from triptych.kernel.errors import UndecodableRecord
from triptych.kernel.postgres import claim_check
from triptych.kernel.process.service import Service
from triptych.kernel.worker.contract import RequestT, Worker
from triptych.kernel.worker.job_runner import JobRunner
from triptych.kernel.worker.jobs import InboundRequest, JobKey, Jobs
from triptych.kernel.worker.outbox import Outbox
from triptych.schemas import codec
from triptych.schemas.base import Spend
from triptych.schemas.result import ErrorCode, ToolError
from triptych.schemas.work import Withdrawal

NOT_BEGUN = {"effect": "none", "withdrawn": True}
"""The details of the answer: the call was not made, so certainly nothing was done."""


class Withdrawals(Generic[RequestT]):
    """Calls off the jobs of one worker."""

    def __init__(
        self,
        service: Service,
        noun: str,
        worker: Worker[RequestT],
        *,
        jobs: Jobs,
        runner: JobRunner[RequestT],
        outbox: Outbox,
    ) -> None:
        self._service, self._noun, self._worker = service, noun, worker
        self._jobs, self._runner, self._outbox = jobs, runner, outbox

    async def take(
        self, records: Sequence[ConsumerRecord[Any, Any]], resolved: Mapping[str, bytes | None]
    ) -> list[tuple[ConsumerRecord[Any, Any], UndecodableRecord]]:
        """Call off what these records name, as far as it is ours. Repeating it is harmless.

        Returns:
            What could not be read, and why, for the caller to dead-letter.
        """
        named: dict[JobKey, tuple[InboundRequest, bytes]] = {}
        unread: list[tuple[ConsumerRecord[Any, Any], UndecodableRecord]] = []
        for record in records:
            try:
                withdrawal = _decode(claim_check.body(record, resolved))
            except UndecodableRecord as error:
                unread.append((record, error))
                continue
            if withdrawal.topic == self._noun:
                inbound = _inbound(withdrawal)
                named[inbound.key] = inbound, self._answer(withdrawal)
        if named:
            await self._withdraw(named)
        return unread

    async def _withdraw(self, named: dict[JobKey, tuple[InboundRequest, bytes]]) -> None:
        in_hand = [key for key in named if self._jobs.holds(key)]
        known = await self._jobs.withdraw([named[key] for key in sorted(named)])
        self._runner.withdraw(key for key in in_hand if key in known.fresh)
        self._service.health.count("withdrawn", len(known.fresh))
        for key, answer in known.answered.items():
            inbound, _ = named[key]
            self._outbox.publish_stored(key, inbound.partition, inbound.tenant, inbound.traceparent, answer)

    def _answer(self, withdrawal: Withdrawal) -> bytes:
        message = "the run was over before this began, so it was not done"
        error = ToolError(code=ErrorCode.CANCELLED, message=message, details=NOT_BEGUN)
        return self._worker.failed(withdrawal, error, Spend()).to_bytes()


def _decode(body: bytes) -> Withdrawal:
    try:
        return codec.read(Withdrawal, body)
    except codec.InvalidJson as error:
        raise UndecodableRecord("invalid_json", str(error)) from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "value"
        raise UndecodableRecord("invalid_withdrawal", f"Withdrawal.{where}: {first['msg']}") from error


def _inbound(withdrawal: Withdrawal) -> InboundRequest:
    return InboundRequest(
        run_id=withdrawal.run_id,
        request_id=withdrawal.request_id,
        tenant=withdrawal.tenant,
        partition=withdrawal.partition,
        request=b"",
        traceparent=None,
        deadline_at=withdrawal.deadline_at,
    )
