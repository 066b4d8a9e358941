"""Mail over SMTP: `adapter = "triptych.tools.adapters.mail:tool"`.

SMTP promises nothing about a message that is sent twice, so a message is of class `once` unless the server is known to
drop a second one with the same Message-ID. What may have been sent is looked for where the server files it.
"""

from triptych.tools.adapters.mail.tool import tool

__all__ = ["tool"]
