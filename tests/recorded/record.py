"""Record the fixtures of this folder again: `.venv/bin/python tests/recorded/record.py FOLDER`, some minutes.

It starts the demo's stack, plays runs and a person's commands in it, and runs integration tests and the tests of the
state machine. Of all that these leave behind it keeps the few journals and messages that show every shape that occurred.
`origin` says where a row is from: what is from `tests/unit` was in no database, but has the journal's own encoding.

What older versions have written must still be read, so it is never replaced: FOLDER is a new one beside the others, and
tests/unit/test_recorded.py reads them all.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import harvest
from harvest import HARVEST, Row, body_of, decoded, message_class

from triptych.schemas import Playbook, codec

HERE = Path(__file__).parent
TESTS = HERE.parent
INTEGRATION = (
    "test_business_keys.py",
    "test_executor.py",
    "test_fair_admission.py",
    "test_parked_run.py",
    "test_upstream_faults.py",
    "test_withdrawals.py",
)
WITHIN_S = 120.0
QUESTION = "How do I reset my password?"
FORGOTTEN = {"customer": "Ana", "subject": QUESTION, "body": "I forgot it, and the link does not come."}
UNKNOWN = {"customer": "Ana", "subject": "Can I bring my parrot?", "body": "It is a large parrot and it is loud."}


# --- a stack, and what is done in it --------------------------------------------------------------


class Stack:
    """The demo's stack, and the command line as a person uses it."""

    def __init__(self, data: Path) -> None:
        self.data = data

    def run(self, *arguments: str) -> str:
        command = [Path(sys.executable).with_name("triptych"), *arguments, "--data", self.data]
        return subprocess.run(command, cwd=TESTS.parent, check=True, capture_output=True, text=True).stdout

    def person(self, *arguments: str) -> None:
        """A command of a person. Refused ones are recorded too."""
        command = [Path(sys.executable).with_name("triptych"), *arguments, "--data", self.data]
        subprocess.run([*command, "--principal", "user:ana"], cwd=TESTS.parent, check=False, capture_output=True)

    def submit(self, playbook: str, task_id: str, *, status: str, **input_: Any) -> None:
        """Submit a task and wait until its run has a status."""
        self.run("submit", "--playbook", playbook, "--task-id", task_id, "--input", json.dumps(input_))
        self.wait(task_id, status)

    def wait(self, run: str, status: str) -> None:
        deadline = time.monotonic() + WITHIN_S
        while run not in (found := self.statuses()) or found[run] != status:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{run} is {found.get(run)} and not {status}")
            time.sleep(0.2)

    def statuses(self) -> dict[str, str]:
        """The status of each run, by task id; of a child run by `<the parent's task id>/<step>`."""
        runs = json.loads(self.run("runs", "--limit", "1000", "--json"))
        names = {run["run_id"]: run["task_id"] for run in runs}
        found = {}
        for run in runs:
            parent, _, rest = run["task_id"].partition(":")
            found[f"{names[parent]}/{rest.partition(':')[0]}" if parent in names else run["task_id"]] = run["status"]
        return found

    def pid(self, service: str) -> int:
        """The process of a service that has one."""
        services = json.loads((self.data / "stack.json").read_text())["services"]
        return int(next(each["pid"] for each in services if each["name"] == service))

    def child(self, task_id: str, step: str) -> str:
        """The run id of a child."""
        runs = json.loads(self.run("runs", "--limit", "1000", "--json"))
        parent = next(run["run_id"] for run in runs if run["task_id"] == task_id)
        return str(next(run["run_id"] for run in runs if run["task_id"].startswith(f"{parent}:{step}:")))


