"""Standard Webhooks 1.0 (https://www.standardwebhooks.com): keys, and the check of a signature.

A signature covers the id, the time and the body of a message; ours may cover the address too. Headers come from
strangers: a check of any headers ends in a verdict and never in an exception.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import SecretStr

from triptych.kernel.errors import ConfigurationError

TOLERANCE = timedelta(minutes=5)
"""A callback that was signed longer ago, or later than now, is refused: it may be a copy."""
KEY_MIN_BYTES, KEY_MAX_BYTES = 24, 64
"""What the specification asks of a key."""
SIGNATURES_MAX = 20
"""More than any sender needs while one key follows another."""
ID_MAX_CHARS = 256
_DIGITS_MAX = 12
"""Digits of a time in seconds; more are a number that no clock shows."""
_PREFIX = "whsec_"
_SIGNATURE = "v1,"
_VARIABLE = "TRIPTYCH_CALLBACK_SECRET"
_CURE = "write whsec_ and the base64 of 24 to 64 random bytes, as `openssl rand -base64 24` prints it"


@dataclass(frozen=True, slots=True)
class Signed:
    """A message whose signature fits."""

    digest: bytes
    """Of everything that was signed. It tells messages apart."""
    names_address: bool
    """Whether the signature covers the address too. Where it does not, the message may be a copy of another's."""


class Verifier:
    """Checks signatures under one key, or under two while one follows the other."""

    def __init__(self, secret: SecretStr) -> None:
        """Raises ConfigurationError when the secret is not a key of Standard Webhooks."""
        self._keys = [_key(one) for one in secret.get_secret_value().split()]
        if not self._keys:
            raise ConfigurationError(f"{_VARIABLE}: it is empty; {_CURE}")

    def problem_of_headers(self, headers: Mapping[str, str], now: datetime) -> str | None:
        """Return what is wrong with the headers of a request, or None. It is asked before the body is read."""
        message_id, stated = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
        if not message_id or len(message_id) > ID_MAX_CHARS:
            return f"webhook-id is missing, or longer than {ID_MAX_CHARS} characters"
        if not (stated.isascii() and stated.isdigit() and len(stated) <= _DIGITS_MAX):
            return "webhook-timestamp is missing, or not the seconds since 1970"
        if abs(now.timestamp() - int(stated)) > TOLERANCE.total_seconds():
            return "webhook-timestamp is too far from now"
        return None if _signatures(headers) else "webhook-signature is missing, or no part of it begins with v1,"

    def problem(self, headers: Mapping[str, str], body: bytes, now: datetime, address: str | None = None) -> str | None:
        """Return what is wrong with a request, or None."""
        checked = self.check(headers, body, now, address)
        return None if isinstance(checked, Signed) else checked

    def check(self, headers: Mapping[str, str], body: bytes, now: datetime, address: str | None = None) -> Signed | str:
        """Return the message if a signature fits, or else what is wrong with it.

        A signature is over `ID.TIME.BODY`, as the specification has it, or over `ID.TIME.ADDRESS.BODY`.
        """
        if problem := self.problem_of_headers(headers, now):
            return problem
        about = (headers["webhook-id"].encode("utf-8", "replace"), headers["webhook-timestamp"].encode())
        forms = [(b".".join((*about, body)), False)]
        if address is not None:
            forms.append((b".".join((*about, address.encode("utf-8", "replace"), body)), True))
        given = _signatures(headers)
        for content, names_address in forms:
            wanted = [base64.b64encode(hmac.digest(key, content, hashlib.sha256)) for key in self._keys]
            if any(hmac.compare_digest(one, other) for one in given for other in wanted):
                return Signed(hashlib.sha256(content).digest(), names_address)
        return "no signature fits"


def _signatures(headers: Mapping[str, str]) -> list[bytes]:
    stated = headers.get("webhook-signature", "").split(maxsplit=SIGNATURES_MAX)[:SIGNATURES_MAX]
    return [one.removeprefix(_SIGNATURE).encode("utf-8", "replace") for one in stated if one.startswith(_SIGNATURE)]


def _key(secret: str) -> bytes:
    """Decode a key. The base64 alphabet of URLs is refused, because the libraries of senders decode it differently."""
    text = secret.removeprefix(_PREFIX)
    try:
        key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ConfigurationError(
            f"{_VARIABLE}: it is not base64 with + and /, which the libraries of Standard Webhooks read; {_CURE}"
        ) from None
    if not KEY_MIN_BYTES <= len(key) <= KEY_MAX_BYTES:
        raise ConfigurationError(
            f"{_VARIABLE}: the key has {len(key)} bytes, and Standard Webhooks wants {KEY_MIN_BYTES} to "
            f"{KEY_MAX_BYTES}; {_CURE}"
        )
    return key
