"""The page on backups is true: its commands are run on a real server."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psycopg
from test_executor_store import MIGRATIONS

from triptych.embedded.postgres import binaries

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "backup.md"
IN_CONTAINER = "docker compose exec -T postgres "


def commands(database: str) -> list[str]:
    """What the page has run in the container of Postgres, for another database."""
    lines = re.findall(rf"^ *{re.escape(IN_CONTAINER)}(.+)$", PAGE.read_text("utf-8"), re.MULTILINE)
    return [re.sub(r"\btriptych(?=_restoring\b|\b(?!\.))", database, line) for line in lines]


def test_the_commands_of_the_page_bring_a_database_back_with_its_roles(database, tmp_path: Path) -> None:
    prepared = database.prepare({"executor": (MIGRATIONS,)})
    server = urlsplit(database.owner_dsn)
    known_by = {
        "PATH": f"{binaries()}:{os.environ['PATH']}",
        "PGHOST": str(server.hostname),
        "PGPORT": str(server.port),
        "PGPASSWORD": unquote(server.password or ""),
    }

    def run(command: str) -> None:
        subprocess.run(["sh", "-ec", command], cwd=tmp_path, env=known_by, check=True, capture_output=True)

    def playbooks() -> int:
        with psycopg.connect(prepared.services["executor"]) as service:
            service.execute("insert into playbooks values ('after', %s, '{}')", [os.urandom(4).hex()])
            (count,) = service.execute("select count(*) from playbooks").fetchone()
        return count

    dump, *restore = commands(server.path[1:])
    assert playbooks() == 1
    run(dump)
    assert playbooks() == 2
    assert len(restore) == 5
    for command in restore:
        run(command)
    database.prepare({"executor": (MIGRATIONS,)})
    assert playbooks() == 2, "one that was there, and one that was written as the service"
    with psycopg.connect(database.owner_dsn) as owner:
        (restored_at_ms,) = owner.execute("select current_setting('triptych.restored_at_ms')").fetchone()
    assert re.fullmatch(r"\d{13}", restored_at_ms)
