"""One shipped stack for the modules that kill, stop and fault it; it is expected to outlive them all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support_desk import SupportDesk


@pytest.fixture(scope="session")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SupportDesk]:
    """The whole embedded stack, started and stopped from the command line."""
    desk = SupportDesk(tmp_path_factory.mktemp("desk"))
    desk.up()
    yield desk
    desk.down()
