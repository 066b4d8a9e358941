"""Trust: check answers against the run's own record and against the contracts. Pure.

That a message came on a topic proves nothing. An answer is accepted if it has the tenant and the kind of its request,
comes from the tool that was asked, and fits the contract. An honest worker must have been able to give it. Any other
answer is refused and leaves the run as it is.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from triptych.contracts.compiled_contract import CompiledContract, compiled_handoff_contract
from triptych.executor import events as ev
from triptych.executor.commands import step_to_skip
from triptych.executor.lenient_results import invalid_use
from triptych.executor.state import OpenRequest, RequestKind, Run, RunStatus
from triptych.json_schema import JsonSchema, SchemaError, describe_errors
from triptych.kernel.errors import UndecodableRecord
from triptych.playbook.plans import PlanContext, check_steps, make_plan, steps_at_once
from triptych.schemas import (
    HANDOFF,
    Answer,
    CallAnswer,
    Control,
    ControlAction,
    Decision,
    ErrorCode,
    FixedPlan,
    Json,
    Judge,
    Limits,
    OtherPlaybook,
    Pin,
    Plan,
    PlanAnswer,
    PlanByModel,
    PlanByTurns,
    Reading,
    Result,
    ResultStatus,
    Spend,
    Step,
    StepSpec,
    ToolError,
    Undo,
    VerdictAnswer,
)

SPEND_MAX = 2**53
"""More tokens, calls or millionths of a dollar than this are a mistake."""
SHOWN_MAX = 5
MAX_SOUND = 256

AnyAnswer = PlanAnswer | CallAnswer | VerdictAnswer

_KINDS: Mapping[type[Answer], tuple[RequestKind, ...]] = {
    PlanAnswer: (RequestKind.PLAN,),
    CallAnswer: (RequestKind.CALL, RequestKind.UNDO),
    VerdictAnswer: (RequestKind.REVIEW,),
}
_FROM_A_TOOL = "/triptych/tool-"


class Contracts(Protocol):
    """The contracts that tools have announced."""

    def get(self, operation: str) -> CompiledContract | None:
        """Return the contract that has this name today."""

    def remembered(self, contract_hash: str) -> CompiledContract | None:
        """Return the contract with this hash, also one that its tool has replaced."""

    def operations(self, patterns: Iterable[str]) -> Mapping[str, CompiledContract]:
        """Return the contracts of today that a playbook's `tools` allow, by operation."""

    @property
    def changes(self) -> int:
        """Return how often what the tools offer has changed."""


class MisdirectedRecord(UndecodableRecord):
    """An answer that is not of the tenant, the kind or the tool that the open request has asked."""

    def __init__(self, message: str) -> None:
        super().__init__("misdirected", message)


class ForgedRecord(UndecodableRecord):
    """A record that says what the records of the executor do not bear out."""

    def __init__(self, message: str) -> None:
        super().__init__("forged", message)


