-- What retention asks and removes. `{table}` is put in by the code, as an identifier.

-- name: detached
-- Partitions that were taken out of their table and not dropped yet; those of runs first.
select nspname, relname from pg_class join pg_namespace as n on n.oid = relnamespace
where relkind = 'r' and not relispartition
  and (nspname = 'executor' and relname ~ '^(runs|journal_commits|steps)_[0-9]{{8}}$' or nspname = 'claims' and relname ~ '^blobs_[0-9]{{8}}$')
order by relname !~ '^runs', 1, 2

-- name: kept
-- Runs that stay although their week goes: they are not over, or have not been over for long enough.
select run_id from {table}
where run_id >= %(first)s and run_id < %(end)s and (finished_at is null or finished_at >= %(before)s)

-- name: kept_blobs
select distinct run_id from {table} as b
where created_at >= %(before)s or exists (select from executor.runs where runs.run_id = b.run_id)

-- name: warm
select count(t.*::text) from {table} as t where run_id = any(%(kept)s)

-- name: carry
-- By the default partition: the week's own is gone.
insert into {parent} select * from {table} where run_id = any(%(kept)s) on conflict do nothing

-- name: remember
insert into executor.retention (removed_before, removed_at) values (%(end)s, now())
on conflict (only_row) do update set
    removed_before = greatest(retention.removed_before, excluded.removed_before), removed_at = excluded.removed_at

-- name: old_tasks
-- Task ids go with their runs. Those of a run that was kept name a run that is there.
with batch as (
    select run_id, tenant, task_id from {table} where run_id > %(after)s order by run_id limit %(limit)s
), gone as (
    delete from executor.tasks as t using batch as b
    where t.task_id = b.task_id and t.tenant = b.tenant and t.run_id = b.run_id
      and not exists (select from executor.runs where runs.run_id = b.run_id)
    returning 1
)
select (select max(run_id::text)::uuid from batch), (select count(*) from gone)

-- name: old_runs
-- Of what lies in a partition that cannot go as a whole.
select run_id from {table}
where run_id > %(after)s and run_id < %(end)s and finished_at < %(before)s
order by run_id limit %(limit)s

-- name: remove_runs
with over as (
    delete from executor.runs where run_id = any(%(ids)s) and finished_at < %(before)s returning run_id, tenant, task_id
), tasks as (
    delete from executor.tasks as t using over as o
    where t.task_id = o.task_id and t.tenant = o.tenant and t.run_id = o.run_id
), steps as (
    delete from executor.steps where run_id = any(%(ids)s) and run_id in (select run_id from over)
), journal as (
    delete from executor.journal_commits where run_id = any(%(ids)s) and run_id in (select run_id from over)
)
select count(*) from over

-- name: worker_tables
select schemaname, tablename from pg_tables as t
where tablename in ('jobs', 'effects', 'callbacks')
  and exists (select from pg_tables as l where l.schemaname = t.schemaname and l.tablename = 'leases')
order by 1, 2

-- name: next_ids
select array_agg(run_id) from (
    select distinct run_id from {table} where run_id > %(after)s and run_id < %(end)s order by run_id limit %(limit)s
) as next

-- name: sweep
-- What belongs to runs that are gone.
delete from {table} as t
where run_id = any(%(ids)s) and {is_old}
  and not exists (select from executor.runs where runs.run_id = t.run_id)
