-- name: tools
select substr(nspname, 6) as tool from pg_namespace where nspname like 'tool\_%' order by nspname

-- name: breakers
select operation, instance, state, forced_by, since from tool_schema.breakers order by operation, instance

-- name: alerts
select operation, kind, message, count, first_at, last_at from tool_schema.alerts
where closed_at is null order by last_at desc

-- name: answer
select answer from tool_schema.controls where command_id = $1

-- name: gaps
select tenant, playbook, capability, kind, why, goal, run_id, count, first_at, last_at from planner.gaps
order by count desc, last_at desc
