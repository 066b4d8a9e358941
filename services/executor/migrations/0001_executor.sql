-- What the executor keeps: who owns which partition, the journal of every run, what can be asked about
-- runs, what is still to be sent, and when to look at a run again.

create table partitions (
    partition integer primary key,
    epoch bigint not null,
    owner text not null,
    cluster_id text not null,
    offsets jsonb not null default '{}',
    claimed_at timestamptz not null default now()
) with (fillfactor = 50);
comment on table partitions is 'One owner holds a partition of all topics that the executor reads.';
comment on column partitions.epoch is 'Grows with every claim; a statement that names an older one is refused.';
comment on column partitions.cluster_id is 'The Kafka cluster that the offsets count in.';
comment on column partitions.offsets is 'Topic to next offset. The offset travels with the state it led to.';

create table playbooks (
    name text not null,
    version text not null,
    definition jsonb not null,
    deployed_at timestamptz not null default now(),
    primary key (name, version)
);
comment on table playbooks is 'Every version that was ever deployed: runs go on with the version they began with.';

create table tasks (
    tenant text not null,
    task_id text not null,
    run_id uuid not null,
    primary key (tenant, task_id)
);
comment on table tasks is 'Makes a task id one run within its tenant.';

create table journal (
    run_id uuid not null,
    seq integer not null,
    type text not null,
    at timestamptz not null,
    data jsonb not null,
    primary key (run_id, seq)
);
comment on table journal is 'The append-only list of events of each run; the run is a fold over it.';

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
) with (fillfactor = 70);
comment on table runs is 'A projection of the journal, for people and for `triptych runs`.';
create index runs_by_start on runs (started_at desc);
create index runs_by_task on runs (task_id);

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
) with (fillfactor = 70);
comment on table steps is 'A projection of the journal: each step as it stands.';

create table outbox (
    run_id uuid not null,
    position bigint not null,
    partition integer not null,
    target integer not null,
    topic text not null,
    key bytea not null,
    headers jsonb not null,
    value bytea not null,
    primary key (run_id, position)
);
comment on table outbox is 'Messages committed with the state that caused them; deleted when Kafka has them.';
comment on column outbox.partition is 'The partition whose owner publishes it.';
comment on column outbox.target is 'The partition that it is published to.';
create index outbox_by_partition on outbox (partition);

create table timers (
    run_id uuid primary key,
    partition integer not null,
    due_at timestamptz not null
);
comment on table timers is 'When time alone may next change a run: one row a run, for the earliest moment.';
create index timers_by_partition on timers (partition, due_at);

create table dead_letters (
    id text primary key,
    topic text not null,
    partition integer not null,
    "offset" bigint not null,
    key bytea,
    value bytea,
    headers jsonb not null default '[]',
    code text not null,
    message text not null,
    tenant text not null,
    failed_at timestamptz not null,
    published boolean not null default false
);
comment on table dead_letters is 'Records that could not be understood, with their bytes.';

create type claimed as (partition integer, epoch bigint, offsets jsonb);
create type outbox_key as (run_id uuid, position bigint);

create function claim_partitions(wanted integer[], new_owner text, kafka_cluster text)
returns setof claimed language sql as $$
    insert into partitions as p (partition, epoch, owner, cluster_id)
    select w, 1, new_owner, kafka_cluster from unnest(wanted) w order by w
    on conflict (partition) do update set
        epoch = p.epoch + 1,
        owner = excluded.owner,
        offsets = case when p.cluster_id = excluded.cluster_id then p.offsets else '{}' end,
        cluster_id = excluded.cluster_id,
        claimed_at = now()
    returning partition, epoch, offsets
$$;
comment on function claim_partitions is
    'Become the owner: a new epoch fences every earlier owner. Offsets of another cluster mean nothing and are dropped.';

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
            insert into tasks select * from unnest(new_tasks) order by tenant, task_id
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
