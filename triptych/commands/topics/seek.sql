-- name: seek
-- Read a partition on from another offset. The new epoch takes the partition from its owner.
update executor.partitions as p
set offsets = p.offsets || jsonb_build_object(%(topic)s::text, %(offset)s::bigint), epoch = p.epoch + 1
from executor.partitions as before
where p.partition = %(partition)s and before.partition = p.partition
returning (before.offsets ->> %(topic)s)::bigint
