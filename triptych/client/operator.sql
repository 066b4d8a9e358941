-- A run id begins with the time at which the task was published. So `order by run_id` is by age, and the runs of a span of
-- time are a range of ids. A parameter that is null does not count. Each execution is planned for its own parameters.

-- name: runs
select run_id, tenant, task_id, principal, playbook, playbook_version, partition, status, reason_code, reason_message,
       revision, steps_used, tool_calls, tokens, usd_micros, replans, started_at, updated_at, finished_at,
       parent_run_id
from executor.runs
where run_id >= $1 and run_id < $2
  and ($3::text is null or tenant = $3)
  and ($4::text[] is null or status = any ($4))
  and ($5::text is null or playbook = $5)
  and ($6::text is null or reason_code = $6)
  and ($8::timestamptz is null or started_at >= $8)
  and ($9::timestamptz is null or started_at < $9)
order by run_id desc
limit $7

-- name: runs_by_step
-- The runs with one step that fits every filter on steps.
select run_id, tenant, task_id, principal, playbook, playbook_version, partition, status, reason_code, reason_message,
       revision, steps_used, tool_calls, tokens, usd_micros, replans, started_at, updated_at, finished_at,
       parent_run_id
from executor.runs
where run_id >= $1 and run_id < $2
  and ($3::text is null or tenant = $3)
  and ($4::text[] is null or status = any ($4))
  and ($5::text is null or playbook = $5)
  and ($6::text is null or reason_code = $6)
  and ($8::timestamptz is null or started_at >= $8)
  and ($9::timestamptz is null or started_at < $9)
  and exists (
    select from executor.steps
    where steps.run_id = runs.run_id and steps.run_id >= $1 and steps.run_id < $2
      and ($10::text is null or split_part(steps.operation, '.', 1) = $10)
      and ($11::text is null or steps.operation = $11)
      and ($12::text is null or steps.error_code = $12)
  )
order by run_id desc
limit $7

-- name: runs_by_reference
-- A run id or the beginning of one is a range of ids; anything may be a task id.
select run_id, tenant, task_id, principal, playbook, playbook_version, partition, status, reason_code, reason_message,
       revision, steps_used, tool_calls, tokens, usd_micros, replans, started_at, updated_at, finished_at,
       parent_run_id
from executor.runs
where run_id between $1::uuid and $2::uuid
union
select run_id, tenant, task_id, principal, playbook, playbook_version, partition, status, reason_code, reason_message,
       revision, steps_used, tool_calls, tokens, usd_micros, replans, started_at, updated_at, finished_at,
       parent_run_id
from executor.runs join (select run_id from executor.tasks where task_id = $3 limit $4) as named using (run_id)
order by started_at desc
limit $4

-- name: run_of_task
select run_id, tenant, task_id, principal, playbook, playbook_version, partition, status, reason_code, reason_message,
       revision, steps_used, tool_calls, tokens, usd_micros, replans, started_at, updated_at, finished_at,
       parent_run_id
from executor.runs
where run_id = (select run_id from executor.tasks where tenant = $1 and task_id = $2)

-- name: playbooks
-- Of each name the version that was deployed last.
select distinct on (name) definition from executor.playbooks order by name, deployed_at desc

-- name: children
select run_id, tenant, task_id, principal, playbook, playbook_version, partition, status, reason_code, reason_message,
       revision, steps_used, tool_calls, tokens, usd_micros, replans, started_at, updated_at, finished_at,
       parent_run_id
from executor.runs
where parent_run_id = $1
order by run_id

-- name: budgets
select definition -> 'budgets' from executor.playbooks where name = $1 and version = $2

-- name: steps
select step_id, revision, operation, status, attempts, error_code, started_at, finished_at
from executor.steps
where run_id = $1
order by started_at nulls last, step_id

-- name: journal
select seq, type, at, data from executor.journal where run_id = $1 order by seq

-- name: is_tenant
select exists (select from executor.runs where tenant = $1)

-- name: known_tenants
select distinct tenant from (select tenant from executor.runs order by run_id desc limit 10000) newest

-- name: is_playbook
select exists (select from executor.playbooks where name = $1)

-- name: known_playbooks
select distinct name from executor.playbooks

-- name: is_reason
-- One of the executor's own, one that a playbook declares, or one that a run has.
select $1 = any ($2::text[])
    or exists (
        select from executor.playbooks, jsonb_path_query(definition, '$.**.unmet.code') code where code #>> '{}' = $1
    )
    or exists (select from executor.runs where reason_code = $1)

-- name: known_reasons
select distinct code #>> '{}' from executor.playbooks, jsonb_path_query(definition, '$.**.unmet.code') code

-- name: is_tool
-- A tool, or an operation of one, that a playbook may call or a run has called.
select exists (
        select from executor.playbooks, jsonb_array_elements_text(definition -> 'tools') allowed
        where case when allowed like '%.*' or $2::text is null then split_part(allowed, '.', 1) = $1 else allowed = $2 end
    )
    or exists (
        select from executor.steps where split_part(operation, '.', 1) = $1 and ($2 is null or operation = $2)
    )

-- name: known_tools
select distinct allowed from executor.playbooks, jsonb_array_elements_text(definition -> 'tools') allowed

-- name: command_answers
select run_id, seq, type, at, data
from executor.journal
where run_id = any ($1::uuid[]) and at >= $3 and data ->> 'command_id' = any ($2::text[])
order by run_id, seq
