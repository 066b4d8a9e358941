-- name: runs
select run_id, tenant, task_id, principal, playbook, playbook_version, partition, status, reason_code, reason_message,
       revision, steps_used, tool_calls, tokens, usd_micros, replans, started_at, updated_at, finished_at
from executor.runs
where ($1::text is null or status = $1)
  and ($2::text is null or playbook = $2)
  and ($3::text is null or tenant = $3)
  and ($4::text is null or reason_code = $4)
  and ($5::timestamptz is null or started_at >= $5)
order by started_at desc, run_id desc
limit $6

-- name: runs_by_reference
-- A run id or the beginning of one is a range of ids; anything may be a task id.
select run_id, tenant, task_id, principal, playbook, playbook_version, partition, status, reason_code, reason_message,
       revision, steps_used, tool_calls, tokens, usd_micros, replans, started_at, updated_at, finished_at
from executor.runs
where run_id between $1::uuid and $2::uuid or task_id = $3
order by started_at desc
limit $4

-- name: budgets
select definition -> 'budgets' from executor.playbooks where name = $1 and version = $2

-- name: steps
select step_id, revision, operation, status, attempts, error_code, started_at, finished_at
from executor.steps
where run_id = $1
order by started_at nulls last, step_id

-- name: journal
select seq, type, at, data from executor.journal where run_id = $1 order by seq
