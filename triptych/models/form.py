"""The form that an answer must have, and what is wrong with one that does not have it.

Pure: a response comes in, its checked output or a named fault comes out.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pydantic import BaseModel, ValidationError
from pydantic_ai import ModelResponse, TextPart, ToolCallPart

from triptych.json_schema import JsonSchema
from triptych.schemas import ErrorCode, Json, codec

ANSWER_TOOL: Final = "answer"
MAX_PROBLEMS: Final = 5
"""So many mistakes of an output are named; the rest would not help anyone."""
MAX_PROBLEM_CHARS: Final = 300
_PERIODS: Final = range(4, 201)
_AGAIN: Final = 7
_TAIL_CHARS: Final = 2_000
_REST_CHARS: Final = 200
"""So much may stand behind what was said over and over."""


class AnswerFault(StrEnum):
    """What a model can do wrong while its provider works; it travels as `details.model` of the error."""

    MALFORMED = "malformed"
    """The answer is not JSON, does not fit, or was not given in the way that was asked for."""
    TRUNCATED = "truncated"
    """The answer was cut off at its limit."""
    LOOP = "loop"
    """The answer was cut off at its limit, and said the same over and over before that."""
    REFUSED = "refused"
    """The model, or a filter before it, will not answer."""


class UnusableOutputError(Exception):
    """The model answered, but not what it was asked for."""

    def __init__(self, fault: AnswerFault, message: str) -> None:
        self.fault, self.message = fault, message
        super().__init__(message)

    @property
    def code(self) -> ErrorCode:
        return ErrorCode.FORBIDDEN if self.fault is AnswerFault.REFUSED else ErrorCode.CONTRACT_VIOLATION


@dataclass(frozen=True, slots=True)
class Form:
    """The form that an output must have: a JSON Schema, or a model that also gives the schema."""

    schema: dict[str, Json]
    model: type[BaseModel] | None

    @classmethod
    def of(cls, wanted: dict[str, Json] | type[BaseModel]) -> Form:
        return cls(wanted, None) if isinstance(wanted, dict) else cls(wanted.model_json_schema(), wanted)

    def problems(self, output: Json) -> list[str]:
        """Return what is wrong with an output, in words that its author can act on."""
        if not isinstance(output, dict):
            return [f"it is a {type(output).__name__}, not an object"]
        if self.model is None:
            found = [(list(each.place), each.message) for each in JsonSchema.of(self.schema).schema_errors(output)]
        else:
            try:
                codec.read(self.model, codec.encode(output))
            except ValidationError as error:
                found = [(list(problem["loc"]), problem["msg"]) for problem in error.errors(include_url=False)]
            else:
                found = []
        return [
            f"{'.'.join(str(part) for part in path) or 'the output'}: {text[:MAX_PROBLEM_CHARS]}"
            for path, text in found[:MAX_PROBLEMS]
        ]


def checked_output(response: ModelResponse, form: Form, max_tokens: int) -> dict[str, Json]:
    """Return the output of a response, once it fits.

    Raises:
        UnusableOutputError: it does not fit, and why.
    """
    call = next((part for part in response.parts if isinstance(part, ToolCallPart)), None)
    said = "".join(part.content for part in response.parts if isinstance(part, TextPart)).strip()
    if response.finish_reason == "content_filter":
        raise UnusableOutputError(AnswerFault.REFUSED, "refused to answer; a person has to")
    if response.finish_reason == "length" and not _is_whole(call, form):
        raise _cut_off(call.args_as_json_str() if call else said, max_tokens)
    if call is None:
        how = f"answered in text, not through the tool `{ANSWER_TOOL}`" if said else "said nothing"
        raise UnusableOutputError(AnswerFault.MALFORMED, how)
    if call.tool_name != ANSWER_TOOL:
        name = call.tool_name[:MAX_PROBLEM_CHARS]
        message = f"called a tool `{name}` that it was not offered; there is only `{ANSWER_TOOL}`"
        raise UnusableOutputError(AnswerFault.MALFORMED, message)
    try:
        # An SDK may have parsed it, and more leniently: what is kept must be JSON to everybody who reads it.
        output = codec.decode(call.args if isinstance(call.args, str) else codec.encode(call.args))
    except ValueError as error:
        raise UnusableOutputError(AnswerFault.MALFORMED, f"gave an output that is not JSON: {error}") from error
    if problems := form.problems(output):
        raise UnusableOutputError(AnswerFault.MALFORMED, f"gave an output that does not fit: {'; '.join(problems)}")
    return dict(output or {})


def _is_whole(call: ToolCallPart | None, form: Form) -> bool:
    """Return whether nothing is missing, though the limit was reached: the last brace ends the JSON text.

    An SDK may have repaired what it has parsed, and does not say so.
    """
    if call is None or not isinstance(call.args, str):
        return False
    try:
        return call.tool_name == ANSWER_TOOL and not form.problems(codec.decode(call.args))
    except ValueError:
        return False


def _cut_off(said: str, max_tokens: int) -> UnusableOutputError:
    limit = f"{max_tokens} tokens, the most that the grant allows"
    if any(_goes_round(said[-_TAIL_CHARS:], period) for period in _PERIODS):
        return UnusableOutputError(AnswerFault.LOOP, f"said the same over and over until it was cut off at {limit}")
    cure = "raise `tokens` of this step, plan or judge"
    return UnusableOutputError(AnswerFault.TRUNCATED, f"was cut off at {limit}; {cure}")


def _goes_round(text: str, period: int) -> bool:
    """Return whether the text ends with one piece of this length eight times. A pattern would take quadratic time."""
    run = 0
    for at in range(len(text) - 1, period - 1, -1):
        if text[at] == text[at - period]:
            run += 1
            if run == _AGAIN * period:
                return True
        elif at < len(text) - _REST_CHARS:
            return False
        else:
            run = 0
    return False
