"""No secret leaves a tool, whatever an upstream quotes."""

from __future__ import annotations

import base64
import html
import json
import re
import time
from urllib.parse import quote, quote_plus

import pytest
import structlog
from pydantic import SecretStr

from triptych.kernel.worker import JobAttempt
from triptych.schemas import CallRequest, ErrorCode, Result
from triptych.tools import Call, Effect, Source, Tool, ToolFailure
from triptych.tools.runtime.attempt import ToolWorker
from triptych.tools.runtime.last_answers import LastAnswers
from triptych.tools.sdk.redaction import Redactor
from triptych.tools.testing import FreshLedger, call, request_for

KEY = "wh4t-nobody-may-see"


def source_with(monkeypatch: pytest.MonkeyPatch) -> Source:
    monkeypatch.setenv("DESK_KEY", KEY)
    source = Source("desk")
    source.secret("DESK_KEY")
    return source


@pytest.mark.parametrize(
    "said",
    [
        f"the key {KEY} is not valid",
        "Authorization: Bearer abcdef0123456789",
        "api_key=abcdef0123456789",
        '{"password": "abcdef0123456789"}',
        "postgresql://ana:abcdef0123456789@db/x",
        "sk-abcdef0123456789 has expired",
        "eyJhbGciOi.eyJzdWIiOi.abcdef0123456789",
        "AKIAABCDEF0123456789",
    ],
)
def test_an_error_holds_neither_a_known_secret_nor_what_looks_like_one(monkeypatch, said):
    redactor = Redactor(source_with(monkeypatch).secrets)
    error = redactor.clean(Result.failed(ErrorCode.INTERNAL, said, quoted=[{"said": said}])).error
    for secret in (KEY, "abcdef0123456789", "ABCDEF0123456789"):
        assert secret not in error.model_dump_json()
    assert "***" in error.message
    assert error.code is ErrorCode.INTERNAL


def test_words_that_are_no_secret_stay_as_they_are():
    said = Result.failed(ErrorCode.INVALID_ARGUMENTS, 'arguments: "token" is a required property', effect="none")
    assert Redactor().clean(said) == said


def test_data_is_masked_by_value_only_since_it_may_well_look_like_a_key(monkeypatch):
    redactor = Redactor(source_with(monkeypatch).secrets)
    data = {"echo": f"Bearer {KEY}", "sample": "sk-abcdef0123456789"}
    assert redactor.clean(Result.ok(data)).data == {"echo": "Bearer ***", "sample": "sk-abcdef0123456789"}
    clean = Result.ok({"n": 1})
    assert redactor.clean(clean) is clean


async def test_the_runtime_masks_what_the_source_has_given_out(monkeypatch):
    made = Tool("desk")
    made.secrets = source_with(monkeypatch).secrets

    @made.operation(effect=Effect.READ)
    async def look(call: Call[None]) -> str:
        """Looks."""
        raise ToolFailure(ErrorCode.UNAUTHENTICATED, f"what is {KEY}?")

    assert made.secrets == [SecretStr(KEY)]
    assert (await call(made, "look", {})).error.message == "what is ***?"


async def test_an_answer_that_is_kept_holds_no_secret_either(monkeypatch):
    made = Tool("desk")
    made.secrets = source_with(monkeypatch).secrets
    kept: list[Result] = []

    class Kept(LastAnswers):
        async def keep(self, _request: CallRequest, result: Result) -> None:
            kept.append(result)

    @made.operation(effect=Effect.READ)
    async def quote(call: Call[None]) -> str:
        """Quotes what it was sent."""
        return f"you sent {KEY}"

    request = request_for(made, "quote", {}).model_copy(update={"keep": True})
    log = structlog.get_logger()
    worker = ToolWorker(made, None, FreshLedger(), log, answers=Kept(None, log))
    await worker.execute(request, JobAttempt(lease=0))
    assert [result.data for result in kept] == ["you sent ***"]


@pytest.mark.timeout(60)
def test_a_long_text_that_looks_like_many_tokens_takes_no_minutes() -> None:
    text = "-eyJ" * 50_000
    refused = Redactor().clean(Result.failed(ErrorCode.INTERNAL, "it failed", said=text))
    assert refused.error is not None
    assert refused.error.details == {"said": text}


@pytest.mark.parametrize("secret", ['pass"word', "back\\slash", "-----BEGIN KEY-----\nabcdef\n-----END KEY-----\n"])
def test_a_secret_is_found_in_data_whatever_json_makes_of_its_characters(secret):
    data = {"echo": [f"it is {secret}", 2**70]}
    assert Redactor([SecretStr(secret)]).clean(Result.ok(data)).data == {"echo": ["it is ***", 2**70]}


