"""Classifies a support ticket by the words that people use for their troubles."""

from __future__ import annotations

from typing import Any

from triptych.examples.model_server.words import sentences, words

SIGNS: dict[str, str] = {
    "billing": "bill billing charge charged invoice subscription refund plan seat seats upgrade downgrade payment "
    "card receipt price pricing renewal dunning credit vat tax proration",
    "login": "login log-in password sign signin sso saml okta entra locked lockout mfa two-factor authenticator "
    "session link",
    "integration": "integration netsuite quickbooks salesforce xero slack webhook webhooks api sync mapping connector "
    "endpoint zapier scim sandbox key keys",
    "bug": "bug error broken crash crashes wrong fails failing fail blank stuck missing 500 unexpected "
    "garbled duplicate",
    "how_to": "export import csv template report reports dashboard customise customize configure schedule create "
    "reminder remind columns filter logo language",
    "security": "security breach phishing audit gdpr dpa encryption penetration soc iso vulnerability deletion "
    "retention residency",
    "account": "account profile owner transfer workspace user users role roles permission permissions invite "
    "deactivate merge entity",
}
URGENT = set(words("urgent urgently asap immediately blocked production outage down critical today deadline"))
LEISURELY = ("no rush", "no hurry", "whenever", "curious", "wondering", "nice to have", "not urgent")
SUMMARY_LENGTH = 160


def classify(ticket: dict[str, Any]) -> dict[str, Any]:
    """Category, urgency, and how sure one can be; a subject's words count double."""
    subject, body = str(ticket.get("subject", "")), str(ticket.get("body", ""))
    spoken = words(subject) * 2 + words(body)
    counts = {category: sum(word in set(words(signs)) for word in spoken) for category, signs in SIGNS.items()}
    best = max(counts, key=lambda category: counts[category])
    total = sum(counts.values())
    first = next(iter(sentences(body)), subject)
    return {
        "category": best if total else "other",
        "urgency": _urgency(f"{subject} {body}"),
        "confidence": round(0.5 + 0.5 * counts[best] / total, 2) if total else 0.3,
        "summary": first if len(first) <= SUMMARY_LENGTH else f"{first[: SUMMARY_LENGTH - 1].rstrip()}…",
    }


def _urgency(text: str) -> str:
    if any(phrase in text.lower() for phrase in LEISURELY):
        return "low"
    return "high" if URGENT & set(words(text)) else "normal"
