-- name: begin
-- The intent, committed before the call. Only the process that holds the job's lease may write it. The job has begun
-- from here on: either a withdrawal finds that, or this statement finds the withdrawal. If the database was put back to
-- an older state, effects of runs that began before that may be missing here.
with ours as (
    update jobs set state = 'started', started_at = coalesce(started_at, now())
    where run_id = $1 and request_id = $2 and lease = $3 and state in ('received', 'started')
    returning true
), known as (
    select state, operation, arguments_hash, result from effects where run_id = $1 and idempotency_key = $4
), begun as (
    insert into effects (run_id, idempotency_key, tenant, operation, arguments_hash, request_id)
    select $1, $4, $5, $6, $7, $2 from ours
    on conflict (run_id, idempotency_key) do update set
        state = 'started',
        attempts = case when effects.state = 'refused' then 1 else effects.attempts + 1 end,
        request_id = excluded.request_id
    where effects.state <> 'receipt'
      and effects.operation = excluded.operation and effects.arguments_hash = excluded.arguments_hash
    returning attempts
)
select exists (select from ours) as ours, begun.attempts, known.state, known.operation, known.arguments_hash, known.result,
    coalesce($8 < nullif(current_setting('triptych.restored_at_ms', true), '')::bigint, false) as may_be_lost
from (select) as one left join begun on true left join known on true

-- name: settle
-- With the answers: receipts of what was done, and refusals where no attempt can have done anything.
update effects set
    state = case when done.result is null then 'refused'::effect_state else 'receipt' end,
    result = done.result,
    finished_at = now()
from unnest($1::uuid[], $2::text[], $3::text[], $4::bytea[]) as done (run_id, idempotency_key, request_id, result)
where effects.run_id = done.run_id and effects.idempotency_key = done.idempotency_key
  and effects.state = 'started'
  and (done.result is not null or (effects.attempts = 1 and effects.request_id = done.request_id))
