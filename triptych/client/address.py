"""Where a stack is: its broker, its topics' prefix and, for operators, its database.

`triptych up` writes this to `stack.json` in its data directory. Secrets in the DSN are never shown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from triptych.client.errors import BrokerInvalidError, NoStackError
from triptych.schemas import codec

STACK_FILE = "stack.json"
_BROKER = re.compile(r"\s*(\[[^\]]+\]|[^:,\s]+)(:\d{1,5})?\s*")


@dataclass(frozen=True, slots=True)
class Address:
    """The addresses of one stack. `postgres` is the DSN of a role that may only read.

    Raises BrokerInvalidError when `kafka` names no brokers.
    """

    kafka: str
    topic_prefix: str = "triptych"
    postgres: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not all(_BROKER.fullmatch(broker) for broker in self.kafka.split(",")):
            raise BrokerInvalidError(self.kafka)

    @classmethod
    def from_stack(cls, data_dir: Path) -> Address:
        """Read the addresses of the stack that runs in `data_dir`.

        Raises:
            NoStackError: nothing was started there, or its file cannot be read.
        """
        file = data_dir / STACK_FILE
        try:
            written = codec.decode(file.read_bytes())
            return cls(written["kafka"], written["topic_prefix"], written["postgres"])
        except FileNotFoundError:
            raise NoStackError(file, "no stack runs here") from None
        except (OSError, codec.InvalidJson, KeyError, TypeError, AttributeError) as error:
            raise NoStackError(file, f"this is not the file of a stack ({error!r})") from error

    def topic(self, noun: str) -> str:
        """Return the full name of a topic, for example `triptych.outcomes`."""
        return f"{self.topic_prefix}.{noun}"
