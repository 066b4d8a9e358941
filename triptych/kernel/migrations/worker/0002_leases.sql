-- A server that comes back with an older state has a sequence that is older, too: it would grant a lease under which a
-- living process still writes. Microseconds since 1970 only grow.

alter table leases alter column id drop identity;
alter table leases alter column id set default (extract(epoch from clock_timestamp()) * 1000000)::bigint;
