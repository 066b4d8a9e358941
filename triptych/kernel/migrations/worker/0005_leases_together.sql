-- Two processes may begin in the same microsecond, and a clock may be set back: then the clock alone gave one id to both,
-- and the second one did not start. Twelve random bits follow the clock now, which counts from 2020, so that ids still grow
-- and fit for as long as anybody cares. Whoever meets the same id all the same draws another: see open_lease.

alter table leases alter column id set default
    ((extract(epoch from clock_timestamp()) - 1577836800) * 1000000)::bigint * 4096 + floor(random() * 4096)::bigint;
