"""No secret leaves a tool: what it knows to be one, and what looks like one, is masked in everything it answers.

Errors are masked by pattern too; data only by the values that this process holds, since data may well look like a key.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import orjson
from pydantic import SecretStr
from pydantic_settings import BaseSettings

from triptych.kernel.log import MASK
from triptych.schemas.base import Json
from triptych.schemas.result import Result

SHORTEST_CHARS = 6
"""A shorter value would be found by chance in the middle of words."""

_LOOKS_SECRET = re.compile(
    r"(?P<scheme>\b(?:Bearer|Basic|Token)\s+)[\w.~+/=-]{8,}"
    r"|(?P<name>\b(?:api[_-]?key|access[_-]?token|token|secret|password|passwd|authorization|client[_-]?secret)"
    r"[\"']?\s*[=:]\s*[\"']?(?:(?:Bearer|Basic|Token)\s+)?)[^\s\"'&,;}]{4,}"
    r"|(?P<user>\b\w+://[^\s:/@]+:)[^\s@/]+(?=@)"
    r"|\b(?:sk|pk|rk|ghp|gho|xox[abp]|glpat)[-_][\w-]{8,}"
    r"|\beyJ[\w-]{1,1000}\.[\w-]+\.[\w-]+"
    r"|\bAKIA[0-9A-Z]{16}\b",
    re.IGNORECASE,
)


def secrets_in(settings: BaseSettings | None) -> list[SecretStr]:
    """The secret fields of a tool's own settings."""
    if settings is None:
        return []
    return [value for name in type(settings).model_fields if isinstance(value := getattr(settings, name), SecretStr)]


class Redactor:
    """Masks secrets in results."""

    def __init__(self, secrets: Iterable[SecretStr] = ()) -> None:
        values = {secret.get_secret_value() for secret in secrets}
        long_enough = sorted((value for value in values if len(value) >= SHORTEST_CHARS), key=len, reverse=True)
        self._known = _one_of(long_enough)
        self._known_in_json = _one_of(orjson.dumps(value).decode()[1:-1] for value in long_enough)

    def clean(self, result: Result) -> Result:
        """The result without secrets; the very same where it holds none."""
        if result.error is not None:
            error = result.error
            details = _walk(error.details, self._masked)
            return result.model_copy(
                update={"error": error.model_copy(update={"message": self._masked(error.message), "details": details})}
            )
        if not self._may_hold_known(result.data):
            return result
        return result.model_copy(update={"data": _walk(result.data, self._without_known)})

    def _may_hold_known(self, data: Json) -> bool:
        """Most data holds none, and to look at it as one text is far quicker than to look at all that is in it."""
        if self._known_in_json is None:
            return False
        try:
            return self._known_in_json.search(orjson.dumps(data).decode()) is not None
        except orjson.JSONEncodeError:  # an integer beyond 64 bits
            return True

    def _without_known(self, text: str) -> str:
        return self._known.sub(MASK, text) if self._known is not None else text

    def _masked(self, text: str) -> str:
        return _LOOKS_SECRET.sub(_keep_the_name, self._without_known(text))


def _one_of(texts: Iterable[str]) -> re.Pattern[str] | None:
    found = "|".join(map(re.escape, texts))
    return re.compile(found) if found else None


def _keep_the_name(found: re.Match[str]) -> str:
    """What was found, masked; the word that says what it is stays readable."""
    return f"{found['scheme'] or found['name'] or found['user'] or ''}{MASK}"


def _walk(value: Json, masked: Callable[[str], str]) -> Json:
    match value:
        case str():
            return masked(value)
        case dict():
            return {masked(name): _walk(item, masked) for name, item in value.items()}
        case list():
            return [_walk(item, masked) for item in value]
        case _:
            return value
