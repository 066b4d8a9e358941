"""What can go wrong for a client. Each message names the thing, the place and the cure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

from triptych.kernel.errors import TriptychError

_SHOWN_MAX = 60
"""So many names are listed in a message."""


class ClientError(TriptychError):
    """Base of the client's errors."""


class NoStackError(ClientError):
    """There is no stack to talk to."""

    def __init__(self, file: Path, why: str) -> None:
        self.file, self.why = file, why
        super().__init__(f"{file}: {why}; start a stack with `triptych up`, or name a broker with --kafka HOST:PORT")


class KafkaUnreachableError(ClientError):
    """Kafka does not answer."""

    def __init__(self, kafka: str, cause: BaseException) -> None:
        self.kafka, self.cause = kafka, cause
        super().__init__(f"Kafka at {kafka} does not answer; is the stack running? (`triptych status`)")


class DatabaseUnreachableError(ClientError):
    """Postgres does not answer, or refuses the operator role."""

    def __init__(self, where: str, cause: BaseException) -> None:
        self.where, self.cause = where, cause
        super().__init__(f"Postgres at {where} cannot be used ({cause}); is the stack running? (`triptych status`)")


class DsnInvalidError(ClientError):
    """This is not a DSN. The error does not repeat it, since any part of it may be a password."""

    def __init__(self) -> None:
        super().__init__(
            "the DSN of Postgres cannot be read; write postgresql://USER:PASSWORD@HOST:PORT/DATABASE, with / # ? @ and "
            "other special characters of the password percent-encoded"
        )


class BrokerInvalidError(ClientError):
    """This is not an address of a Kafka broker."""

    def __init__(self, kafka: str) -> None:
        self.kafka = kafka
        super().__init__(
            f"{kafka!r} is not an address of a Kafka broker; write HOST:PORT, or several with commas between"
        )


class TopicMissingError(ClientError):
    """A topic of the pipeline does not exist on this broker."""

    def __init__(self, topic: str, kafka: str) -> None:
        self.topic, self.kafka = topic, kafka
        super().__init__(
            f"topic {topic} does not exist at {kafka}; check --prefix, or start the stack with `triptych up`"
        )


class NotAcceptedError(ClientError):
    """Kafka did not acknowledge a message. Whether it arrived is not known."""

    def __init__(self, topic: str, cause: BaseException) -> None:
        self.topic, self.cause = topic, cause
        super().__init__(
            f"{topic}: Kafka did not acknowledge the message ({cause!r}); send it again with the same task id"
        )


class TooLargeError(ClientError):
    """A message that is larger than Kafka takes."""

    def __init__(self, topic: str, size_bytes: int, most_bytes: int) -> None:
        self.topic, self.size_bytes, self.most_bytes = topic, size_bytes, most_bytes
        super().__init__(
            f"{topic}: a message of {size_bytes:,} bytes is larger than the {most_bytes:,} that Kafka takes; "
            "put what is big where a tool can fetch it, and send where that is"
        )


class NoOutcomeError(ClientError):
    """The time is up and the task has no outcome yet. The run goes on."""

    def __init__(self, task_id: str, tenant: str, timeout_s: float) -> None:
        self.task_id, self.tenant, self.timeout_s = task_id, tenant, timeout_s
        super().__init__(
            f"task {task_id} of tenant {tenant} has no outcome after {timeout_s:g} s; "
            f"it goes on: see `triptych trace {task_id}`"
        )


class RunNotFoundError(ClientError):
    """No run has this id, prefix of an id, or task id."""

    def __init__(self, reference: str) -> None:
        self.reference = reference
        super().__init__(f"no run has the id or task id {reference!r}; `triptych runs` lists them")


class RunAmbiguousError(ClientError):
    """Several runs fit a reference."""

    def __init__(self, reference: str, candidates: Sequence[str]) -> None:
        self.reference, self.candidates = reference, tuple(candidates)
        super().__init__(f"{reference!r} fits several runs; give one of these: {', '.join(candidates)}")


class RunOverError(ClientError):
    """A command to a run that has ended; nothing follows the end of a run."""

    def __init__(self, run_id: UUID, status: str, action: str) -> None:
        self.run_id, self.status, self.action = run_id, status, action
        super().__init__(f"run {run_id} is over ({status}), so there is nothing to {action}; submit a new task")


class FilterUnknownError(ClientError):
    """A filter names what does not exist, so nothing can fit it."""

    def __init__(self, name: str, value: str, known: Sequence[str]) -> None:
        self.name, self.value, self.known = name, value, tuple(known)
        shown = [*known[:_SHOWN_MAX], *(["..."] if len(known) > _SHOWN_MAX else [])]
        super().__init__(f"no {name} is called {value!r}; there are: {', '.join(shown) or 'none yet'}")
