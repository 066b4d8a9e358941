"""Make one attempt at one call, from the request to an answer that keeps the contract.

The order is: refuse an invalid request, ask the breaker, write the intent, call once, check the result. It never
retries. The executor does, and each attempt is a new request here.
"""

from __future__ import annotations

import asyncio
import traceback
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx

from triptych.kernel import failpoints
from triptych.kernel.concurrency.time_limit import TimeLimit
from triptych.kernel.kafka.cloudevents import utc_now
from triptych.kernel.process.log import Logger
from triptych.kernel.worker import JobAttempt
from triptych.schemas.base import Answer, Json, Request, Spend
from triptych.schemas.result import ErrorCode, Misreading, Result, ResultStatus, ToolError
from triptych.schemas.work import CallAnswer, CallRequest
from triptych.tools.guard.protection import Protection
from triptych.tools.http.errors import REDIRECTS, failure_of_request
from triptych.tools.runtime.alerts import Alerts
from triptych.tools.runtime.callbacks import Callbacks
from triptych.tools.runtime.effect_ledger import EffectLedger, EffectState
from triptych.tools.runtime.last_answers import LastAnswers
from triptych.tools.sdk import refusals
from triptych.tools.sdk.call import Accepted, Call
from triptych.tools.sdk.failure import DONE, EFFECT, NO_EFFECT, ToolFailure
from triptych.tools.sdk.operation import Operation
from triptych.tools.sdk.redaction import Redactor
from triptych.tools.sdk.tool import Tool

ASK_AGAIN_AFTER_S = (0.2, 0.5, 1.0, 2.0)
"""The waits between questions what happened to a call. An upstream that restarts is back after them."""

KNOWN = (EFFECT, "withdrawn", "postponed", "budget", "idempotency_key")
"""The details of an error that others decide by."""
WARNINGS_SHOWN = 3
TRACEBACK_MAX_CHARS = 16_000
"""The end of a traceback says what happened."""


