-- A step costs what its rows cost. What one commit adds to the journal of a run is one row now, which Postgres does not
-- parse; the messages of a commit are one row for each partition; and a row of `runs` says how far it has read the journal.
--
-- It is not made for executors of the version before beside it: they write rows of other types. They have to be stopped.
-- contract: 0012

drop function commit_batch;

alter table journal rename to old_journal;

create table journal_commits (
    run_id uuid not null,
    seq integer not null,
    at timestamptz not null,
    events text not null,
    primary key (run_id, seq)
) partition by range (run_id);
comment on table journal_commits is
    'The append-only journal of each run, one row for each commit. The run is a fold over its events.';
comment on column journal_commits.seq is 'The number of the first event in the row.';
comment on column journal_commits.events is 'A line for each event, in order: its type, a space, and its fields as JSON.';

do $$
declare
    part record;
begin
    for part in
        select child.relname as name, pg_get_expr(child.relpartbound, child.oid) as bound
        from pg_inherits join pg_class as child on child.oid = inhrelid
        where inhparent = 'old_journal'::regclass
    loop
        execute format(
            'create table %I partition of journal_commits %s',
            regexp_replace(part.name, '^journal', 'journal_commits'), part.bound
        );
    end loop;
end
$$;

-- The events of one commit have the same time and follow each other.
insert into journal_commits
select run_id, min(seq), at, string_agg(type || ' ' || data, E'\n' order by seq)
from (
    select run_id, seq, type, at, data, seq - row_number() over (partition by run_id, at order by seq) as island
    from old_journal
) as numbered
group by run_id, at, island;
drop table old_journal;

create view journal as
select
    c.run_id, (c.seq + line.number - 1)::integer as seq, split_part(line.event, ' ', 1) as type, c.at,
    substr(line.event, strpos(line.event, ' ') + 1)::json as data
from journal_commits as c cross join lateral string_to_table(c.events, E'\n') with ordinality as line (event, number);
comment on view journal is 'The events of each run, one by one: for readers.';

alter table runs add column seq integer not null default 0;
comment on column runs.seq is
    'The last event that this row and the rows of `steps` show. A run that is under way may be a moment ahead of them.';
update runs set seq = known.seq
from (select run_id, max(seq) as seq from journal group by run_id) as known where known.run_id = runs.run_id;

alter table outbox rename to old_outbox;
alter table old_outbox rename constraint outbox_pkey to old_outbox_pkey;
drop type outbox_key;
create table outbox (
    partition integer not null,
    epoch bigint not null,
    number bigint not null,
    at timestamptz not null,
    messages bytea not null,
    withheld uuid[] not null default '{}',
    primary key (partition, epoch, number)
);
comment on table outbox is
    'Messages committed with the state that caused them, one row for each commit and partition; deleted when Kafka has them.';
comment on column outbox.partition is 'The partition whose owner publishes them.';
comment on column outbox.epoch is 'The claim under which they were committed.';
comment on column outbox.number is 'The place of the commit among those of its session.';
comment on column outbox.messages is
    'MessagePack: a list of [run id, position in the run, topic, partition, key, headers, value] in the order of sending.';
comment on column outbox.withheld is
    'Runs that the commit did not create, since their tasks had runs already: what they would send is not sent.';
create type outbox_key as (partition integer, epoch bigint, number bigint);

-- Messages that are still to be sent, each in a row of its own. Epoch 0 is before every claim.
insert into outbox
select
    partition, 0, row_number() over (partition by partition order by run_id, position), now(),
    '\x9197c410'::bytea || uuid_send(run_id)
    || '\xd3'::bytea || int8send(position)
    || '\xdb'::bytea || int4send(octet_length(topic)) || convert_to(topic, 'UTF8')
    || '\xd2'::bytea || int4send(target)
    || '\xc6'::bytea || int4send(octet_length(key)) || key
    || '\xdd'::bytea || int4send(jsonb_array_length(headers)) || coalesce(
        (
            select string_agg(
                '\x92db'::bytea || int4send(octet_length(header ->> 0)) || convert_to(header ->> 0, 'UTF8')
                || '\xc6'::bytea || int4send(octet_length(decode(header ->> 1, 'base64'))) || decode(header ->> 1, 'base64'),
                '' order by number
            )
            from jsonb_array_elements(headers) with ordinality as listed (header, number)
        ),
        ''
    )
    || '\xc6'::bytea || int4send(octet_length(value)) || value,
    '{}'
from old_outbox;
drop table old_outbox;

create function commit_batch(
    owned claimed[],
    new_tasks tasks[],
    new_journal journal_commits[],
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

    insert into journal_commits select * from unnest(new_journal) j where j.run_id <> all (duplicates);

    insert into runs as r select * from unnest(new_runs) n where n.run_id <> all (duplicates)
    on conflict (run_id) do update set
        status = excluded.status, reason_code = excluded.reason_code, reason_message = excluded.reason_message,
        revision = excluded.revision, steps_used = excluded.steps_used, tool_calls = excluded.tool_calls,
        tokens = excluded.tokens, usd_micros = excluded.usd_micros, replans = excluded.replans,
        updated_at = excluded.updated_at, finished_at = excluded.finished_at, seq = excluded.seq;

    insert into steps as s select * from unnest(new_steps) n where n.run_id <> all (duplicates)
    on conflict (run_id, step_id) do update set
        revision = excluded.revision, operation = excluded.operation, status = excluded.status,
        attempts = excluded.attempts, error_code = excluded.error_code,
        started_at = excluded.started_at, finished_at = excluded.finished_at;

    insert into outbox select partition, epoch, number, at, messages, duplicates from unnest(new_outbox);
    delete from outbox o using unnest(published) k
    where o.partition = k.partition and o.epoch = k.epoch and o.number = k.number;

    insert into timers select * from unnest(new_timers) t where t.run_id <> all (duplicates)
    on conflict (run_id) do update set due_at = excluded.due_at;
    delete from timers where run_id = any (done_timers);

    insert into dead_letters select * from unnest(new_dead_letters) on conflict do nothing;
    return duplicates;
end
$$;
comment on function commit_batch is
    'One batch, one statement: fence, offsets, tasks, journal, projections, outbox, timers, dead letters. '
    'Returns the run ids of tasks that were known already. Nothing of those runs is written, and nothing is sent.';
