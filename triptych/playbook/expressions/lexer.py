"""The tokens of an expression, and what they show without running it.

The CEL library parses, but does not show what it parsed. Which steps an expression refers to, how
deep its macros are nested and where a template ends are read from its tokens here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

from triptych.playbook.expressions.error import ExpressionError
from triptych.schemas import Json

MAX_EXPRESSION_CHARS: Final = 2_000
MAX_READS_CACHED: Final = 2_048
MAX_MACROS: Final = 8
MAX_MACRO_DEPTH: Final = 2
BRANCH: Final = frozenset({"item", "index"})
"""What a branch of a step with `map` sees besides."""
FEEDBACK: Final = frozenset({"feedback"})
"""What a step with `rounds` sees of the round before; null in the first."""
ANSWER: Final = frozenset({"answer"})
"""What the output of a run that is planned by turns can use."""
VARIABLES: Final = frozenset({"input", "steps", "result"}) | BRANCH | FEEDBACK | ANSWER
OPEN: Final = "${{"
"""Where a template begins."""
OPERAND: Final = "operand_"
"""The beginning of the names of variables in a flattened expression."""

_MACROS = frozenset({"all", "exists", "exists_one", "filter", "map"})
_WORDS = frozenset({"false", "in", "null", "true"})
_TOKEN = re.compile(
    r"""
      (?P<skip>\s+|//[^\n]*)
    | (?P<string>
          (?:[bB]?[rR]|[rR][bB])(?:\"{3}.*?\"{3}|'{3}.*?'{3}|"[^"\n]*"|'[^'\n]*')
        | [bB]?(?:\"{3}(?:\\.|[^\\])*?\"{3}|'{3}(?:\\.|[^\\])*?'{3}|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'))
    | (?P<name>[^\W\d]\w*)
    | (?P<number>\d+(?:\.\d+)?[eE][+-]\d+|\d[\w.]*)
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)


class Token(NamedTuple):
    kind: str
    text: str
    start: int


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


@dataclass(frozen=True, slots=True)
class Macros:
    """The macros of an expression."""

    bound: frozenset[str]
    """The names that they bind, such as `hit` in `hits.map(hit, hit.id)`."""
    count: int
    depth: int


def tokens_of(expression: str) -> list[Token]:
    """Split an expression into tokens, without spaces and comments. Raises ExpressionError where it is too long."""
    if len(expression) > MAX_EXPRESSION_CHARS:
        raise ExpressionError(expression, f"longer than {MAX_EXPRESSION_CHARS} characters; split it over steps")
    return tokens_in(expression)


def tokens_in(source: str) -> list[Token]:
    """Split text made from an expression into tokens, however long it has become."""
    return [
        Token(match.lastgroup or "", match.group(), match.start())
        for match in _TOKEN.finditer(source)
        if match.lastgroup != "skip"
    ]


def macros_of(expression: str, tokens: Sequence[Token]) -> Macros:
    """Find the macros of an expression. Raises ExpressionError when they are too many, or nested too deep."""
    bound: set[str] = set()
    brackets: list[bool] = []
    count = deepest = 0
    for index, token in enumerate(tokens):
        if token.text == "(":
            macro = _begins_macro(tokens, index)
            brackets.append(macro)
            if macro:
                count += 1
                deepest = max(deepest, sum(brackets))
                bound.update(named.text for named in tokens[index + 1 : index + 2] if named.kind == "name")
        elif token.text == ")" and brackets:
            brackets.pop()
    if count > MAX_MACROS or deepest > MAX_MACRO_DEPTH:
        raise ExpressionError(
            expression,
            f"{count} macros, nested {deepest} deep; at most {MAX_MACROS} and {MAX_MACRO_DEPTH} are allowed",
        )
    return Macros(frozenset(bound), count, deepest)


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
    inside = _indexes_in_macros(tokens)
    for start, end in _paths(tokens, known):
        yield Operand(tuple(token.text for token in tokens[start:end:2]), start in inside)


def _indexes_in_macros(tokens: Sequence[Token]) -> set[int]:
    found: set[int] = set()
    brackets: list[bool] = []
    for index, token in enumerate(tokens):
        if token.text == "(":
            brackets.append(_begins_macro(tokens, index))
        elif token.text == ")" and brackets:
            brackets.pop()
        elif any(brackets):
            found.add(index)
    return found


def _begins_macro(tokens: Sequence[Token], index: int) -> bool:
    """Tell whether the bracket at this index holds the arguments of a macro."""
    return index > 1 and tokens[index - 1].text in _MACROS and tokens[index - 2].text == "."


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
    if any(token.text in _MACROS or token.text == "has" or token.text.startswith(OPERAND) for token in tokens):
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


def misread_name(tokens: Sequence[Token], at: int | None = None) -> tuple[str, int] | None:
    """Find a name that the language reads as something else. Return how to write it, and its offset.

    A name with a hyphen is a subtraction, and a word of the language is not a name. What follows `steps.` is looked at
    anywhere, other names only where something is wrong: at the token that stands at the offset `at`.
    """
    for index, token in enumerate(tokens[2:], 2):
        if tokens[index - 1].text != ".":
            continue
        if token.text in _WORDS:
            return f'["{token.text}"]', token.start
        end = index
        while end + 2 < len(tokens) and _is_joined(tokens[end : end + 3]):
            end += 2
        is_step = tokens[index - 2].text == "steps"
        if end > index and (is_step or any(each.start == at for each in tokens[index : end + 1])):
            # A part that begins with a digit takes what follows the next dot with it.
            name = "".join(each.text for each in tokens[index : end + 1]).partition(".")[0]
            return f'["{name}"]', token.start
    return None


def _is_joined(tokens: Sequence[Token]) -> bool:
    """Tell whether these are a name, a hyphen and more of a name, with nothing between them."""
    name, hyphen, more = tokens
    has_no_space = name.start + len(name.text) == hyphen.start and hyphen.start + 1 == more.start
    return hyphen.text == "-" and more.kind in {"name", "number"} and has_no_space


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


def closing(text: str, start: int) -> int:
    """Find the `}}` that closes the template at `start`. Map literals and strings may hold braces."""
    depth = 0
    # An expression that is longer than any may be is not searched: quotes that are not closed take the square.
    for match in _TOKEN.finditer(text, start + len(OPEN), start + len(OPEN) + MAX_EXPRESSION_CHARS + len("}}")):
        if match.group() == "{":
            depth += 1
        elif match.group() == "}":
            if depth == 0:
                if text.startswith("}}", match.start()):
                    return match.start()
                break
            depth -= 1
    raise ExpressionError(text, "this template is not closed; end it with `}}`", start)
