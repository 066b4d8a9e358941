"""The wire contract: what is exported is valid and whole, and no change breaks those who speak the last version."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from triptych.schemas import Effect, Outcome, Pin, Reason, Step, StepSpec, Task
from triptych.schemas import topics as t
from triptych.schemas.base import SENTENCE_MAX_CHARS
from triptych.schemas.compatibility import breaks
from triptych.schemas.export import asyncapi, json_schemas

ROOT = Path(__file__).parents[2]
SNAPSHOT = ROOT / "schemas" / "compat"


@pytest.mark.parametrize("name", sorted(json_schemas()))
def test_a_change_does_not_break_those_who_speak_the_accepted_version(name: str) -> None:
    file = SNAPSHOT / f"{name}.json"
    assert file.exists(), f"{name} has no snapshot; write it with `make schemas-accept`"
    found = breaks(json.loads(file.read_text()), json_schemas()[name])
    told = "\n".join(f"  {each}" for each in found)
    assert not found, (
        f"schemas/compat/{file.name} and the models differ so that others break:\n{told}\nUndo the change, make the field optional, or take it as a new version with `make schemas-accept`"
    )


def test_no_message_is_dropped_without_saying_so() -> None:
    gone = {file.stem for file in SNAPSHOT.glob("*.json")} - set(json_schemas())
    assert not gone, f"{gone} are no longer exported; if that is meant, `make schemas-accept`"


@pytest.mark.parametrize("name", sorted(json_schemas()))
def test_every_json_schema_is_valid(name: str) -> None:
    jsonschema_rs.meta.validate(json_schemas()[name])


def test_the_json_schema_of_a_task_accepts_what_the_model_accepts() -> None:
    task = json.loads(Task(playbook="p", input={"a": 1}, task_id="t-1").to_bytes())
    validator = jsonschema_rs.Draft202012Validator(json_schemas()["Task"])
    assert validator.is_valid(task)
    assert not validator.is_valid(task | {"unknown": 1})


def test_descriptions_are_kept() -> None:
    assert "idempotent" in json_schemas()["Task"]["properties"]["task_id"]["description"]


def references(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"]} if "$ref" in node else set()
        return own.union(*(references(value) for value in node.values()))
    return set().union(*(references(item) for item in node)) if isinstance(node, list) else set()


def test_every_reference_in_the_asyncapi_document_leads_somewhere() -> None:
    document = asyncapi("1.0.0")
    for reference in references(document):
        node = document
        for part in reference.removeprefix("#/").split("/"):
            assert part in node, reference
            node = node[part]


def test_the_asyncapi_document_has_every_topic_with_both_its_ends() -> None:
    document = asyncapi("1.0.0")
    assert set(document["channels"]) == {topic.noun for topic in t.CATALOG}
    assert set(document["operations"]) == {f"{end}-{topic.noun}" for topic in t.CATALOG for end in ("send", "receive")}
    assert document["channels"][t.CALLS]["address"] == "{prefix}.calls.{tool}"
    assert document["channels"][t.CONTRACTS]["bindings"]["kafka"]["topicConfiguration"]["cleanup.policy"] == ["compact"]


def test_clients_need_no_headers_and_services_send_cloudevents() -> None:
    messages = asyncapi("1.0.0")["components"]["messages"]
    assert "required" not in messages["Task"]["headers"]
    assert "ce_id" in messages["Outcome"]["headers"]["required"]


def test_the_command_writes_all_of_it(tmp_path: Path) -> None:
    triptych = Path(sys.executable).with_name("triptych")
    subprocess.run([triptych, "schemas", "export", tmp_path], check=True, capture_output=True)
    assert {path.stem for path in (tmp_path / "json-schema").iterdir()} == set(json_schemas())
    assert json.loads((tmp_path / "asyncapi.json").read_text())["asyncapi"] == "3.0.0"
    assert (tmp_path / "asyncapi.yaml").read_text().count("\n") > 100


# What breaks, and what does not


def changed(model: type[Task | Outcome]) -> tuple[dict[str, Any], dict[str, Any]]:
    schema = model.model_json_schema()
    return schema, copy.deepcopy(schema)


def test_nothing_changed_breaks_nothing() -> None:
    assert breaks(*changed(Outcome)) == []


def test_a_new_optional_field_is_fine() -> None:
    old, new = changed(Outcome)
    new["properties"]["colour"] = {"type": "string"}
    assert breaks(old, new) == []


def test_a_required_field_that_is_renamed_breaks_readers_and_writers() -> None:
    old, new = changed(Outcome)
    new["properties"]["id"] = new["properties"].pop("task_id")
    new["required"] = ["id" if name == "task_id" else name for name in new["required"]]
    assert [each.path for each in breaks(old, new)] == ["task_id", "id"]


def test_a_new_required_field_breaks_those_who_do_not_send_it() -> None:
    old, new = changed(Task)
    new["properties"]["colour"] = {"type": "string"}
    new["required"] = [*new["required"], "colour"]
    assert [each.path for each in breaks(old, new)] == ["colour"]


def test_an_optional_field_of_what_clients_write_cannot_go_for_unknown_fields_are_refused() -> None:
    old, new = changed(Task)
    del new["properties"]["principal"]
    assert [each.path for each in breaks(old, new)] == ["principal"]


def test_an_optional_field_of_what_services_write_can_go() -> None:
    old, new = changed(Outcome)
    del new["properties"]["playbook_version"]
    assert breaks(old, new) == []


def test_a_changed_type_breaks() -> None:
    old, new = changed(Outcome)
    new["properties"]["final"] = {"type": "string"}
    assert "`boolean` is not accepted any more" in str(breaks(old, new)[0])


def test_a_removed_enum_value_breaks() -> None:
    old, new = changed(Outcome)
    new["$defs"]["OutcomeStatus"]["enum"].remove("rejected")
    assert "'rejected' is gone" in str(breaks(old, new)[0])


def test_a_change_deep_inside_is_found() -> None:
    old, new = changed(Outcome)
    new["$defs"]["Usage"]["required"] = ["usd"]
    assert [each.path for each in breaks(old, new)] == ["usage.usd"]


def test_a_stricter_bound_breaks_and_a_looser_one_does_not() -> None:
    old, new = changed(Task)
    new["properties"]["principal"]["maxLength"] = 100
    assert [each.path for each in breaks(old, new)] == ["principal"]
    new["properties"]["principal"]["maxLength"] = 1_000
    assert breaks(old, new) == []


def test_a_reason_that_quotes_something_long_fits_every_message_and_keeps_both_ends() -> None:
    reason = Reason(code="invalid_input", message="input.body: " + "x" * 1_000_000 + " is longer than 4000 characters")
    assert len(reason.message) == SENTENCE_MAX_CHARS
    assert reason.message.startswith("input.body: x")
    assert reason.message.endswith("x is longer than 4000 characters")


def test_a_plan_that_says_where_its_arguments_come_from_arrives_as_it_was_sent() -> None:
    pin = Pin(contract_hash="0" * 16, effect=Effect.READ, timeout_ms=1)
    step = Step(id="a", operation="crm.get", pin=pin, must_come_from={"id": ("input", "steps.find")})
    assert Step.model_validate_json(step.to_bytes()) == step
    assert StepSpec(id="a", operation="crm.get", must_come_from={"id": "input"}).must_come_from == {"id": ("input",)}
