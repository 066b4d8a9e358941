"""Drafts a reply out of the articles in the prompt, and out of nothing else.

It picks the sentences that speak of what the ticket speaks of, keeps them in their order, and cites
the articles they come from. Without an article that fits it says so, and cites nothing.
"""

from __future__ import annotations

import re
from typing import Any

from triptych.examples.model_server.words import sentences, words

MAX_ARTICLES = 2
MAX_SENTENCES = 5
SECOND_ARTICLE_SHARE = 0.75
MISSED = re.compile(r'does not mention "([^"]+)"')
"""What a reviewer missed in an earlier draft."""
LEAST_RATING = 0.3
"""Below this an article is about something else."""


def draft(ticket: dict[str, Any]) -> dict[str, Any]:
    """Write a reply: subject, body and the ids of the articles that support it."""
    subject = str(ticket.get("subject") or "your question")
    asked = set(words(f"{subject} {ticket.get('body', '')}"))
    cited = _fitting(asked, ticket.get("articles") or [])
    if not cited:
        told = ["I could not find an article that answers this, so I am passing it to a colleague."]
    else:
        told = [line for article in cited for line in _relevant(asked, article, MAX_SENTENCES // len(cited) + 1)]
    greeting = f"Hello {ticket['customer']}," if ticket.get("customer") else "Hello,"
    sources = [f"See also: {article['title']} ({article['id']})." for article in cited]
    told += [f"{phrase}." for phrase in MISSED.findall(str(ticket.get("body", "")))]
    closing = "If this does not solve it, answer this message and a colleague takes over."
    return {
        "subject": subject if subject.lower().startswith("re:") else f"Re: {subject}",
        "body": "\n\n".join([greeting, *told, *sources, closing]),
        "citations": [article["id"] for article in cited],
    }


def answer(material: dict[str, Any]) -> dict[str, Any]:
    """Answer `question` out of `articles` or `sources`."""
    question = str(material.get("question") or material.get("text") or "")
    asked = set(words(question))
    cited = _fitting(asked, material.get("articles") or material.get("sources") or [])
    told = [line for article in cited for line in _relevant(asked, article, 2)]
    return {
        "answer": " ".join(told) or "The sources do not answer this.",
        "citations": [article["id"] for article in cited],
    }


def _fitting(asked: set[str], articles: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Choose the article that fits best, and a second one when it fits nearly as well."""
    known = [article for article in articles if isinstance(article, dict) and article.get("id")]
    rated = sorted(((_rating(asked, article), article) for article in known), key=lambda pair: -pair[0])
    least = max(LEAST_RATING, SECOND_ARTICLE_SHARE * rated[0][0]) if rated else LEAST_RATING
    return [article for rating, article in rated[:MAX_ARTICLES] if rating >= least]


def _rating(asked: set[str], article: dict[str, Any]) -> float:
    """Measure how much of the question the article covers, and how much of its title the question has."""
    title, body = set(words(str(article.get("title", "")))), set(words(str(article.get("body", ""))))
    if not asked:
        return 0.0
    return len(asked & (title | body)) / len(asked) + len(asked & title) / (2 * len(title) or 1)


def _relevant(asked: set[str], article: dict[str, Any], limit: int) -> list[str]:
    lines = sentences(str(article.get("body", "")))
    best = sorted(range(len(lines)), key=lambda at: (-len(asked & set(words(lines[at]))), at))[:limit]
    return [lines[at] for at in sorted(best)]