class Trust:
    """Decides which answers are accepted."""

    def __init__(self, contracts: Contracts | None) -> None:
        """Take the contracts. Without them, answers are not checked against any: for tests of other things."""
        self._contracts = contracts
        self._sound: OrderedDict[tuple[int, str], Plan] = OrderedDict()
        """Plans that were found good for a playbook, by their identity: the same plan is that of thousands of runs."""

    def verified(self, run: Run, answer: AnyAnswer, source: str | None) -> AnyAnswer | None:
        """Check an answer. None when it answers no request that is open, or was open when the run ended.

        `source` is who says that it has sent it, if anybody says so.

        Raises:
            MisdirectedRecord: somebody else was asked.
            ForgedRecord: no honest worker can have said this.
        """
        if answer.tenant != run.tenant:
            raise MisdirectedRecord(f"run {run.run_id} is not of tenant {answer.tenant}")
        request = run.requests.get(answer.request_id) or run.left_open.get(answer.request_id)
        if request is None:
            return None
        if request.kind not in _KINDS[type(answer)]:
            raise MisdirectedRecord(f"request {answer.request_id} is a {request.kind.value}, and no such answer is due")
        _check_spend(answer.spend)
        match answer:
            case PlanAnswer():
                return self._plan_answer(run, request, answer)
            case CallAnswer():
                return self._call_answer(run, request, answer, source)
            case VerdictAnswer():
                _check_verdict(run, request, answer)
        return answer

    def invalid_answer(self, run: Run, command: Control) -> str | None:
        """Return why a person's answer cannot be that of the step; None where it can, or without an answer."""
        state = step_to_skip(run, command)
        if command.data is None or command.action is not ControlAction.SKIP or state is None:
            return None
        step = state.step
        offer = self._pinned(run, step.operation, step.pin)
        if offer is None or run.status is not RunStatus.ESCALATED:
            return None
        answer = command.data
        if not (errors := offer.result.schema_errors(answer) if step.map is None else _branch_errors(offer, answer)):
            return None
        return (
            f"the answer does not fit what {step.operation} answers in step {state.id}: "
            f"{describe_errors(errors, 'answer')}; "
            f"give one that fits the contract, see `triptych tools show {step.operation}`"
        )

    def _pinned(self, run: Run, operation: str, pin: Pin | Undo) -> CompiledContract | None:
        if operation == HANDOFF:
            return _compiled_handoff_contract(run)
        return self._contracts.remembered(pin.contract_hash) if self._contracts is not None else None

    # --- a plan -----------------------------------------------------------------------------------

    def _plan_answer(self, run: Run, request: OpenRequest, answer: PlanAnswer) -> PlanAnswer:
        if sum(part is not None for part in (answer.plan, answer.error, answer.answer)) != 1:
            raise ForgedRecord("a planner answers with one of plan, error and answer")
        if answer.answer is not None and not isinstance(run.playbook.plan, PlanByTurns):
            raise ForgedRecord(
                f"playbook {run.playbook.name} is not planned by turns, so no planner ends it with an answer"
            )
        if answer.plan is None or self._contracts is None:
            return answer
        assert isinstance(request.event, ev.PlanRequested)  # noqa: S101 - of a request for a plan
        if answer.plan.revision != request.event.revision:
            asked = f"revision {request.event.revision} was asked for"
            raise ForgedRecord(f"{asked}, and this is revision {answer.plan.revision}")
        known = (id(answer.plan), "".join(f"{one.name}@{one.version}" for one in (run.playbook, *run.others)))
        if not run.steps and known in self._sound:
            return answer
        if unknown := self._check_plan(run, answer.plan, self._contracts):
            return _ask_again(answer, unknown)
        if not run.steps:
            self._sound[known] = answer.plan
            while len(self._sound) > MAX_SOUND:
                self._sound.popitem(last=False)
        return answer

    def _check_plan(self, run: Run, plan: Plan, contracts: Contracts) -> list[str]:
        """Make the plan again from what it says, and compare.

        The answer names the operations whose pinned contracts are not known here.
        """
        offers, unknown = _offers(run, plan, contracts)
        if unknown:
            return unknown
        spec = run.playbook.plan
        left = max(1, run.ledger.max_steps - run.ledger.steps)
        context = PlanContext(
            offers=offers,
            max_steps=min(left, steps_at_once(spec)) if isinstance(spec, PlanByModel) else left,
            retry=run.playbook.retry,
            revision=plan.revision,
            known=tuple(state.record() for state in run.known_steps()),
            others=_others(run),
            limits=run.playbook.limits or Limits(),
        )
        specs = spec.steps if isinstance(spec, FixedPlan) else [_spec_of(step) for step in plan.steps]
        if problems := check_steps(specs, context):
            raise ForgedRecord("; ".join(str(problem) for problem in problems[:SHOWN_MAX]))
        honest = make_plan(specs, context)
        if [step.id for step in plan.steps] != [step.id for step in honest.steps]:
            raise ForgedRecord(f"the steps are not those of playbook {run.playbook.name}")
        for claimed, step in zip(plan.steps, honest.steps, strict=True):
            if strange := _differences(claimed, step):
                raise ForgedRecord(f"step {step.id} has another {', '.join(strange)} than playbook and contract say")
        return []

    # --- a result ---------------------------------------------------------------------------------

    def _call_answer(self, run: Run, request: OpenRequest, answer: CallAnswer, source: str | None) -> CallAnswer:
        operation, pin = _asked(run, request)
        child = getattr(request.event, "child", None)
        if answer.child != child:
            raise MisdirectedRecord(
                f"request {answer.request_id} has asked run {child}, and run {answer.child} answers"
            )
        if child is not None:
            return answer  # what a child answers has been read from its own record
        tool = operation.partition(".")[0]
        if source is not None and source.startswith(_FROM_A_TOOL) and source != _FROM_A_TOOL + tool:
            raise MisdirectedRecord(f"{source} answers a call of {operation}")
        if answer.extended is not None:
            raise ForgedRecord("only a child run can be given more than its grant")
        offer = self._check_result(operation, pin, answer.result)
        if offer is None or request.kind is not RequestKind.CALL or request.step is None:
            return answer
        state = run.state(request.step)
        if state.step.reading is Reading.STRICT:
            errors = describe_errors(offer.result.schema_errors(answer.result.data, SHOWN_MAX), "data")
            return _of_no_use(answer, f"{operation} answered, but step {state.id} reads strictly: {errors}")
        unfit = invalid_use(run, state, offer.contract.result, answer.result.data)
        if unfit is None:
            return answer
        told_use = f"{operation} answered, but of what the playbook uses of step {state.id}, {unfit}"
        return _of_no_use(answer, f"{told_use}; ask for it with `has`, or use something else")

    def _check_result(self, operation: str, pin: Pin | Undo, result: Result) -> CompiledContract | None:
        """Hold a result to its contract. Gives the contract where it let something pass."""
        if (result.status is ResultStatus.ERROR) != (result.error is not None):
            raise ForgedRecord(f"a result of {operation} has an error if, and only if, its status is error")
        if result.warnings and result.status is not ResultStatus.OK:
            raise ForgedRecord(f"a result of {operation} has warnings, and no data")
        if self._contracts is None or result.status is not ResultStatus.OK:
            return None
        offer = self._contracts.remembered(pin.contract_hash)
        if offer is None or offer.result.is_valid(result.data):
            return None
        if offer.contract.reading is Reading.LENIENT:
            return offer
        errors = describe_errors(offer.result.schema_errors(result.data, 1), "data")
        raise ForgedRecord(f"the result of {operation} does not fit its contract: {errors}")


