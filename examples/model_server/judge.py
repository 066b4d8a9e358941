"""Judges an answer by how much of it the sources bear out, word by word."""

from __future__ import annotations

import re
from typing import Any

from triptych.examples.model_server.words import flatten, sentences, words

BORNE_OUT = 0.5
"""From this share of its words on, a sentence counts as borne out by the sources."""
ENOUGH = 0.6
"""From this share of sentences on, an answer passes."""
MAX_EVIDENCE = 5
MENTION = re.compile(r'must mention "([^"]+)"')
"""What the criteria can demand word for word."""


def judge(material: dict[str, Any]) -> dict[str, Any]:
    """Judge whether the sources support the answer, with a confidence and the sentences that show it."""
    said = flatten(material.get("answer") or material.get("output"))
    if missing := [phrase for phrase in MENTION.findall(str(material.get("criteria"))) if phrase not in said]:
        return {"pass": False, "confidence": 0.95, "evidence": [f'It does not mention "{one}".' for one in missing]}
    told = sentences(said)
    backing = [material.get(name) for name in ("sources", "known", "input", "criteria")]
    known = set(words(flatten(backing)))
    shares = {line: _share(line, known) for line in told if words(line)}
    if not shares:
        return {"pass": False, "confidence": 0.9, "evidence": ["There is no answer to judge."]}
    backed = sum(share >= BORNE_OUT for share in shares.values()) / len(shares)
    passed = backed >= ENOUGH
    worst_first = sorted(shares, key=lambda line: shares[line])
    evidence = [f"Not in the sources: {line}" for line in worst_first if shares[line] < BORNE_OUT][:MAX_EVIDENCE]
    return {
        "pass": passed,
        "confidence": round(backed if passed else 1 - backed, 2),
        "evidence": evidence or [f"{len(shares)} of {len(shares)} sentences are borne out by the sources."],
    }


def _share(line: str, known: set[str]) -> float:
    said = words(line)
    return sum(word in known for word in said) / len(said)
