-- name: admit
-- One call at the rate of a bucket (GCRA), for all processes: a row when it may be made now.
-- A moment later than this rate allows has one of two causes: the rate was slower before, or a clock was set back.
-- The bucket is full then. It is not closed until that moment.
insert into buckets as bucket (name, due_at, told_at)
values ($1, clock_timestamp() + $2::interval, clock_timestamp())
on conflict (name) do update set
    due_at = least(greatest(bucket.due_at, clock_timestamp()), clock_timestamp() + $3::interval) + $2::interval
where bucket.due_at <= clock_timestamp() + $3::interval
    or bucket.due_at > clock_timestamp() + $3::interval + $2::interval + interval '1 second'
returning true

-- name: next_slot
-- When a refused call should come back. Each gets a moment of its own, an interval after the last one. No moment is more
-- than a minute away, because the calls before may have given up, and their moments stay taken.
update buckets set told_at = least(
    greatest(told_at + $2::interval, due_at - $3::interval, clock_timestamp()),
    clock_timestamp() + greatest($2::interval, interval '1 minute')
)
where name = $1
returning told_at - clock_timestamp() as wait