_MERGED: dict[str, Json] = {
    "type": "object",
    "required": ["ok", "empty", "error", "branches"],
    "properties": {
        **{name: {"type": "integer", "minimum": 0} for name in ("ok", "empty", "error")},
        "branches": {"type": "array", "items": {"type": "object", "required": ["status"]}},
    },
}
"""The shape of what the branches of a step together answer."""


def _branch_errors(offer: CompiledContract, answer: Json) -> list[SchemaError]:
    """Return what is wrong with one answer in place of those of all branches."""
    if errors := JsonSchema.of(_MERGED).schema_errors(answer):
        return errors
    return [
        error._replace(place=("branches", index, "data", *error.place))
        for index, branch in enumerate(answer["branches"])
        if branch["status"] == "ok"
        for error in offer.result.schema_errors(branch.get("data"), SHOWN_MAX)
    ]


def _check_spend(spend: Spend) -> None:
    amounts = [spend.tokens, spend.usd_micros, spend.tool_calls]
    for call in spend.model_calls:
        amounts += [call.tokens_in, call.tokens_cached, call.tokens_out, call.usd_micros, call.duration_ms]
    if max(amounts) > SPEND_MAX:
        raise ForgedRecord(f"nothing costs {max(amounts):.3g}")


# --- a plan: what it says of contracts ------------------------------------------------------------


