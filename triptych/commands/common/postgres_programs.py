"""Runs pg_dump and pg_restore of the embedded Postgres."""

from __future__ import annotations

import subprocess
from urllib.parse import unquote, urlsplit

from triptych.embedded.environment import inherited
from triptych.embedded.errors import BackupFailedError
from triptych.embedded.postgres import binaries


def run_program(program: str, owner: str, *arguments: str) -> None:
    """Run a program of Postgres on a database; the password is in its environment, where no other user sees it."""
    at = urlsplit(owner)
    place = (f"--host={at.hostname}", f"--port={at.port}", f"--username={at.username}", f"--dbname={at.path[1:]}")
    done = subprocess.run(  # noqa: S603 - a program of the wheel
        [binaries() / program, *place, *arguments],
        env={**inherited(), "PGPASSWORD": unquote(at.password or "")},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BackupFailedError(program, done.returncode, done.stderr)
