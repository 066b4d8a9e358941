"""Results of documents that are not ours: what does not fit is let pass with a warning, unless a playbook uses it."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
import structlog
from machine_story import RUN_ID, Story, playbook
from pydantic import SecretStr
from structlog.testing import LogCapture

from triptych.contracts.compiled_contract import CompiledContract
from triptych.critic.checks import check_step
from triptych.executor import encoding
from triptych.executor.lenient_results import _Shape
from triptych.executor.state import RequestKind
from triptych.executor.trust import ForgedRecord, Trust
from triptych.kernel.worker import JobAttempt
from triptych.playbook.expressions import reads
from triptych.playbook.plans import PlanContext, make_plan
from triptych.schemas import (
    CallAnswer,
    Contract,
    Decision,
    Effect,
    ErrorCode,
    Misreading,
    PlanAnswer,
    Reading,
    Result,
    ResultStatus,
    ReviewRequest,
    StepSpec,
)
from triptych.tools import Operation, Tool
from triptych.tools.adapters.openapi.document import OpenApiDocument
from triptych.tools.adapters.openapi.import_report import import_document
from triptych.tools.adapters.openapi.options import OpenApiOptions
from triptych.tools.runtime.alerts import Alerts
from triptych.tools.runtime.attempt import ToolWorker
from triptych.tools.sdk.redaction import Redactor
from triptych.tools.testing import FreshLedger, call, request_for

SHAPE: dict[str, Any] = {
    "type": "object",
    "required": ["id", "name"],
    "properties": {
        "id": {"type": "string"},
        "name": {"type": "string"},
        "total": {"type": "number"},
        "lines": {"type": "array", "items": {"$ref": "#/$defs/Line"}},
        "state": {"enum": ["open", "closed"]},
        "by": {"oneOf": [{"$ref": "#/$defs/Person"}, {"$ref": "#/$defs/Team"}]},
    },
    "$defs": {
        "Line": {"type": "object", "required": ["sku"], "properties": {"sku": {"type": "string"}}},
        "Person": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}},
        "Team": {"type": "object", "properties": {"name": {"type": "string"}, "size": {"type": "integer"}}},
    },
}


def contract(reading: Reading, effect: Effect = Effect.ONCE) -> Contract:
    arguments = {"type": "object"}
    return Contract(
        operation="echo.pay", description="d", arguments=arguments, result=SHAPE, effect=effect, reading=reading
    )


def tool(data: Any, reading: Reading = Reading.LENIENT, effect: Effect = Effect.ONCE) -> Tool:
    async def perform(arguments: Any, call: Any) -> Any:
        return data

    made = Tool("echo")
    made.add(Operation(contract(reading, effect), perform))
    return made


UNLIKE: list[tuple[Any, list[str]]] = [
    ({"id": "1"}, [""]),
    ({"id": "1", "name": None}, ["name"]),
    ({"id": 1, "name": "n", "total": "7"}, ["id", "total"]),
    ({"id": "1", "name": "n", "state": "new"}, ["state"]),
    ({"id": "1", "name": "n", "lines": [{"sku": "a"}, {}]}, ["lines[1]"]),
    ({"id": "1", "name": "n", "by": {"name": "ana"}}, ["by"]),
    (None, [""]),
    ([], [""]),
]


@pytest.mark.parametrize(("data", "places"), UNLIKE)
async def test_what_is_not_as_a_lenient_contract_says_is_data_with_warnings(data: Any, places: list[str]) -> None:
    result = await call(tool(data), "pay", {})
    assert (result.status, result.data) == (ResultStatus.OK, data)
    assert sorted({each.place for each in result.warnings}) == places
    assert all(each.message for each in result.warnings)


@pytest.mark.parametrize(("data", "places"), UNLIKE)
async def test_what_is_not_as_a_strict_contract_says_is_no_data(data: Any, places: list[str]) -> None:
    result = await call(tool(data, Reading.STRICT), "pay", {})
    assert result.error is not None
    assert result.error.code is ErrorCode.CONTRACT_VIOLATION


async def test_what_fits_has_no_warnings_and_the_message_of_old() -> None:
    result = await call(tool({"id": "1", "name": "n", "more": 1}), "pay", {})
    assert result.to_bytes() == b'{"status":"ok","data":{"id":"1","name":"n","more":1}}'


async def test_warnings_are_bounded_and_hold_no_secret() -> None:
    made = tool({"id": "1", "name": "n", "lines": [{"sku": "hunter2-hunter2"}, *[{"sku": 1}] * 50]})
    made.secrets.append(SecretStr("hunter2-hunter2"))
    result = await call(made, "pay", {})
    assert len(result.warnings) == 20
    secret = Result.ok(1, (Misreading(place="a", message='"hunter2-hunter2" is not 1'),))
    assert "hunter2" not in Redactor(learnt=made.secrets).clean(secret).model_dump_json()


async def test_what_was_let_pass_is_counted_in_an_alert_and_told_once_in_the_log() -> None:
    said = LogCapture()
    alerts = Alerts(structlog.wrap_logger(None, processors=[said]))
    made = tool({"id": "1"})
    worker = ToolWorker(made, None, FreshLedger(), structlog.get_logger(), alerts=alerts)
    for _ in range(3):
        await worker.execute(request_for(made, "pay", {}), JobAttempt(lease=0))
    raised = [values for statement, values in alerts._waiting if statement == "raise_alert"]
    assert [values[:2] for values in raised] == [("echo.pay", "result")] * 3
    assert [entry["log_level"] for entry in said.entries] == ["warning"]
    assert 'the answer: "name" is a required property' in said.entries[0]["message"]


# Where the reading comes from


@pytest.mark.parametrize(
    ("options", "reading"), [({}, Reading.LENIENT), ({"operations": {"look": {"result": "strict"}}}, Reading.STRICT)]
)
def test_documents_of_others_are_read_leniently_unless_an_option_says_otherwise(
    options: dict[str, Any], reading: Reading
) -> None:
    content = {
        "openapi": "3.1.0",
        "info": {},
        "servers": [{"url": "https://a.test"}],
        "paths": {"/a": {"get": {"operationId": "look", "responses": {"200": {"content": {"application/json": {}}}}}}},
    }
    stated = OpenApiOptions.model_validate_json(orjson.dumps({"spec": "a.json", **options}))
    (made,) = import_document(OpenApiDocument.parse(orjson.dumps(content), "a.json"), "a", stated).imported
    assert made.endpoint.contract.reading is reading


def test_a_strict_contract_has_the_hash_that_it_had_before_there_were_others() -> None:
    assert contract(Reading.STRICT).hash != contract(Reading.LENIENT).hash
    assert b"reading" not in contract(Reading.STRICT).to_bytes()


# What a playbook uses


class Known:
    """One contract, read leniently."""

    offer = CompiledContract.of(contract(Reading.LENIENT))

    def get(self, operation: str) -> CompiledContract | None:
        return self.offer

    def remembered(self, contract_hash: str) -> CompiledContract | None:
        return self.offer if contract_hash == self.offer.hash else None


def heard(data: Any, *, use: Any = None, expect: str | None = None, **spec: Any) -> Result:
    """What the executor makes of an answer, in a run whose second step uses it."""
    steps = [StepSpec(id="a", operation="echo.pay", expect=expect, **spec)]
    if use is not None:
        steps.append(StepSpec(id="b", operation="echo.pay", arguments={"n": use}))
    fixed = {"pattern": "fixed", "steps": [each.model_dump(mode="json", exclude_none=True) for each in steps]}
    story = Story(playbook(plan=fixed))
    terms = PlanContext(offers={"echo.pay": Known.offer}, max_steps=9, retry=story.run.playbook.retry, revision=1)
    trust = Trust(Known())
    plan = PlanAnswer(
        request_id=story.request(RequestKind.PLAN), run_id=RUN_ID, tenant="default", plan=make_plan(tuple(steps), terms)
    )
    story.tell(trust.verified(story.run, plan, None))
    warnings = tuple(Misreading(place="x", message="m") for _ in Known.offer.result.schema_errors(data))
    said = CallAnswer(
        request_id=story.request(RequestKind.CALL, "a"),
        run_id=RUN_ID,
        tenant="default",
        result=Result.ok(data, warnings),
    )
    told = trust.verified(story.run, said, None)
    assert isinstance(told, CallAnswer)
    return told.result


@pytest.mark.parametrize(
    ("data", "use"),
    [
        ({"id": "1"}, "${{ steps.a.data.id }}"),
        ({"id": "1"}, "${{ steps.a.data }}"),
        ({"id": "1"}, "${{ has(steps.a.data.name) ? steps.a.data.name : 'none' }}"),
        ({"id": "1"}, "${{ 'name' in steps.a.data ? steps.a.data.name : 'none' }}"),
        ({"id": "1", "name": None}, "${{ steps.a.data.name == null ? 'none' : steps.a.data.name }}"),
        ({"id": "1", "total": 7}, "${{ steps.a.data.total }}"),
        ({"id": "1", "lines": [{"sku": "a"}, {}]}, "${{ steps.a.data.lines[0].sku }}"),
        ({"id": "1", "by": {"name": "ana"}}, "${{ steps.a.data.by.name }}"),
        ({"id": "1", "unheard": 1}, "${{ steps.a.data.unheard }}"),
        ({"id": "1", "state": "new"}, "${{ steps.a.data.state }}"),
        ({"id": "1"}, "${{ input.name }}"),
        ({"id": "1"}, None),
    ],
)
def test_what_is_used_and_is_there_passes_whatever_is_wrong_beside_it(data: Any, use: str | None) -> None:
    result = heard(data, use=use)
    assert (result.status, result.data) == (ResultStatus.OK, data)
    assert result.warnings


@pytest.mark.parametrize(
    ("data", "use", "told"),
    [
        ({"id": "1"}, "${{ steps.a.data.name }}", "data.name is not there"),
        ({"id": "1", "name": None}, "to ${{ steps.a.data.name }}", "data.name is null, and not string"),
        ({"id": "1", "total": "7"}, "${{ steps.a.data.total + 1 }}", "data.total is string, and not integer or number"),
        ({"id": "1", "lines": {}}, "${{ size(steps.a.data.lines) }}", "data.lines is object, and not array"),
        ({"id": "1", "lines": [{}]}, "${{ steps.a.data.lines[0].sku }}", "data.lines[0].sku is not there"),
        ({"id": "1", "lines": None}, "${{ steps.a.data['lines'] }}", "data.lines is null, and not array"),
        ({"id": "1", "by": "ana"}, "${{ steps.a.data.by.name }}", "data.by is string, and not object"),
        ([], "${{ steps.a.data }}", "data is array, and not object"),
        (None, "${{ steps.a.data.id }}", "data is null, and not object"),
    ],
)
def test_what_is_used_and_is_not_there_or_not_of_its_type_fails_the_step_by_name(
    data: Any, use: str, told: str
) -> None:
    result = heard(data, use=use)
    assert result.error is not None
    assert result.error.code is ErrorCode.CONTRACT_VIOLATION
    assert f"of what the playbook uses of step a, {told}" in result.error.message
    assert result.error.details == {"effect": "done"}


def test_what_a_step_expects_of_its_own_answer_is_used_too() -> None:
    assert heard({"id": "1"}, expect="result.data.id == '1'").error is None
    failed = heard({"id": "1"}, expect="result.data.name == 'n'").error
    assert failed is not None
    assert "data.name is not there" in failed.message


def test_a_step_that_reads_strictly_takes_nothing_that_does_not_fit() -> None:
    failed = heard({"id": "1"}, reading=Reading.STRICT).error
    assert failed is not None
    assert 'step a reads strictly: data: "name" is a required property' in failed.message
    assert heard({"id": "1", "name": "n"}, reading=Reading.STRICT).error is None


def test_a_schema_that_applies_itself_is_looked_at_once() -> None:
    node: dict[str, Any] = {"anyOf": [{"$ref": "#"}, {"allOf": [{"$ref": "#"}, {"$ref": "#"}]}, {"type": "integer"}]}
    assert _Shape(node).problem({"a": "x"}, ("a",)) is None


def test_a_result_with_warnings_and_without_data_is_forged() -> None:
    story = Story(playbook(plan={"pattern": "fixed", "steps": [{"id": "a", "operation": "echo.pay"}]}))
    terms = PlanContext(offers={"echo.pay": Known.offer}, max_steps=9, retry=story.run.playbook.retry, revision=1)
    plan = make_plan((StepSpec(id="a", operation="echo.pay"),), terms)
    trust = Trust(Known())
    story.tell(PlanAnswer(request_id=story.request(RequestKind.PLAN), run_id=RUN_ID, tenant="default", plan=plan))
    result = Result(status=ResultStatus.EMPTY, warnings=(Misreading(place="", message="m"),))
    said = CallAnswer(request_id=story.request(RequestKind.CALL, "a"), run_id=RUN_ID, tenant="default", result=result)
    with pytest.raises(ForgedRecord, match="has warnings, and no data"):
        trust.verified(story.run, said, None)


def test_warnings_stand_in_the_journal() -> None:
    result = Result.ok({"id": "1"}, (Misreading(place="name", message="it is not there"),))
    assert encoding.result(result) is result
    assert Result.model_validate_json(result.to_bytes()) == result


def test_the_critic_has_no_other_opinion_of_what_was_let_pass() -> None:
    spec = StepSpec(id="a", operation="echo.pay")
    terms = PlanContext(offers={"echo.pay": Known.offer}, max_steps=9, retry=playbook().retry, revision=1)
    (step,) = make_plan((spec,), terms).steps
    request = ReviewRequest.model_construct(index=None, input={}, steps=())
    assert check_step(request, step, Result.ok({"id": "1"}), Known.offer).decision is Decision.CONTINUE


# What an expression reads


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ("steps.a.data.items[0].id == 'x'", [(("steps", "a", "data", "items", 0, "id"), False)]),
        ('steps["a"].data["first name"]', [(("steps", "a", "data", "first name"), False)]),
        ("steps.a.data.items.map(i, i.id)", [(("steps", "a", "data", "items"), False)]),
        ("has(result.data.x)", [(("result", "data", "x"), True)]),
        ("input.a != null", [(("input", "a"), True)]),
        ("null == input.a", [(("input", "a"), True)]),
        ("'x' in input.a", [(("input", "a"), False), (("input", "a", "x"), True)]),
        ("input.a[input.n].b", [(("input", "a"), False), (("input", "n"), False)]),
        ("size(input.list) > 1", [(("input", "list"), False)]),
        ("1 + 1", []),
    ],
)
def test_the_paths_that_an_expression_reads_are_known(expression: str, found: list[tuple[Any, bool]]) -> None:
    assert [tuple(each) for each in reads(expression)] == found