def _offers(run: Run, plan: Plan, contracts: Contracts) -> tuple[dict[str, CompiledContract], list[str]]:
    """Return the contracts that a plan pins, and the operations whose pinned contracts are not known here."""
    offers: dict[str, CompiledContract] = {}
    unknown: list[str] = []
    for operation, contract_hash in _pins(plan):
        if not run.playbook.allows(operation):
            continue  # the checker says so
        if operation in offers and offers[operation].hash != contract_hash:
            raise ForgedRecord(f"{operation} is pinned twice, with different contracts")
        offer = _compiled_handoff_contract(run) if operation == HANDOFF else contracts.remembered(contract_hash)
        if offer is None or (offer.contract.operation, offer.hash) != (operation, contract_hash):
            unknown.append(operation)
        else:
            offers[operation] = offer
    for step in plan.steps:
        offered = offers.get(step.operation)
        undone_by = offered.contract.compensate if offered else None
        is_known = undone_by and run.playbook.allows(undone_by.operation) and contracts.get(undone_by.operation)
        if undone_by and is_known and step.pin.undo is None:
            unknown.append(undone_by.operation)  # who planned did not know how the write is undone
    return offers, unknown


def _pins(plan: Plan) -> Iterator[tuple[str, str]]:
    for step in plan.steps:
        yield step.operation, step.pin.contract_hash
        if step.pin.undo is not None:
            yield step.pin.undo.operation, step.pin.undo.contract_hash
        for stand_in in step.fallback:
            if stand_in.fallback.operation is not None and stand_in.pin is not None:
                yield stand_in.fallback.operation, stand_in.pin.contract_hash


def _compiled_handoff_contract(run: Run) -> CompiledContract:
    return compiled_handoff_contract(run.playbook.handoffs, _others(run))


def _others(run: Run) -> tuple[OtherPlaybook, ...]:
    return tuple(other.as_other for other in run.others)


def _spec_of(step: Step) -> StepSpec:
    """Return the part of a step that a model may decide. Everything else follows from contract and playbook."""
    return StepSpec(
        id=step.id,
        operation=step.operation,
        arguments=step.arguments,
        depends_on=step.depends_on,
        map=step.map,
        max_items=step.max_items,
        when=step.when,
        expect=step.expect,
        unmet=step.unmet,
    )


def _differences(told: Step, honest: Step) -> list[str]:
    return [name for name in Step.model_fields if getattr(told, name) != getattr(honest, name)]


def _of_no_use(answer: CallAnswer, message: str) -> CallAnswer:
    """Make an error of a call that has worked, but whose answer its step cannot use."""
    error = ToolError(code=ErrorCode.CONTRACT_VIOLATION, message=message[:4_000], details={"effect": "done"})
    return answer.model_copy(update={"result": Result(status=ResultStatus.ERROR, error=error)})


def _ask_again(answer: PlanAnswer, unknown: list[str]) -> PlanAnswer:
    """Refuse a plan for now: it pins a contract that is not known here yet, or that its tool has replaced meanwhile."""
    names = ", ".join(sorted(set(unknown)))
    message = f"the plan pins contracts of {names} that are not known here; another is asked for"
    error = ToolError(code=ErrorCode.UNAVAILABLE, message=message)
    return answer.model_copy(update={"plan": None, "error": error})


# --- who was asked --------------------------------------------------------------------------------


def _asked(run: Run, request: OpenRequest) -> tuple[str, Pin | Undo]:
    """Return the operation that a request has asked for, and the contract that it pins."""
    assert request.step is not None  # noqa: S101 - a call is always a step's
    state = run.state(request.step)
    if request.kind is RequestKind.UNDO and state.step.pin.undo is not None:
        return state.step.pin.undo.operation, state.step.pin.undo
    return state.acting.operation, state.acting.pin


def _has_found_nothing(run: Run, request: OpenRequest) -> bool:
    """Return whether a step has no answer that a model could judge."""
    result = run.state(request.step).result if request.step is not None else None
    return result is not None and result.status is ResultStatus.EMPTY


def _check_verdict(run: Run, request: OpenRequest, answer: VerdictAnswer) -> None:
    if (answer.decision is None) == (answer.error is None):
        raise ForgedRecord("a critic answers with one of decision and error")
    judge: Judge | None = run.playbook.judge if request.step is None else run.state(request.step).step.judge
    if judge is None or answer.decision is not Decision.CONTINUE or _has_found_nothing(run, request):
        return
    if answer.confidence is None or answer.confidence < judge.threshold:
        raise ForgedRecord(
            f"it goes on with a confidence of {answer.confidence}, and the judge asks for {judge.threshold}"
        )
