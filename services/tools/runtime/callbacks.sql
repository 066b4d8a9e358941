-- name: register
-- Before the call, by the process that holds the job's lease. A later attempt gets the same token, and the callback that
-- came. Only after a failure it gets another token, so that it does not take a repeated callback for its own.
with ours as (
    update jobs set state = 'started', started_at = coalesce(started_at, now())
    where run_id = $1 and request_id = $2 and lease = $3 and state in ('received', 'started')
    returning true
)
insert into callbacks (run_id, request_id, idempotency_key, tenant, operation, token)
select $1, $2, $4, $5, $6, $7 from ours
on conflict (run_id, idempotency_key) do update set
    request_id = excluded.request_id,
    token = case when callbacks.failed then excluded.token else callbacks.token end,
    result = case when callbacks.failed then null else callbacks.result end,
    failed = false
returning token, result

-- name: lock
select result from callbacks where run_id = $1 and idempotency_key = $2 for update

-- name: park
-- For so many milliseconds by this clock, which also tells when they are over; that of the process may be wrong.
update jobs set state = 'parked', lease = null,
    deadline_at = least(deadline_at, now() + $4::bigint * interval '1 millisecond')
where run_id = $1 and request_id = $2 and lease = $3 and state in ('received', 'started')
returning true

-- name: find
-- The row is locked first, and then its job is found. A callback that waited here until the next attempt had registered
-- finds the job of that attempt. With a join before the lock, it would find the job of the earlier attempt, and so no row.
with called as (
    select run_id, request_id, operation, result from callbacks where token = $1 for update
)
select called.operation, called.result, jobs.request, jobs.traceparent
from called join jobs using (run_id, request_id)

-- name: hear
-- A message whose signature does not cover the address counts at one address, the first. What is older than its
-- timestamp may be is refused before it comes here, so the row is needed for minutes only.
with forgotten as (
    delete from callback_messages where heard_at < now() - interval '1 hour' and digest <> $1
)
insert into callback_messages as known (digest, token) values ($1, $2)
on conflict (digest) do update set token = known.token
returning known.token = $2

-- name: say
update callbacks set result = $2, failed = $3, called_at = now() where token = $1

-- name: answer
-- The process that was called answers the job under its own lease. If it dies before it publishes, another one does.
update jobs set state = 'answered', answer = $4, answered_at = now(), lease = $3
where run_id = $1 and request_id = $2 and state = 'parked' and lease is null
returning true
