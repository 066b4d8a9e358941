"""Mail over SMTP: `adapter = "triptych.tools.adapters.mail:tool"`.

SMTP promises nothing about a message that is sent twice. So `send` has the effect class `once`, unless the server is
known to drop a second message with the same Message-ID. After a lost answer, the folder of sent messages is searched.
"""

from triptych.tools.adapters.mail.tool import tool

__all__ = ["tool"]
