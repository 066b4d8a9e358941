"""Connecting to a database: what is wrong with the setting is told, and what is secret in it is not."""

from __future__ import annotations

import traceback

import pytest

from triptych.kernel.errors import ConfigurationError
from triptych.kernel.postgres.database import connect


@pytest.mark.parametrize("dsn", ["postgresql://role:hunter2#x@localhost:1/d", "host=localhost password=hunter2"])
async def test_a_setting_that_is_no_dsn_is_told_without_what_is_secret_in_it(dsn: str) -> None:
    with pytest.raises(
        ConfigurationError, match=r"TRIPTYCH_POSTGRES: this is not a DSN; write postgresql://"
    ) as caught:
        await connect(dsn, "test")
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))
