"""The shipped stack with runs of the support playbook in flight, and what can be seen of them from outside."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import psutil

from triptych.client import Client
from triptych.embedded.orphans import MARK
from triptych.schemas import Outcome, Task

WRITES_PER_RUN = 3
"""Each run acknowledges, replies and tags once."""
TICKET = {
    "customer": "Ana",
    "subject": "How do I rotate an API key?",
    "body": "We have to rotate the API key of our integration without downtime. How do we do that?",
}


def triptych(*arguments: str) -> str:
    """Run the command line, as a user does."""
    command = Path(sys.executable).with_name("triptych")
    done = subprocess.run([command, *arguments], capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass(frozen=True)
class SupportDesk:
    """A stack in a directory."""

    folder: Path

    def up(self) -> None:
        triptych("up", "--data", str(self.folder))

    def down(self) -> None:
        triptych("down", "--data", str(self.folder))

    def described(self) -> dict[str, Any]:
        return json.loads((self.folder / "stack.json").read_text())

    def pid_of(self, name: str) -> int:
        return next(each["pid"] for each in self.described()["services"] if each["name"] == name)

    def processes(self) -> list[psutil.Process]:
        """List every process of this stack: its supervisor, and all servers and services with its mark."""
        found = [psutil.Process(json.loads(triptych("status", "--json", "--data", str(self.folder)))["pid"])]
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == str(self.folder):
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found

    async def in_flight(self, task_ids: list[str]) -> int:
        """Count the runs that have begun a step and not ended."""
        database = await asyncpg.connect(self.described()["postgres"])
        try:
            found: int = await database.fetchval(
                "select count(distinct run_id) from executor.steps join executor.runs using (run_id) "
                "where task_id = any($1) and runs.finished_at is null and steps.status <> 'waiting'",
                task_ids,
            )
            return found
        finally:
            await database.close()

    async def left_behind(self) -> dict[str, int]:
        """Count what the executor still has of runs when all have ended."""
        database = await asyncpg.connect(self.described()["postgres"])
        try:
            row = await database.fetchrow(
                "select (select count(*) from executor.timers) as timers, "
                "(select count(*) from executor.runs where finished_at is null) as unfinished"
            )
            return {name: count for name, count in row.items() if count}
        finally:
            await database.close()

    def writes(self, task_ids: list[str]) -> int:
        """Count the writes to the tickets of these tasks in the helpdesk's ledger, and check that none happened twice."""
        tickets = {ticket_of(task_id) for task_id in task_ids}
        answer = self.helpdesk("GET", "/ledger")
        effects = [effect for effect in answer["effects"] if effect["ticket"] in tickets]
        keys = Counter(effect["key"] for effect in effects)
        written = Counter((effect["ticket"], effect["operation"]) for effect in effects)
        assert [each for each in (keys | written).items() if each[1] > 1] == []
        return len(written)

    def helpdesk(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Speak to the helpdesk past the pipeline."""
        port = json.loads((self.folder / "ports.json").read_text())["helpdesk-api"]
        token = (self.folder / "secrets" / "helpdesk-token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}"}
        return (
            httpx.request(method, f"http://127.0.0.1:{port}{path}", json=body, headers=headers)
            .raise_for_status()
            .json()
        )


def ticket_of(task_id: str) -> str:
    return f"T-{task_id}"


async def submit_tickets(client: Client, name: str, count: int) -> list[str]:
    """Submit as many tickets, each of its own; gives the task ids."""
    task_ids = [f"{name}-{number}" for number in range(count)]
    return await client.submit_many(
        Task(playbook="support-ticket", task_id=task_id, input={**TICKET, "ticket_id": ticket_of(task_id)})
        for task_id in task_ids
    )


async def outcomes_of(client: Client, task_ids: list[str], within_s: float) -> list[Outcome]:
    """Collect the outcomes of these tasks, until each has a final one."""
    waiting, seen = set(task_ids), []
    async with asyncio.timeout(within_s):
        async for outcome in client.follow(from_start=True):
            if outcome.task_id in task_ids:
                seen.append(outcome)
                waiting -= {outcome.task_id} if outcome.final else set()
                if not waiting:
                    return seen
    raise AssertionError("the topic of outcomes has no end")