def play(stack: Stack) -> None:
    """The demo, every pattern, and what a person can do to runs and tools."""
    stack.run("demo", "--keep")
    tickets = [{"ticket_id": f"T-fan-{n}", "subject": QUESTION, "body": "I cannot log in."} for n in range(3)]
    stack.submit("queue-triage", "triage", status="succeeded", tickets=tickets)
    stack.submit("front-desk", "desk", status="succeeded", ticket_id="T-desk", **FORGOTTEN)
    stack.submit("checked-reply", "checked", status="succeeded", ticket_id="T-1", subject=QUESTION, body="I forgot it.")
    stack.submit("research", "research", status="succeeded", question=QUESTION)
    stack.submit(
        "incident-manager", "manager", status="succeeded", question=QUESTION, ticket_ids=["T-fan-1", "T-fan-2"]
    )
    stack.person("resume", "ticket-1026", "--note", "try it again", "--extend", "usd=0.5", "--extend", "tool_calls=3")
    stack.person("skip", "ticket-1027", "--step", "search", "--answer", '{"hits": [], "top_score": 0.9}')
    stack.person("abort", "ticket-1028", "--note", "not ours")
    stack.person("cancel", "ticket-1029")
    stack.person("abort", "ticket-1039", "--undo", "--note", "take it back")
    stack.person("skip", "ticket-1040", "--answer", '{"ticket_id": "T-1040"}')
    stack.run("restart", "executor")
    play_children(stack)
    play_outages(stack)


def play_children(stack: Stack) -> None:
    """A child run that waits for a person, twice, and whose parent is cancelled then."""
    stack.submit("front-desk", "desk-child", status="escalated", ticket_id="T-2", **UNKNOWN)
    stack.wait("desk-child/support", "escalated")
    stack.person(
        "skip", stack.child("desk-child", "support"), "--step", "search", "--answer", '{"hits": [], "top_score": 1}'
    )
    stack.wait("desk-child/support", "escalated")
    stack.person("cancel", "desk-child")
    stack.wait("desk-child/support", "cancelled")


def play_outages(stack: Stack) -> None:
    """Calls that wait for a breaker or a process when their run is cancelled."""
    stack.person("tools", "breaker", "model", "open", "--note", "a drill")
    stack.submit("front-desk", "desk-held", status="running", ticket_id="T-3", **FORGOTTEN)
    stack.person("cancel", "desk-held")
    stack.person("tools", "breaker", "model", "auto")
    kb = stack.pid("kb")
    os.kill(kb, signal.SIGSTOP)
    stack.submit("front-desk", "desk-left", status="running", ticket_id="T-4", **FORGOTTEN)
    stack.wait("desk-left/support", "running")
    stack.person("cancel", "desk-left")
    stack.wait("desk-left/support", "cancelled")
    os.kill(kb, signal.SIGCONT)
    stack.submit("research", "after-all", status="succeeded", question=QUESTION)


def recorded_stack(data: Path) -> dict[str, list[Row]]:
    """What a stack has written when all that was played in it."""
    stack = Stack(data)
    try:
        play(stack)
        stack.run("verify")
        place = json.loads((data / "stack.json").read_text())
        return {
            "runs": asyncio.run(harvest.runs_of(place["postgres"], "demo")),
            "messages": asyncio.run(harvest.records_of(place["kafka"], place["topic_prefix"], "demo")),
        }
    finally:
        stack.run("down")


def recorded_tests(found: Path, *paths: Path) -> dict[str, list[Row]]:
    """What tests have written."""
    environment = os.environ | {HARVEST: str(found), "PYTHONPATH": str(HERE)}
    command = [Path(sys.executable).with_name("pytest"), "-q", "-p", "harvest", *paths]
    subprocess.run(command, cwd=TESTS.parent, env=environment, check=True)
    rows: dict[str, list[Row]] = json.loads(found.read_text())
    return rows


# --- what of it is kept ---------------------------------------------------------------------------

_FREE = {"input", "arguments", "data", "output", "answer", "items", "item", "details", "feedback", "value"}
_FREE |= {"playbook", "others", "spec", "known", "steps", "contracts"}
"""What may hold anything, or so much that every record would be another one."""
_TELLING = {"action", "ask", "breaker", "decision", "known", "standing", "status", "recall", "on_repeat", "effect"}
"""The names of values that lead to other code. Codes are another: those of `result.error`, of a closed list."""
_MACHINE = re.compile(rb"/(?:tmp|home|work|root|Users|var)/|127\.0\.0\.1|localhost|password=|secret")


