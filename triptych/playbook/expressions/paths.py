"""The paths into variables in an expression, such as `steps.find.data.items[0].id`, and the steps that it names."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from triptych.playbook.expressions.error import ExpressionError
from triptych.playbook.expressions.macros import MACROS, indexes_in_macros, macros_of
from triptych.playbook.expressions.tokens import Token, tokens_of
from triptych.schemas import Json

MAX_READS_CACHED: Final = 2_048
BRANCH: Final = frozenset({"item", "index"})
"""What a branch of a step with `map` sees besides."""
FEEDBACK: Final = frozenset({"feedback"})
"""What a step with `rounds` sees of the round before; null in the first."""
ANSWER: Final = frozenset({"answer"})
"""What the output of a run that is planned by turns can use."""
VARIABLES: Final = frozenset({"input", "steps", "result"}) | BRANCH | FEEDBACK | ANSWER
OPERAND: Final = "operand_"
"""The beginning of the names of variables in a flattened expression."""


class Operand(NamedTuple):
    """A path into a variable, such as `input.items`."""

    path: tuple[str, ...]
    is_repeated: bool
    """Whether it stands inside a macro, which meets it for each element."""

    def within(self, variables: Mapping[str, Json]) -> Json:
        """Return the value at the path, or the value around it where the path leads nowhere."""
        value: Json = variables
        for part in self.path:
            if not isinstance(value, Mapping) or part not in value:
                break
            value = value[part]
        return value


class Read(NamedTuple):
    """A path into a variable with its indexes, such as `steps.find.data.items[0].id`."""

    path: tuple[str | int, ...]
    is_tested: bool
    """Whether the expression asks if there is something, with `has`, `in` or a comparison with null."""


def step_names(expression: str, tokens: Sequence[Token]) -> Iterator[str]:
    """Find the steps that an expression refers to. It must name them, because the order of a plan follows from them."""
    for index, token in enumerate(tokens):
        if token.text != "steps" or (index and tokens[index - 1].text == "."):
            continue
        match [following.text for following in tokens[index + 1 : index + 4]]:
            case [".", name, *_] if tokens[index + 2].kind == "name":
                yield name
            case ["[", text, "]"] if tokens[index + 2].kind == "string" and "\\" not in text:
                yield text.strip("'\"")
            case _:
                message = 'name the step that is meant, as in steps.search or steps["search"]'
                raise ExpressionError(expression, message, token.start)


def operands_of(tokens: Sequence[Token], known: Collection[str]) -> Iterator[Operand]:
    """Find each path into these variables, once for each occurrence."""
    inside = indexes_in_macros(tokens)
    for start, end in _paths(tokens, known):
        yield Operand(tuple(token.text for token in tokens[start:end:2]), start in inside)


def operands(expression: str) -> list[str]:
    """Find the paths into `input`, `steps` and `result`, to show what their values were."""
    tokens = tokens_of(expression)
    known = VARIABLES - macros_of(expression, tokens).bound
    paths = ("".join(token.text for token in tokens[start:end]) for start, end in _paths(tokens, known))
    return list(dict.fromkeys(paths))


@lru_cache(maxsize=MAX_READS_CACHED)
def reads(expression: str) -> tuple[Read, ...]:
    """Find what an expression reads of `input`, `steps` and `result`, without what a macro reads of each element."""
    tokens = tokens_of(expression)
    known = VARIABLES - macros_of(expression, tokens).bound
    found = []
    for start, end in _paths(tokens, known):
        path: list[str | int] = [token.text for token in tokens[start:end:2]]
        while (part := _index(tokens, end)) is not None:
            path.append(part)
            end += 3  # noqa: PLW2901 - the path goes on
            while end + 1 < len(tokens) and tokens[end].text == "." and tokens[end + 1].kind == "name":
                if end + 2 < len(tokens) and tokens[end + 2].text == "(":
                    break
                path.append(tokens[end + 1].text)
                end += 2  # noqa: PLW2901
        before, after = [token.text for token in tokens[:start][-3:]], [token.text for token in tokens[end : end + 3]]
        is_compared = after in (["=", "=", "null"], ["!", "=", "null"]) or before in (
            ["null", "=", "="],
            ["null", "!", "="],
        )
        found.append(Read(tuple(path), before[-2:] == ["has", "("] or is_compared))
        if before[-1:] == ["in"] and start > 1 and tokens[start - 2].kind == "string":
            found.append(Read((*path, tokens[start - 2].text.strip("'\"")), is_tested=True))
    return tuple(found)


def _index(tokens: Sequence[Token], at: int) -> str | int | None:
    """Read the name or the number in the square brackets that begin here."""
    if [token.text for token in tokens[at : at + 3 : 2]] != ["[", "]"]:
        return None
    token = tokens[at + 1]
    if token.kind == "number" and token.text.isdecimal():
        return int(token.text)
    return token.text.strip("'\"") if token.kind == "string" and "\\" not in token.text else None


def flattened(expression: str, tokens: Sequence[Token]) -> tuple[str, dict[str, tuple[str, ...]]] | None:
    """Write the same expression with a variable for each path, and return the paths by these variables.

    None where that may change the meaning. Macros bind names of their own, `has` needs a path, and a path does not
    show the steps of `steps[...]`.
    """
    if any(token.text in MACROS or token.text == "has" or token.text.startswith(OPERAND) for token in tokens):
        return None
    names: dict[tuple[str, ...], str] = {}
    parts: list[str] = []
    at = 0
    for start, end in _paths(tokens, VARIABLES):
        path = tuple(token.text for token in tokens[start:end:2])
        if path == ("steps",):
            return None
        parts += expression[at : tokens[start].start], names.setdefault(path, f"{OPERAND}{len(names)}")
        at = tokens[end - 1].start + len(tokens[end - 1].text)
    return "".join((*parts, expression[at:])), {name: path for path, name in names.items()}


def _paths(tokens: Sequence[Token], known: Collection[str]) -> Iterator[tuple[int, int]]:
    """Find where the paths into these variables begin and end among the tokens."""
    for index, token in enumerate(tokens):
        if token.text not in known or (index and tokens[index - 1].text == "."):
            continue
        end = index + 1
        while end + 1 < len(tokens) and tokens[end].text == "." and tokens[end + 1].kind == "name":
            if end + 2 < len(tokens) and tokens[end + 2].text == "(":
                break
            end += 2
        yield index, end
