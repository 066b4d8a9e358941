"""Standard Webhooks as an upstream signs them. Written from the specification: it shares nothing with who verifies."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time


def signed(key: bytes, message_id: str, body: bytes, *, at_s: float | None = None) -> dict[str, str]:
    """Sign a message and return its headers. `at_s` (seconds since 1970) is the time of signing; else now."""
    stated = str(int(time.time() if at_s is None else at_s))
    digest = hmac.digest(key, b".".join((message_id.encode(), stated.encode(), body)), hashlib.sha256)
    signature = f"v1,{base64.b64encode(digest).decode()}"
    return {"webhook-id": message_id, "webhook-timestamp": stated, "webhook-signature": signature}


def secret_of(key: bytes) -> str:
    """Write a key as in a configuration."""
    return f"whsec_{base64.b64encode(key).decode()}"
