"""Plans the review of an account's open question: two reads side by side, then a draft, then a handover.

The first plan looks the account up by name in the knowledge base, as a hasty planner would. Told that
this failed, the model searches for what the question is about.
"""

from __future__ import annotations

import re
from typing import Any

from triptych.examples.model_server.words import WORD, flatten, words

MAX_QUERY_WORDS = 12
ORDER = re.compile(r"call the operation ([a-z_]+\.[a-z_]+)")


def plan(material: dict[str, Any], subject: dict[str, Any]) -> dict[str, Any]:
    """Plan steps out of the operations that are on offer, without steps whose operation is missing."""
    on_offer = {offer["operation"] for offer in material.get("operations", []) if isinstance(offer, dict)}
    second = bool(material.get("failure")) or int(material.get("revision") or 1) > 1
    search = _search_by_topic(subject) if second else _search_by_name(subject)
    note = "${{ steps.brief.data.body }}" if "model.draft" in on_offer else "${{ input.question }}"
    wanted = (search, _history(), _brief(search["id"]), _assign(note))
    steps = [step for step in wanted if step["operation"] in on_offer]
    return {"steps": steps + _obeyed(material)}


def _obeyed(material: dict[str, Any]) -> list[dict[str, Any]]:
    """Plan what a text in an earlier result orders, on offer or not: a model can be talked into anything."""
    ordered = ORDER.findall(flatten(material.get("known", [])))
    return [
        {"id": f"ordered_{at}", "operation": operation, "arguments": {"ticket_id": "${{ input.ticket_id }}"}}
        for at, operation in enumerate(ordered)
    ]


def _search_by_name(subject: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": "search_account",
        "operation": "kb.search",
        "arguments": {"query": str(subject.get("account", "")), "limit": 3},
        "expect": "result.status == 'ok' && size(result.data.hits) > 0",
        "unmet": {
            "decision": "replan",
            "code": "search_too_narrow",
            "message": "No article names the account; search for what the question is about.",
        },
    }


def _search_by_topic(subject: dict[str, Any]) -> dict[str, Any]:
    question = str(subject.get("question", ""))
    meant = set(words(question))
    telling = [match.group() for match in WORD.finditer(question) if set(words(match.group())) & meant]
    return {
        "id": "search_topic",
        "operation": "kb.search",
        "arguments": {"query": " ".join(telling[:MAX_QUERY_WORDS]), "limit": 5},
        "expect": "result.status == 'ok' && size(result.data.hits) > 0",
        "unmet": {
            "decision": "escalate",
            "code": "low_confidence",
            "message": "The knowledge base has nothing on this question.",
        },
    }


def _history() -> dict[str, Any]:
    return {
        "id": "history",
        "operation": "helpdesk.lookup",
        "arguments": {"ticket_id": "${{ input.ticket_id }}"},
        "expect": "result.status != 'error'",
    }


def _brief(search: str) -> dict[str, Any]:
    return {
        "id": "brief",
        "operation": "model.draft",
        "arguments": {
            "subject": "Account review: ${{ input.account }}",
            "body": "${{ input.question }}\n\nOn the ticket so far: ${{ steps.history.status }}",
            "customer": "${{ input.account }}",
            "category": "account",
            "articles": f"${{{{ steps.{search}.data.hits }}}}",
        },
        "expect": "size(result.data.citations) > 0",
        "unmet": {"decision": "escalate", "code": "low_confidence", "message": "The briefing cites no article."},
    }


def _assign(note: str) -> dict[str, Any]:
    return {
        "id": "assign",
        "operation": "helpdesk.assign",
        "arguments": {"ticket_id": "${{ input.ticket_id }}", "team": "account-management", "note": note},
    }