def shapes(value: Any, path: str) -> Iterator[str]:
    """The fields that a JSON value has, and the values of those that lead to other code."""
    match value:
        case dict():
            for name, inner in value.items():
                place = f"{path}.{name}"
                yield place
                if name in _TELLING or place.endswith("result.error.code"):
                    yield f"{place}={inner}"
                if name not in _FREE:
                    yield from shapes(inner, place)
                elif isinstance(inner, dict | list):
                    yield f"{place} is {type(inner).__name__}{'' if inner else ' and empty'}"
        case list():
            for inner in value:
                yield from shapes(inner, f"{path}[]")


def of_run(row: Row) -> frozenset[str]:
    """What a journal shows: how far it has got, its events with their fields, and the steps of its plans."""
    found = {f"run {row['run']['status']}", f"child {row['run']['parent_run_id'] is not None}"}
    for event, _, data in row["journal"]:
        content = json.loads(data)
        found |= {event, *shapes(content, event), *of_steps(content)}
    return frozenset(found)


def of_message(row: Row) -> frozenset[str]:
    """What a message shows: its topic, its headers, its fields, and the steps of a plan."""
    noun = row["topic"].partition(".")[0]
    content = json.loads(body_of(row["headers"], row["value"]))
    found = {
        row["topic"],
        f"{noun} key {row['key'] is not None}",
        *(f"{noun} header {name}" for name, _ in row["headers"]),
    }
    offered = {f"contract.{name}" for contract in content.get("contracts", ()) for name in contract}
    return frozenset(found | offered | set(shapes(content, noun)) | set(of_steps(content)))


def of_steps(content: Row) -> Iterator[str]:
    """What the steps of a plan say, and their pins."""
    for step in (content.get("plan") or {"steps": []})["steps"]:
        yield from shapes(step, "step")


def chosen(rows: list[Row], shown: Any) -> list[Row]:
    """As few bytes as show everything that these rows show; of what is first in the list as much as possible."""
    kept: list[Row] = []
    known: set[str] = set()
    rows = [row for row in rows if not names_the_machine(row)]
    for origin in dict.fromkeys(row["origin"].partition("/test")[0] for row in rows):
        left = [
            (row, shown(row), len(json.dumps(row | {"playbooks": []})))
            for row in rows
            if row["origin"].startswith(origin)
        ]
        while left := [each for each in left if each[1] - known]:
            row, shape, _ = max(left, key=lambda each: len(each[1] - known) / each[2])
            kept.append(row)
            known |= shape
    return kept


def names_the_machine(row: Row) -> bool:
    """Whether it says where it was recorded."""
    told = codec.encode(row, limits=codec.STORED) + (decoded(row.get("value")) or b"")
    return bool(_MACHINE.search(told) or re.search(rb"\b" + re.escape(socket.gethostname().encode()) + rb"\b", told))


def write(path: Path, rows: list[Row]) -> None:
    """One row a line."""
    path.write_bytes(b"".join(codec.encode(row, limits=codec.STORED) + b"\n" for row in rows))


def read_again(row: Row) -> Row:
    """With what its class reads of a message, where that is not what was sent."""
    sent = json.loads(decoded(row["value"]))
    read = json.loads(codec.read(message_class(row["topic"]), body_of(row["headers"], row["value"])).to_bytes())
    return row if read == sent else row | {"read": read}


def playbook_row(definition: str) -> Row:
    """A playbook as it is stored, and the version that it has for journals that name it."""
    playbook = codec.read(Playbook, definition, limits=codec.STORED)
    return {"name": playbook.name, "version": playbook.version, "definition": definition}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder)
        parts = [
            recorded_stack(found / "stack"),
            recorded_tests(found / "integration", *(TESTS / "integration" / name for name in INTEGRATION)),
            recorded_tests(found / "unit", *sorted((TESTS / "unit").glob("test_machine*.py"))),
        ]
    target = HERE / sys.argv[1]
    target.mkdir()
    runs = chosen([row for part in parts for row in part["runs"]], of_run)
    books = {each for row in runs for each in row.pop("playbooks")}
    write(target / "journals.jsonl", runs)
    write(target / "playbooks.jsonl", sorted(map(playbook_row, books), key=itemgetter("name", "version")))
    messages = chosen([row for part in parts for row in part["messages"]], of_message)
    write(target / "messages.jsonl", [read_again(row) for row in messages])


if __name__ == "__main__":
    main()
