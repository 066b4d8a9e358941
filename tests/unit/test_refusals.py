"""What counts as nothing done: what stands in a closed list, and nothing else whatever a server answers."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from triptych.schemas import Contract, ErrorCode, Result
from triptych.tools import Call, Effect, Tool, ToolFailure
from triptych.tools.adapters.rest.endpoint import Endpoint
from triptych.tools.adapters.rest.response import read_result
from triptych.tools.http.errors import check_status, failure_of_request, json_content
from triptych.tools.sdk import refusals
from triptych.tools.testing import call

REQUEST = httpx.Request("POST", "https://desk.example/orders")
NOTHING_DONE = {400, 401, 403, 404, 405, 409, 410, 413, 415, 422, 429}


def failure_at(status: int, **answer: Any) -> ToolFailure:
    with pytest.raises(ToolFailure) as caught:
        check_status(httpx.Response(status, request=REQUEST, **answer))
    return caught.value


@pytest.mark.parametrize("status", [*range(100, 200), *range(300, 600), 206])
def test_only_a_status_of_the_list_says_that_nothing_was_done(status):
    assert failure_at(status).undone is (status in NOTHING_DONE)


@pytest.mark.parametrize("code", list(ErrorCode))
def test_only_a_code_of_the_list_says_that_nothing_was_done(code):
    assert ToolFailure(code, "so it is").undone is (code in refusals.CODES)


@pytest.mark.parametrize(
    "error",
    [
        each
        for each in vars(httpx).values()
        if isinstance(each, type) and issubclass(each, httpx.RequestError | httpx.InvalidURL)
    ],
    ids=lambda each: each.__name__,
)
def test_only_an_error_before_anything_was_sent_says_that_nothing_was_done(error):
    before = {"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError"}
    assert failure_of_request(error("so it is")).undone is (error.__name__ in before)


def test_an_error_in_the_body_of_a_success_leaves_open_what_was_done():
    problem = {"content-type": "application/problem+json"}
    with pytest.raises(ToolFailure) as caught:
        json_content(httpx.Response(200, request=REQUEST, headers=problem, content=b'{"status": 400, "detail": "no"}'))
    assert (caught.value.code, caught.value.undone) == (ErrorCode.INVALID_ARGUMENTS, False)


def test_a_404_of_whatever_else_answers_at_the_address_leaves_open_what_was_done():
    assert failure_at(404, html="<!doctype html><html>who?</html>").undone is False


@pytest.mark.parametrize(
    ("location", "told"),
    [
        ("/orders/7", "https://desk.example/orders/7"),
        ("7?token=hunter2#hunter2", "https://desk.example/7"),
        ("https://ana:hunter2@other.example:8443/x", "https://other.example:8443/x"),
        ("http://other.example:hunter2/", "an address that is not a URL"),
        ("/x" * 5_000, "https://desk.example" + "/x" * 140),
    ],
)
def test_a_redirect_of_a_write_is_told_with_its_location_and_no_secret(location, told):
    failure = failure_at(303, headers={"location": location})
    assert failure.details == {"http_status": 303, "location": told}
    assert told in failure.message
    assert "hunter2" not in failure.message


def desk(effect: Effect, failure: ToolFailure, *reconciled: Any) -> Tool:
    made = Tool("desk")

    @made.operation(effect=effect)
    async def write() -> str:
        """Writes."""
        raise failure

    if reconciled:

        @made.reconcile(write)
        async def what_happened(_call: Call[None]) -> Any:
            return reconciled[0]

    return made


UNKNOWN = (
    failure_at(303, headers={"location": "/orders/7"}),
    failure_at(302),
    failure_at(304),
    failure_at(412),
    failure_at(451),
    failure_at(402),
    ToolFailure(ErrorCode.FORBIDDEN, "an answer that nobody knows", undone=False),
)


@pytest.mark.parametrize("failure", UNKNOWN, ids=str)
async def test_a_once_write_that_was_refused_in_a_way_that_nobody_knows_is_in_doubt(failure):
    error = (await call(desk(Effect.ONCE, failure), "write", {})).error
    assert error.code is ErrorCode.IN_DOUBT
    assert failure.message in error.message
    assert "effect" not in error.details


@pytest.mark.parametrize("failure", UNKNOWN, ids=str)
async def test_an_idempotent_write_that_was_refused_in_a_way_that_nobody_knows_is_not_called_undone(failure):
    error = (await call(desk(Effect.IDEMPOTENT, failure), "write", {})).error
    assert "effect" not in error.details


async def test_a_tool_that_can_tell_is_asked_what_a_once_write_did_that_was_answered_with_a_redirect():
    redirected = UNKNOWN[0]
    assert await call(desk(Effect.ONCE, redirected, "the receipt"), "write", {}) == Result.ok("the receipt")
    error = (await call(desk(Effect.ONCE, redirected, None), "write", {})).error
    assert (error.code, error.details["effect"]) == (ErrorCode.CONTRACT_VIOLATION, "none")


async def test_a_part_of_an_answer_is_told_with_its_reason():
    """The body of a 206 has not been read yet when its status is looked at."""

    async def body():
        yield b'{"message": "the rest is missing"}'

    headers = {"content-type": "application/json"}
    answered = httpx.Response(206, headers=headers, content=body(), request=REQUEST)
    contract = Contract(operation="desk.order", description="Order.", arguments={}, result={}, effect=Effect.ONCE)
    with pytest.raises(ToolFailure, match="206 Partial Content: the rest is missing") as failed:
        await read_result(Endpoint(contract, "POST", "/orders"), answered)
    assert (failed.value.code, failed.value.undone) == (ErrorCode.CONTRACT_VIOLATION, False)
