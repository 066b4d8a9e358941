-- Journals, runs and steps in partitions by age: a run id begins with its time, so a range of ids is a span of time.
-- `triptych.kernel.postgres.age_partitions` makes the partitions ahead of time; the default one takes every id that none of them
-- is for, so an insert never fails for want of a partition. Retention drops partitions whole.

drop function commit_batch;

alter table journal rename to old_journal;
alter table old_journal rename constraint journal_pkey to old_journal_pkey;
create table journal (
    run_id uuid not null,
    seq integer not null,
    type text not null,
    at timestamptz not null,
    data jsonb not null,
    primary key (run_id, seq)
) partition by range (run_id);
comment on table journal is 'The append-only list of events of each run; the run is a fold over it.';
create table journal_default partition of journal default;
insert into journal select * from old_journal;
drop table old_journal;

alter table runs rename to old_runs;
alter table old_runs rename constraint runs_pkey to old_runs_pkey;
drop index runs_by_start, runs_by_task;
create table runs (
    run_id uuid primary key,
    tenant text not null,
    task_id text not null,
    principal text not null,
    playbook text not null,
    playbook_version text not null,
    partition integer not null,
    status text not null,
    reason_code text,
    reason_message text,
    revision integer not null,
    steps_used integer not null,
    tool_calls integer not null,
    tokens bigint not null,
    usd_micros bigint not null,
    replans integer not null,
    started_at timestamptz not null,
    updated_at timestamptz not null,
    finished_at timestamptz
) partition by range (run_id);
comment on table runs is 'A projection of the journal, for people and for `triptych runs`.';
create table runs_default partition of runs default with (fillfactor = 70);
insert into runs select * from old_runs;
drop table old_runs;

alter table steps rename to old_steps;
alter table old_steps rename constraint steps_pkey to old_steps_pkey;
create table steps (
    run_id uuid not null,
    step_id text not null,
    revision integer not null,
    operation text not null,
    status text not null,
    attempts integer not null,
    error_code text,
    started_at timestamptz,
    finished_at timestamptz,
    primary key (run_id, step_id)
) partition by range (run_id);
comment on table steps is 'A projection of the journal: each step as it stands.';
create table steps_default partition of steps default with (fillfactor = 70);
insert into steps select * from old_steps;
drop table old_steps;

-- What is searched for. Each lists run ids in their order, so that the newest runs that fit are found first.
create index runs_by_tenant on runs (tenant, run_id);
create index steps_by_tool on steps (split_part(operation, '.', 1), run_id);
create index steps_by_error on steps (error_code, run_id) include (operation) where error_code is not null;

-- The task id first: people ask for a run by its task id alone.
alter table tasks drop constraint tasks_pkey, add primary key (task_id, tenant);

create table retention (
    only_row boolean primary key default true check (only_row),
    removed_before uuid not null,
    removed_at timestamptz not null
);
comment on table retention is 'How far `triptych retention` has removed runs that are over: everything below this run id.';
insert into retention values (true, '00000000-0000-0000-0000-000000000000', now());

create function commit_batch(
    owned claimed[],
    new_tasks tasks[],
    new_journal journal[],
    new_runs runs[],
    new_steps steps[],
    new_outbox outbox[],
    published outbox_key[],
    new_timers timers[],
    done_timers uuid[],
    new_dead_letters dead_letters[]
) returns uuid[] language plpgsql as $$
declare
    duplicates uuid[] := '{}';
    fenced integer;
begin
    update partitions p set offsets = p.offsets || o.offsets
    from unnest(owned) o where p.partition = o.partition and p.epoch = o.epoch;
    get diagnostics fenced = row_count;
    if fenced <> cardinality(owned) then
        raise exception 'another owner has claimed a partition of this batch' using errcode = 'TR001';
    end if;

    if cardinality(new_tasks) > 0 then
        with admitted as (
            insert into tasks select * from unnest(new_tasks) order by task_id, tenant
            on conflict do nothing returning run_id
        )
        select coalesce(array_agg(t.run_id), '{}') into duplicates
        from unnest(new_tasks) t where t.run_id not in (select run_id from admitted);
    end if;

    insert into journal select * from unnest(new_journal) j where j.run_id <> all (duplicates);

    insert into runs as r select * from unnest(new_runs) n where n.run_id <> all (duplicates)
    on conflict (run_id) do update set
        status = excluded.status, reason_code = excluded.reason_code, reason_message = excluded.reason_message,
        revision = excluded.revision, steps_used = excluded.steps_used, tool_calls = excluded.tool_calls,
        tokens = excluded.tokens, usd_micros = excluded.usd_micros, replans = excluded.replans,
        updated_at = excluded.updated_at, finished_at = excluded.finished_at;

    insert into steps as s select * from unnest(new_steps)
    on conflict (run_id, step_id) do update set
        revision = excluded.revision, operation = excluded.operation, status = excluded.status,
        attempts = excluded.attempts, error_code = excluded.error_code,
        started_at = excluded.started_at, finished_at = excluded.finished_at;

    insert into outbox select * from unnest(new_outbox) o where o.run_id <> all (duplicates);
    delete from outbox o using unnest(published) k where o.run_id = k.run_id and o.position = k.position;

    insert into timers select * from unnest(new_timers) t where t.run_id <> all (duplicates)
    on conflict (run_id) do update set due_at = excluded.due_at;
    delete from timers where run_id = any (done_timers);

    insert into dead_letters select * from unnest(new_dead_letters) on conflict do nothing;
    return duplicates;
end
$$;
comment on function commit_batch is
    'One batch, one statement: fence, offsets, tasks, journal, projections, outbox, timers, dead letters. '
    'Returns the run ids of tasks that were known already; nothing of those runs is written.';
