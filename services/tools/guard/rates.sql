-- name: admit
-- One call at the rate of a bucket (GCRA), for all processes: a row when it may be made now.
-- What is due later than this rate can have made it comes from a slower rate, before somebody raised it, or from before
-- a clock was set back: then the bucket is taken for full, and not for closed until that moment.
insert into buckets as bucket (name, due_at, told_at)
values ($1, clock_timestamp() + $2::interval, clock_timestamp())
on conflict (name) do update set
    due_at = least(greatest(bucket.due_at, clock_timestamp()), clock_timestamp() + $3::interval) + $2::interval
where bucket.due_at <= clock_timestamp() + $3::interval
    or bucket.due_at > clock_timestamp() + $3::interval + $2::interval + interval '1 second'
returning true

-- name: next_slot
-- When a call that was refused should come back: each is told a moment of its own, an interval after the last, but
-- none a moment further off than a minute: who was told before may have given up, and nobody takes that back.
update buckets set told_at = least(
    greatest(told_at + $2::interval, due_at - $3::interval, clock_timestamp()),
    clock_timestamp() + greatest($2::interval, interval '1 minute')
)
where name = $1
returning told_at - clock_timestamp() as wait
