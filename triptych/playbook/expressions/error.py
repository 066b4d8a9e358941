"""The one error of expressions and templates."""

from __future__ import annotations

from typing import Final

from triptych.kernel.errors import TriptychError

MESSAGE_MAX_CHARS: Final = 1_000


class ExpressionError(TriptychError):
    """An expression does not compile, cannot be evaluated, or costs too much.

    `position` is the offset of the mistake in `expression`, where it is known.
    """

    def __init__(self, expression: str, message: str, position: int | None = None) -> None:
        message = message if len(message) <= MESSAGE_MAX_CHARS else f"{message[:MESSAGE_MAX_CHARS]}…"
        self.expression, self.message, self.position = expression, message, position
        shown = expression if len(expression) <= 200 else f"{expression[:200]}…"  # noqa: PLR2004 - one line of text
        where = "" if position is None else f" at character {position + 1}"
        super().__init__(f"`{shown}`{where}: {message}" if expression else message)