class ToolWorker:
    """Answers the calls of one tool."""

    request_type = CallRequest

    def __init__(
        self,
        tool: Tool,
        state: Any,
        ledger: EffectLedger,
        log: Logger,
        *,
        redactor: Redactor | None = None,
        protection: Protection | None = None,
        alerts: Alerts | None = None,
        callbacks: Callbacks | None = None,
        answers: LastAnswers | None = None,
    ) -> None:
        """Mask only the tool's own secrets without `redactor`; apply no rates without `protection`."""
        self._tool, self._state, self._ledger, self._log = tool, state, ledger, log
        self._redactor = redactor or Redactor(learnt=tool.secrets)
        self._protection = protection or Protection.of(tool)
        self._alerts, self._answers = alerts or Alerts(log), answers or LastAnswers(None, log)
        self._callbacks = callbacks

    async def execute(self, request: CallRequest, attempt: JobAttempt) -> CallAnswer | None:
        """Make one attempt. Every failure becomes an answer; only cancellation is raised. None: a callback follows."""
        call = Call.of(request, self._state)
        try:
            result = await self._serve(request, attempt, call)
        except ToolFailure as failure:
            # Refused before its intent was written. Of what an earlier life of this request has done that says nothing.
            result = failure.result() if attempt.taken_over else self._result_of(failure, request)
        if result is None:
            return None
        return _answer(request, self._redactor.clean(result), call.spent)

    def failed(self, request: Request, error: ToolError, spend: Spend) -> CallAnswer:
        return _answer(request, Result(status=ResultStatus.ERROR, error=error), spend)

    def unstorable(self, request: Request, answer: Answer, message: str) -> CallAnswer:
        """Put an error in the place of an answer that cannot be stored. What is known of an effect stays known."""
        told = answer.result if isinstance(answer, CallAnswer) else Result.empty()
        if told.error is not None:
            known = {name: told.error.details[name] for name in KNOWN if name in told.error.details}
            error = told.error.model_copy(update={"message": message, "details": known})
        else:
            is_done = isinstance(request, CallRequest) and self._writes(request.operation)
            error = ToolError(
                code=ErrorCode.CONTRACT_VIOLATION, message=message, details={EFFECT: DONE} if is_done else {}
            )
        return _answer(request, Result(status=ResultStatus.ERROR, error=error), answer.spend)

    def _writes(self, operation: str) -> bool:
        known = self._tool.operations.get(operation)
        return known is not None and known.contract.effect.writes

    def may_repeat(self, request: CallRequest) -> bool:
        """Return a read changes nothing. One that its upstream completes later is parked, and so has to be stored."""
        operation = self._tool.operations.get(request.operation)
        return operation is not None and not operation.contract.effect.writes and operation.completion is None

    async def _serve(self, request: CallRequest, attempt: JobAttempt, call: Call[Any]) -> Result | None:
        operation = self._offered(request)
        operation.check_arguments(request.arguments)
        if request.cached_ms is not None:
            return await self._answers.last(request, request.cached_ms)
        async with self._protection.admit(request.operation) as permit:
            if not operation.contract.effect.writes:
                settled, tried_before = await self._expect(operation, request, attempt, call), False
            else:
                settled, tried_before = await self._begin(operation, request, attempt, call)
            if settled is not None:
                return settled
            try:
                result = await self._attempt(operation, request, call, tried_before=tried_before)
            except Accepted:
                permit.result = Result.empty()
                return await self._park(operation, request, attempt)
            permit.result = result
            self._watch(request, result)
        if request.keep and result.error is None:
            await self._answers.keep(request, self._redactor.clean(result))
        return result

    async def probe(self, operation: str, arguments: dict[str, Json]) -> Result:
        """Call a read past the breaker, to see whether the upstream is well. It leaves nothing behind."""
        contract = self._tool.operations[operation].contract
        request = CallRequest(
            request_id=f"probe:{uuid4()}",
            run_id=UUID(int=0),
            tenant="default",
            partition=0,
            deadline_at=utc_now() + timedelta(milliseconds=contract.timeout_ms),
            principal="triptych:probe",
            step="probe",
            operation=operation,
            arguments=arguments,
            attempt=1,
            idempotency_key=f"probe:{uuid4()}",
            contract_hash=contract.hash,
            timeout_ms=contract.timeout_ms,
        )
        call = Call.of(request, self._state)
        try:
            result = await self._attempt(self._tool.operations[operation], request, call, tried_before=False)
        except Accepted:
            return Result.empty()
        return self._redactor.clean(result)

    def _watch(self, request: CallRequest, result: Result) -> None:
        """Raise an alert for a result outside the contract. The next result that fits closes it."""
        if result.warnings:
            message = _in_words(self._redactor.clean(result).warnings)
            self._alerts.count(request.operation, "result", message, request.run_id)
        elif result.error is None:
            self._alerts.close(request.operation, "result")
        elif result.error.code is ErrorCode.CONTRACT_VIOLATION:
            told = self._redactor.clean(result).error or result.error
            self._alerts.open(request.operation, "result", told.message, request.run_id)

    async def _expect(
        self, operation: Operation, request: CallRequest, attempt: JobAttempt, call: Call[Any]
    ) -> Result | None:
        """Make the address of the callback, if the operation has one. Return a result that is known already."""
        if operation.completion is None or self._callbacks is None:
            return None
        expected = await self._callbacks.expect(request, attempt)
        call.callback_url = expected.url
        return expected.result

    async def _park(self, operation: Operation, request: CallRequest, attempt: JobAttempt) -> Result | None:
        if operation.completion is None or self._callbacks is None:
            raise ToolFailure(
                ErrorCode.INTERNAL, f"{request.operation} was accepted, and nothing says how it is completed"
            )
        return await self._callbacks.park(request, attempt)

    def _offered(self, request: CallRequest) -> Operation:
        operation = self._tool.operations.get(request.operation)
        if operation is None:
            raise ToolFailure(
                ErrorCode.CONTRACT_VIOLATION,
                f"tool {self._tool.name} offers no {request.operation}, only {', '.join(self._tool.operations)}",
                undone=True,
            )
        if (drifted := self._tool.quarantined.get(request.operation)) is not None:
            raise ToolFailure(
                ErrorCode.CONTRACT_VIOLATION,
                f"{request.operation} is not what was accepted: {drifted}; nothing was called. "
                f"`triptych tools accept {self._tool.name}` accepts it",
                undone=True,
                drift=drifted,
            )
        if request.contract_hash not in operation.accepted_hashes:
            raise ToolFailure(
                ErrorCode.CONTRACT_VIOLATION,
                f"{request.operation} was planned under contract {request.contract_hash}, but this tool now offers "
                f"{operation.contract_hash} (version {operation.contract.version}); plan again under the new contract",
                undone=True,
                planned=request.contract_hash,
                offered=operation.contract_hash,
            )
        return operation

    async def _begin(
        self, operation: Operation, request: CallRequest, attempt: JobAttempt, call: Call[Any]
    ) -> tuple[Result | None, bool]:
        """Write the intent. A result when there is nothing left to do, None when the call must be made.

        Beside it, whether an earlier attempt may have done it.

        Raises:
            ToolFailure: it must not be made, or its state is not known.
        """
        entry = await self._ledger.begin(request, attempt)
        # The address comes after the intent, for a callback may just be telling that the attempt before has failed.
        # Either that is stored by now, and this attempt gets another address, or two attempts are in the ledger, and
        # it clears neither.
        if (
            entry.state in {EffectState.NEW, EffectState.UNKNOWN}
            and (said := await self._expect(operation, request, attempt, call)) is not None
        ):
            return said, True
        match entry.state:
            case EffectState.NEW:
                return None, False
            case EffectState.DONE:
                return entry.receipt, True
            case EffectState.UNKNOWN if operation.contract.effect.may_be_repeated:
                return None, True
            case EffectState.UNKNOWN:
                cause = "an earlier attempt began and its outcome is not known, or it was lost with a restored database"
                return await self._reconcile(operation, request, call, cause), False
            case EffectState.CONFLICT:
                raise ToolFailure(
                    ErrorCode.CONFLICT,
                    f"idempotency key {request.idempotency_key} was used for another operation or other arguments",
                )
            case EffectState.LOST:
                raise ToolFailure(ErrorCode.CANCELLED, "the job belongs to another process now")

    async def _reconcile(
        self, operation: Operation, request: CallRequest, call: Call[Any], cause: str
    ) -> Result | None:
        """Return what the tool says of the call's key: what it did, or None when it certainly did nothing.

        Raises:
            ToolFailure: `in_doubt`, since it cannot tell.
        """
        limit = TimeLimit(request.timeout_ms / 1_000)
        try:
            return await limit.hold(_what_happened(operation, call))
        except ToolFailure as failure:
            answer = failure.message
        except Exception as error:  # noqa: BLE001 - any exception means that the tool cannot tell
            if limit.expired():
                answer = f"it was asked, and gave no answer within {request.timeout_ms} ms"
            else:
                self._log_error(error, "reconciliation failed", operation=request.operation, run_id=str(request.run_id))
                answer = type(error).__name__
        raise ToolFailure(
            ErrorCode.IN_DOUBT,
            f"{request.operation}: {cause}: {answer}",
            idempotency_key=request.idempotency_key,
        )

    async def _after_conflict(
        self, operation: Operation, request: CallRequest, call: Call[Any], conflict: ToolFailure, *, tried_before: bool
    ) -> Result:
        """Return a write was told that something is in its way, which may be what an earlier attempt of it has done.

        Raises:
            ToolFailure: `in_doubt`, since the cause of the conflict is not known.
        """
        if operation.reconcile is None and not tried_before:
            return self._result_of(conflict, request)
        found = await self._reconcile(operation, request, call, f"the upstream reports a conflict ({conflict.message})")
        return found or conflict.result(**{EFFECT: NO_EFFECT})

    async def _attempt(
        self, operation: Operation, request: CallRequest, call: Call[Any], *, tried_before: bool
    ) -> Result:
        timeout_ms = operation.attempt_timeout_ms(request.timeout_ms)
        limit = TimeLimit(timeout_ms / 1_000)
        try:
            failpoints.hit("tool.before_call")
            result = await limit.hold(operation.invoke(request.arguments, call))
            failpoints.hit("tool.after_call")
        except Accepted:
            raise
        except ToolFailure as error:
            failure = error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            failure = failure_of_request(error)
        except Exception as error:  # noqa: BLE001 - an operation may raise anything, and each call gets an answer
            call.count_unknown_cost()
            if limit.expired():
                failure = ToolFailure(ErrorCode.TIMEOUT, f"{request.operation} did not answer within {timeout_ms} ms")
            else:
                self._log_error(error, "operation failed", operation=request.operation, request_id=request.request_id)
                # The text of an unforeseen exception can hold anything, secrets too: it stays in the log.
                failure = ToolFailure(
                    ErrorCode.INTERNAL,
                    f"{type(error).__name__} in {request.operation}; the tool's log has the details under request "
                    f"{request.request_id}",
                )
        else:
            return result
        return await self._after_failure(operation, request, call, failure, tried_before=tried_before)

    async def _after_failure(
        self, operation: Operation, request: CallRequest, call: Call[Any], failure: ToolFailure, *, tried_before: bool
    ) -> Result:
        """Return what a failed attempt is answered with, by what is known of its effect."""
        if not operation.contract.effect.writes:
            # What is not there is an answer to a question, and an error of a write.
            return Result.empty() if failure.code is ErrorCode.NOT_FOUND else failure.result()
        if operation.contract.effect.must_be_reconciled and failure.done:
            return failure.result(**{EFFECT: DONE})
        if operation.contract.effect.must_be_reconciled and _leaves_open_what_it_did(failure):
            # Neither a repeat nor other arguments may follow, so it is settled now.
            found = await self._reconcile(operation, request, call, f"it is not known what it did ({failure.message})")
            return found or failure.result(**{EFFECT: NO_EFFECT})
        if failure.code is ErrorCode.CONFLICT:
            return await self._after_conflict(operation, request, call, failure, tried_before=tried_before)
        # Of what the attempt before has done, a refusal of this one says nothing.
        return failure.result() if tried_before else self._result_of(failure, request)

    def _log_error(self, error: Exception, what: str, **fields: str) -> None:
        """Log an unforeseen error. Its text can hold anything, secrets of this process too."""
        told = self._redactor.masked("".join(traceback.format_exception(error)))
        self._log.error(what, exception=told[-TRACEBACK_MAX_CHARS:], **fields)

    def _result_of(self, failure: ToolFailure, request: CallRequest) -> Result:
        """Return a write that failed says so where it certainly changed nothing."""
        operation = self._tool.operations.get(request.operation)
        if failure.undone and operation is not None and operation.contract.effect.writes:
            return failure.result(**{EFFECT: NO_EFFECT})
        return failure.result()


