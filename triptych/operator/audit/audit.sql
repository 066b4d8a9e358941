-- What the audit reads. `{schema}` is the schema of a worker.

-- name: playbooks
select definition from executor.playbooks

-- name: count
select count(*) from executor.runs

-- name: runs
select run_id, tenant, task_id, principal, playbook, playbook_version, partition, status, reason_code, reason_message,
       revision, steps_used, tool_calls, tokens, usd_micros, replans, started_at, updated_at, finished_at, parent_run_id, seq
from executor.runs where run_id > $1 order by run_id limit $2

-- name: journal
select run_id, seq, type, at, data from executor.journal where run_id = any($1) order by run_id, seq

-- name: steps
select run_id, step_id, revision, operation, status, attempts, error_code, started_at, finished_at
from executor.steps where run_id = any($1) order by run_id, step_id

-- name: timers
select run_id, due_at from executor.timers where run_id = any($1)

-- name: stray_keys
select k.run_id, null as task_id, 'it has business key ' || k.key || ', and never asked for it' as message
from executor.business_keys as k
where k.run_id >= (select removed_before from executor.retention) and not exists (
    select from executor.journal as j
    where j.run_id = k.run_id and j.type = 'KeyRequested'
      and j.data::jsonb ->> 'key' = k.key and j.data::jsonb ->> 'idempotency_key' = k.idempotency_key
)

-- name: known_keys
select tenant, key from executor.business_keys
where (tenant, key) in (select * from unnest($1::text[], $2::text[]))

-- name: worker_schemas
select jobs.table_schema as name, exists (
    select from information_schema.tables as effects
    where effects.table_schema = jobs.table_schema and effects.table_name = 'effects'
) as has_effects
from information_schema.tables as jobs
where jobs.table_name = 'jobs' and exists (
    select from information_schema.tables as leases
    where leases.table_schema = jobs.table_schema and leases.table_name = 'leases'
)
order by 1

-- name: orphan_journals
-- Retention may still be removing rows below its mark. They are not orphans.
select run_id, null as task_id, 'a journal without a row in runs' as message from executor.journal_commits as j
where seq = 1 and run_id >= (select removed_before from executor.retention) and not exists (select from executor.runs where runs.run_id = j.run_id)

-- name: orphan_tasks
select run_id, task_id, 'a task without a run' as message from executor.tasks as t
where run_id >= (select removed_before from executor.retention)
  and not exists (select from executor.runs where runs.run_id = t.run_id)

-- name: runs_without_task
select run_id, task_id, 'a run that no task names' as message from executor.runs as r
where not exists (select from executor.tasks as t where t.tenant = r.tenant and t.task_id = r.task_id and t.run_id = r.run_id)

-- name: orphan_steps
select distinct run_id, null as task_id, 'steps without a run' as message from executor.steps as s
where run_id >= (select removed_before from executor.retention)
  and not exists (select from executor.runs where runs.run_id = s.run_id)

-- name: orphan_timers
select run_id, null as task_id, 'a timer without a run' as message from executor.timers as t
where not exists (select from executor.runs where runs.run_id = t.run_id)

-- name: queue
select coalesce(q.run_id, r.run_id) as run_id, r.task_id,
       case when q.run_id is null then 'it is queued and has no place in the queue'
            else 'it has a place in the queue and is ' || coalesce(r.status, 'no run') end as message
from executor.queue as q full join (select run_id, task_id, status from executor.runs) as r using (run_id)
where (q.run_id is not null) is distinct from (r.status is not distinct from 'queued')

-- name: unasked_children
-- Below what retention has removed, the parent may be gone.
select r.run_id, r.task_id, 'its parent ' || r.parent_run_id || ' has never asked for it' as message
from executor.runs as r
where r.parent_run_id >= (select removed_before from executor.retention) and not exists (
    select from executor.journal as j
    where j.run_id = r.parent_run_id and j.type = 'CallRequested' and j.data::jsonb ->> 'child' = r.run_id::text
)

-- name: left_children
select c.run_id, c.task_id, 'its parent ' || c.parent_run_id || ' has ended and it goes on' as message
from executor.runs as c join executor.runs as p on p.run_id = c.parent_run_id
where c.finished_at is null and p.finished_at < now() - $1::interval

-- name: old_outbox
select partition, messages from executor.outbox where at < now() - $1::interval order by partition, epoch, number

-- name: task_ids
select run_id, task_id from executor.runs where run_id = any($1)

-- name: orphan_jobs
select run_id, null as task_id, count(*) || ' jobs in {schema} without a run' as message from {schema}.jobs as j
where run_id >= (select removed_before from executor.retention)
  and not exists (select from executor.runs where runs.run_id = j.run_id)
group by 1

-- name: old_jobs
select j.run_id, r.task_id, 'job ' || j.request_id || ' in {schema} is still ' || j.state as message
from {schema}.jobs as j join executor.runs as r using (run_id)
where j.state <> 'published'
  and (j.state <> 'parked' and r.finished_at < now() - $1::interval or j.deadline_at < now() - $1::interval)

-- name: old_answers
select r.run_id, r.task_id, 'its answers of ' || o.stored_at || ' in {schema} were never acknowledged' as message
from {schema}.outbox as o cross join unnest(o.run_ids) as answered (run_id) join executor.runs as r using (run_id)
where r.finished_at < now() - $1::interval

-- name: stray_receipts
select e.run_id, null as task_id, 'receipt ' || e.idempotency_key || ' in {schema} belongs to no call in the journal' as message
from {schema}.effects as e
where e.state = 'receipt' and e.run_id >= (select removed_before from executor.retention) and not exists (
    select from executor.journal as j
    where j.run_id = e.run_id and j.type in ('CallRequested', 'UndoRequested') and j.data::jsonb ->> 'idempotency_key' = e.idempotency_key
)
