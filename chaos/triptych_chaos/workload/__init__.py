"""The workload of the nemesis and of the crash matrix: playbooks, their tools and the configuration of their stack.

`triptych.toml` names the tools of this folder; who they talk to is `webhook_sender.py` and the shipped helpdesk.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

CONFIG: Final = Path(__file__).with_name("triptych.toml")
PLAYBOOKS: Final = CONFIG.with_name("playbooks")
CALLS: Final = "calls"
"""The playbook whose run makes calls of every kind."""
TOOLS: Final = ("kb", "helpdesk", "model", "inbox", "webhook")
SUBJECT: Final = "How do I rotate an API key?"
BODY: Final = "We have to rotate the API key of our integration without downtime. How do we do that?"
