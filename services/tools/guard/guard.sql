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

-- name: tell
-- When a call that was refused should come back: each is told a moment of its own, an interval after the last, but
-- none a moment further off than a minute: who was told before may have given up, and nobody takes that back.
update buckets set told_at = least(
    greatest(told_at + $2::interval, due_at - $3::interval, clock_timestamp()),
    clock_timestamp() + greatest($2::interval, interval '1 minute')
)
where name = $1
returning told_at - clock_timestamp() as wait

-- name: show_breakers
insert into breakers (instance, operation, state, forced_by, since)
select $1, shown.operation, shown.state, nullif(shown.forced_by, ''), now()
from unnest($2::text[], $3::text[], $4::text[]) as shown (operation, state, forced_by)
on conflict (instance, operation) do update set
    state = excluded.state, forced_by = excluded.forced_by, since = excluded.since

-- name: forget_breakers
delete from breakers where instance = $1

-- name: record_control
insert into controls (command_id, operation, breaker, principal, note, at, answer)
values ($1, $2, $3, $4, $5, $6, $7)
on conflict (command_id) do nothing

-- name: raise_alert
insert into alerts as alert (operation, kind, message, run_id)
values ($1, $2, $3, $4)
on conflict (operation, kind) do update set
    message = excluded.message, run_id = excluded.run_id, last_at = now(),
    count = case when alert.closed_at is null then alert.count + 1 else 1 end,
    first_at = case when alert.closed_at is null then alert.first_at else now() end,
    closed_at = null

-- name: close_alert
update alerts set closed_at = now() where operation = $1 and kind = $2 and closed_at is null

-- name: close_others
update alerts set closed_at = now() where kind = $1 and closed_at is null and not operation = any($2::text[])

-- name: keep_answer
insert into answers as answer (tenant, operation, arguments_hash, result)
values ($1, $2, $3, $4)
on conflict (tenant, operation, arguments_hash) do update set result = excluded.result, answered_at = now()

-- name: last_answer
select result, (extract(epoch from clock_timestamp() - answered_at) * 1000)::float8 as age_ms
from answers where tenant = $1 and operation = $2 and arguments_hash = $3

-- name: prune_answers
delete from answers where answered_at < now() - interval '30 days'
