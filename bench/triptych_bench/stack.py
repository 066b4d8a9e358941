"""A stack for one tree of source code, started and stopped as a user would: by its own `triptych up`.

It knows addresses and processes. It never looks into what the services store.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit

from triptych.embedded.layout import Layout
from triptych_bench.errors import StackFailedError
from triptych_bench.figures import UPSTREAM
from triptych_bench.trees import ROOT, Tree

CONFIG = ROOT / "bench" / "triptych.toml"
_COMMAND = (sys.executable, "-P", "-m", "triptych")


@dataclass(frozen=True, slots=True)
class Owner:
    """Return the DSN of the owner of the cluster, to make a database that no service uses."""

    host: str
    port: int
    password: str
    user: str = "postgres"


@dataclass(frozen=True, slots=True)
class Stack:
    """A stack that runs."""

    tree: Tree
    layout: Layout
    kafka: str
    topic_prefix: str
    owner: Owner
    pids: Mapping[str, int]
    upstream: str
    """Where the process listens that the HTTP tool calls."""


@contextmanager
def running(tree: Tree, data: Path, settings: Mapping[str, str] = MappingProxyType({})) -> Iterator[Stack]:
    """Start the stack of a tree in `data` and stop it at the end. `settings` are variables of its environment.

    Raises WrongTreeError and StackFailedError.
    """
    tree.check()
    layout = Layout.at(data)
    try:
        up = subprocess.run(
            [*_COMMAND, "up", "--data", layout.root, "--config", tree.root / "bench" / "triptych.toml"],
            env={**tree.environment(), **settings},
            stdout=sys.stderr,  # standard output is for results
            check=False,
        )
        if up.returncode:
            raise StackFailedError(tree.name, up.returncode, layout.logs)
        yield _read(tree, layout)
    finally:
        subprocess.run(
            [*_COMMAND, "down", "--data", layout.root], env=tree.environment(), capture_output=True, check=False
        )


def _read(tree: Tree, layout: Layout) -> Stack:
    written = json.loads((layout.root / "stack.json").read_text("utf-8"))
    postgres = urlsplit(written["postgres"])
    upstream = next(each["health_url"] for each in written["processes"] if each["name"] == UPSTREAM)
    return Stack(
        tree=tree,
        layout=layout,
        kafka=written["kafka"],
        topic_prefix=written["topic_prefix"],
        owner=Owner(postgres.hostname or "", postgres.port or 0, layout.secret("postgres-owner")),
        pids={each["name"]: each["pid"] for each in (*written["services"], *written["processes"])},
        upstream=upstream.removesuffix(urlsplit(upstream).path),
    )
