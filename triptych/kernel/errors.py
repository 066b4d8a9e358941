"""Errors are types with fields. Their message names the thing, the place and the cure."""

from __future__ import annotations


class TriptychError(Exception):
    """Base of everything that Triptych raises on purpose."""


class ConfigurationError(TriptychError):
    """A setting is missing or wrong. The process ends with exit code 2 and this message."""


class Fenced(TriptychError):
    """Another process owns this partition now. Drop every cached run and rejoin the group."""

    def __init__(self, partitions: tuple[int, ...]) -> None:
        self.partitions = partitions
        super().__init__(
            f"partitions {list(partitions)} belong to another owner now; this process drops its cache and rejoins"
        )


class TopicsReplacedError(TriptychError):
    """Topics were deleted and created again, so offsets are of the old ones. Claim again, read from the start."""

    def __init__(self, topics: tuple[str, ...]) -> None:
        self.topics = topics
        super().__init__(f"{', '.join(topics)} was deleted and created again; this process reads it from its beginning")


class TopicsDifferError(TriptychError):
    """The topics that one owner reads together do not fit together."""

    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(f"{problem}. Run `triptych up` or `triptych setup`, which add what is missing")


class PublishFailed(TriptychError):
    """Kafka did not acknowledge a batch in time, so its outcome is unknown. The outbox keeps the rows."""

    def __init__(self, topic: str, count: int, cause: BaseException) -> None:
        self.topic, self.count = topic, count
        super().__init__(f"{count} messages to {topic} were not acknowledged ({cause!r}); they stay in the outbox")


class KafkaTaskDiedError(TriptychError, ConnectionError):
    """A background task of the Kafka client is dead, so the client is useless. Make another one."""

    def __init__(self, task: str, cause: BaseException | None) -> None:
        self.task, self.cause = task, cause
        super().__init__(
            f"the task {task!r} of the Kafka client has died ({cause!r}); the client is given up and another begins"
        )


class MessagesRefused(TriptychError):
    """Kafka takes none of these messages, however often they are sent: too large, or against a rule of their topic.

    `positions` are their places among the messages that were published together. All others have been acknowledged.
    """

    def __init__(self, positions: tuple[int, ...], cause: BaseException) -> None:
        self.positions, self.cause = positions, cause
        super().__init__(f"{len(positions)} messages are refused by Kafka for what they are ({cause!r})")


class UndecodableRecord(TriptychError):
    """A record that cannot be understood. It becomes a dead letter with its bytes; the partition goes on."""

    def __init__(self, code: str, message: str) -> None:
        self.code, self.message = code, message
        super().__init__(f"{code}: {message}")


class StatementTooLarge(TriptychError):
    """One statement would write more than Postgres should take in one go."""

    def __init__(self, size_bytes: int, max_bytes: int) -> None:
        self.size_bytes, self.max_bytes = size_bytes, max_bytes
        super().__init__(f"it makes {size_bytes:,} bytes to be written in one statement, and may make {max_bytes:,}")


class BatchRefused(TriptychError):
    """Postgres refuses a batch for what is in it. Its records are taken one by one now, to find the one."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(f"the database refuses what a batch holds ({type(cause).__name__}); it is taken one by one")