HARD = 'p&ss "w/ö=rd" <+~>\\'


def forms_of(secret: str) -> dict[str, str]:
    """How a secret may be quoted by somebody who was sent it."""
    raw = secret.encode()
    return {
        "plain": secret,
        "json": json.dumps(secret),
        "json in unicode": json.dumps(secret, ensure_ascii=False),
        "json in json": json.dumps(json.dumps(secret, ensure_ascii=False), ensure_ascii=False),
        "json of php": json.dumps(secret, ensure_ascii=False).replace("/", "\\/"),
        "url": quote(secret),
        "url, all of it": quote(secret, safe=""),
        "url, small": re.sub("%[0-9A-F]{2}", lambda found: found[0].lower(), quote(secret, safe="")),
        "form": quote_plus(secret),
        "url twice": quote(quote(secret, safe=""), safe=""),
        "html": html.escape(secret),
        "html, quotes as they are": html.escape(secret, quote=False),
        "hex": raw.hex(),
        "HEX": raw.hex().upper(),
        "base64": base64.b64encode(raw).decode(),
        "base64 for urls": base64.urlsafe_b64encode(raw).decode().rstrip("="),
        **{
            f"basic, {len(user)}": "Basic " + base64.b64encode(f"{user}:{secret}".encode()).decode()
            for user in ("a", "an", "ana", "anna", "x" * 200)
        },
        **{f"in base64, {n}": base64.b64encode(b"y" * n + raw + b"more of it").decode() for n in range(4)},
    }


@pytest.mark.parametrize("form", forms_of(HARD))
@pytest.mark.parametrize("secret", [KEY, HARD, "six-ch"])
def test_a_secret_is_masked_in_every_form_in_which_it_leaves(form, secret):
    redactor = Redactor([SecretStr(secret)])
    said = forms_of(secret)[form]
    quoted = f"you sent <{said}>, and that is wrong"
    as_data = redactor.clean(Result.ok({"echo": [quoted], quoted: 1})).data
    as_error = redactor.clean(Result.failed(ErrorCode.INTERNAL, quoted, said=quoted)).error
    for told in (as_data["echo"][0], *list(as_data)[1:], as_error.message, as_error.details["said"]):
        assert said not in told
        assert "***" in told
        assert told.startswith("you sent <")
        assert told.endswith(">, and that is wrong")


def test_secrets_that_overlap_leave_nothing_of_each_other():
    redactor = Redactor([SecretStr("abcdefgh"), SecretStr("efghijkl")])
    assert redactor.clean(Result.ok("xabcdefghijklx")).data == "x***x"


def test_a_token_that_is_fetched_later_is_masked_and_so_are_those_before_it():
    source = Source("desk")
    redactor = Redactor(learnt=source.secrets)
    for number in range(100):
        source.learn(f"token-{number:04}")
        assert redactor.clean(Result.ok(f"you sent token-{number:04}")).data == "you sent ***"
    assert redactor.clean(Result.ok("before: token-0098")).data == "before: ***"
    assert len(source.secrets) <= 64


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "text",
    ["A" * 4_000_000, "token" + " " * 1_000_000, "x://a:" * 200_000, "Bearer " * 200_000, "a" * 1_000_000 + "://", "\n" * 1_000_000],
    ids=lambda text: text[:8],
)  # fmt: skip
def test_a_text_of_any_length_is_masked_within_seconds(text):
    secrets = [SecretStr(f"{n}-{HARD}") for n in range(10)] + [SecretStr("AAAAAA")]
    began = time.perf_counter()
    Redactor(secrets).clean(Result.failed(ErrorCode.INTERNAL, "it failed", said=text))
    assert time.perf_counter() - began < 20


async def test_the_log_of_an_unforeseen_error_holds_no_secret(monkeypatch, capsys):
    made = Tool("desk")
    made.secrets = source_with(monkeypatch).secrets

    @made.operation(effect=Effect.READ)
    async def look(call: Call[None]) -> str:
        """Looks."""
        raise RuntimeError(f"cannot look with {KEY}")

    assert (await call(made, "look", {})).error.code is ErrorCode.INTERNAL
    logged = capsys.readouterr()
    assert "cannot look with ***" in logged.out + logged.err
    assert KEY not in logged.out + logged.err
