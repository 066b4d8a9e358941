"""Which port each process of a stack listens on: the one of last time if it is still free, else another.

A port is chosen once in the life of a supervisor, for by then it is not free: the process listens on it.
"""

from __future__ import annotations

import random
import socket
import threading
from pathlib import Path

from triptych.embedded.layout import Layout, write_json
from triptych.schemas import codec

HOST = "127.0.0.1"

_RANGE = range(20_000, 30_000)
"""Below the range from which operating systems take the ports of outgoing connections."""

_TRIES = 200


class Ports:
    """The ports of one stack, remembered in its data directory."""

    def __init__(self, layout: Layout) -> None:
        self._file: Path = layout.root / "ports.json"
        self._remembered: dict[str, int] = codec.decode(self._file.read_bytes()) if self._file.exists() else {}
        self._chosen: dict[str, int] = {}
        self._lock = threading.Lock()  # servers are prepared in threads

    def of(self, name: str) -> int:
        """Return the port of the process of this name, the same at every call."""
        with self._lock:
            if name not in self._chosen:
                remembered = self._remembered.get(name)
                self._chosen[name] = remembered if remembered is not None and _is_free(remembered) else self._free()
                self._remembered[name] = self._chosen[name]
                write_json(self._file, self._remembered)
            return self._chosen[name]

    def _free(self) -> int:
        taken = set(self._remembered.values())
        for port in random.sample(_RANGE, _TRIES):
            if port not in taken and _is_free(port):
                return port
        raise OSError(f"none of {_TRIES} ports tried from {_RANGE.start} to {_RANGE.stop} is free on {HOST}")


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
