"""The topics that one owner reads together: do they fit together, and are they those that were claimed?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from triptych.kernel.kafka.topic_metadata import ClusterTopics


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a cluster says of the topics that a decider reads."""

    names: Sequence[str]
    cluster: ClusterTopics

    @property
    def common(self) -> int:
        """The number of partitions that all of them have. Others are not read: their answers would come elsewhere."""
        return min(self.cluster.partitions(name) for name in self.names)

    @property
    def problem(self) -> str | None:
        """Why they do not fit together."""
        counts = {name: self.cluster.partitions(name) for name in self.names}
        if missing := sorted(name for name, count in counts.items() if not count):
            return f"There is no topic {', '.join(missing)}, so nothing is read"
        if len(set(counts.values())) == 1:
            return None
        ranked = sorted(counts, key=lambda name: (-counts[name], name))
        told = "; ".join(f"{', '.join(group)}: {count}" for count, group in groupby(ranked, counts.__getitem__))
        return f"Topics differ in their partitions ({told}), so from number {self.common} on none is read"

    def replaced(self, now: ClusterTopics) -> tuple[str, ...]:
        """Return the topics that have another id now: they were deleted and created again."""
        before = self.cluster.ids
        return tuple(name for name in self.names if name in before and before[name] != now.ids.get(name, before[name]))
