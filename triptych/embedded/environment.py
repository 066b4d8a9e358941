"""Chooses the environment of a stack's processes: what every program needs, and what triptych.toml names.

The shell that calls `triptych up` may hold the secrets of many systems. A process gets none of them unless its table
names the variable.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

COMMON = (
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "LANG", "LANGUAGE", "LC_*", "TZ", "TMPDIR", "COLUMNS",
    "NO_COLOR", "XDG_*", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "JAVA_HOME",
    "PYTHONPATH", "PYTHONHOME", "PYTHONHASHSEED", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "PYTHONWARNINGS",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy",
)  # fmt: skip
"""Names and patterns of what a program needs to run at all; none of them is a secret of an upstream."""

SESSION = (
    "PATH", "VIRTUAL_ENV", "USER", "LOGNAME", "SHELL", "TERM", "LANG", "LANGUAGE", "LC_*", "COLUMNS",
    "NO_COLOR", "XDG_*",
)  # fmt: skip
"""These differ from shell to shell. A process is not restarted when only they have changed."""

_OWN = "TRIPTYCH_*"
_SECRET = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|CREDENTIAL|POSTGRES|DSN")
"""A setting of ours whose name has one of these is passed only where a table names it."""


def inherited(patterns: Iterable[str] = ()) -> dict[str, str]:
    """Give the variables of this process that another one may have.

    Args:
        patterns: Names or patterns (`OPENAI_*`) besides those that every program gets.
    """
    wanted = (*COMMON, *patterns)
    return {
        name: value
        for name, value in os.environ.items()
        if any(fnmatchcase(name, pattern) for pattern in wanted)
        or (fnmatchcase(name, _OWN) and not _SECRET.search(name))
    }


def settings_in(environment: Mapping[str, str]) -> dict[str, str]:
    """Give the variables of a process without those that only say whose shell it was started from."""
    return {
        name: value for name, value in environment.items() if not any(fnmatchcase(name, pattern) for pattern in SESSION)
    }


@contextmanager
def adopted(environment: Mapping[str, str] | None) -> Iterator[None]:
    """Make this the environment of this process. It stays so unless the body fails."""
    before = dict(os.environ)
    if environment is not None:
        _become(environment)
    try:
        yield
    except BaseException:
        _become(before)
        raise


def _become(environment: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)


def named_in(options: Mapping[str, Any]) -> Iterator[str]:
    """Give the variables that the options of a tool name: `key_env = "CRM_KEY"`, `headers_env`, `env = ["TOKEN"]`."""
    for key, value in options.items():
        if key == "env" or key.endswith("_env"):
            yield from _texts(value)
        elif isinstance(value, Mapping):
            yield from named_in(value)
        elif isinstance(value, list):
            for each in value:
                if isinstance(each, Mapping):
                    yield from named_in(each)


def _texts(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case Mapping():
            yield from (each for each in value.values() if isinstance(each, str))
        case list():
            yield from (each for each in value if isinstance(each, str))
