"""The planner as a worker: one request, one plan or the reason why it gives no plan.

A fixed plan is checked and pinned. A model's plan is checked, and mended by the model a bounded
number of times within the request's grant. What follows from a refusal is the executor's decision.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from triptych.contracts.compiled_contract import CompiledContract, compiled_handoff_contract
from triptych.contracts.registry import ContractRegistry
from triptych.kernel.kafka.cloudevents import utc_now
from triptych.kernel.worker import JobAttempt
from triptych.models import AnswerFault, Memo, ModelClient, ModelFailure, load_prompt, remaining, total
from triptych.planner.gaps import Gap, GapKind, Gaps
from triptych.planner.move import PROMPTS, Move, form_of, move_problems, prompts_of, read
from triptych.planner.proposal import constraints, question
from triptych.playbook.plans import PlanContext, check_steps, make_plan, steps_at_once
from triptych.playbook.plans.references import operations_of
from triptych.schemas import (
    HANDOFF,
    Answer,
    Caching,
    ErrorCode,
    FixedPlan,
    Json,
    Limits,
    Plan,
    PlanAnswer,
    PlanByModel,
    PlanRequest,
    Recall,
    Request,
    Spend,
    StepSpec,
    TaskLedger,
    ToolError,
    codec,
)

CONTRACTS_WITHIN_S = 5.0
"""Tools may start after the planner: a contract that is missing gets this long to appear."""
ASK_AGAIN_MS = 2_000
PLAN_INVALID = "plan_invalid"
TOOL_MISSING = "tool_missing"
MAX_CACHED_PLANS = 512
PROMPT_SHARE = 2
"""A question takes up no more than this part of its grant, so that there is room for the plan."""
MAX_ERRORS = 20
"""So many problems go into a repair or an answer; a plan with more is not worth more words."""


class Planner:
    """Answers requests for plans."""

    request_type = PlanRequest

    def __init__(
        self, registry: ContractRegistry, models: ModelClient, *, model_timeout_ms: int, gaps: Gaps | None = None
    ) -> None:
        """Take what the planner needs. Without `gaps`, missing operations are not counted."""
        self._registry, self._models, self._model_timeout_ms = registry, models, model_timeout_ms
        self._gaps = gaps
        self._prompts = {name: load_prompt("triptych.planner", name) for name in PROMPTS}
        self._fixed_plans: dict[object, Plan] = {}

    async def execute(self, request: PlanRequest, attempt: JobAttempt) -> PlanAnswer:  # noqa: ARG002 - a plan has no effect
        """Make the plan. Raises nothing that a planner can foresee."""
        await self._registry.ready()
        match request.spec:
            case FixedPlan():
                return await self._fixed(request, request.spec)
            case PlanByModel():
                return await self._by_model(request, request.spec)

    def failed(self, request: Request, error: ToolError, spend: Spend) -> PlanAnswer:
        """Wrap an error as an answer."""
        return _answer(request, error=error, spend=spend)

    def unstorable(self, request: Request, answer: Answer, message: str) -> PlanAnswer:
        """Put an error in the place of an answer that cannot be stored."""
        return self.failed(request, ToolError(code=ErrorCode.CONTRACT_VIOLATION, message=message), answer.spend)

    def may_repeat(self, request: PlanRequest) -> bool:
        """Return True for a fixed plan, which follows from playbook and contracts. A model may answer differently."""
        return isinstance(request.spec, FixedPlan)

    async def _fixed(self, request: PlanRequest, spec: FixedPlan) -> PlanAnswer:
        """Check and pin the playbook's own steps.

        Asked again, it gives the same steps with the contracts of today: those that have ended are kept
        by the executor, so the others run again. That is all a fixed plan can be changed.
        """
        if missing := await self._missing_tools({each for step in spec.steps for each in operations_of(step)}):
            return self._unavailable(request, missing)
        context = self._context(request, request.max_steps)
        if not request.known:
            return await self._first_fixed(request, spec, context)
        if all(step.id in context.ended for step in spec.steps):
            why = request.failure.message if request.failure else "no reason was given"
            message = (
                f"every step of the fixed plan has ended and it cannot be planned differently; asked because: {why}"
            )
            return _invalid(request, message)
        return await self._checked(request, spec, context)

    async def _first_fixed(self, request: PlanRequest, spec: FixedPlan, context: PlanContext) -> PlanAnswer:
        """Make a fixed plan, or reuse it: it depends on the playbook and the contracts alone."""
        contracts = tuple(offer.hash for offer in context.offers.values())
        others = tuple(other.to_bytes() for other in context.others)
        key = (
            spec.to_bytes(),
            contracts,
            context.max_steps,
            context.retry,
            context.revision,
            context.limits.to_bytes(),
            others,
        )
        if plan := self._fixed_plans.get(key):
            return _answer(request, plan=plan)
        answer = await self._checked(request, spec, context)
        if answer.plan is not None:
            if len(self._fixed_plans) >= MAX_CACHED_PLANS:
                self._fixed_plans.clear()
            self._fixed_plans[key] = answer.plan
        return answer

    async def _checked(self, request: PlanRequest, spec: FixedPlan, context: PlanContext) -> PlanAnswer:
        if problems := check_steps(spec.steps, context):
            await self._note_gaps(request, spec.steps, context)
            return _invalid(request, "; ".join(str(problem) for problem in problems[:MAX_ERRORS]))
        return _answer(request, plan=make_plan(spec.steps, context))

    async def _by_model(self, request: PlanRequest, spec: PlanByModel) -> PlanAnswer:
        """Ask the model, and let it mend what the check finds."""
        if missing := await self._missing_tools(set(request.tools)):
            return self._unavailable(request, missing)
        context = self._context(request, min(request.max_steps, steps_at_once(spec)))
        spends: list[Spend] = []
        errors: list[str] = []
        for repair in range(spec.repairs + 1):
            try:
                move, spend = await self._ask(request, spec, context, errors, total(spends))
            except ModelFailure as failure:
                spends.append(failure.spend)
                if failure.code is ErrorCode.BUDGET_EXCEEDED and errors:
                    errors.append(f"nothing was left of the grant for repair {repair}: {failure.message}")
                    break
                if failure.details.get("model") != AnswerFault.MALFORMED:
                    return _answer(request, error=failure.as_error(), spend=total(spends))
                errors = [failure.message]
                continue
            spends.append(spend)
            await self._note_gaps(request, move.specs, context, move)
            if move.missing:
                return _missing(request, move, total(spends))
            if not (problems := move_problems(move, request, context)):
                plan = make_plan(move.specs, context) if move.answer is None else None
                return _answer(request, plan=plan, answer=move.answer, ledger=move.ledger, spend=total(spends))
            errors = [str(problem) for problem in problems[:MAX_ERRORS]]
        tried = f"no valid plan after {len(spends)} attempts: {'; '.join(errors)}"
        return _invalid(request, tried, total(spends))

    async def _ask(
        self, request: PlanRequest, spec: PlanByModel, context: PlanContext, errors: list[str], spent: Spend
    ) -> tuple[Move, Spend]:
        grant = remaining(request.grant, spent)
        reply = await self._models.ask(
            "plan",
            spec.tier,
            question(request, context.offers, errors, grant.tokens // PROMPT_SHARE),
            form_of(spec),
            grant=grant,
            timeout_ms=_timeout_ms(request.deadline_at, self._model_timeout_ms),
            instructions="\n\n".join([*(self._prompts[name] for name in prompts_of(spec)), spec.instructions]),
            constraints=constraints(context.max_steps, is_repair=bool(errors), repaired_step=request.repair),
            memo=_memo(request, spec, context),
        )
        return read(codec.encode(reply.output), spec), reply.spend

    async def _note_gaps(
        self, request: PlanRequest, specs: Iterable[StepSpec], context: PlanContext, move: Move | None = None
    ) -> None:
        if self._gaps is None:
            return
        wanted = [step.operation for step in specs if step.operation not in context.offers]
        gaps = [
            Gap(name, GapKind.NOT_ALLOWED if self._registry.get(name) is not None else GapKind.UNKNOWN)
            for name in wanted
        ]
        said = move.missing if move is not None else ()
        gaps += [Gap(missing.capability, GapKind.MISSING, missing.why) for missing in said]
        if gaps:
            await self._gaps.note(request, gaps)

    def _context(self, request: PlanRequest, max_steps: int) -> PlanContext:
        offers: dict[str, CompiledContract] = self._registry.operations(request.tools)
        if request.handoffs:
            offers[HANDOFF] = compiled_handoff_contract(request.handoffs, request.others)
        return PlanContext(
            offers=offers,
            max_steps=max_steps,
            retry=request.retry,
            revision=request.revision,
            known=request.known,
            others=request.others,
            limits=request.limits or Limits(),
        )

    async def _missing_tools(self, operations: set[str]) -> list[str]:
        """Return the tools of these operations that have not announced themselves, after waiting for them a while."""
        tools = {operation.partition(".")[0] for operation in operations - {HANDOFF}}
        await self._registry.wait_for_tools(tools, CONTRACTS_WITHIN_S)
        return sorted(tool for tool in tools if not self._registry.knows_tool(tool))

    @staticmethod
    def _unavailable(request: PlanRequest, missing: list[str]) -> PlanAnswer:
        message = (
            f"no contract has been announced by {', '.join(missing)}; start the tool, or remove it from the playbook"
        )
        error = ToolError(code=ErrorCode.UNAVAILABLE, message=message, retry_after_ms=ASK_AGAIN_MS)
        return _answer(request, error=error)


def _memo(request: PlanRequest, spec: PlanByModel, context: PlanContext) -> Memo:
    """Let a plan be reused where neither it nor a later one can write; a plan with problems is never reused."""
    may_write = any(offer.contract.effect.writes for offer in context.offers.values())
    is_kept = request.cache is Caching.ALL or (request.cache is Caching.READS and not may_write)
    recall = Recall.YES if is_kept else Recall.NO

    def is_sound(output: dict[str, Json]) -> bool:
        move = read(codec.encode(output), spec)
        return not move.missing and not move_problems(move, request, context)

    return Memo(request.tenant, recall, is_sound)


def _timeout_ms(deadline_at: datetime, at_most_ms: int) -> int:
    left_ms = round((deadline_at - utc_now()).total_seconds() * 1000)
    return max(1, min(left_ms, at_most_ms))


def _missing(request: PlanRequest, move: Move, spend: Spend) -> PlanAnswer:
    wanted = "; ".join(f"{missing.capability} ({missing.why})" for missing in move.missing)
    message = f"no operation of this playbook can do what the goal needs: {wanted}; see `triptych tools gaps`"
    error = ToolError(code=ErrorCode.INVALID_ARGUMENTS, message=message[:4_000])
    return _answer(request, error=error, code=TOOL_MISSING, spend=spend)


def _invalid(request: PlanRequest, message: str, spend: Spend | None = None) -> PlanAnswer:
    error = ToolError(code=ErrorCode.INVALID_ARGUMENTS, message=message[:4_000])
    return _answer(request, error=error, code=PLAN_INVALID, spend=spend)


def _answer(
    request: Request,
    *,
    plan: Plan | None = None,
    error: ToolError | None = None,
    code: str | None = None,
    answer: dict[str, Json] | None = None,
    ledger: TaskLedger | None = None,
    spend: Spend | None = None,
) -> PlanAnswer:
    return PlanAnswer(
        request_id=request.request_id,
        run_id=request.run_id,
        tenant=request.tenant,
        plan=plan,
        error=error,
        code=code,
        answer=answer,
        ledger=ledger,
        spend=spend or Spend(),
    )