def _in_words(warnings: tuple[Misreading, ...]) -> str:
    """Return what an alert says of an answer that was let pass."""
    shown = "; ".join(f"{each.place or 'the answer'}: {each.message}" for each in warnings[:WARNINGS_SHOWN])
    more = f"; and {len(warnings) - WARNINGS_SHOWN} more" if len(warnings) > WARNINGS_SHOWN else ""
    return f"an answer was let pass that is not as its contract says: {shown}{more}"


def _leaves_open_what_it_did(failure: ToolFailure) -> bool:
    """Return whether the work may have been done, although the failure looks like a refusal or a redirect."""
    is_redirect = failure.details.get("http_status") in REDIRECTS
    return not failure.undone and (is_redirect or refusals.is_refusal_by_code(failure.code))


async def _what_happened(operation: Operation, call: Call[Any]) -> Result | None:
    """Ask the tool, and again while its upstream cannot be reached: to ask does no harm, and a doubt takes a person."""
    for wait_s in ASK_AGAIN_AFTER_S:
        try:
            return await operation.ask_what_happened(call)
        except httpx.TransportError:
            pass
        except ToolFailure as failure:
            if failure.code is not ErrorCode.UNAVAILABLE:
                raise
        await asyncio.sleep(wait_s)
    return await operation.ask_what_happened(call)


def _answer(request: Request, result: Result, spend: Spend) -> CallAnswer:
    return CallAnswer(
        request_id=request.request_id, run_id=request.run_id, tenant=request.tenant, spend=spend, result=result
    )
