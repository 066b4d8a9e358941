"""Becomes the process of an MCP server: `python -I -S launch.py UID GID CWD HOME COMMAND [ARGUMENT]...`.

It gives up what the server is not to have (the user, capabilities, core dumps) and then becomes the command. It stands
alone, on the standard library, since it runs before anything else does. What cannot be done ends it with a line that
says why, and what to do.
"""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import sys
from pathlib import Path
from typing import NoReturn

_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 24, 38
_CAPS_OF_OTHERS = (16, 17, 19, 21, 22, 38, 39, 40)
"""With these a root process reads or changes others: modules, raw I/O, ptrace, admin, boot, perfmon, bpf, restore."""
_FILES_MAX = 4_096
_PROCESSES_MAX = 1_024
_CANNOT_RUN = 126
_SHEBANG_MAX_BYTES = 256

_libc = ctypes.CDLL(None, use_errno=True)


def main(uid: int, gid: int, cwd: str, home: str, command: list[str]) -> NoReturn:
    """Become `command`."""
    program = shutil.which(command[0]) or command[0]
    is_linux = sys.platform == "linux"
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower(resource.RLIMIT_NOFILE, _FILES_MAX)
    if is_linux and os.geteuid() == 0:
        for capability in _CAPS_OF_OTHERS:
            _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    if uid != os.geteuid():
        _lower(resource.RLIMIT_NPROC, _PROCESSES_MAX)
        _become(uid, gid)
        if blocked := next((part for part in parts(program) if not os.access(part, os.X_OK)), None):
            _fail(
                f"user {uid} cannot execute {blocked}; move it to where everybody may, or name a user who may with the "
                "option `user`"
            )
    if is_linux:
        _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _enter(cwd, home)
    try:
        os.execv(program, command)  # noqa: S606 - the command is what the configuration names
    except OSError as error:
        _fail(f"{program} cannot be started: {error.strerror}")


def _lower(limit: int, value: int) -> None:
    _, hard = resource.getrlimit(limit)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (value, value))


def _become(uid: int, gid: int) -> None:
    try:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    except OSError as error:
        _fail(f"this process cannot become user {uid} ({error.strerror}); the option `user` names another, or its own")


def parts(program: str) -> list[str]:
    """Return what must be executable so that a program can be: itself, what it links to, and its interpreter."""
    parts = [program, os.path.realpath(program)]
    try:
        with Path(program).open("rb") as file:
            first = file.readline(_SHEBANG_MAX_BYTES)
    except OSError:
        return parts
    if first.startswith(b"#!") and (words := first[2:].split()):
        interpreter = os.fsdecode(words[0])
        parts += [interpreter, os.path.realpath(interpreter)]
    return parts


def _enter(cwd: str, home: str) -> None:
    for folder in (cwd, home) if cwd else (home,):
        try:
            os.chdir(folder)
        except OSError as error:
            _print_error(f"it cannot be in {folder}: {error.strerror}")
        else:
            return
    _fail("there is no folder that it can be in; the option `cwd` names one")


def _print_error(what: str) -> None:
    sys.stderr.write(f"triptych: {what}\n")
    sys.stderr.flush()


def _fail(what: str) -> NoReturn:
    _print_error(what)
    os._exit(_CANNOT_RUN)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5:])
