"""Apache Kafka's jars: fetched once from Maven Central, checked against a lock file, kept in a user cache.

A jar whose checksum is not the locked one is never put on a class path. To renew the lock file:
`jgo init org.apache.kafka:kafka_2.13:VERSION+org.slf4j:slf4j-simple:1.7.36 && jgo lock`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from platformdirs import user_cache_path

from triptych.embedded.errors import JarsUnavailableError

if TYPE_CHECKING:
    from jgo.env import LockedDependency
    from jgo.maven import MavenContext

LOCK = Path(__file__).with_name("kafka.lock.toml")

_PARALLEL_DOWNLOADS = 8
_TIMEOUT_S = 60


def cache_directory() -> Path:
    """TRIPTYCH_CACHE if set, else the user's cache directory (which honours XDG_CACHE_HOME)."""
    chosen = os.environ.get("TRIPTYCH_CACHE")
    return Path(chosen).expanduser().resolve() if chosen else user_cache_path("triptych")


def kafka_jars(progress: Callable[[str], None]) -> Path:
    """Return the directory that holds exactly the locked jars. Fetch it if it is not there yet.

    Raises JarsUnavailableError when a jar cannot be had or is not what the lock file says.
    """
    digest = hashlib.sha256(LOCK.read_bytes()).hexdigest()[:12]
    cache = cache_directory()
    home = cache / f"kafka-{digest}"
    if home.is_dir():
        return home
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="kafka-", dir=cache) as scratch:
            complete = _fetch(Path(scratch), progress)
            # Another process may have been as quick. The first to rename wins, and both have the same jars.
            if not home.exists():
                complete.replace(home)
    except OSError as error:
        if not home.is_dir():
            raise JarsUnavailableError(f"Apache Kafka could not be fetched: {error}", cache) from error
    return home


def _fetch(scratch: Path, progress: Callable[[str], None]) -> Path:
    """Fetch into a directory of our own, so that nothing half written is ever taken for a jar."""
    from jgo.env import LockFile  # noqa: PLC0415 (slow to import, and needed once in a machine's life)
    from jgo.maven import MavenContext  # noqa: PLC0415

    complete = scratch / "jars"
    complete.mkdir()
    maven = MavenContext(repo_cache=scratch / "repository", timeout=_TIMEOUT_S)
    jars = LockFile.load(LOCK).dependencies
    with ThreadPoolExecutor(_PARALLEL_DOWNLOADS) as pool:
        for done, jar in enumerate(pool.map(lambda locked: _fetch_one(maven, locked), jars), start=1):
            shutil.move(jar, complete / jar.name)
            progress(f"fetching Apache Kafka: {done} of {len(jars)} jars")
    return complete


def _fetch_one(maven: MavenContext, locked: LockedDependency) -> Path:
    component = maven.project(locked.groupId, locked.artifactId).at_version(locked.version)
    name = f"{locked.groupId}:{locked.artifactId}:{locked.version}"
    try:
        jar = component.artifact(locked.classifier or "", locked.packaging).resolve()
    except RuntimeError as error:
        raise JarsUnavailableError(f"{name} could not be fetched: {error}", maven.repo_cache) from error
    if hashlib.sha256(jar.read_bytes()).hexdigest() != locked.sha256:
        raise JarsUnavailableError(f"{name} does not have the locked checksum", maven.repo_cache)
    return Path(jar)
