"""Plans by turns: research one step at a time, and the management of several enquiries with a ledger.

It looks at what is known, does the next thing that is missing, and answers when nothing is.
"""

from __future__ import annotations

from typing import Any


def next_turn(material: dict[str, Any], subject: dict[str, Any]) -> dict[str, Any]:
    """Choose the next move, in the form of the pattern that is asked for."""
    known = {record["id"]: record for record in material.get("known", []) if isinstance(record, dict)}
    if material.get("pattern") == "manager":
        return _managed(known, subject)
    steps, answer = _research(known, subject)
    return {"step": steps[0] if steps else None, "answer": answer}


def _research(known: dict[str, Any], subject: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Search, answer from what was found, and say so."""
    if "search" not in known:
        query = str(subject.get("question", ""))
        return [{"id": "search", "operation": "kb.search", "arguments": {"query": query, "limit": 3}}], None
    if known["search"].get("result") != "ok":
        return [], {"text": "The knowledge base has nothing on this.", "citations": []}
    if "answer" not in known:
        arguments = {"question": "${{ input.question }}", "articles": "${{ steps.search.data.hits }}"}
        return [{"id": "answer", "operation": "model.answer", "arguments": arguments}], None
    said = known["answer"].get("data") or {}
    return [], {"text": said.get("answer", ""), "citations": said.get("citations", [])}


def _managed(known: dict[str, Any], subject: dict[str, Any]) -> dict[str, Any]:
    """First all tickets side by side, then what the knowledge base says, then the answer."""
    tickets = [str(ticket) for ticket in subject.get("ticket_ids", [])]
    looked_up = [record for name, record in known.items() if name.startswith("ticket-")]
    facts = [f"{len(looked_up)} tickets were looked up (ticket-1 and on)"] if looked_up else []
    if not looked_up:
        steps = [
            {"id": f"ticket-{number}", "operation": "helpdesk.lookup", "arguments": {"ticket_id": ticket}}
            for number, ticket in enumerate(tickets, start=1)
        ]
        questions = ["What has happened on the tickets?", "What does the knowledge base say?"]
        return {"ledger": {"facts": facts, "questions": questions, "progress": []}, "steps": steps, "answer": None}
    steps, answer = _research(known, subject)
    if "search" in known:
        facts.append("the knowledge base was searched (search)")
    ledger = {
        "facts": facts,
        "questions": ["What does the knowledge base say?"] if steps else [],
        "progress": ["looked the tickets up"],
    }
    if answer is not None:
        answer["tickets"] = len(looked_up)
    return {"ledger": ledger, "steps": steps, "answer": answer}
