"""Which member of a consumer group gets which partitions, and how many existed when they were assigned.

A static member that comes back within its session gets the partitions it had. None is told that it leads the group, so
no member watches for added partitions (KIP-814). Therefore an assignment says out of how many partitions it was made.
Each member sees then that others exist, and joins again.
"""

from __future__ import annotations

from typing import Any

from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment

from triptych.schemas import codec


class Assignor(RangePartitionAssignor):  # type: ignore[misc]  # aiokafka is untyped
    """Gives ranges of partitions, and bears their name, so members with other range assignors work beside it."""

    def __init__(self, *, one_owner: bool = False) -> None:
        """`one_owner`: partition p of all topics goes to the same member, also while some topics have more than others.

        Where all have as many, that is what ranges give.
        """
        self._one_owner = one_owner
        self.given_out: dict[str, int] | None = None
        """The number of partitions of each topic when they were given out; None where the leader does not say."""

    def assign(self, cluster: Any, members: Any) -> dict[str, ConsumerProtocolMemberAssignment]:
        """Return the partitions of each topic by member."""
        names = sorted({topic for metadata in members.values() for topic in metadata.subscription})
        known = {name: sorted(cluster.partitions_for_topic(name) or ()) for name in names}
        if self._one_owner:
            given = _together(known, {member: metadata.subscription for member, metadata in members.items()})
        else:
            given = {member: one.assignment for member, one in super().assign(cluster, members).items()}
        counts = codec.encode({name: len(partitions) for name, partitions in known.items()})
        return {member: ConsumerProtocolMemberAssignment(self.version, own, counts) for member, own in given.items()}

    def on_assignment(self, assignment: ConsumerProtocolMemberAssignment) -> None:
        """Note of how many partitions this member's were given out."""
        try:
            told = codec.decode(assignment.user_data or b"null")
        except codec.InvalidJson:
            told = None
        self.given_out = told if isinstance(told, dict) else None


def _together(known: dict[str, list[int]], subscribed: dict[str, list[str]]) -> dict[str, list[tuple[str, list[int]]]]:
    most = max((len(partitions) for partitions in known.values()), default=0)
    each, more = divmod(most, len(subscribed))
    begin, given = 0, {}
    for number, (member, topics) in enumerate(sorted(subscribed.items())):
        share = range(begin, begin + each + (number < more))
        begin = share.stop
        given[member] = [(topic, own) for topic in sorted(topics) if (own := [p for p in known[topic] if p in share])]
    return given
